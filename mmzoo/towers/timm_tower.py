"""Any timm backbone as a guest vision tower."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mmzoo.config import UNKEPT
from mmzoo.errors import ZooError, nearest
from mmzoo.towers.vision import VisionOut

__all__ = ["TimmConfig", "TimmTower"]


@dataclass(frozen=True)
class TimmConfig:
    """Which timm model serves as a tower.

    Attributes:
        timm: A timm model name, `"convnext_tiny"`. Weights are not downloaded: the tower starts from timm's own
            initialisation, or is filled by `create_model(..., pretrained=PATH)`.
        image_size: Side of the square input in pixels.
        drop_path: Stochastic depth rate given to timm.
    """

    timm: str
    image_size: int
    drop_path: float = field(default=0.0, metadata=UNKEPT)


class TimmTower(nn.Module):
    """Wraps a timm backbone so that it gives `VisionOut` like the own tower.

    Raises:
        ZooError: timm knows no such model, or the model takes no `img_size` or `drop_path_rate`.
    """

    def __init__(self, config: TimmConfig):
        super().__init__()
        import timm

        self.config = config
        if not timm.is_model(config.timm):
            raise ZooError(f"timm has no model {config.timm!r}.{nearest(config.timm, timm.list_models())}")
        kwargs: dict[str, Any] = {"drop_path_rate": config.drop_path} if config.drop_path else {}
        try:  # transformers with position tables want the size at construction; convolutional nets refuse the argument
            trunk = timm.create_model(
                config.timm, pretrained=False, num_classes=0, img_size=config.image_size, **kwargs
            )
        except TypeError:
            try:
                trunk = timm.create_model(config.timm, pretrained=False, num_classes=0, **kwargs)
            except TypeError as error:
                raise ZooError(f"timm's {config.timm} does not take {', '.join(kwargs)}: {error}.") from error
        self.trunk: Any = trunk
        self.width = int(trunk.num_features)  # type: ignore[arg-type]

    def set_checkpointing(self, on: bool) -> None:
        """Recompute activations in the backward pass, where the timm model supports it."""
        self.trunk.set_grad_checkpointing(on)

    def forward(self, images: Tensor) -> VisionOut:
        """Encode `images` (B, 3, image_size, image_size).

        Returns:
            Tokens (B, N, D) (feature maps are flattened row by row), timm's own pooled vector (B, D) and the grid
            (1, N) where the model has no feature map.
        """
        features = self.trunk.forward_features(images)
        pooled = self.trunk.forward_head(features, pre_logits=True)
        if features.dim() == 4:
            channels_last = getattr(self.trunk, "output_fmt", "NCHW") == "NHWC"
            features = features if channels_last else features.permute(0, 2, 3, 1)
            grid = (features.shape[1], features.shape[2])
            return VisionOut(features.flatten(1, 2), pooled, grid)
        return VisionOut(features, pooled, (1, features.shape[1]))
