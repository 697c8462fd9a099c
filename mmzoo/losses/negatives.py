"""Hard negatives: for every text an image that resembles its own, for every image such a text, in one draw."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mmzoo.losses.means import at_least_float32
from mmzoo.ops.pairs import Positives

__all__ = ["Negatives", "Weighting", "draw_negatives"]

Weighting = Literal["log", "albef", "blip"]

_STEPS = 2**32  # the weight of a row's likeliest negative; what has less than one step is never drawn


class Negatives(NamedTuple):
    """One drawn partner for each item; where none is found the index is 0 and the row must be left out."""

    image: Tensor
    """(T,) int64, an image for each text."""
    image_found: Tensor
    """(T,) bool, whether the text has any image that is not a positive."""
    text: Tensor
    """(B,) int64, a text for each image."""
    text_found: Tensor
    """(B,) bool."""


@torch.no_grad()
def draw_negatives(
    scores: Tensor,
    positives: Positives,
    *,
    generator: torch.Generator | None = None,
    weighting: Weighting = "log",
    text_scores: Tensor | None = None,
) -> Negatives:
    """Draw one negative for each image and each text, likelier the higher its score, never a positive.

    A partner's weight is the softmax of its row of scores, positives struck out:

    - "log" takes the softmax over the negatives alone, so that whatever the scores, a row with any negative has one.
    - "albef" takes the softmax itself, as ALBEF's code does: what underflows has weight 0, and a row left with
      nothing else counts as not found (where the original fails).
    - "blip" adds 1e-4 to the softmax, as BLIP's code does, so that every negative keeps a chance.

    ALBEF's and BLIP's pre-training strike out the diagonal alone: pass `Diagonal(B)` for parity with them.

    Args:
        scores: (B, T) logits (cosines times scale) of images against texts, of any floating type.
        positives: The pairs of B images and T texts that belong together; none of them is drawn.
        generator: Source of randomness; it may lie on another device than the scores.
        weighting: See above.
        text_scores: (T, B) logits of texts against images, where they differ from `scores.T` (in ALBEF either side
            is scored against the teacher's other).

    Returns:
        The indices and which of them count.
    """
    row, column = positives.tile(0, len(scores))
    back = scores.T if text_scores is None else text_scores
    image, image_found = _draw(back, (column, row), generator, weighting)
    text, text_found = _draw(scores, (row, column), generator, weighting)
    return Negatives(image, image_found, text, text_found)


def _draw(
    scores: Tensor, positives: tuple[Tensor, Tensor], generator: torch.Generator | None, weighting: Weighting
) -> tuple[Tensor, Tensor]:
    """(R,) drawn column and whether there was one.

    A row's weights lie end to end, in steps of which the best has 2^32, and one number says where to look: a thousand
    rows need a thousand random numbers, where Gumbel noise or torch's `multinomial` need a million.
    """
    dtype = at_least_float32(scores)
    weight = scores.to(dtype).clone(memory_format=torch.contiguous_format)
    if weighting == "log":
        weight[positives] = float("-inf")
        best = weight.amax(1, keepdim=True)
        found = best > float("-inf")
        weight.sub_(best).exp_()
    else:
        weight = weight.softmax(1)
        if weighting == "blip":
            weight += 1e-4
        weight[positives] = 0
        best = weight.amax(1, keepdim=True)
        found = best > 0
        weight /= best
    # whole numbers add up to the same in any order, on every device: what has no weight has no room between two edges
    edges = weight.mul_(_STEPS).long().cumsum_(1)
    total = torch.where(found, edges[:, -1:], 1)
    device = scores.device if generator is None else generator.device
    ticket = torch.randint(2**63 - 1, total.shape, generator=generator, device=device).to(total.device)
    column = torch.searchsorted(edges, ticket % total, right=True)
    return torch.where(found, column, 0)[:, 0], found[:, 0]
