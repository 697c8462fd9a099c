"""`generate` and `stream`: one text or several for each context of a decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from mmzoo.errors import UsageError, ZooError
from mmzoo.generation.beams import write_beams
from mmzoo.generation.config import GenerationConfig
from mmzoo.generation.protocol import Decoder
from mmzoo.generation.rowwise import steps, write_rows
from mmzoo.generation.written import Generated, prompt_groups

__all__ = ["Prompt", "Word", "generate", "stream"]

Prompt: TypeAlias = Tensor | Sequence[int] | Sequence[Tensor | Sequence[int]] | None


class Word(NamedTuple):
    """One token of one text, as it is written.

    Attributes:
        context: The context it is about.
        draw: Which of the context's texts it belongs to.
        token: Its id.
        score: Log-probability that the decoder gave it.
        last: Whether the text is over with it.
    """

    context: int
    draw: int
    token: int
    score: float
    last: bool


def generate(
    decoder: Decoder,
    prompt: Prompt = None,
    config: GenerationConfig | None = None,
    *,
    keys: Sequence[int] | Tensor | None = None,
) -> Generated:
    """Write texts for all contexts of a decoder.

    Contexts are grouped by the length of their prompts, so no padding is ever read.

    Args:
        decoder: What to write with; it must be used by nothing else meanwhile.
        prompt: Ids (L,) that every text begins with, or one such for each context; without the begin token.
        config: How; None is greedy search of 20 tokens.
        keys: (C,) what sampling is seeded by beside the config's seed, so that a text depends on what it is about and
            not on what else is in the batch; None takes the contexts' numbers.

    Returns:
        `per_context` texts for each context, in the order of the contexts.

    Raises:
        UsageError: The vocabulary is too small for so many beams, a prompt and its text do not fit the context, or a
            bad word is the end token or none at all.
        ZooError: A prompt holds no tokens of the vocabulary; keys do not fit; every word of a text is forbidden.
    """
    config = GenerationConfig() if config is None else config
    names, groups = _prepare(decoder, prompt, config, keys)
    parts = []
    with torch.inference_mode():
        for contexts, begun in groups:
            if config.beams > 1:
                parts.append(write_beams(decoder, contexts, begun, config))
            else:
                parts.append(write_rows(decoder, contexts, begun, config, [names[i] for i in contexts]))
    return Generated.join(parts, decoder.pad_id)


def stream(
    decoder: Decoder,
    prompt: Prompt = None,
    config: GenerationConfig | None = None,
    *,
    keys: Sequence[int] | Tensor | None = None,
) -> Iterator[Word]:
    """Write token by token, for interfaces that show a text while it grows.

    Args:
        decoder: What to write with.
        prompt: As for `generate`.
        config: Greedy search or sampling, without `best_of`: other searches know their text only at the end.
        keys: As for `generate`.

    Returns:
        An iterator of tokens, one for each unfinished text in turn. Of a text they are those that `generate` gives.

    Raises:
        UsageError: The config asks for beams, or for the best of several.
        ZooError: As `generate`.
    """
    config = GenerationConfig() if config is None else config
    if config.beams > 1 or config.best_of is not None:
        raise UsageError(
            "beams and best_of know their text only at its end: stream greedy search or sampling, or call generate."
        )
    names, groups = _prepare(decoder, prompt, config, keys)
    return _words(decoder, groups, config, names)


def _words(
    decoder: Decoder, groups: list[tuple[list[int], Tensor]], config: GenerationConfig, names: list[int]
) -> Iterator[Word]:
    for contexts, begun in groups:
        written = steps(decoder, contexts, begun, config, [names[i] for i in contexts])
        for t in range(1, config.max_new_tokens + 1):
            # not around the loop: the caller's own code runs between two words
            with torch.inference_mode():
                step = next(written, None)
            if step is None:
                break
            said = zip(step.rows.tolist(), step.ids.tolist(), step.token_scores.tolist(), step.ends.tolist())
            for row, token, score, ends in said:
                context, number = contexts[row // config.draws], row % config.draws
                yield Word(context, number, token, score, ends or t == config.max_new_tokens)


def _prepare(
    decoder: Decoder, prompt: Prompt, config: GenerationConfig, keys: Sequence[int] | Tensor | None
) -> tuple[list[int], list[tuple[list[int], Tensor]]]:
    """Check what only the decoder can tell. Returns each context's key, and the contexts by prompt length."""
    if not len(decoder):
        raise ZooError("there is no context to write about.")
    names = list(range(len(decoder))) if keys is None else [int(key) for key in keys]
    if len(names) != len(decoder):
        raise ZooError(f"{len(names)} keys for {len(decoder)} contexts: give one for each.")
    for word in config.bad_words:
        if word == (decoder.eos_id,):
            raise UsageError(
                "bad_words forbids the end token, so no text could end: say min_new_tokens instead."
            )
        if wrong := [token for token in word if not 0 <= token < decoder.vocab]:
            raise UsageError(f"bad_words holds token {wrong[0]}, outside 0 to {decoder.vocab - 1}.")
    groups = prompt_groups(prompt, decoder)
    # the last token written is never read
    longest = max(begun.shape[1] for _, begun in groups)
    if longest + config.max_new_tokens - 1 > decoder.context:
        raise UsageError(
            f"a prompt of {longest - 1} tokens and {config.max_new_tokens} new ones do not fit the decoder's context "
            f"of {decoder.context}, begin token included: shorten the prompt, or lower max_new_tokens."
        )
    return names, groups
