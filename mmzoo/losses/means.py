"""Means over rows, exact when the rows lie on several processes."""

from __future__ import annotations

import torch
from torch import Tensor

from mmzoo import dist

__all__ = ["add_up", "at_least_float32", "share_of_each"]


def share_of_each(rows: Tensor, over_ranks: bool) -> Tensor:
    """Give each of so many rows its share of their mean.

    Args:
        rows: Scalar, the number of rows on this rank.
        over_ranks: Whether the rows of all ranks are averaged.

    Returns:
        Scalar 1 / rows of the type of `rows`; 1 if there are none, so that an empty sum stays 0.
    """
    if over_ranks:
        rows = dist.sum_over_ranks(rows.clone())
    return 1 / rows.clamp_min(1)


def add_up(part: Tensor, over_ranks: bool) -> Tensor:
    """Add up the ranks' parts of a loss.

    Args:
        part: Scalar, this rank's part, a sum of rows each times its share.
        over_ranks: Whether other ranks hold the other parts.

    Returns:
        The sum, the same on every rank. The *average* over ranks of its gradients, which is what DDP takes, is the
        gradient of one process with all rows.
    """
    if not over_ranks or dist.world() == 1:
        return part
    whole = dist.sum_over_ranks(part.detach().clone())
    scaled = part * dist.world()
    return scaled + (whole - scaled).detach()


def at_least_float32(*tensors: Tensor) -> torch.dtype:
    """The type in which a loss of these tensors is computed: float32, or float64 where one of them is."""
    dtype = torch.float32
    for x in tensors:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype
