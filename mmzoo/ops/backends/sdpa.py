"""The daily backend: torch's scaled_dot_product_attention, told the truth about causality."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmzoo.ops.mask import AttnMask, causal_offset, may_blank, visible

__all__ = ["SDPA"]


class SDPA:
    """Fused attention of torch, on whatever device and kernel it has."""

    name = "sdpa"

    def refuses(self, q: Tensor, k: Tensor, v: Tensor, mask: AttnMask, dropout_p: float) -> str | None:
        """Tell why this call cannot be taken: never."""
        return None

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, mask: AttnMask, dropout_p: float, scale: float
    ) -> Tensor:
        """Attend; see `mmzoo.ops.attention.attend`."""
        lq, lk = q.shape[2], k.shape[2]
        grouped = q.shape[1] != k.shape[1]
        plain = mask.keep is None and mask.lengths is None and mask.bias is None and mask.packed is None
        # torch's is_causal aligns to the top left: only for offset 0 does it say the same as ours.
        if plain and causal_offset(mask, lq, lk) in (None, 0):
            causal = causal_offset(mask, lq, lk) == 0
            return F.scaled_dot_product_attention(
                q, k, v, is_causal=causal, dropout_p=dropout_p, scale=scale, enable_gqa=grouped
            )
        seen = visible(mask, q, k)
        allowed = seen
        if mask.bias is not None:
            allowed = mask.bias > -torch.inf if seen is None else seen & (mask.bias > -torch.inf)
        blank = None
        if allowed is not None and may_blank(mask, lq, lk):
            # What kernels do with a row that sees nothing differs, NaN included. Let it see everything, drop the result.
            blank = ~allowed.any(dim=-1, keepdim=True)
            allowed = allowed | blank
        attn_mask = allowed
        if mask.bias is not None and allowed is not None:
            bias = mask.bias if blank is None else mask.bias.masked_fill(blank, 0.0)
            attn_mask = bias.to(q.dtype).masked_fill(~allowed, -torch.inf)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=attn_mask, dropout_p=dropout_p, scale=scale, enable_gqa=grouped
        )
        return out if blank is None else out.masked_fill(blank, 0.0)
