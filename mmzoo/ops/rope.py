"""Rotary positions: tables of angles, and the rotation of queries and keys by them.

A head of D channels is D/2 pairs, each turned by `position * frequency`. Which two channels make a pair is a
matter of memory layout: "half" pairs channel i with i + D/2 (transformers' Llama), "interleaved" pairs 2i with
2i + 1 (timm, the original EVA-02). The two are one function up to a fixed permutation of the rows of Wq and Wk:
`permute_channels`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmzoo.errors import UsageError, ZooError
from mmzoo.ops.precision import autocast_off

__all__ = ["Convention", "permute_channels", "rope_table", "rope_table_2d", "rotate"]

Convention = Literal["half", "interleaved"]


def rope_table(positions: Tensor, dim: int, *, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines for positions along one axis (RoFormer, arXiv 2104.09864).

    Pair i turns with frequency `base ** (-2i / dim)`.

    Args:
        positions: (L,) or (B, L), integers, or floating point where positions are interpolated.
        dim: Channels of a head, even.
        base: The longest wavelength is about `2 pi base`.

    Returns:
        cos and sin, each (..., L, dim/2) float32.

    Raises:
        ZooError: `dim` is odd.
    """
    if dim < 2 or dim % 2:
        raise ZooError(f"rotary positions turn pairs of channels: the head width must be even, got {dim}.")
    with autocast_off(positions.device):
        angles = positions.to(torch.float32)[..., None] * _frequencies(dim // 2, base, positions.device)
        return angles.cos(), angles.sin()


def rope_table_2d(
    grid: tuple[int, int],
    dim: int,
    *,
    base: float = 10000.0,
    reference: tuple[int, int] | None = None,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines for a grid of patches: the first half of the pairs turns with y, the second with x.

    Within each half, pair i of n turns with frequency `base ** (-i / n)`; this is the order of timm's
    `build_rotary_pos_embed(in_pixels=False)`.

    Args:
        grid: Rows and columns; tokens run row by row.
        dim: Channels of a head, divisible by 4.
        base: The longest wavelength is about `2 pi base`.
        reference: The grid of pre-training; positions are scaled to its extent (position interpolation).
        device: Where to build the table.

    Returns:
        cos and sin, each (h*w, dim/2) float32.

    Raises:
        ZooError: `dim` is not divisible by 4.
    """
    if dim < 4 or dim % 4:
        raise ZooError(f"2-D rotary positions need a head width divisible by 4, got {dim}.")
    (h, w), (ref_h, ref_w) = grid, reference or grid
    frequencies = _frequencies(dim // 4, base, device)
    y = torch.arange(h, dtype=torch.float32, device=device) / h * ref_h
    x = torch.arange(w, dtype=torch.float32, device=device) / w * ref_w
    y_angles = (y[:, None] * frequencies)[:, None].expand(h, w, -1)
    x_angles = (x[:, None] * frequencies)[None, :].expand(h, w, -1)
    angles = torch.cat([y_angles, x_angles], dim=-1).flatten(0, 1)
    return angles.cos(), angles.sin()


def _frequencies(pairs: int, base: float, device: torch.device | None) -> Tensor:
    # In float32 and in this order of operations, as transformers computes it even for float64 models.
    exponents = torch.arange(0, 2 * pairs, 2, dtype=torch.int64, device=device).to(torch.float32) / (
        2 * pairs
    )
    return 1.0 / (base**exponents)


def rotate(
    x: Tensor, cos: Tensor, sin: Tensor, *, convention: Convention = "half", prefix: int = 0
) -> Tensor:
    """Turn the channel pairs of queries or keys; in float32 (float64 for float64 inputs), then cast back.

    Args:
        x: (B, H, L, D).
        cos: (L - prefix, D/2) or (B, L - prefix, D/2), from `rope_table` or `rope_table_2d`.
        sin: Likewise.
        convention: Which two channels make a pair: "half" (i, i + D/2) or "interleaved" (2i, 2i + 1).
        prefix: So many leading tokens (class token, registers) stay as they are.

    Returns:
        (B, H, L, D) in the dtype of x.

    Raises:
        ZooError: The table does not fit x.
        UsageError: There is no such convention.
    """
    length, dim = x.shape[-2] - prefix, x.shape[-1]
    if cos.shape != sin.shape or cos.dim() not in (2, 3) or cos.shape[-2:] != (length, dim // 2):
        raise ZooError(
            f"a rotary table for {length} tokens of {dim} channels is ({length}, {dim // 2}), with a batch axis "
            f"at most, got cos {tuple(cos.shape)} and sin {tuple(sin.shape)}."
        )
    if prefix:
        turned = rotate(x[..., prefix:, :], cos, sin, convention=convention)
        return torch.cat([x[..., :prefix, :], turned], dim=-2)
    dtype = torch.promote_types(x.dtype, torch.float32)
    cos, sin = cos.to(dtype), sin.to(dtype)
    if cos.dim() == 3:
        cos, sin = cos[:, None], sin[:, None]
    wide = x.to(dtype)
    if convention == "half":
        first, second = wide.chunk(2, dim=-1)
        out = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    elif convention == "interleaved":
        first, second = wide[..., 0::2], wide[..., 1::2]
        out = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(-2)
    else:
        raise UsageError(f"There is no rotary convention {convention!r}. Choose half or interleaved.")
    return out.to(x.dtype)


def permute_channels(weight: Tensor, heads: int, *, to: Convention) -> Tensor:
    """Reorder the rows of Wq or Wk (or a bias) from one convention to the other.

    Rotating `permute_channels(W, heads, to="half") @ x` the "half" way gives the attention scores of rotating
    `W @ x` the "interleaved" way, and the other way round.

    Args:
        weight: (heads * D, ...), D even.
        heads: Number of heads of this projection (for Wk of grouped attention the key heads).
        to: The convention wanted; the weight is in the other one.

    Returns:
        Same shape.

    Raises:
        ZooError: The rows are not `heads` times an even number.
        UsageError: There is no such convention.
    """
    if weight.shape[0] % (2 * heads):
        raise ZooError(f"{weight.shape[0]} rows are not {heads} heads of an even number of channels.")
    if to == "half":
        split = weight.reshape(heads, -1, 2, *weight.shape[1:])
    elif to == "interleaved":
        split = weight.reshape(heads, 2, -1, *weight.shape[1:])
    else:
        raise UsageError(f"There is no rotary convention {to!r}. Choose half or interleaved.")
    return split.transpose(1, 2).flatten(0, 2)
