"""Attention written out: the truth that other backends are tested against, and the one that shows weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmzoo.ops.mask import AttnMask, may_blank, visible
from mmzoo.ops.precision import autocast_off

__all__ = ["Reference", "reference_weights"]


def reference_weights(q: Tensor, k: Tensor, mask: AttnMask, scale: float) -> Tensor:
    """Softmax weights in float32 (float64 for float64 inputs), whatever autocast says.

    Args:
        q: (B, H, Lq, D).
        k: (B, Hkv, Lk, D).
        mask: What may see what.
        scale: Factor on the scores.

    Returns:
        (B, H, Lq, Lk); a row sums to one, or is zero where the query may see nothing.
    """
    with autocast_off(q.device):
        dtype = torch.promote_types(q.dtype, torch.float32)
        keys = k.to(dtype).repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        scores = (q.to(dtype) * scale) @ keys.transpose(-2, -1)
        if mask.bias is not None:
            scores = scores + mask.bias.to(dtype)
        seen = visible(mask, q, k)
        if seen is not None:
            scores = scores.masked_fill(~seen, -torch.inf)
        if not may_blank(mask, q.shape[2], k.shape[2]):
            return scores.softmax(dim=-1)
        # The softmax of nothing is NaN, and its gradient would poison every parameter.
        blank = (scores == -torch.inf).all(dim=-1, keepdim=True)
        return scores.masked_fill(blank, 0.0).softmax(dim=-1).masked_fill(blank, 0.0)


class Reference:
    """Matrix product, softmax, matrix product. Never refuses; needs memory for Lq x Lk scores."""

    name = "reference"

    def refuses(self, q: Tensor, k: Tensor, v: Tensor, mask: AttnMask, dropout_p: float) -> str | None:
        """Tell why this call cannot be taken: never."""
        return None

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, mask: AttnMask, dropout_p: float, scale: float
    ) -> Tensor:
        """Attend; see `mmzoo.ops.attention.attend`."""
        weights = reference_weights(q, k, mask, scale)
        if dropout_p > 0.0:
            weights = F.dropout(weights, dropout_p)
        with autocast_off(q.device):
            values = v.to(weights.dtype).repeat_interleave(q.shape[1] // v.shape[1], dim=1)
            return (weights @ values).to(v.dtype)
