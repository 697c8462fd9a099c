"""What comes out of a search, and what all searches ask of a row: is it over, what did it say.

Legend: R rows, L tokens of a row with its prompt, t tokens written, T the most tokens written, C contexts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmzoo.errors import ZooError
from mmzoo.generation.config import Stop
from mmzoo.generation.protocol import Decoder

__all__ = ["Generated", "nothing_left", "prompt_groups", "stops", "stretch"]


@dataclass(frozen=True)
class Generated:
    """Texts, those of one context together and its best first.

    Attributes:
        rows: (N, T) int64, the tokens written: no prompt, the end token where there is one, then padding.
        lengths: (N,) int64, tokens of each text, the end token included.
        scores: (N,) what the search ranks by. Beam search: the sum of the log-probabilities that it saw, processors and
            diversity included; else the sum of `token_scores`. Divided by the length to the power `length_penalty`.
        token_scores: (N, T) log-probability that the decoder gave each token before any processor, 0 at padding.
        context: (N,) int64, the context of each text.
        finished: (N,) bool, False where a text was cut at `max_new_tokens`.
    """

    rows: Tensor
    lengths: Tensor
    scores: Tensor
    token_scores: Tensor
    context: Tensor
    finished: Tensor

    def __len__(self) -> int:
        return self.rows.shape[0]

    @classmethod
    def join(cls, parts: Sequence[Generated], pad: int) -> Generated:
        """Put parts together in the order of their contexts, no wider than the longest text."""
        width = max((int(part.lengths.max()) for part in parts if len(part)), default=0)
        rows = torch.cat([stretch(part.rows, width, pad) for part in parts])
        token_scores = torch.cat([stretch(part.token_scores, width, 0) for part in parts])
        context = torch.cat([part.context for part in parts])
        order = context.argsort(stable=True)
        lengths, scores, finished = (
            torch.cat([getattr(part, name) for part in parts])[order]
            for name in ("lengths", "scores", "finished")
        )
        return cls(rows[order], lengths, scores, token_scores[order], context[order], finished)


def stretch(x: Tensor, width: int, value: int) -> Tensor:
    """Cut or fill up the last dimension of `x` (R, L) to `width`."""
    if x.shape[1] >= width:
        return x[:, :width]
    return torch.cat([x, x.new_full((x.shape[0], width - x.shape[1]), value)], dim=1)


def stops(written: Tensor, end: int, stop: Stop) -> Tensor:
    """Which of the rows `written` (R, t) end with their last token: (R,) bool."""
    over = written[:, -1] == end
    if callable(stop):
        said = stop(written)
        if said.dtype != torch.bool or said.shape != over.shape:
            raise ZooError(
                f"stop must say for each of {len(over)} rows whether it ends, as (R,) bool, got {said.dtype} "
                f"{tuple(said.shape)}."
            )
        return over | said
    for word in stop:
        if written.shape[1] >= len(word):
            over |= (written[:, -len(word) :] == torch.tensor(word, device=written.device)).all(1)
    return over


def nothing_left(context: int) -> ZooError:
    """The error of a context for which every word is forbidden."""
    return ZooError(
        f"nothing is left to write for context {context}: bad_words, no_repeat_ngram, min_new_tokens or the decoder "
        "itself forbid every word of the vocabulary; loosen them, or write fewer tokens."
    )


def prompt_groups(
    prompt: Tensor | Sequence[int] | Sequence[Tensor | Sequence[int]] | None, decoder: Decoder
) -> list[tuple[list[int], Tensor]]:
    """Group contexts by the length of their prompts, so that no padding enters.

    Args:
        prompt: Ids (L,) for all contexts, one such for each of C, or None; without the begin token.
        decoder: Whose contexts and vocabulary they are.

    Returns:
        Numbers of contexts with their first tokens (n, 1 + L) int64, begin token first.

    Raises:
        ZooError: Not one prompt for each context; a token outside the vocabulary.
    """
    each = _prompts(prompt, len(decoder))
    known = max(decoder.vocab, decoder.bos_id + 1)
    for i, ids in enumerate(each):
        if wrong := [token for token in ids if not 0 <= token < known]:
            raise ZooError(f"the prompt of context {i} holds token {wrong[0]}, outside 0 to {known - 1}.")
    groups: dict[int, list[int]] = {}
    for i, ids in enumerate(each):
        groups.setdefault(len(ids), []).append(i)
    return [
        (members, torch.tensor([[decoder.bos_id, *each[i]] for i in members], device=decoder.device))
        for members in groups.values()
    ]


def _prompts(
    prompt: Tensor | Sequence[int] | Sequence[Tensor | Sequence[int]] | None, contexts: int
) -> list[list[int]]:
    if prompt is None:
        return [[]] * contexts
    if isinstance(prompt, Tensor):
        if prompt.dim() == 1:
            return [_ids(prompt)] * contexts
        if prompt.dim() != 2:
            raise ZooError(f"a prompt is (L,) ids, or one such for each context, got {tuple(prompt.shape)}.")
        prompt = list(prompt)
    if all(isinstance(part, int) for part in prompt):
        return [[part for part in prompt if isinstance(part, int)]] * contexts
    if len(prompt) != contexts:
        raise ZooError(f"{len(prompt)} prompts for {contexts} contexts: give one for each, or one for all.")
    return [_ids(part) for part in prompt if not isinstance(part, int)]


def _ids(prompt: Tensor | Sequence[int]) -> list[int]:
    ids = prompt.tolist() if isinstance(prompt, Tensor) else list(prompt)
    if not all(isinstance(token, int) for token in ids):
        raise ZooError(f"a prompt is a sequence of token ids, got {ids!r:.80}.")
    return ids
