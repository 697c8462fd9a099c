"""Hiding words for a model to guess (BERT, arXiv 1810.04805, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["NO_LABEL", "MaskVocabulary", "Masked", "mask_words"]

NO_LABEL = -100
"""Stands in labels where nothing is asked; the losses leave such rows out."""


class MaskVocabulary(NamedTuple):
    """What masking must know of a vocabulary."""

    mask_id: int
    """The id that hides a token."""
    special_ids: tuple[int, ...]
    """Ids that are never hidden and never put in another's place ([PAD], [CLS], [SEP], ...)."""
    size: int
    """Ids run from 0 to size - 1."""
    continues: Tensor | None = None
    """(size,) bool, which ids continue a word (WordPiece's `##...`); None: every id is a word."""

    @classmethod
    def from_tokens(
        cls, tokens: Sequence[str], *, mask: str, special: Sequence[str], continued_by: str = "##"
    ) -> MaskVocabulary:
        """Read it off a WordPiece vocabulary.

        Args:
            tokens: All tokens in the order of their ids.
            mask: The token that hides others.
            special: Tokens that are never hidden; those the vocabulary lacks are passed over.
            continued_by: How a token begins that continues a word.

        Returns:
            The vocabulary.
        """
        index = {token: i for i, token in enumerate(tokens)}
        continues = torch.tensor([token.startswith(continued_by) for token in tokens])
        return cls(index[mask], tuple(index[t] for t in special if t in index), len(tokens), continues)


class Masked(NamedTuple):
    """Texts with some tokens hidden."""

    ids: Tensor
    """(T, L) int64."""
    labels: Tensor
    """(T, L) int64, the hidden tokens' true ids, -100 elsewhere."""


def mask_words(
    ids: Tensor,
    keep: Tensor,
    *,
    vocabulary: MaskVocabulary,
    generator: torch.Generator | None = None,
    p: float = 0.15,
    whole_words: bool = False,
) -> Masked:
    """Hide each token with probability `p`: behind the mask, 80 % of the time; a random id, 10 %; itself, 10 %.

    Each token, or whole word, is drawn on its own, so in a short text there may be nothing hidden; the losses take
    that. (ViLT's collator, transformers' for whole words, hides `max(1, round(p * L))` instead.) In a whole word all
    tokens are asked for, and each falls behind mask, random id or itself on its own, as in BERT.

    A random id is drawn from the ids that are not special. (BERT and ALBEF draw from all, [CLS] and [PAD] included.)

    Args:
        ids: (T, L) int64.
        keep: (T, L) bool, True = real token.
        vocabulary: The mask, the special ids, and which ids continue a word.
        generator: Source of randomness; it may lie on another device than the ids.
        p: Share of tokens to hide, in [0, 1].
        whole_words: Hide a word's tokens all or none.

    Returns:
        The hidden texts and what was hidden.
    """
    device = ids.device if generator is None else generator.device
    special = torch.tensor(sorted({*vocabulary.special_ids, vocabulary.mask_id}), device=ids.device)
    candidate = keep & ~torch.isin(ids, special)
    chosen, fate = torch.rand(2, *ids.shape, generator=generator, device=device).to(ids.device)
    if whole_words and vocabulary.continues is not None:
        starts = ~vocabulary.continues.to(ids.device)[ids]
        starts[:, 1:] |= ~candidate[:, :-1]  # after a special token a word begins, whatever follows
        chosen = chosen.gather(1, (starts.cumsum(1) - starts[:, :1].long()))
    hidden = candidate & (chosen < p)
    ordinary = vocabulary.size - int((special < vocabulary.size).sum())
    other = torch.randint(max(ordinary, 1), ids.shape, generator=generator, device=device).to(ids.device)
    # the n-th id that is not special: n, plus the specials that lie before it
    before = special - torch.arange(len(special), device=ids.device)
    other += torch.searchsorted(before, other, right=True)
    masked = torch.where(hidden & (fate < 0.8), vocabulary.mask_id, ids)
    masked = torch.where(hidden & (fate >= 0.9), other, masked)
    return Masked(masked, ids.masked_fill(~hidden, NO_LABEL))
