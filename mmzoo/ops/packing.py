"""Texts of different lengths laid end to end: no padding is computed, and no segment sees another."""

from __future__ import annotations

from itertools import groupby, pairwise

import torch
from torch import Tensor

from mmzoo.errors import ZooError
from mmzoo.ops.mask import Packed

__all__ = ["cross", "pack", "segment_runs", "unpack"]


def pack(x: Tensor, keep: Tensor, *, by_length: bool = False) -> tuple[Tensor, Packed, Tensor]:
    """Drop padding and lay the rows of a batch end to end (waits for the device).

    Neighbouring rows of one length are attended to together, so a batch sorted by length costs least.

    Args:
        x: (B, L, D).
        keep: (B, L) bool, True = real token. Padding may be anywhere, and rows may be empty.
        by_length: Lay the rows down from the shortest to the longest instead of in the order of the batch.

    Returns:
        Tokens (1, T, D); where each row of the batch begins, for self-attention; and
        the index (T,) int64 of each token in the flattened batch, which `unpack` takes. `index % L` is a token's
        column, for looking up its position, and `index // L` its row.

    Raises:
        ZooError: `keep` is not a bool tensor of the first two sizes of x.
    """
    if x.dim() != 3 or keep.dtype != torch.bool or keep.shape != x.shape[:2]:
        raise ZooError(
            f"packing takes tokens (B, L, D) and a bool tensor keep (B, L), got {tuple(x.shape)} and "
            f"{keep.dtype} {tuple(keep.shape)}."
        )
    lengths = keep.sum(dim=1)
    if by_length:
        lengths, order = lengths.sort(stable=True)
        row, column = keep[order].nonzero(as_tuple=True)
        index = order[row] * keep.shape[1] + column
    else:
        index = keep.flatten().nonzero().squeeze(1)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    longest = max(lengths.tolist(), default=0)
    return x.flatten(0, 1)[index][None], Packed(offsets, offsets, longest, longest), index


def unpack(x: Tensor, index: Tensor, shape: tuple[int, int]) -> Tensor:
    """Undo `pack`: put tokens back where they were, with zeros where padding was.

    Args:
        x: (1, T, D).
        index: (T,) int64, from `pack`.
        shape: B and L of the padded batch.

    Returns:
        (B, L, D).

    Raises:
        ZooError: x does not hold one token per entry of the index.
    """
    if x.dim() != 3 or x.shape[:2] != (1, index.shape[0]):
        raise ZooError(
            f"unpacking {index.shape[0]} tokens takes (1, {index.shape[0]}, D), got {tuple(x.shape)}."
        )
    batch, length = shape
    flat = x.new_zeros(batch * length, x.shape[2]).index_copy(0, index, x[0])
    return flat.view(batch, length, x.shape[2])


def cross(queries: Packed, keys: Packed) -> Packed:
    """Pair two packings for cross-attention: segment s of the queries sees segment s of the keys.

    Args:
        queries: Packing of the query side; its key offsets are not looked at.
        keys: Packing of the other side, with as many segments; its query offsets are not looked at.

    Returns:
        Query offsets of the one with key offsets of the other.
    """
    return Packed(queries.q_offsets, keys.k_offsets, queries.max_q, keys.max_k)


def segment_runs(packed: Packed, tokens_q: int, tokens_k: int) -> list[tuple[int, int, int]]:
    """Neighbouring segments of equal lengths, joined: each run is an unpadded batch (waits for the device).

    Args:
        packed: The segments.
        tokens_q: Number of queries laid end to end.
        tokens_k: Number of keys laid end to end.

    Returns:
        For each run: number of segments, queries per segment, keys per segment.

    Raises:
        ZooError: The offsets are not cumulative lengths of so many tokens.
    """
    q_lengths = _lengths("q_offsets", packed.q_offsets, tokens_q)
    same = packed.k_offsets is packed.q_offsets and tokens_q == tokens_k
    k_lengths = q_lengths if same else _lengths("k_offsets", packed.k_offsets, tokens_k)
    return [(len(list(run)), lq, lk) for (lq, lk), run in groupby(zip(q_lengths, k_lengths))]


def _lengths(name: str, offsets: Tensor, tokens: int) -> list[int]:
    ends: list[int] = offsets.tolist()
    lengths = [end - start for start, end in pairwise(ends)]
    if ends[0] != 0 or ends[-1] != tokens or min(lengths, default=0) < 0:
        raise ZooError(
            f"Packed.{name} must run from 0 up to {tokens}, the number of tokens, without falling; got {ends[:8]}"
            f"{'...' if len(ends) > 8 else ''} ending in {ends[-1]}."
        )
    return lengths
