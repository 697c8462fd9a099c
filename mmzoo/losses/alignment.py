"""Word-patch alignment: what it costs to carry a text's words to the image's patches (ViLT, arXiv 2102.03334, 3.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmzoo.losses.means import add_up, at_least_float32, share_of_each
from mmzoo.losses.tiles import full_precision

__all__ = ["Alignment", "alignment_loss", "transport_plan"]


class Alignment(NamedTuple):
    """What the alignment returns; scalars, float32 (float64 for float64 inputs)."""

    loss: Tensor
    """(sum of distances of matching rows - sum of the others') / all rows."""
    matching: Tensor
    """Mean distance of the matching rows, 0 without any."""
    other: Tensor
    """Mean distance of the others."""


def alignment_loss(
    text: Tensor,
    image: Tensor,
    text_keep: Tensor,
    image_keep: Tensor,
    match: Tensor,
    *,
    beta: float = 0.5,
    steps: int = 50,
    over_ranks: bool = False,
) -> Alignment:
    """Pull the words and patches of matching pairs together, and those of others apart.

    A row's distance is the cosine cost (1 - cosine) under an approximate optimal transport plan between its words and
    its patches, each with equal mass; the plan carries no gradient. As in ViLT's code the loss is a signed mean over
    all rows: with half of the rows matching, half of `matching - other`. A row without a word or without a patch has
    no distance and is left out.

    Args:
        text: (B, L, D) of any floating type; computed in float32 whatever the autocast (float64 stays float64).
        image: (B, N, D).
        text_keep: (B, L) bool, the words; ViLT leaves out [CLS] and [SEP].
        image_keep: (B, N) bool, the patches; ViLT leaves out the class token.
        match: (B,) bool, True where text and image belong together.
        beta: The transport's step (IPOT, arXiv 1802.04307).
        steps: How often it is improved.
        over_ranks: Take the means over the rows of all ranks: the same on each and, averaged over ranks, the gradient
            of one process with all rows.

    Returns:
        The loss, which ViLT weighs with 0.1, and both mean distances.
    """
    with full_precision(text.device):
        dtype = at_least_float32(text, image)
        # 1e-5 is the reference's, which counts where a token is nearly zero
        text, image = (F.normalize(x.to(dtype), dim=-1, eps=1e-5) for x in (text, image))
        both = text_keep[:, :, None] & image_keep[:, None, :]
        cost = (1 - text @ image.transpose(1, 2)).masked_fill(~both, 0)
        plan = transport_plan(cost.detach(), text_keep, image_keep, beta=beta, steps=steps)
        distance = (cost * plan).sum((1, 2))
        counted = text_keep.any(1) & image_keep.any(1)
        means = [
            add_up((distance * of).sum() * share_of_each(of.sum().to(dtype), over_ranks), over_ranks)
            for of in ((match & counted).to(dtype), (~match & counted).to(dtype))
        ]
        sign = torch.where(match, 1, -1) * counted
        share = share_of_each(counted.sum().to(dtype), over_ranks)
        return Alignment(add_up((distance * sign).sum() * share, over_ranks), *means)


@torch.no_grad()
def transport_plan(
    cost: Tensor, row_keep: Tensor, column_keep: Tensor, *, beta: float = 0.5, steps: int = 50
) -> Tensor:
    """Approximate the cheapest way to carry equal masses on rows to equal masses on columns (IPOT, algorithm 1).

    Inexact proximal point iteration with one scaling of rows and columns a step. Its last scaling is that of the
    rows, so each kept row gives away exactly its mass; columns receive theirs up to the iteration's error.

    Args:
        cost: (B, L, N) float32 or float64.
        row_keep: (B, L) bool.
        column_keep: (B, N) bool.
        beta: Step size; smaller is closer to the optimum a step and slower to converge.
        steps: Iterations.

    Returns:
        (B, L, N), 0 outside what is kept, each kept row's sum 1 / kept rows.
    """
    rows, columns = row_keep.to(cost.dtype)[:, :, None], column_keep.to(cost.dtype)[:, None, :]
    row_mass = rows / rows.sum(1, keepdim=True).clamp_min(1)
    column_mass = columns / columns.sum(2, keepdim=True).clamp_min(1)
    kernel = (-cost / beta).exp() * rows * columns
    plan = rows * columns
    row_scale = row_mass
    for _ in range(steps):
        joint = kernel * plan
        # padded rows and columns have mass 0, so their 0 / 1 leaves them at 0
        column_sum = row_scale.transpose(1, 2) @ joint
        column_scale = column_mass / torch.where(column_sum > 0, column_sum, 1)
        row_sum = joint @ column_scale.transpose(1, 2)
        row_scale = row_mass / torch.where(row_sum > 0, row_sum, 1)
        plan = row_scale * joint * column_scale
    return plan
