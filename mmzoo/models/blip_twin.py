"""Cross-attention to two images at once: what BLIP's model for NLVR2 has in every layer.

    text -> first(text, image 0)  --.
                                     mean, or joined by a linear map
    text -> second(text, image 1) --'

The two share nothing. Their keys and values lie end to end along the tokens, so a pair of images is one context like
any other: `KV` of (B, G, 2 N, D). An image projected alone is projected for both places; a pair takes what it needs.

salesforce/BLIP `models/nlvr_encoder.py` takes the mean in layers 0-5 and joins in layers 6-11.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmzoo.errors import ZooError
from mmzoo.layers.attention import KV, CrossAttention
from mmzoo.layers.block import BlockConfig
from mmzoo.layers.init import init_bert
from mmzoo.ops.attention import FULL, AttnMask
from mmzoo.ops.folding import Fold

__all__ = ["TwinCross", "pair_up"]


class TwinCross(nn.Module):
    """Two cross-attentions and what joins their outputs; stands where a block has its `cross`.

    Args:
        config: The block's.
        merges: Whether a linear map of both outputs joins them, or their mean.
    """

    def __init__(self, config: BlockConfig, *, merges: bool):
        super().__init__()
        c = config
        assert c.cross_width is not None
        heads = {"kv_heads": c.kv_heads or c.heads, "head_dim": c.head_dim or c.width // c.heads}
        self.first, self.second = (
            CrossAttention(c.width, c.cross_width, c.heads, **heads, bias=c.bias, attn_dropout=c.attn_dropout)
            for _ in range(2)
        )
        self.merge = nn.Linear(2 * c.width, c.width) if merges else None
        self.dropout = c.dropout
        if self.first.q.weight.device.type != "meta":
            init_bert(self)

    def project(self, context: Tensor) -> KV:
        """Project image tokens (B, N, D) for both places: (B, G, 2 N, D), those as first image before the others."""
        return self.project_pair(context, context)

    def project_pair(self, first: Tensor, second: Tensor) -> KV:
        """Project tokens (B, N, D) of first images and of second ones: (B, G, 2 N, D)."""
        return _end_to_end(self.first.project(first), self.second.project(second))

    def forward(
        self, x: Tensor, context: Tensor | KV, *, mask: AttnMask = FULL, fold: Fold | None = None
    ) -> Tensor:
        """Attend from `x` (B, L, width) to the two images of each row.

        Args:
            x: (B, L, width).
            context: Keys and values of B pairs; or tokens (B, N, D) of images that are both images of their pair.
            mask: Everything, for images have no padding.
            fold: None: a row reads its own pair.

        Returns:
            (B, L, width).

        Raises:
            ZooError: A fold is given.
        """
        if fold is not None:
            raise ZooError("sentences read pairs of images one by one, without an index and not packed.")
        one, two = _halves(context if isinstance(context, KV) else self.project(context))
        found = self.first(x, one, mask=mask), self.second(x, two, mask=mask)
        joined = sum(found) / 2 if self.merge is None else self.merge(torch.cat(found, -1))
        return F.dropout(joined, self.dropout, self.training)


def pair_up(first: KV, second: KV) -> KV:
    """Of images that were projected for both places, take each for one."""
    return _end_to_end(_halves(first)[0], _halves(second)[1])


def _end_to_end(first: KV, second: KV) -> KV:
    return KV(torch.cat([first.k, second.k], 2), torch.cat([first.v, second.v], 2))


def _halves(pair: KV) -> tuple[KV, KV]:
    (k0, k1), (v0, v1) = pair.k.chunk(2, 2), pair.v.chunk(2, 2)
    return KV(k0, v0), KV(k1, v1)
