"""Intermediate features equal timm's, and their end equals the tower's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hand_copy import copy_timm_vit, shake

import mmzoo
from mmzoo.errors import ZooError
from mmzoo.spec import HALF, ImageSpec
from mmzoo.towers import VisionConfig, VisionTower

TINY = VisionConfig(
    image_size=16, patch=4, width=24, depth=4, heads=3, hidden=48, norm_eps=1e-6, act="gelu", init="timm"
)
IMAGES = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def tower(**changes) -> VisionTower:
    torch.manual_seed(0)
    built = shake(VisionTower(replace(TINY, **changes)).double().eval())
    assert isinstance(built, VisionTower)
    return built


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("layers", [[1, 3], [2], [0, -1], [3, 1, 3]])
def test_as_timm(norm, layers):
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    theirs = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=24, depth=4, num_heads=3, mlp_ratio=2, num_classes=5
    )
    shake(theirs.eval().double())
    base = mmzoo.get_config("vit-b16-224")
    config = replace(base, vision=replace(TINY, init="google"), image=ImageSpec(16, HALF, HALF), classes=5)
    ours = mmzoo.create_model("vit-b16-224", config=config, dtype=torch.float64)
    copy_timm_vit(ours, theirs)
    unique = sorted({i % 4 for i in layers})
    with_prefix = theirs.forward_intermediates(
        IMAGES, unique, norm=norm, return_prefix_tokens=True, intermediates_only=True
    )
    expected = dict(zip(unique, with_prefix, strict=True))
    maps = ours.vision.intermediate(IMAGES, layers, norm=norm)
    tokens = ours.vision.intermediate(IMAGES, layers, norm=norm, maps=False)
    for i, one, all_tokens in zip(layers, maps, tokens, strict=True):
        grid, prefix = expected[i % 4]
        assert one.shape == (2, 24, 4, 4)
        torch.testing.assert_close(one, grid, rtol=0, atol=1e-10)
        torch.testing.assert_close(all_tokens[:, :1], prefix, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "changes",
    [{}, {"registers": 2}, {"cls_token": False, "pool": "mean"}, {"positions": "rope"}, {"pre_norm": True}],
)
def test_the_last_one_with_its_norm_is_the_towers(changes):
    built = tower(**changes)
    out = built(IMAGES)
    assert torch.equal(built.intermediate(IMAGES, [-1], norm=True, maps=False)[0], out.tokens)
    patches = built.intermediate(IMAGES, [-1], norm=True)[0].flatten(2).transpose(1, 2)
    assert torch.equal(patches, out.tokens[:, built.config.prefix :])


def test_no_block_after_the_last_is_run_and_gradients_flow():
    built = tower()
    built.blocks[3].register_forward_hook(lambda *args: pytest.fail("block 3 was run"))
    built.intermediate(IMAGES, [1])[0].sum().backward()
    assert built.blocks[1].attn.qkv.weight.grad is not None
    assert built.blocks[2].attn.qkv.weight.grad is None


def test_refusals():
    with pytest.raises(ZooError, match=r"blocks 0 to 3, asked for \[4\]"):
        tower().intermediate(IMAGES, [0, 4])
    with pytest.raises(ZooError, match="asked for none"):
        tower().intermediate(IMAGES, [])
    with pytest.raises(ZooError, match="no final norm"):
        tower(final_norm=False).intermediate(IMAGES, [0], norm=True)
    with pytest.raises(ZooError, match="no feature map"):
        tower(patch_drop=0.5).train().intermediate(IMAGES, [0])
