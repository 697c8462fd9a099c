"""Vision and text towers, and the choice between the own vision tower and a guest."""

from __future__ import annotations

from mmzoo.towers.text import TextBackbone, TextConfig, TextOut
from mmzoo.towers.timm_tower import TimmConfig, TimmTower
from mmzoo.towers.vision import VisionConfig, VisionOut, VisionTower

__all__ = [
    "TextBackbone",
    "TextConfig",
    "TextOut",
    "TimmConfig",
    "TimmTower",
    "VisionConfig",
    "VisionOut",
    "VisionTower",
    "build_vision",
]


def build_vision(config: VisionConfig | TimmConfig) -> VisionTower | TimmTower:
    """Build the vision tower that `config` describes."""
    return TimmTower(config) if isinstance(config, TimmConfig) else VisionTower(config)
