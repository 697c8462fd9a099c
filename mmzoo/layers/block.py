"""One transformer block for every family: ViT, CLIP, ViLT, BERT, BLIP's MED and the text side of the Q-Former.

Pre-norm (ViT, CLIP):                          post-norm (BERT):

    x = x + attn(attn_norm(x))                     x = attn_norm(x + attn(x))
    x = x + cross(cross_norm(x), context)          x = cross_norm(x + cross(x, context))
    x = x + mlp(mlp_norm(x))                       x = mlp_norm(x + mlp(x))

The cross-attention line exists only where the config gives it a width, and is skipped only when the call brings no
context: what runs is visible in `forward`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmzoo.errors import ZooError
from mmzoo.layers.attention import KV, CrossAttention, Rotary, SelfAttention
from mmzoo.layers.cache import KVCache, LayerCache
from mmzoo.layers.image_kv import ImageKV
from mmzoo.layers.mlp import MLP, Activation
from mmzoo.layers.norm import build_norm
from mmzoo.ops.attention import FULL, AttnMask
from mmzoo.ops.folding import Fold

__all__ = ["BlockConfig", "BlockStack", "DropPath", "NormKind", "TransformerBlock"]

NormKind = Literal["layer", "rms"]


@dataclass(frozen=True)
class BlockConfig:
    """Shape and kind of a block.

    Attributes:
        width: Size of a token.
        heads: Query heads.
        hidden: Size inside the MLP.
        norm: Where the norms stand: before each part (`"pre"`) or after its residual sum (`"post"`).
        norm_eps: The norms' epsilon; no default (see `mmzoo.layers.norm`).
        act: Activation of the MLP.
        norm_kind: `"layer"` or `"rms"`.
        cross_width: Width of the context tokens; None builds no cross-attention.
        kv_heads: Key/value heads, None for as many as `heads`.
        head_dim: Size of one head, None for `width / heads`.
        bias: Biases in attention and MLP (Llama has none).
        dropout: Dropout after each part.
        attn_dropout: Dropout on attention probabilities.
        drop_path: Probability of dropping a whole residual branch per sample in training.
        layer_scale: Start of a learned gain per channel on each residual branch (CaiT, DINOv2); None builds none.
    """

    width: int
    heads: int
    hidden: int
    norm: Literal["pre", "post"]
    norm_eps: float
    act: Activation
    norm_kind: NormKind = "layer"
    cross_width: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    bias: bool = True
    dropout: float = 0.0
    attn_dropout: float = 0.0
    drop_path: float = 0.0
    layer_scale: float | None = None

    def __post_init__(self) -> None:
        if self.layer_scale is not None and self.cross_width is not None:
            raise ZooError(
                "layer_scale is not defined for a block with cross-attention: give one or the other."
            )
        if self.head_dim is None and self.width % self.heads:
            raise ZooError(
                f"width {self.width} does not divide into {self.heads} heads: give head_dim, or change one."
            )
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ZooError(f"{self.heads} query heads cannot share {self.kv_heads} key/value heads evenly.")


class DropPath(nn.Module):
    """Stochastic depth: drops a sample's residual branch with probability `p`, scaling the rest by 1 / (1 - p)."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (B, ...) to itself outside training or with `p` = 0."""
        if self.p == 0.0 or not self.training:
            return x
        keep = torch.empty(x.shape[0], *[1] * (x.dim() - 1), dtype=x.dtype, device=x.device)
        return x * keep.bernoulli_(1 - self.p).div_(1 - self.p)


