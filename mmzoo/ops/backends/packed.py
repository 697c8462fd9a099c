"""Backends for packed segments only: `varlen` on CUDA, `jagged` (nested tensors) on the CPU."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmzoo.ops.mask import AttnMask, Packed
from mmzoo.ops.packing import segment_runs

__all__ = ["Jagged", "Varlen"]


@functools.cache
def _varlen_attn() -> Callable[..., Any] | None:
    """The function of cumulative lengths, where this torch has the form with windows and grouped heads."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"window_size", "enable_gqa", "scale"} <= known.keys() else None


def _refuses_mask(mask: AttnMask) -> str | None:
    if mask.packed is None:
        return "nothing is packed"
    if mask.keep is not None or mask.lengths is not None:
        return "segments have no padding, but a key mask is given"
    if mask.bias is not None:
        return "it takes no additive bias"
    return None


class Varlen:
    """`torch.nn.attention.varlen`: FlashAttention over cumulative lengths, forward and backward, on CUDA."""

    name = "varlen"

    def refuses(self, q: Tensor, k: Tensor, v: Tensor, mask: AttnMask, dropout_p: float) -> str | None:
        """Tell why this call cannot be taken, or None."""
        reason = _refuses_mask(mask)
        if reason is not None:
            return reason
        if q.device.type != "cuda":
            return f"it needs CUDA tensors, these are on {q.device.type}"
        if torch.cuda.get_device_capability(q.device) < (8, 0):
            return "it needs compute capability 8.0 or higher (Ampere)"
        if _varlen_attn() is None:
            return f"torch {torch.__version__} has no varlen_attn with windows and grouped heads"
        if q.dtype not in (torch.float16, torch.bfloat16):
            return f"it computes in float16 and bfloat16, not {q.dtype}"
        if v.shape[3] != q.shape[3] or q.shape[3] % 8 or q.shape[3] > 256:
            return (
                f"it needs one head width, a multiple of 8 up to 256, not {q.shape[3]} for q, k and "
                f"{v.shape[3]} for v"
            )
        if dropout_p > 0.0:
            return "it has no dropout"
        if mask.causal and mask.offset is not None:
            return (
                "its causal diagonal is aligned to the bottom right of each segment, without another offset"
            )
        return None

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, mask: AttnMask, dropout_p: float, scale: float
    ) -> Tensor:
        """Attend; see `mmzoo.ops.attention.attend`."""
        packed, varlen_attn = mask.packed, _varlen_attn()
        assert packed is not None
        assert varlen_attn is not None
        max_q = int(packed.q_offsets.diff().max()) if packed.max_q is None else packed.max_q
        max_k = int(packed.k_offsets.diff().max()) if packed.max_k is None else packed.max_k
        out: Tensor = varlen_attn(
            q[0].transpose(0, 1),
            k[0].transpose(0, 1),
            v[0].transpose(0, 1),
            packed.q_offsets.to(torch.int32),
            packed.k_offsets.to(torch.int32),
            max_q,
            max_k,
            scale=scale,
            window_size=(-1, 0) if mask.causal else (-1, -1),
            enable_gqa=q.shape[1] != k.shape[1],
        )
        # Kernels are free in what they leave for a row that sees nothing.
        blank = _blank_rows(packed, q.shape[2], mask.causal)
        return out.masked_fill(blank[:, None, None], 0.0).transpose(0, 1)[None]


def _blank_rows(packed: Packed, tokens: int, causal: bool) -> Tensor:
    """(Tq,) bool: queries of segments without keys, and those left of the causal diagonal's begin."""
    row = torch.arange(tokens, device=packed.q_offsets.device)
    segment = torch.searchsorted(packed.q_offsets, row, right=True) - 1
    keys = packed.k_offsets.diff()[segment]
    if not causal:
        return keys == 0
    queries = packed.q_offsets.diff()[segment]
    return row - packed.q_offsets[segment] + keys - queries < 0


class Jagged:
    """Nested tensors of the jagged layout under SDPA, forward and backward, on the CPU."""

    name = "jagged"

    def refuses(self, q: Tensor, k: Tensor, v: Tensor, mask: AttnMask, dropout_p: float) -> str | None:
        """Tell why this call cannot be taken, or None."""
        reason = _refuses_mask(mask)
        if reason is not None:
            return reason
        if q.device.type != "cpu":
            return f"it is for the CPU, these tensors are on {q.device.type}"
        if mask.causal:
            return "torch's nested tensors have no causal attention on the CPU"
        if q.shape[1] != k.shape[1]:
            return "torch's nested tensors have no grouped heads on the CPU"
        if q.shape[2] == 0 or k.shape[2] == 0:
            return "torch's nested tensors need at least one token on either side"
        return None

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, mask: AttnMask, dropout_p: float, scale: float
    ) -> Tensor:
        """Attend; see `mmzoo.ops.attention.attend`."""
        packed = mask.packed
        assert packed is not None
        runs = segment_runs(packed, q.shape[2], k.shape[2])
        max_q, max_k = max(lq for _, lq, _ in runs), max(lk for _, _, lk in runs)
        nested_q = _nest(q, packed.q_offsets, max_q)
        # The kernel needs one symbolic length of k and v, which the very same offsets give.
        nested_k, nested_v = _nest(k, packed.k_offsets, max_k), _nest(v, packed.k_offsets, max_k)
        out = F.scaled_dot_product_attention(nested_q, nested_k, nested_v, dropout_p=dropout_p, scale=scale)
        values: Tensor = out.transpose(1, 2).values()  # type: ignore[no-untyped-call]
        return values.transpose(0, 1)[None]


def _nest(x: Tensor, offsets: Tensor, longest: int) -> Tensor:
    """(1, H, T, D) -> nested (S, H, L_s, D)."""
    # The kernel for the CPU is chosen only if tokens follow each other in memory; otherwise torch looks for a GPU.
    flat = x[0].transpose(0, 1).contiguous()
    nested: Tensor = torch.nested.nested_tensor_from_jagged(flat, offsets.long(), max_seqlen=longest)
    return nested.transpose(1, 2)
