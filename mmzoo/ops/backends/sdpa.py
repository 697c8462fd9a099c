"""The daily backend: torch's scaled_dot_product_attention, told the truth about causality."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmzoo.ops.mask import AttnMask, causal_offset, key_mask, may_blank, visible
from mmzoo.ops.packing import segment_runs

__all__ = ["SDPA"]

# Where torch's kernels themselves give zeros and zero gradients for a row that sees nothing (the tests hold them to
# it). Elsewhere they differ, NaN included, so such a row is shown everything and zeroed afterwards: one more pass over
# the output, which on the CPU would nearly double the time of short sequences.
ZERO_ROWS = frozenset({"cpu"})


class SDPA:
    """Fused attention of torch, on whatever device and kernel it has.

    An Lq x Lk mask is built only where nothing smaller says it: causality together with a key mask, or with an
    offset that hides something. Packed segments are attended to one run of equal lengths at a time, without
    padding; packed with a bias builds the whole block-diagonal mask.
    """

    name = "sdpa"

    def refuses(self, q: Tensor, k: Tensor, v: Tensor, mask: AttnMask, dropout_p: float) -> str | None:
        """Tell why this call cannot be taken: never."""
        return None

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, mask: AttnMask, dropout_p: float, scale: float
    ) -> Tensor:
        """Attend; see `mmzoo.ops.attention.attend`."""
        if mask.packed is not None and mask.bias is None:
            return self._by_segment(q, k, v, mask=mask, dropout_p=dropout_p, scale=scale)
        grouped = q.shape[1] != k.shape[1]
        attn_mask, blank, is_causal = _translate(q, k, mask)
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=attn_mask,
            is_causal=is_causal,
            dropout_p=dropout_p,
            scale=scale,
            enable_gqa=grouped,
        )
        return out if blank is None else out.masked_fill(blank, 0.0)

    def _by_segment(
        self, q: Tensor, k: Tensor, v: Tensor, *, mask: AttnMask, dropout_p: float, scale: float
    ) -> Tensor:
        assert mask.packed is not None
        runs = segment_runs(mask.packed, q.shape[2], k.shape[2])
        keep = key_mask(mask, k.shape[2])
        # One split each, whose gradient is one concatenation, where slices would each add a full-size gradient.
        q_sizes, k_sizes = [n * lq for n, lq, _ in runs], [n * lk for n, _, lk in runs]
        q_parts, k_parts, v_parts = (
            torch.split(x[0], sizes, dim=1) for x, sizes in ((q, q_sizes), (k, k_sizes), (v, k_sizes))
        )
        keeps = [None] * len(runs) if keep is None else torch.split(keep[0], k_sizes)
        outs = []
        for (n, lq, lk), q_part, k_part, v_part, part_keep in zip(runs, q_parts, k_parts, v_parts, keeps):
            if not lq:  # keys that nobody asks for
                continue
            part = AttnMask(
                mask.causal, mask.offset, keep=None if part_keep is None else part_keep.view(n, lk)
            )
            out = self(
                _batch(q_part, n),
                _batch(k_part, n),
                _batch(v_part, n),
                mask=part,
                dropout_p=dropout_p,
                scale=scale,
            )
            outs.append(out.transpose(1, 2).flatten(0, 1))
        if not outs:
            # empty sums keep the result in the graph, so that parameters get gradients of zero, not none (DDP waits)
            nothing = q[:, :, :0].sum() + k[:, :, :0].sum() + v[:, :, :0].sum()
            return q.new_zeros(1, q.shape[1], 0, v.shape[3]) + nothing
        return torch.cat(outs).transpose(0, 1)[None]


def _batch(x: Tensor, n: int) -> Tensor:
    """(H, n * L, D) -> (n, H, L, D), a view."""
    return x.reshape(x.shape[0], n, x.shape[1] // n, x.shape[2]).transpose(0, 1)


def _translate(q: Tensor, k: Tensor, mask: AttnMask) -> tuple[Tensor | None, Tensor | None, bool]:
    """Say a mask in torch's words.

    Returns:
        attn_mask, bool or additive, or None; the rows that see nothing (to be zeroed afterwards), or None;
        is_causal.
    """
    lq, lk = q.shape[2], k.shape[2]
    bias = mask.bias
    offset = causal_offset(mask, lq, lk)
    # torch's is_causal aligns to the top left: only with offset 0 does it say what ours says.
    if offset == 0 and mask.keep is None and mask.lengths is None and mask.packed is None and bias is None:
        return None, None, True
    seen = visible(mask, q, k)
    blank = None
    if q.device.type not in ZERO_ROWS and may_blank(mask, lq, lk):
        if bias is not None:
            seen = bias > -torch.inf if seen is None else seen & (bias > -torch.inf)
        assert seen is not None
        blank = ~seen.any(dim=-1, keepdim=True)
        seen = seen | blank
    if bias is None:
        return seen, blank, False
    bias = bias.to(q.dtype) if blank is None else bias.to(q.dtype).masked_fill(blank, 0.0)
    return (bias if seen is None else bias.masked_fill(~seen, -torch.inf)), blank, False
