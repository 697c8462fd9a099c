"""The text backbone: BERT-like, CLIP-like and Llama-like encoders and decoders as one class with one config.

Legend: B texts, L tokens, D width. `keep` (B, L) is True at real tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmzoo.config import UNKEPT
from mmzoo.errors import ZooError
from mmzoo.layers.attention import Rotary
from mmzoo.layers.block import BlockConfig, BlockStack, NormKind, TransformerBlock
from mmzoo.layers.cache import KVCache
from mmzoo.layers.image_kv import ImageKV, check_reads
from mmzoo.layers.init import init_bert, init_clip
from mmzoo.layers.mlp import Activation
from mmzoo.layers.norm import LayerNorm, build_norm
from mmzoo.layers.positions import Positions, RopeConvention, rotary_1d
from mmzoo.ops.attention import AttnMask
from mmzoo.ops.folding import fold
from mmzoo.ops.grid import sincos_table_1d
from mmzoo.ops.packing import pack, unpack

__all__ = ["TextBackbone", "TextConfig", "TextOut", "bert_text", "clip_text", "llama_text"]


@dataclass(frozen=True)
class TextConfig:
    """Shape and switches of a text transformer. `bert_text`, `clip_text` and `llama_text` fill it for a school.

    Attributes:
        vocab: Rows of the embedding table.
        context: Longest sequence in tokens.
        width: Token size.
        depth: Number of blocks.
        heads: Query heads.
        hidden: Size inside the MLP.
        norm: Norms before each part (`"pre"`) or after its residual sum (`"post"`, BERT).
        norm_eps: Epsilon of all norms; no default (CLIP 1e-5, BERT 1e-12).
        act: MLP activation.
        init: School of the initialisation.
        norm_kind: LayerNorm or RMSNorm.
        positions: Learned or sinusoidal table, rotary, or none.
        rope_base: Base of the rotary frequencies.
        rope_convention: Channel pairing of the rotary embedding.
        token_types: Rows of BERT's token-type table; 0 builds none.
        embed_norm: A LayerNorm on the embeddings (BERT).
        final_norm: A norm after the blocks (pre-norm backbones).
        causal: Whether a token sees only itself and what stands before it.
        cross_layers: Numbers of the blocks that attend to a context.
        cross_width: Width of the context tokens.
        kv_heads: Key/value heads, None for as many as `heads`.
        head_dim: Size of one head, None for `width / heads`.
        bias: Biases in attention and MLP.
        dropout: Dropout after the embedding and after each part of a block.
        attn_dropout: Dropout on attention probabilities.
        pool: First token (BERT), last kept token (CLIP's end of text), the last slot of the padded row, or the mean
            over kept tokens (sentence-transformers).
    """

    vocab: int
    context: int
    width: int
    depth: int
    heads: int
    hidden: int
    norm: Literal["pre", "post"]
    norm_eps: float
    act: Activation
    init: Literal["bert", "clip"] = field(metadata=UNKEPT)
    norm_kind: NormKind = "layer"
    positions: Positions = "learned"
    rope_base: float = 10000.0
    rope_convention: RopeConvention = "half"
    token_types: int = 0
    embed_norm: bool = False
    final_norm: bool = False
    causal: bool = False
    cross_layers: tuple[int, ...] = ()
    cross_width: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    bias: bool = True
    dropout: float = field(default=0.0, metadata=UNKEPT)
    attn_dropout: float = field(default=0.0, metadata=UNKEPT)
    pool: Literal["first", "last_kept", "last_slot", "mean"] = "first"

    def __post_init__(self) -> None:
        if bool(self.cross_layers) != (self.cross_width is not None):
            raise ZooError("cross_layers and cross_width come together: give both or neither.")
        if any(not 0 <= i < self.depth for i in self.cross_layers):
            raise ZooError(f"cross_layers {self.cross_layers} name blocks outside 0..{self.depth - 1}.")

    def block(self, layer: int) -> BlockConfig:
        """The config of block number `layer`."""
        return BlockConfig(
            width=self.width,
            heads=self.heads,
            hidden=self.hidden,
            norm=self.norm,
            norm_eps=self.norm_eps,
            act=self.act,
            norm_kind=self.norm_kind,
            cross_width=self.cross_width if layer in self.cross_layers else None,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            bias=self.bias,
            dropout=self.dropout,
            attn_dropout=self.attn_dropout,
        )


def bert_text(**changes: Any) -> TextConfig:
    """BERT-base (uncased): post-norm, eps 1e-12, embedding norm, two token types, dropout 0.1."""
    base = TextConfig(
        vocab=30522, context=512, width=768, depth=12, heads=12, hidden=3072, norm="post", norm_eps=1e-12, act="gelu",
        init="bert", token_types=2, embed_norm=True, dropout=0.1, attn_dropout=0.1,
    )  # fmt: skip
    return replace(base, **changes)


def clip_text(**changes: Any) -> TextConfig:
    """CLIP ViT-B's text tower: causal, pre-norm, QuickGELU, pooled at the end-of-text token."""
    base = TextConfig(
        vocab=49408, context=77, width=512, depth=12, heads=8, hidden=2048, norm="pre", norm_eps=1e-5,
        act="quick_gelu", init="clip", final_norm=True, causal=True, pool="last_kept",
    )  # fmt: skip
    return replace(base, **changes)


def llama_text(**changes: Any) -> TextConfig:
    """A small Llama-like decoder: causal, RMSNorm, SwiGLU, rotary positions, grouped heads, no biases."""
    base = TextConfig(
        vocab=49152, context=2048, width=576, depth=30, heads=9, hidden=1536, norm="pre", norm_eps=1e-5, act="swiglu",
        init="bert", norm_kind="rms", positions="rope", final_norm=True, causal=True, kv_heads=3, bias=False,
        pool="last_kept",
    )  # fmt: skip
    return replace(base, **changes)


class TextOut(NamedTuple):
    """What a text backbone gives: `tokens` (B, L, D) and `pooled` (B, D)."""

    tokens: Tensor
    pooled: Tensor


def _table(rows: int, width: int) -> nn.Embedding:
    # to fill a meta tensor with random numbers, torch first loads its compiler, which takes seconds
    weight = torch.empty(rows, width, device="meta") if torch.get_default_device().type == "meta" else None
    return nn.Embedding(rows, width, _weight=weight)


class TextEmbed(nn.Module):
    """Token, position and token-type embeddings, summed and optionally normalised."""

    def __init__(self, config: TextConfig):
        super().__init__()
        c = self.config = config
        self.tok = _table(c.vocab, c.width)
        if c.positions == "learned":
            self.pos = _table(c.context, c.width)
        if c.token_types:
            self.token_type = _table(c.token_types, c.width)
        if c.embed_norm:
            self.norm = LayerNorm(c.width, c.norm_eps)

    def forward(self, ids: Tensor, *, start: int = 0, types: Tensor | None = None) -> Tensor:
        """Embed `ids` (B, L) int64 that stand at positions `start`, `start + 1`, ...; types default to 0.

        Raises:
            ZooError: The sequence ends beyond the context.
        """
        c, end = self.config, start + ids.shape[1]
        if end > c.context and c.positions in ("learned", "sincos"):
            raise ZooError(
                f"{end} tokens do not fit this backbone's context of {c.context}: shorten the text."
            )
        x = self.tok(ids)
        if c.positions == "learned":
            x = x + self.pos.weight[start:end]
        elif c.positions == "sincos":
            x = x + sincos_table_1d(c.context, c.width)[start:end].to(x.device, x.dtype)
        if c.token_types:
            x = x + (self.token_type.weight[0] if types is None else self.token_type(types))
        if c.embed_norm:
            x = self.norm(x)
        return F.dropout(x, c.dropout, self.training)


class TextBackbone(nn.Module):
    """A text transformer built from `TextConfig`, with the published initialisation."""

    def __init__(self, config: TextConfig):
        super().__init__()
        c = self.config = config
        self.width = c.width
        self.embed = TextEmbed(c)
        self.blocks = BlockStack([c.block(i) for i in range(c.depth)])
        if c.final_norm:
            self.norm = build_norm(c.norm_kind, c.width, c.norm_eps)
        if self.embed.tok.weight.device.type != "meta":
            init_bert(self)
            if c.init == "clip":
                self._reset_mlp_biases()
                init_clip(self.blocks)
                if c.positions == "learned":
                    nn.init.normal_(self.embed.pos.weight, std=0.01)

    def _reset_mlp_biases(self) -> None:
        """CLIP leaves the MLP's biases at torch's default."""
        for block in map(self._block, range(self.config.depth)):
            block.mlp.fc1.reset_parameters()
            block.mlp.fc2.reset_parameters()

    @property
    def fresh(self) -> tuple[str, ...]:
        """Parts that weights of a bare text transformer (BERT) lack, and that start as built."""
        return tuple(
            f"blocks.{i}.{part}" for i in self.config.cross_layers for part in ("cross", "cross_norm")
        )

    def set_checkpointing(self, on: bool) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them."""
        self.blocks.checkpointing = on

    def project_context(
        self, context: Tensor, layers: Iterable[int] | None = None, *, keep: Tensor | None = None
    ) -> ImageKV:
        """Project `context` (B, N, cross_width) once, for as many calls of `forward` as need it.

        Args:
            context: (B, N, cross_width).
            layers: For which cross-attention layers, by number; None means all.
            keep: (B, N) bool, True at real context tokens; None means all.

        Returns:
            Every such layer's keys and values; pass it as `context` to `forward`.

        Raises:
            ZooError: One of `layers` has no cross-attention.
        """
        layers = self.config.cross_layers if layers is None else tuple(layers)
        if unfit := sorted(set(layers) - set(self.config.cross_layers)):
            raise ZooError(f"layers {unfit} have no cross-attention, {list(self.config.cross_layers)} have.")
        return ImageKV({i: self._block(i).cross.project(context) for i in layers}, keep)

    def _block(self, i: int) -> TransformerBlock:
        block = self.blocks[i]
        assert isinstance(block, TransformerBlock)
        return block

    def forward(
        self,
        ids: Tensor | None = None,
        *,
        embeds: Tensor | None = None,
        types: Tensor | None = None,
        keep: Tensor | None = None,
        causal: bool | None = None,
        context: Tensor | ImageKV | None = None,
        context_index: Tensor | None = None,
        context_keep: Tensor | None = None,
        layers: slice = slice(None),
        cache: KVCache | None = None,
        right_padded: bool = False,
        packed: bool = False,
    ) -> TextOut:
        """Encode texts.

        Args:
            ids: (B, L) int64 token ids.
            embeds: (B, L, D) states that enter the first of `layers` as they are, instead of `ids`.
            types: (B, L) int64 token types, default 0.
            keep: (B, L) bool, True at real tokens (with a cache: over cached and new tokens); None means all.
            causal: Overrides the config.
            context: Tokens (C, N, cross_width) of C images or other contexts, or what `project_context` gave.
            context_index: (B,) int64: text b reads row `context_index[b]` of the context; None: row b. Equal to
                `context[context_index]`, without its copies (see `mmzoo.ops.folding`).
            context_keep: (C, N) bool, True at real context tokens; not where the `ImageKV` has a mask of its own.
            layers: Which blocks to run; the final norm runs only when the last block does.
            cache: The caller's keys and values; the tokens of this call follow those it holds.
            right_padded: A promise that padding stands only behind the text. A causal backbone then needs no key
                mask, since no real token can see the padding.
            packed: Lay the real tokens of all texts end to end, so that padding costs nothing. Needs `keep`, and
                no cache. States at padding come back as zeros.

        Returns:
            `TextOut`: tokens (B, L, D) and pooled (B, D).

        Raises:
            ZooError: Neither or both of `ids` and `embeds`; a text beyond the context; a last-slot pool whose
                texts are trimmed; a context index that does not fit; two masks of the context; a layer that the
                `ImageKV` lacks.
        """
        c = self.config
        if (ids is None) == (embeds is None):
            raise ZooError("give either ids or embeds.")
        start = 0 if cache is None else cache.length
        x = embeds if ids is None else self.embed(ids, start=start, types=types)
        assert x is not None
        length = x.shape[1]
        if c.pool == "last_slot" and cache is None and length != c.context:
            raise ZooError(
                f"this tower is pooled at its last slot, so padding is part of its function: pad texts to "
                f"{c.context} tokens, found {length}."
            )
        causal = c.causal if causal is None else causal
        if context is not None:
            check_reads(len(context), context_index, x.shape[0])
        if packed:
            if keep is None or cache is not None:
                raise ZooError("packed=True needs keep, and no cache.")
            tokens, segments, index = pack(x, keep, by_length=True)
            text, column = index // length, index % length
            crossing = self._crossing(
                context, context_keep, text if context_index is None else context_index[text]
            )
            tokens = self.blocks(
                tokens,
                layers=layers,
                mask=AttnMask(causal=causal, packed=segments),
                rope=self.rope(column),
                **crossing,
            )
            x = unpack(tokens, index, (x.shape[0], length))
        else:
            masked = keep is not None and not (causal and right_padded)
            crossing = self._crossing(
                context,
                context_keep,
                None if context_index is None else context_index.repeat_interleave(length),
            )
            x = self.blocks(
                x,
                layers=layers,
                mask=AttnMask(causal=causal, keep=keep if masked else None),
                rope=self.rope(torch.arange(start, start + length, device=x.device)),
                cache=cache,
                **crossing,
            )
        ran = range(c.depth)[layers]
        if c.final_norm and len(ran) and ran[-1] == c.depth - 1:
            x = self.norm(x)
        return TextOut(x, self._pool(x, keep if keep is None else keep[:, -length:]))

    def _crossing(
        self, context: Tensor | ImageKV | None, keep: Tensor | None, reads: Tensor | None
    ) -> dict[str, Any]:
        """What the blocks are told of the context; `reads` (Q,) is each token's row of it, None: its text's own."""
        if context is None:
            return {}
        if isinstance(context, ImageKV):
            if keep is not None and context.keep is not None:
                raise ZooError("this ImageKV has a mask of its own: leave context_keep out.")
            keep, tokens = context.keep if keep is None else keep, context.tokens
        else:
            tokens = context.shape[1]
        if reads is None:
            return {"context": context, "context_mask": AttnMask(keep=keep)}
        c = self.config
        places = fold(reads, len(context), keys=tokens, channels=c.heads * (c.head_dim or c.width // c.heads))
        return {"context": context, "context_mask": places.mask(keep), "fold": places}

    def rope(self, positions: Tensor) -> Rotary | None:
        """Rotary tables of tokens at `positions` (L,), or None where the config asks for none."""
        c = self.config
        if c.positions != "rope":
            return None
        dim = c.head_dim or c.width // c.heads
        return rotary_1d(positions, dim, base=c.rope_base, convention=c.rope_convention)

    def _pool(self, x: Tensor, keep: Tensor | None) -> Tensor:
        if self.config.pool == "first":
            return x[:, 0]
        if self.config.pool == "mean":
            return x.mean(1) if keep is None else _kept_mean(x, keep)
        if self.config.pool == "last_slot" or keep is None:
            return x[:, -1]
        last = (keep * torch.arange(1, keep.shape[1] + 1, device=keep.device)).argmax(1)
        return x[torch.arange(x.shape[0], device=x.device), last]


def _kept_mean(x: Tensor, keep: Tensor) -> Tensor:
    """Mean over kept tokens; a row that keeps none gives zeros."""
    weight = keep.unsqueeze(-1).to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1)
