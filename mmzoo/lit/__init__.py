"""Training: Lightning modules, callbacks and files around pure losses. Needs Lightning, which nothing below does."""

from mmzoo.lit.albef import LitALBEF
from mmzoo.lit.albef_tasks import LitALBEFAssign, LitALBEFNLVR2, LitALBEFVE, LitALBEFVQA, Teaching
from mmzoo.lit.base import LitBase, Recipe
from mmzoo.lit.blip import LitBLIP
from mmzoo.lit.blip_tasks import LitBLIPCaption, LitBLIPNLVR2, LitBLIPVQA
from mmzoo.lit.callbacks import ExportWeights, RunReport
from mmzoo.lit.checkpoints import Checkpoints
from mmzoo.lit.clip import CLIPAdamW, LitCLIP
from mmzoo.lit.vilt import LitViLT
from mmzoo.lit.vilt_tasks import LitViLTNLVR2, LitViLTRetrieval, LitViLTVQA
from mmzoo.lit.vit import LitViT

__all__ = [
    "CLIPAdamW",
    "Checkpoints",
    "ExportWeights",
    "LitALBEF",
    "LitALBEFAssign",
    "LitALBEFNLVR2",
    "LitALBEFVE",
    "LitALBEFVQA",
    "LitBLIP",
    "LitBLIPCaption",
    "LitBLIPNLVR2",
    "LitBLIPVQA",
    "LitBase",
    "LitCLIP",
    "LitViLT",
    "LitViLTNLVR2",
    "LitViLTRetrieval",
    "LitViLTVQA",
    "LitViT",
    "Recipe",
    "RunReport",
    "Teaching",
]