class TransformerBlock(nn.Module):
    """Self-attention, optional cross-attention, MLP, with residuals and norms as the config says."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        c = self.config = config
        attention: dict[str, Any] = {
            "kv_heads": c.kv_heads or c.heads,
            "head_dim": c.head_dim or c.width // c.heads,
            "bias": c.bias,
            "attn_dropout": c.attn_dropout,
            "dropout": c.dropout,
        }
        self.attn_norm = build_norm(c.norm_kind, c.width, c.norm_eps)
        self.attn = SelfAttention(c.width, c.heads, **attention)
        if c.cross_width is not None:
            self.cross_norm = build_norm(c.norm_kind, c.width, c.norm_eps)
            self.cross = CrossAttention(c.width, c.cross_width, c.heads, **attention)
        self.mlp_norm = build_norm(c.norm_kind, c.width, c.norm_eps)
        self.mlp = MLP(c.width, c.hidden, c.act, bias=c.bias, dropout=c.dropout)
        if c.layer_scale is not None:
            self.attn_scale = nn.Parameter(torch.full((c.width,), c.layer_scale))
            self.mlp_scale = nn.Parameter(torch.full((c.width,), c.layer_scale))
        self.drop_path = DropPath(c.drop_path)

    def forward(
        self,
        x: Tensor,
        *,
        mask: AttnMask = FULL,
        rope: Rotary | None = None,
        context: Tensor | KV | None = None,
        context_mask: AttnMask = FULL,
        fold: Fold | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Run the block.

        Args:
            x: (B, L, width).
            mask: Self-attention mask.
            rope: Rotary tables, or None.
            context: Tokens (B, N, cross_width) or projected `KV` for the cross-attention; None skips it.
            context_mask: Mask over the context.
            fold: Which context each token reads, where there is not one context for each row.
            cache: This layer's earlier keys and values.

        Returns:
            (B, L, width).
        """
        c, drop = self.config, self.drop_path
        crosses = c.cross_width is not None and context is not None
        attn_scale = None if c.layer_scale is None else self.attn_scale
        mlp_scale = None if c.layer_scale is None else self.mlp_scale
        if c.norm == "pre":
            x = x + drop(_scaled(self.attn(self.attn_norm(x), mask=mask, rope=rope, cache=cache), attn_scale))
            if crosses:
                x = x + drop(self.cross(self.cross_norm(x), context, mask=context_mask, fold=fold))
            return x + drop(_scaled(self.mlp(self.mlp_norm(x)), mlp_scale))
        x = self.attn_norm(x + drop(_scaled(self.attn(x, mask=mask, rope=rope, cache=cache), attn_scale)))
        if crosses:
            x = self.cross_norm(x + drop(self.cross(x, context, mask=context_mask, fold=fold)))
        return self.mlp_norm(x + drop(_scaled(self.mlp(x), mlp_scale)))


def _scaled(branch: Tensor, scale: Tensor | None) -> Tensor:
    return branch if scale is None else branch * scale


class BlockStack(nn.ModuleList):
    """Blocks one after the other, with optional recomputation of activations in the backward pass.

    Attributes:
        checkpointing: When True and training, only the inputs of each block are kept for the backward pass;
            dropout and autocast are replayed exactly.
    """

    def __init__(self, configs: list[BlockConfig]):
        super().__init__(TransformerBlock(c) for c in configs)
        self.checkpointing = False

    def forward(
        self,
        x: Tensor,
        *,
        layers: slice = slice(None),
        mask: AttnMask = FULL,
        rope: Rotary | None = None,
        context: Tensor | ImageKV | None = None,
        context_mask: AttnMask = FULL,
        fold: Fold | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Run the blocks that `layers` selects on `x` (B, L, width).

        Args:
            x: (B, L, width).
            layers: Which blocks, as in `slice(0, 6)`.
            mask: Self-attention mask.
            rope: Rotary tables, or None.
            context: Context tokens (B, N, cross_width), or their `ImageKV`.
            context_mask: Mask over the context.
            fold: Which context each token reads, where there is not one context for each row.
            cache: The caller's cache.

        Returns:
            (B, L, width).

        Raises:
            ZooError: The `ImageKV` lacks a layer that has cross-attention.
        """
        for i in range(len(self))[layers]:
            block: Any = self[i]
            if (
                isinstance(context, ImageKV)
                and block.config.cross_width is not None
                and i not in context.layers
            ):
                raise ZooError(
                    f"layer {i} attends to a context, but the ImageKV has only the layers {sorted(context.layers)}: "
                    f"project the context for layer {i} too, or join the two by union."
                )
            kwargs: dict[str, Any] = {
                "mask": mask,
                "rope": rope,
                "context": context.layers.get(i) if isinstance(context, ImageKV) else context,
                "context_mask": context_mask,
                "fold": fold,
                "cache": None if cache is None else cache[i],
            }
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False, **kwargs)
            else:
                x = block(x, **kwargs)
        return x
