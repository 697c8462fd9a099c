"""CLIP (Radford et al. 2021): two towers and one cosine.

    image -> ViT -> class token -> linear --\
                                             unit vectors -> cosine x exp(logit_scale)
    text  -> causal transformer -> end token -> linear --/

The published sizes are OpenAI's (QuickGELU) and LAION's (GELU, from open_clip's model configs). The temperature is
stored as the log of its inverse, starts at ln(1 / 0.07), and is clamped to [0, ln 100] after each training step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmzoo.config import UNKEPT
from mmzoo.errors import ZooError
from mmzoo.layers.heads import UnitProjection
from mmzoo.layers.mlp import Activation
from mmzoo.spec import CLIP_MEAN, CLIP_STD, HALF, ImageSpec, TextSpec
from mmzoo.towers import TextBackbone, TextConfig, VisionConfig, VisionTower, build_vision
from mmzoo.towers.text import clip_text
from mmzoo.towers.timm_tower import TimmConfig

__all__ = ["CLIP", "VARIANTS", "CLIPConfig"]


@dataclass(frozen=True)
class CLIPConfig:
    """A pair of towers and their common space.

    Attributes:
        vision: The image tower, our own or a timm guest.
        text: The text tower.
        embed: Width E of the common space.
        image: What the image tower expects of pixels.
        text_input: What the text tower expects of words.
        logit_scale: Start of the learned log-scale.
        logit_bias: Start of the learned bias of the sigmoid loss (SigLIP: -10); None builds none.
    """

    vision: VisionConfig | TimmConfig
    text: TextConfig
    embed: int
    image: ImageSpec
    text_input: TextSpec
    logit_scale: float = field(default=math.log(1 / 0.07), metadata=UNKEPT)
    logit_bias: float | None = field(default=None, metadata=UNKEPT)


_CLIP_TEXT = TextSpec("clip", context=77, vocab=49408)


def _variant(
    vision: tuple[int, int, int, int, int],
    text: tuple[int, int, int],
    embed: int,
    act: Activation,
    *,
    size: int = 224,
    mean: tuple[float, float, float] = CLIP_MEAN,
    std: tuple[float, float, float] = CLIP_STD,
) -> CLIPConfig:
    patch, width, depth, heads, hidden = vision
    text_width, text_depth, text_heads = text
    return CLIPConfig(
        VisionConfig(
            image_size=size, patch=patch, width=width, depth=depth, heads=heads, hidden=hidden, norm_eps=1e-5, act=act,
            init="clip", patch_bias=False, pre_norm=True,
        ),
        clip_text(width=text_width, depth=text_depth, heads=text_heads, hidden=4 * text_width, act=act),
        embed,
        ImageSpec(size, mean, std),
        _CLIP_TEXT,
    )  # fmt: skip


_B32, _B16 = (32, 768, 12, 12, 3072), (16, 768, 12, 12, 3072)
_L14, _H14, _G14 = (14, 1024, 24, 16, 4096), (14, 1280, 32, 16, 5120), (14, 1408, 40, 16, 6144)

VARIANTS: dict[str, CLIPConfig] = {
    "clip-vit-b32": _variant(_B32, (512, 12, 8), 512, "quick_gelu"),
    "clip-vit-b16": _variant(_B16, (512, 12, 8), 512, "quick_gelu"),
    "clip-vit-l14": _variant(_L14, (768, 12, 12), 768, "quick_gelu"),
    "clip-vit-l14-336": _variant(_L14, (768, 12, 12), 768, "quick_gelu", size=336),
    "clip-vit-b32-laion": _variant(_B32, (512, 12, 8), 512, "gelu"),
    "clip-vit-b16-laion": _variant(_B16, (512, 12, 8), 512, "gelu"),
    # LAION-2B's L/14 alone was trained with mean and std 0.5 (open_clip's pretrained table)
    "clip-vit-l14-laion": _variant(_L14, (768, 12, 12), 768, "gelu", mean=HALF, std=HALF),
    "clip-vit-h14-laion": _variant(_H14, (1024, 24, 16), 1024, "gelu"),
    "clip-vit-g14-laion": _variant(_G14, (1024, 24, 16), 1024, "gelu"),
    # 24 px and 16 patches: from scratch in minutes, layout and colour tell more than detail does
    "clip-tiny": CLIPConfig(
        VisionConfig(
            image_size=24, patch=6, width=128, depth=3, heads=4, hidden=512, norm_eps=1e-5, act="gelu", init="google",
            pool="mean", cls_token=False,
        ),
        clip_text(vocab=3072, context=32, width=96, depth=2, heads=3, hidden=384, act="gelu"),
        128,
        ImageSpec(24, HALF, HALF, fit="squash"),
        TextSpec("tiny", context=32, vocab=3072),
    ),
}  # fmt: skip


class CLIP(nn.Module):
    """Two towers and their projections. Capability: `EmbedsPairs`.

    Attributes:
        logit_scale: Learned log of the multiplier of the cosines, a scalar.
        logit_bias: Learned scalar added after it (sigmoid loss), or None.
    """

    def __init__(self, config: CLIPConfig):
        super().__init__()
        c = self.config = config
        if c.text_input.vocab != c.text.vocab:
            raise ZooError(
                f"text_input has {c.text_input.vocab} words and the text tower {c.text.vocab}: make them equal."
            )
        self.vision = build_vision(c.vision)
        self.text = TextBackbone(c.text)
        self.vision_proj = UnitProjection(self.vision.width, c.embed, bias=False)
        self.text_proj = UnitProjection(self.text.width, c.embed, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(c.logit_scale))
        self.logit_bias = None if c.logit_bias is None else nn.Parameter(torch.tensor(c.logit_bias))
        if self.logit_scale.device.type != "meta":
            for proj in (self.vision_proj, self.text_proj):
                nn.init.normal_(proj.weight, std=proj.in_features**-0.5)

    @property
    def scale(self) -> Tensor:
        """The multiplier of the cosines, `exp(logit_scale)`, a float32 scalar whatever the autocast."""
        with torch.autocast(self.logit_scale.device.type, enabled=False):
            return (
                self.logit_scale.double()
                if self.logit_scale.dtype == torch.float64
                else self.logit_scale.float()
            ).exp()

    def encode_image(self, images: Tensor) -> Tensor:
        """Embed `images` (B, 3, H, W) as unit vectors (B, E)."""
        return self.vision_proj(self.pool_image(images))

    def encode_text(self, ids: Tensor, keep: Tensor | None = None) -> Tensor:
        """Embed texts as unit vectors (T, E); arguments as of `pool_text`."""
        return self.text_proj(self.pool_text(ids, keep))

    def pool_image(self, images: Tensor) -> Tensor:
        """What the image tower makes of `images` (B, 3, H, W), before the projection: (B, D)."""
        return self.vision(images).pooled

    def pool_text(self, ids: Tensor, keep: Tensor | None = None) -> Tensor:
        """What the text tower makes of texts, before the projection.

        Columns that are padding in every text are cut first: a causal tower pooled at the end token gives the same
        vector without them.

        Args:
            ids: (T, L) int64, each row start token, text, end token, padding.
            keep: (T, L) bool, True up to and including the end token. None finds the end token as OpenAI's code
                does, at the row's highest id, which holds for CLIP's own vocabulary only.

        Returns:
            (T, D).
        """
        if keep is None:
            if self.config.text_input.kind != "clip":
                raise ZooError(
                    "encode_text needs keep for this vocabulary: pass what processor.texts() gives."
                )
            keep = torch.arange(ids.shape[1], device=ids.device) <= ids.argmax(1, keepdim=True)
        right_padded = self.config.text.causal and self.config.text.pool == "last_kept"
        if right_padded and not torch.compiler.is_compiling():
            longest = int(keep.sum(1).max())
            ids, keep = ids[:, :longest], keep[:, :longest]
        return self.text(ids, keep=keep, right_padded=right_padded).pooled

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        """Cosines (B, T) of unit vectors (B, E) and (T, E)."""
        return image @ text.T

    def forward(self, images: Tensor, ids: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Embed `images` (B, 3, H, W) and texts `ids` (T, L) as unit vectors (B, E) and (T, E)."""
        return self.encode_image(images), self.encode_text(ids, keep)

    def fit_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resample a checkpoint's position table to this model's image size where they differ."""
        return self.vision.fit_state(state, "vision.") if isinstance(self.vision, VisionTower) else state
