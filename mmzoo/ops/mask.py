"""What may attend to what: one vocabulary for every backend.

`AttnMask` says it once; the functions here translate it into what a kernel takes, keeping the cheapest form
that still says everything (nothing at all, a key mask that broadcasts over queries, and only then a full
matrix).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmzoo.errors import ZooError

__all__ = [
    "CAUSAL",
    "FULL",
    "AttnMask",
    "Packed",
    "causal_offset",
    "check",
    "key_mask",
    "may_blank",
    "visible",
]


class Packed(NamedTuple):
    """Segments laid end to end in one row; a query sees the keys of its own segment only.

    `mmzoo.ops.packing.pack` makes one.

    Attributes:
        q_offsets: (S+1,) int64, cumulative lengths: segment s holds queries `q_offsets[s]` up to
            `q_offsets[s + 1]`. The first is 0, the last is Tq. Segments may be empty.
        k_offsets: (S+1,) int64, the same for keys.
        max_q: The most queries of a segment (or more), if known: spares GPU kernels a wait for the host.
        max_k: The most keys of a segment (or more), if known.
    """

    q_offsets: Tensor
    k_offsets: Tensor
    max_q: int | None = None
    max_k: int | None = None


class AttnMask(NamedTuple):
    """What a query may see. All parts combine: a key is seen if every part allows it.

    A query that may see no key at all gets zeros, and passes on a gradient of zero.

    Attributes:
        causal: Query i may see keys `j <= i + offset`.
        offset: None aligns to the bottom right (`Lk - Lq`, per segment when packed), which is what a decoder
            with cached keys needs; a number sets it.
        keep: (B, Lk) bool, True = real token.
        lengths: (B,) integers: keys `j < lengths[b]` are real.
        bias: (B|1, H|1, Lq, Lk), added to the scaled scores; may require a gradient; -inf hides.
        packed: Segments; then q is (1, H, Tq, D) and k, v are (1, Hkv, Tk, D).
    """

    causal: bool = False
    offset: int | None = None
    keep: Tensor | None = None
    lengths: Tensor | None = None
    bias: Tensor | None = None
    packed: Packed | None = None


FULL = AttnMask()
CAUSAL = AttnMask(causal=True)


def check(q: Tensor, k: Tensor, v: Tensor, mask: AttnMask, dropout_p: float) -> None:
    """Refuse shapes and dtypes that do not fit together, in one sentence, without looking at any value.

    Raises:
        ZooError: What is wrong, and what would fit.
    """
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        raise ZooError(
            "attention takes q (B, H, Lq, D), k (B, Hkv, Lk, D) and v (B, Hkv, Lk, Dv), "
            f"got {_shape(q)}, {_shape(k)} and {_shape(v)}."
        )
    batch, heads, lq, dim = q.shape
    kv_heads, lk = k.shape[1], k.shape[2]
    if k.shape[0] != batch or k.shape[3] != dim or k.shape[:3] != v.shape[:3]:
        raise ZooError(
            "attention needs one batch size, one head width of q and k, and one length and head count of k and "
            f"v, got q {_shape(q)}, k {_shape(k)}, v {_shape(v)}."
        )
    if kv_heads == 0 or heads % kv_heads:
        raise ZooError(f"{heads} query heads cannot share {kv_heads} key heads: choose a divisor of {heads}.")
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise ZooError(
            f"q, k and v must share one floating-point dtype, got {q.dtype}, {k.dtype} and {v.dtype}: cast "
            "them before attending, or run under autocast."
        )
    if not 0.0 <= dropout_p <= 1.0:
        raise ZooError(f"dropout_p is a probability between 0 and 1, got {dropout_p}.")
    if mask.offset is not None and not mask.causal:
        raise ZooError(
            "AttnMask.offset shifts the causal diagonal: set causal=True as well, or leave it out."
        )
    keep, lengths, bias = mask.keep, mask.lengths, mask.bias
    if keep is not None and (keep.dtype != torch.bool or keep.shape != (batch, lk)):
        raise ZooError(
            f"AttnMask.keep must be a bool tensor of shape ({batch}, {lk}) with True for real keys, "
            f"got {keep.dtype} {_shape(keep)}."
        )
    if lengths is not None and (not _is_integer(lengths) or lengths.shape != (batch,)):
        raise ZooError(
            f"AttnMask.lengths must be {batch} integers, one per row of the batch, "
            f"got {lengths.dtype} {_shape(lengths)}."
        )
    if bias is not None and (
        not bias.is_floating_point()
        or bias.dim() != 4
        or bias.shape[0] not in (1, batch)
        or bias.shape[1] not in (1, heads)
        or bias.shape[2:] != (lq, lk)
    ):
        raise ZooError(
            f"AttnMask.bias must be a floating-point tensor of shape ({batch}|1, {heads}|1, {lq}, {lk}), "
            f"got {bias.dtype} {_shape(bias)}."
        )
    if mask.packed is not None:
        _check_packed(mask.packed, batch)


def _check_packed(packed: Packed, batch: int) -> None:
    if batch != 1:
        raise ZooError(f"packed attention takes one row of segments laid end to end, got a batch of {batch}.")
    for name, offsets in (("q_offsets", packed.q_offsets), ("k_offsets", packed.k_offsets)):
        if offsets.dim() != 1 or not _is_integer(offsets) or offsets.shape[0] < 1:
            raise ZooError(
                f"Packed.{name} must be (S+1,) integers, the cumulative lengths of S segments from 0 on, "
                f"got {offsets.dtype} {_shape(offsets)}."
            )
    if packed.q_offsets.shape != packed.k_offsets.shape:
        raise ZooError(
            f"Packed has {packed.q_offsets.shape[0] - 1} query segments but {packed.k_offsets.shape[0] - 1} "
            "key segments: give every query segment its key segment, empty ones included."
        )


def _is_integer(x: Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def _shape(x: Tensor) -> str:
    return f"({', '.join(str(size) for size in x.shape)})"


def causal_offset(mask: AttnMask, lq: int, lk: int) -> int | None:
    """How far the causal diagonal is shifted, or None where causality hides nothing.

    The everyday case of the latter is one new query over cached keys, which sees them all.

    Args:
        mask: The mask; segments are not looked at.
        lq: Number of queries.
        lk: Number of keys.

    Returns:
        The offset, or None.
    """
    if not mask.causal:
        return None
    offset = lk - lq if mask.offset is None else mask.offset
    return None if offset >= lk - 1 else offset


def key_mask(mask: AttnMask, lk: int) -> Tensor | None:
    """Which keys are real, or None where all of them are.

    Args:
        mask: The mask; `keep` and `lengths` are joined.
        lk: Number of keys.

    Returns:
        (B, Lk) bool, or None.
    """
    keep = mask.keep
    if mask.lengths is not None:
        within = torch.arange(lk, device=mask.lengths.device) < mask.lengths[:, None]
        keep = within if keep is None else keep & within
    return keep


def visible(mask: AttnMask, q: Tensor, k: Tensor) -> Tensor | None:
    """The boolean part of a mask in the smallest shape that says it (the bias is not looked at).

    Args:
        mask: The mask.
        q: (B, H, Lq, D).
        k: (B, Hkv, Lk, D).

    Returns:
        Bool, broadcastable to (B, H, Lq, Lk): (B, 1, 1, Lk) for a key mask, (1, 1, Lq, Lk) for a causal one,
        None where everything is visible.
    """
    lq, lk = q.shape[2], k.shape[2]
    seen = key_mask(mask, lk)
    seen = None if seen is None else seen[:, None, None, :]
    if mask.packed is not None:
        blocks = _segments(mask, mask.packed, lq, lk)[None, None]
        return blocks if seen is None else seen & blocks
    offset = causal_offset(mask, lq, lk)
    if offset is not None:
        triangle = torch.ones(lq, lk, dtype=torch.bool, device=q.device).tril_(offset)[None, None]
        seen = triangle if seen is None else seen & triangle
    return seen


def _segments(mask: AttnMask, packed: Packed, lq: int, lk: int) -> Tensor:
    """(Tq, Tk) bool: same segment, and within it not beyond the causal diagonal."""
    q_offsets, k_offsets = packed.q_offsets, packed.k_offsets
    q_index = torch.arange(lq, device=q_offsets.device)
    k_index = torch.arange(lk, device=k_offsets.device)
    q_segment = torch.searchsorted(q_offsets, q_index, right=True) - 1
    k_segment = torch.searchsorted(k_offsets, k_index, right=True) - 1
    seen = q_segment[:, None] == k_segment[None, :]
    if mask.causal:
        last = q_index - q_offsets[q_segment]
        if mask.offset is None:
            last = last + (k_offsets.diff() - q_offsets.diff())[q_segment]
        else:
            last = last + mask.offset
        seen = seen & ((k_index - k_offsets[k_segment])[None, :] <= last[:, None])
    return seen


def may_blank(mask: AttnMask, lq: int, lk: int) -> bool:
    """Whether some query might see nothing, told without looking at values (so without a host sync)."""
    if mask.keep is not None or mask.lengths is not None or mask.bias is not None or mask.packed is not None:
        return True
    offset = causal_offset(mask, lq, lk)
    return offset is not None and offset < 0
