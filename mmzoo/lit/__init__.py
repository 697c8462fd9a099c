"""Training: Lightning modules, callbacks and files around pure losses. Needs Lightning, which nothing below does."""

from mmzoo.lit.albef import ALBEFAdamW, LitALBEF
from mmzoo.lit.base import LitBase, Recipe
from mmzoo.lit.callbacks import ExportWeights, RunReport
from mmzoo.lit.checkpoints import Checkpoints
from mmzoo.lit.clip import CLIPAdamW, LitCLIP
from mmzoo.lit.vit import LitViT

__all__ = [
    "ALBEFAdamW",
    "CLIPAdamW",
    "Checkpoints",
    "ExportWeights",
    "LitALBEF",
    "LitBase",
    "LitCLIP",
    "LitViT",
    "Recipe",
    "RunReport",
]
