"""Text assignment, which teaches twin layers to tell two images apart (ALBEF, arXiv 2107.07651, section 4 and A)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmzoo.losses.means import at_least_float32
from mmzoo.ops.pairs import Positives

__all__ = ["FIRST", "NEITHER", "SECOND", "Assignment", "draw_assignment"]

FIRST, SECOND, NEITHER = 0, 1, 2


class Assignment(NamedTuple):
    """Two images for each text, and which of them it describes."""

    first: Tensor
    """(B,) int64, an image of the batch."""
    second: Tensor
    """(B,) int64, another one."""
    label: Tensor
    """(B,) int64: FIRST, SECOND or NEITHER."""
    found: Tensor
    """(B,) bool, False where the batch has too few images that the text does not describe."""


@torch.no_grad()
def draw_assignment(
    scores: Tensor, positives: Positives, *, generator: torch.Generator | None = None
) -> Assignment:
    """Give every text two images: a third of the time its own first, a third second, a third neither is its own.

    The others are drawn without replacement, likelier the more they resemble the text's own image.

    Args:
        scores: (B, B) how much images resemble each other (cosines times scale), of any floating type.
        positives: Which texts of the batch describe which images; none of them is drawn as another, nor is the text's
            own image, whatever the ids say.
        generator: Source of randomness; it may lie on another device than the scores.

    Returns:
        The images and the labels.
    """
    count, device = len(scores), scores.device
    own = torch.arange(count, device=device)
    image, text = positives.tile(0, count)
    weight = scores.to(at_least_float32(scores), copy=True)
    weight[text, image] = float("-inf")  # row: the text, and the image that it belongs to
    weight[own, own] = float("-inf")
    candidates = (weight > float("-inf")).sum(1)
    place = device if generator is None else generator.device
    noise = torch.empty(weight.shape, dtype=weight.dtype, device=place).exponential_(generator=generator)
    # the largest of log-weights with Gumbel noise are a draw without replacement, in its order
    weight -= noise.clamp_min_(torch.finfo(weight.dtype).tiny).log_().to(device)
    order = weight.argsort(dim=1, descending=True)
    one, two = order[:, 0], order[:, min(1, count - 1)]
    label = torch.randint(3, (count,), generator=generator, device=place).to(device)
    first = torch.where(label == FIRST, own, one)
    second = torch.where(label == FIRST, one, torch.where(label == SECOND, own, two))
    return Assignment(first, second, label, candidates >= torch.where(label == NEITHER, 2, 1))
