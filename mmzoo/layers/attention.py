"""Projections around `mmzoo.ops.attention.attend`: self-attention and cross-attention.

Legend: B batch, L queries, N keys, D head dim, H query heads, G key/value heads.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from mmzoo.errors import ZooError
from mmzoo.layers.cache import LayerCache
from mmzoo.layers.linear import Linear
from mmzoo.layers.watch import Seen
from mmzoo.ops.attention import FULL, AttnMask, attend
from mmzoo.ops.folding import Fold
from mmzoo.ops.rope import Convention, rotate

__all__ = ["KV", "CrossAttention", "Rotary", "SelfAttention"]


class Rotary(NamedTuple):
    """Rotation tables for one forward pass.

    Attributes:
        cos: (L, D/2) or (B, L, D/2) float32.
        sin: Same shape as `cos`.
        convention: `"half"` (Llama in transformers) or `"interleaved"` (pairs, as in the paper and timm).
        prefix: Number of leading tokens (class token, registers) that have no position and are not rotated.
    """

    cos: Tensor
    sin: Tensor
    convention: Convention
    prefix: int = 0


class KV(NamedTuple):
    """Keys and values already projected, each (B, G, N, D)."""

    k: Tensor
    v: Tensor


class SelfAttention(nn.Module):
    """Multi-head, grouped-query or multi-query self-attention.

    Args:
        width: Size of input and output.
        heads: Query heads.
        kv_heads: Key/value heads; must divide `heads`.
        head_dim: Size of one head.
        bias: Whether the projections have biases.
        attn_dropout: Dropout on attention probabilities (BERT: 0.1).
        dropout: Dropout on the output.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int,
        head_dim: int,
        bias: bool = True,
        attn_dropout: float = 0.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.attn_dropout, self.dropout = attn_dropout, dropout
        self.seen: Seen | None = None  # set by `mmzoo.layers.watch`
        self.qkv = Linear(width, (heads + 2 * kv_heads) * head_dim, bias=bias)
        self.out = nn.Linear(heads * head_dim, width, bias=bias)

    def forward(
        self, x: Tensor, *, mask: AttnMask = FULL, rope: Rotary | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """Attend within `x`.

        Args:
            x: (B, L, width).
            mask: What may see what; with a cache its `keep` covers cached keys too.
            rope: Rotation of queries and new keys, or None.
            cache: Earlier keys and values; the new ones are appended to it.

        Returns:
            (B, L, width).
        """
        B, L, _ = x.shape
        qkv = self.qkv(x).view(B, L, self.heads + 2 * self.kv_heads, self.head_dim).transpose(1, 2)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)  # (B, H|G, L, D)
        if rope is not None:
            q = rotate(q, rope.cos, rope.sin, convention=rope.convention, prefix=rope.prefix)
            k = rotate(k, rope.cos, rope.sin, convention=rope.convention, prefix=rope.prefix)
        if cache is not None:
            k, v = cache.append(k, v)
        way = attend if self.seen is None else self.seen.attend
        out = way(q, k, v, mask=mask, dropout_p=self.attn_dropout if self.training else 0.0)
        out = self.out(out.transpose(1, 2).reshape(B, L, self.heads * self.head_dim))
        return F.dropout(out, self.dropout, self.training)


class CrossAttention(nn.Module):
    """Attention from one sequence to another, whose keys and values can be projected ahead and shared.

    Args:
        width: Size of the queries' tokens and of the output.
        context_width: Size of the tokens attended to.
        heads: Query heads.
        kv_heads: Key/value heads; must divide `heads`.
        head_dim: Size of one head.
        bias: Whether the projections have biases.
        attn_dropout: Dropout on attention probabilities.
        dropout: Dropout on the output.
    """

    def __init__(
        self,
        width: int,
        context_width: int,
        heads: int,
        *,
        kv_heads: int,
        head_dim: int,
        bias: bool = True,
        attn_dropout: float = 0.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.attn_dropout, self.dropout = attn_dropout, dropout
        self.seen: Seen | None = None  # set by `mmzoo.layers.watch`
        self.q = nn.Linear(width, heads * head_dim, bias=bias)
        self.kv = nn.Linear(context_width, 2 * kv_heads * head_dim, bias=bias)
        self.out = nn.Linear(heads * head_dim, width, bias=bias)

    def project(self, context: Tensor) -> KV:
        """Project `context` (B, N, context_width) once, for as many calls of `forward` as need it."""
        B, N, _ = context.shape
        kv = self.kv(context).view(B, N, 2 * self.kv_heads, self.head_dim).transpose(1, 2)
        return KV(*kv.chunk(2, dim=1))

    def forward(
        self, x: Tensor, context: Tensor | KV, *, mask: AttnMask = FULL, fold: Fold | None = None
    ) -> Tensor:
        """Attend from `x` to `context`.

        Args:
            x: (B, L, width).
            context: Tokens (C, N, context_width) or their `KV`; C = B without a fold.
            mask: What may be seen of the context; with a fold, its own mask.
            fold: Which of the C contexts each token of `x` reads, where there is not one for each row.

        Returns:
            (B, L, width).

        Raises:
            ZooError: A fold is given while the layer is being watched.
        """
        k, v = context if isinstance(context, KV) else self.project(context)
        q = self.q(x)
        if fold is not None:
            if self.seen is not None:
                raise ZooError("shared contexts cannot be watched: give each text its own, kv[index].")
            q, k, v = fold.queries(q), fold.keys(k), fold.keys(v)
        q = q.view(*q.shape[:2], self.heads, self.head_dim).transpose(1, 2)
        way = attend if self.seen is None else self.seen.attend
        out = way(q, k, v, mask=mask, dropout_p=self.attn_dropout if self.training else 0.0)
        out = out.transpose(1, 2).flatten(2)
        out = self.out(out if fold is None else fold.back(out, (x.shape[0], x.shape[1])))
        return F.dropout(out, self.dropout, self.training)
