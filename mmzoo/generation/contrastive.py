"""Contrastive decoding: what an expert finds likelier than an amateur does (Li et al. 2022, arXiv 2210.15097)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmzoo.errors import UsageError, ZooError
from mmzoo.generation.protocol import Decoder

__all__ = ["ContrastiveDecoder"]


class ContrastiveDecoder:
    """A decoder made of two, for any search: scores are `log p_expert - strength * log p_amateur`.

    Only words that the expert itself finds plausible, at least `plausible` as likely as its likeliest, can be written.
    The paper sums the differences over beams; here they are logits, and beam search normalises them first.

    Args:
        expert: The better decoder.
        amateur: A worse one over the same contexts and vocabulary: a smaller model, or the same without the image.
        plausible: The share of the likeliest word's probability, above 0 and at most 1 (the paper's alpha).
        strength: Weight of the amateur; 0 leaves the expert alone.

    Raises:
        UsageError: `plausible` or `strength` is out of range.
        ZooError: The two do not write over the same contexts with the same tokens.
    """

    def __init__(self, expert: Decoder, amateur: Decoder, *, plausible: float = 0.1, strength: float = 1.0):
        if not 0 < plausible <= 1:
            raise UsageError(f"plausible={plausible} is a share: above 0, and at most 1.")
        if not 0 <= strength < math.inf:
            raise UsageError(f"strength={strength} must be 0 (the expert alone) or more.")
        for name in ("bos_id", "eos_id", "vocab"):
            if getattr(expert, name) != getattr(amateur, name):
                raise ZooError(
                    f"expert and amateur must share their tokens, {name} is {getattr(expert, name)} and "
                    f"{getattr(amateur, name)}."
                )
        if len(expert) != len(amateur):
            raise ZooError(
                f"expert and amateur must read the same contexts, they have {len(expert)} and {len(amateur)}."
            )
        self.expert, self.amateur = expert, amateur
        self.plausible, self.strength = plausible, strength
        self.bos_id, self.eos_id, self.pad_id = expert.bos_id, expert.eos_id, expert.pad_id
        self.vocab, self.context = expert.vocab, min(expert.context, amateur.context)
        self.device = expert.device

    def __len__(self) -> int:
        return len(self.expert)

    def start(self, reads: Tensor) -> None:
        """Begin anew, both."""
        self.expert.start(reads)
        self.amateur.start(reads)

    def step(self, ids: Tensor) -> Tensor:
        """Append tokens (R, L) to every row of both; the difference (R, V), -inf for words that are not plausible."""
        expert, amateur = (decoder.step(ids).log_softmax(1) for decoder in (self.expert, self.amateur))
        least = expert.amax(1, keepdim=True) + math.log(self.plausible)
        return (expert - self.strength * amateur).masked_fill(expert < least, -torch.inf)

    def reorder(self, rows: Tensor) -> None:
        """Go on with other rows, both."""
        self.expert.reorder(rows)
        self.amateur.reorder(rows)
