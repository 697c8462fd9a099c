"""What all verbs do that let a model write: a prompt in tokens, texts out of a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mmzoo.apps.opening import Opened, finite
from mmzoo.errors import UsageError
from mmzoo.generation import Decoder, GenerationConfig, generate

__all__ = ["BEAMS", "Text", "own_prompt", "prompt_ids", "write_texts"]

BEAMS = 3
"""Beams of a search unless told otherwise: BLIP's own for captions and answers."""


class Text(NamedTuple):
    """A text that a model wrote.

    Attributes:
        text: The text, without the prompt.
        ids: Its tokens, without prompt and end token.
        score: Mean log-probability of a token, the end token included, before anything was forbidden or favoured.
        finished: False where it was cut at the most tokens.
    """

    text: str
    ids: tuple[int, ...]
    score: float
    finished: bool


def own_prompt(opened: Opened) -> str:
    """What a model's captions begin with unless told otherwise; nothing where it has no prompt of its own."""
    prompt: str = getattr(opened.model, "caption_prompt", "")
    return prompt


def prompt_ids(opened: Opened, prompt: str | None) -> list[int]:
    """The tokens of a prompt, begin token left out.

    Args:
        opened: A model that `WritesCaptions`.
        prompt: The prompt; None is the model's own, a blank one has no tokens.

    Raises:
        UsageError: It is longer than what the model reads.
    """
    text = own_prompt(opened) if prompt is None else prompt
    if not text.strip():
        return []
    ids: list[int] = opened.processor.framed([text]).ids[0].tolist()
    spec = opened.processor.text_spec
    assert spec is not None, "who writes captions has a vocabulary"
    if len(ids) >= spec.context:  # cut, or on the edge, where nothing could follow it
        raise UsageError(
            f"the prompt is longer than the {spec.context - 3} tokens that {opened.name} has room for: shorten it."
        )
    return ids[1:-1]


def write_texts(
    opened: Opened,
    decoder: Decoder,
    prompt: Sequence[int],
    settings: GenerationConfig,
    keys: Sequence[int] | None = None,
) -> list[tuple[Text, ...]]:
    """Write the texts of each context of a decoder, best first.

    Args:
        opened: The model.
        decoder: What to write with.
        prompt: Tokens that every text begins with.
        settings: How to write.
        keys: What drawing is seeded by beside the seed, one for each context.

    Raises:
        UsageError: Prompt or settings do not fit the decoder.
        ZooError: The model gives numbers that are not finite.
    """
    made = generate(decoder, list(prompt), settings, keys=keys)
    finite(made.token_scores, opened)
    means = made.token_scores.double().sum(1) / made.lengths
    # without the end token, but with what a padding token in the middle would be
    ends = (made.lengths - made.finished.long()).tolist()
    rows = [row[:end] for row, end in zip(made.rows.tolist(), ends, strict=True)]
    texts = [
        # rounded to what does not change with the other pictures of the batch
        Text(text, tuple(row), round(score, 4), finished)
        for text, row, score, finished in zip(
            opened.processor.decode(rows), rows, means.tolist(), made.finished.tolist(), strict=True
        )
    ]
    each = settings.per_context
    return [tuple(texts[i : i + each]) for i in range(0, len(texts), each)]
