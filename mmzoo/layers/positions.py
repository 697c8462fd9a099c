"""Where tokens are: learned and sinusoidal tables, rotary tables in one and two dimensions.

A tower names a kind in its config. Tables that are computed, not learned, are made in float32 at each call: they
cost next to nothing, survive `model.to(bfloat16)` unharmed and need no place in a checkpoint.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmzoo.layers.attention import Rotary
from mmzoo.ops.rope import Convention, rope_table, rope_table_2d

__all__ = ["Positions", "RopeConvention", "rotary_1d", "rotary_2d"]

Positions = Literal["learned", "sincos", "rope", "none"]
RopeConvention = Convention


def rotary_1d(positions: Tensor, head_dim: int, *, base: float, convention: RopeConvention) -> Rotary:
    """Rotary tables of a sequence.

    Args:
        positions: (L,) or (B, L) position of each token.
        head_dim: Size of one head, even.
        base: Base of the geometric series of frequencies.
        convention: Which channels form a pair.
    """
    cos, sin = rope_table(positions, head_dim, base=base)
    return Rotary(cos, sin, convention)


def rotary_2d(
    grid: tuple[int, int],
    head_dim: int,
    *,
    base: float,
    convention: RopeConvention,
    prefix: int,
    keep: Tensor | None = None,
    device: torch.device | None = None,
) -> Rotary:
    """Axial rotary tables of a patch grid: half of the pairs turn with the row, half with the column.

    Args:
        grid: Rows and columns.
        head_dim: Size of one head, a multiple of 4.
        base: Base of the frequencies.
        convention: Which channels form a pair.
        prefix: Leading tokens without a position.
        keep: (B, K) int64 patches that patch dropout kept, or None for all.
        device: Where to make the tables.
    """
    cos, sin = rope_table_2d(grid, head_dim, base=base, device=device)
    if keep is not None:
        cos, sin = cos[keep], sin[keep]
    return Rotary(cos, sin, convention, prefix)
