"""ViT against timm and transformers, which share no code with mmzoo: float64, outputs and gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hand_copy import copy_hf_vit, copy_timm_vit, shake

from mmzoo.models.vit import VARIANTS, ViT, ViTConfig
from mmzoo.spec import ImageSpec

pytestmark = pytest.mark.filterwarnings("ignore")


def _config(width: int, depth: int, heads: int, patch: int, size: int, classes: int = 7) -> ViTConfig:
    base = VARIANTS["vit-b16-224"]
    vision = replace(
        base.vision, image_size=size, patch=patch, width=width, depth=depth, heads=heads, hidden=4 * width
    )
    return replace(base, vision=vision, image=ImageSpec(size), classes=classes)


def _compare(ours: ViT, theirs: torch.nn.Module, logits_of, size: int, grads: list[tuple]) -> None:
    images = torch.randn(3, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a, b = ours(images), logits_of(images)
    assert a.abs().max() > 1e-3
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(a)
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    for mine, other in grads:
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("width", "depth", "heads", "patch", "size"), [(24, 3, 3, 4, 16), (768, 2, 12, 16, 64)]
)
def test_equals_timm(width, depth, heads, patch, size):
    import timm.models.vision_transformer as tvit

    theirs = tvit.VisionTransformer(
        img_size=size, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, num_classes=7
    )
    theirs = shake(theirs.double().eval())
    ours = ViT(_config(width, depth, heads, patch, size)).double().eval()
    copy_timm_vit(ours, theirs)
    _compare(
        ours,
        theirs,
        theirs,
        size,
        [
            (ours.vision.pos, theirs.pos_embed),
            (ours.vision.blocks[0].attn.qkv.weight, theirs.blocks[0].attn.qkv.weight),
            (ours.vision.blocks[1].mlp.fc1.bias, theirs.blocks[1].mlp.fc1.bias),
            (ours.vision.patch.proj.weight, theirs.patch_embed.proj.weight),
            (ours.head.weight, theirs.head.weight),
        ],
    )


@pytest.mark.parametrize(
    ("width", "depth", "heads", "patch", "size"), [(24, 3, 3, 4, 16), (768, 2, 12, 32, 96)]
)
def test_equals_transformers(width, depth, heads, patch, size):
    from transformers import ViTConfig as HFConfig
    from transformers import ViTForImageClassification

    hf = ViTForImageClassification(
        HFConfig(
            hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=4 * width,
            image_size=size, patch_size=patch, num_labels=7, layer_norm_eps=1e-6, hidden_act="gelu",
        )
    )  # fmt: skip
    hf = shake(hf.double().eval())
    ours = ViT(_config(width, depth, heads, patch, size)).double().eval()
    copy_hf_vit(ours, hf)
    _compare(
        ours,
        hf,
        lambda images: hf(images).logits,
        size,
        [(ours.vision.pos, hf.vit.embeddings.position_embeddings), (ours.head.weight, hf.classifier.weight)],
    )


def test_eps_mistake_would_be_seen():
    """The tolerance is tight enough to catch the classic port error, an epsilon of 1e-5 for 1e-6."""
    right = shake(ViT(_config(24, 3, 3, 4, 16)).double().eval())
    wrong_config = replace(right.config, vision=replace(right.config.vision, norm_eps=1e-5))
    wrong = ViT(wrong_config).double().eval()
    wrong.load_state_dict(right.state_dict())
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert (right(images) - wrong(images)).abs().max() > 1e-7
