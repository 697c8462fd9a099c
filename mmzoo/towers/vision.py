"""The vision tower: one ViT for all families, with every switch of the published checkpoints.

Legend: B images, N tokens (prefix tokens first, then patches row by row), D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmzoo.config import UNKEPT
from mmzoo.errors import ZooError
from mmzoo.layers.attention import Rotary
from mmzoo.layers.block import BlockConfig, BlockStack, NormKind
from mmzoo.layers.init import init_clip, init_google, init_timm
from mmzoo.layers.mlp import Activation
from mmzoo.layers.norm import build_norm
from mmzoo.layers.patch import PatchEmbed, drop_patches, real_grids, sample_patches
from mmzoo.layers.positions import Positions, RopeConvention, rotary_2d
from mmzoo.ops.grid import Recipe, resample_grid, sincos_table_2d

__all__ = ["PaddedTokens", "VisionConfig", "VisionOut", "VisionTower"]


@dataclass(frozen=True)
class VisionConfig:
    """Shape and switches of a ViT.

    Attributes:
        image_size: Side of the square input in pixels.
        patch: Side of a patch in pixels.
        width: Token size.
        depth: Number of blocks.
        heads: Attention heads.
        hidden: Size inside the MLP.
        norm_eps: Epsilon of all norms; no default (CLIP 1e-5, the others 1e-6).
        act: MLP activation.
        init: School of the initialisation.
        resample: How this family's checkpoints change their position table with the image size. A tower built at one
            `image_size` reads a table of another (DINOv2's 37 x 37 of 518 px at 224 px): it is resampled once, at
            load, and not at every call.
        norm_kind: LayerNorm or RMSNorm.
        cls_token: Whether a learned token leads the sequence.
        registers: Learned tokens after the class token, without positions.
        pool: `"cls"`, or `"mean"` over the patches.
        patch_bias: Whether the patch convolution has a bias (CLIP: no).
        pre_norm: A norm before the blocks (CLIP's `ln_pre`).
        final_norm: A norm after the blocks (BLIP-2's ViT-g has none).
        positions: Learned table (which covers the class token), fixed 2-D sinusoids, rotary, or none.
        rope_base: Base of the rotary frequencies.
        rope_convention: Channel pairing of the rotary embedding.
        head_dim: Size of one head, None for `width / heads`.
        kv_heads: Key/value heads, None for as many as `heads`.
        bias: Biases in attention and MLP.
        dropout: Dropout after the embedding and after each part of a block.
        attn_dropout: Dropout on attention probabilities.
        drop_path: Stochastic depth of the last block; earlier ones rise to it linearly.
        patch_drop: Share of patches left out in training (FLIP).
        layer_scale: Start of a learned gain per channel on each residual branch (DINOv2); None builds none.
    """

    image_size: int
    patch: int
    width: int
    depth: int
    heads: int
    hidden: int
    norm_eps: float
    act: Activation
    init: Literal["google", "timm", "clip"] = field(metadata=UNKEPT)
    resample: Recipe = field(default="timm", metadata=UNKEPT)
    norm_kind: NormKind = "layer"
    cls_token: bool = True
    registers: int = 0
    pool: Literal["cls", "mean"] = "cls"
    patch_bias: bool = True
    pre_norm: bool = False
    final_norm: bool = True
    positions: Positions = "learned"
    rope_base: float = 100.0
    rope_convention: RopeConvention = "interleaved"
    head_dim: int | None = None
    kv_heads: int | None = None
    bias: bool = True
    dropout: float = field(default=0.0, metadata=UNKEPT)
    attn_dropout: float = field(default=0.0, metadata=UNKEPT)
    drop_path: float = field(default=0.0, metadata=UNKEPT)
    patch_drop: float = field(default=0.0, metadata=UNKEPT)
    layer_scale: float | None = None

    def __post_init__(self) -> None:
        if self.image_size % self.patch:
            raise ZooError(f"image_size {self.image_size} is not a multiple of patch {self.patch}.")
        if self.pool == "cls" and not self.cls_token:
            raise ZooError('pool="cls" needs cls_token=True; use pool="mean".')
        if not 0 <= self.patch_drop < 1:
            raise ZooError(f"patch_drop must be in [0, 1), found {self.patch_drop}.")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return (self.image_size // self.patch,) * 2

    @property
    def prefix(self) -> int:
        """Number of tokens before the patches."""
        return int(self.cls_token) + self.registers

    def block(self, layer: int) -> BlockConfig:
        """The config of block number `layer`."""
        return BlockConfig(
            width=self.width,
            heads=self.heads,
            hidden=self.hidden,
            norm="pre",
            norm_eps=self.norm_eps,
            act=self.act,
            norm_kind=self.norm_kind,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            bias=self.bias,
            dropout=self.dropout,
            attn_dropout=self.attn_dropout,
            drop_path=self.drop_path * layer / max(self.depth - 1, 1),
            layer_scale=self.layer_scale,
        )


class VisionOut(NamedTuple):
    """What a vision tower gives.

    Attributes:
        tokens: (B, N, D) prefix and patch tokens after the final norm.
        pooled: (B, D) one vector per image.
        grid: Rows and columns of the patches.
    """

    tokens: Tensor
    pooled: Tensor
    grid: tuple[int, int]


class PaddedTokens(NamedTuple):
    """Images of different sizes before the blocks.

    Attributes:
        tokens: (B, P + N, D) prefix and patch tokens with their positions; P prefix tokens, N patches of the largest.
        keep: (B, P + N) bool, True = prefix or real patch.
        ragged: Whether anything is padding; known without waiting for the device.
    """

    tokens: Tensor
    keep: Tensor
    ragged: bool


class VisionTower(nn.Module):
    """A ViT (Dosovitskiy et al. 2021) built from `VisionConfig`, with the published initialisation."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        c = self.config = config
        self.width = c.width
        self.patch = PatchEmbed(c.patch, c.width, bias=c.patch_bias)
        if c.cls_token:
            self.cls = nn.Parameter(torch.zeros(1, 1, c.width))
        if c.registers:
            self.registers = nn.Parameter(torch.zeros(1, c.registers, c.width))
        if c.positions == "learned":
            self.pos = nn.Parameter(torch.zeros(1, int(c.cls_token) + c.grid[0] * c.grid[1], c.width))
        if c.pre_norm:
            self.pre_norm = build_norm(c.norm_kind, c.width, c.norm_eps)
        self.blocks = BlockStack([c.block(i) for i in range(c.depth)])
        if c.final_norm:
            self.norm = build_norm(c.norm_kind, c.width, c.norm_eps)
        if self.patch.proj.weight.device.type != "meta":
            self._initialise()

    def _initialise(self) -> None:
        c = self.config
        std = {"google": 0.02, "timm": 0.02, "clip": c.width**-0.5}[c.init]
        if c.init == "clip":
            init_clip(self.blocks)
            nn.init.normal_(self.patch.proj.weight, std=0.02)
        else:
            {"google": init_google, "timm": init_timm}[c.init](self)
        if c.cls_token and c.init != "google":  # Google's class token starts at zero
            nn.init.normal_(self.cls, std=std)
        if c.registers:
            nn.init.normal_(self.registers, std=std)
        if c.positions == "learned":
            nn.init.normal_(self.pos, std=std)

    def set_checkpointing(self, on: bool) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them."""
        self.blocks.checkpointing = on

    def forward(self, images: Tensor) -> VisionOut:
        """Encode `images` (B, 3, image_size, image_size), normalised as the model's `ImageSpec` says.

        Raises:
            ZooError: The images have another size than the position table.
        """
        c = self.config
        x, rope, grid = self._enter(images)
        x = self.blocks(x, rope=rope)
        if c.final_norm:
            x = self.norm(x)
        pooled = x[:, 0] if c.pool == "cls" else x[:, c.prefix :].mean(1)
        return VisionOut(x, pooled, grid)

    def intermediate(
        self, images: Tensor, layers: Sequence[int], *, norm: bool = False, maps: bool = True
    ) -> list[Tensor]:
        """What single blocks give, for detection, segmentation and distillation; no block after the last is run.

        Args:
            images: (B, 3, image_size, image_size).
            layers: Block numbers from 0; negative ones count from the end.
            norm: Whether the final norm is applied to each.
            maps: Patches as a feature map, or all tokens with the prefix.

        Returns:
            In the order of `layers`, (B, D, h, w) each, or (B, N, D).

        Raises:
            ZooError: There is no such block, or no final norm, or patches are being dropped.
        """
        c = self.config
        wrong = [i for i in layers if not -c.depth <= i < c.depth]
        if wrong or not layers:
            raise ZooError(f"this tower has blocks 0 to {c.depth - 1}, asked for {wrong or 'none'}.")
        if norm and not c.final_norm:
            raise ZooError("this tower has no final norm: call with norm=False.")
        if maps and c.patch_drop and self.training:
            raise ZooError("dropped patches leave no feature map: call eval() first, or maps=False.")
        wanted = [i % c.depth for i in layers]
        x, rope, grid = self._enter(images)
        found: dict[int, Tensor] = {}
        for i in range(max(wanted) + 1):
            x = self.blocks(x, layers=slice(i, i + 1), rope=rope)
            if i in wanted:
                tokens = self.norm(x) if norm else x
                found[i] = tokens[:, c.prefix :].transpose(1, 2).unflatten(2, grid) if maps else tokens
        return [found[i] for i in wanted]

    def embed_padded(
        self, images: Tensor, *, sizes: Sequence[tuple[int, int]] | None = None, most: int | None = None
    ) -> PaddedTokens:
        """Everything before the blocks for images of different sizes, each with positions of its own grid.

        The position table is resampled to every image's rows and columns (`config.resample`), so what an image becomes
        does not depend on what it is padded to.

        Args:
            images: (B, 3, H, W) zero-padded at the bottom and at the right; sides are multiples of the patch.
            sizes: Height and width of each image in pixels, if known: they need not be read off the padding then.
            most: Keep at most so many patches of an image, drawn at random.

        Raises:
            ZooError: Sizes do not divide into patches or do not fit; an image is zero all over and `sizes` is left out.
        """
        c = self.config
        assert c.positions == "learned" and c.cls_token and not c.patch_drop  # noqa: PT018 - what ViLT is made of
        x, (rows, columns) = self.patch(images)
        grids = real_grids(images, c.patch) if sizes is None else _told_grids(sizes, images, c.patch)
        tables = {
            grid: resample_grid(self.pos, c.grid, grid, prefix=1, recipe=c.resample)[0, 1:]
            for grid in set(grids)
        }
        if all(grid == (rows, columns) for grid in grids):
            x = x + tables[rows, columns]
            keep = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        else:
            places = {
                (h, w): F.pad(table.unflatten(0, (h, w)), (0, 0, 0, columns - w, 0, rows - h)).flatten(0, 1)
                for (h, w), table in tables.items()
            }
            x = x + torch.stack([places[grid] for grid in grids])
            real = torch.zeros(len(grids), rows, columns, dtype=torch.bool)
            for row, (h, w) in zip(real, grids):
                row[:h, :w] = True
            keep = real.flatten(1).to(x.device)
        counts = [h * w for h, w in grids]
        if most is not None and max(counts) > most:
            index, keep = sample_patches(keep, most)
            x = x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
            counts = [min(count, most) for count in counts]
        ragged = min(counts) < x.shape[1]
        x = torch.cat([(self.cls + self.pos[:, :1]).expand(x.shape[0], -1, -1), x], dim=1)
        return PaddedTokens(F.dropout(x, c.dropout, self.training), F.pad(keep, (1, 0), value=True), ragged)

    def _enter(self, images: Tensor) -> tuple[Tensor, Rotary | None, tuple[int, int]]:
        """Everything before the blocks: tokens (B, N, D), rotary tables, the grid."""
        c = self.config
        x, grid = self.patch(images)
        if c.positions == "learned" and grid != c.grid:
            raise ZooError(
                f"this tower reads images of {c.image_size} pixels, found {tuple(images.shape[2:])}: resize them, or "
                "build the model with another image_size (its position table is then resampled at load)."
            )
        x, kept = self._place(x, grid)
        rope = None
        if c.positions == "rope":
            rope = rotary_2d(
                grid,
                c.head_dim or c.width // c.heads,
                base=c.rope_base,
                convention=c.rope_convention,
                prefix=c.prefix,
                keep=kept,
                device=x.device,
            )
        if c.pre_norm:
            x = self.pre_norm(x)
        return F.dropout(x, c.dropout, self.training), rope, grid

    def _place(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """Add positions, drop patches in training, prepend class token and registers."""
        c, B = self.config, x.shape[0]
        if c.positions == "learned":
            x = x + self.pos[:, int(c.cls_token) :]
        elif c.positions == "sincos":
            x = x + sincos_table_2d(grid, c.width).to(x.device, x.dtype)
        kept = None
        if c.patch_drop and self.training:
            x, kept = drop_patches(x, c.patch_drop)
        lead = []
        if c.cls_token:
            lead.append(self.cls + self.pos[:, :1] if c.positions == "learned" else self.cls)
        if c.registers:
            lead.append(self.registers)
        return torch.cat([*(t.expand(B, -1, -1) for t in lead), x], dim=1), kept

    def fit_state(self, state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """Fit a checkpoint's position table (1, P + h*w, D) of a square grid to this tower's grid.

        The class token's row stays as it is. The recipe is the family's own (`config.resample`): those in use
        differ by up to a few percent of a logit. Whatever does not look like such a table is left for strict loading
        to refuse.

        Args:
            state: Tensors by name.
            prefix: Where this tower's names begin, `"vision."`.

        Returns:
            The state with the table resampled, or the same state where nothing had to change.
        """
        c, key = self.config, f"{prefix}pos"
        table = state.get(key)
        if table is None or c.positions != "learned" or table.shape == self.pos.shape:
            return state
        lead = int(c.cls_token)
        side = round(max(table.shape[1] - lead, 0) ** 0.5) if table.dim() == 3 else 0
        if side == 0 or table.shape != (1, side * side + lead, c.width):
            return state
        return state | {key: resample_grid(table, (side, side), c.grid, prefix=lead, recipe=c.resample)}


def _told_grids(sizes: Sequence[tuple[int, int]], images: Tensor, patch: int) -> list[tuple[int, int]]:
    """Rows and columns of patches of images whose sizes in pixels are told."""
    B, _, height, width = images.shape
    fits = [h % patch == w % patch == 0 and 0 < h <= height and 0 < w <= width for h, w in sizes]
    if len(sizes) != B or not all(fits):
        raise ZooError(
            f"sizes must be {B} heights and widths in pixels, multiples of {patch} up to {height} x {width}, found "
            f"{[tuple(size) for size in sizes][:5]}."
        )
    return [(h // patch, w // patch) for h, w in sizes]
