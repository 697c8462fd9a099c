"""A tower with layer scale against transformers' DINOv2 in float64, at the table's own image size and at another."""

from __future__ import annotations

import pytest
import torch
from hand_copy import shake
from safetensors.torch import load_file

from mmzoo.towers import VisionConfig, VisionTower

pytestmark = pytest.mark.filterwarnings("ignore")


PAIRS = (("attn_norm", "norm1"), ("mlp_norm", "norm2"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2"))


def _state(s: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The published names, which transformers writes whatever its own are."""
    e = "embeddings"
    out = {
        "cls": s[f"{e}.cls_token"],
        "pos": s[f"{e}.position_embeddings"],
        "patch.proj.weight": s[f"{e}.patch_embeddings.projection.weight"],
        "patch.proj.bias": s[f"{e}.patch_embeddings.projection.bias"],
        "norm.weight": s["layernorm.weight"],
        "norm.bias": s["layernorm.bias"],
    }
    for i in range(3):
        layer, block = f"encoder.layer.{i}", f"blocks.{i}"
        for p in ("weight", "bias"):
            attn = f"{layer}.attention.attention"
            out[f"{block}.attn.qkv.{p}"] = torch.cat(
                [s[f"{attn}.{part}.{p}"] for part in ("query", "key", "value")]
            )
            out[f"{block}.attn.out.{p}"] = s[f"{layer}.attention.output.dense.{p}"]
            out |= {f"{block}.{ours}.{p}": s[f"{layer}.{theirs}.{p}"] for ours, theirs in PAIRS}
        out[f"{block}.attn_scale"] = s[f"{layer}.layer_scale1.lambda1"]
        out[f"{block}.mlp_scale"] = s[f"{layer}.layer_scale2.lambda1"]
    return out


@pytest.mark.parametrize("size", [20, 12, 28])
def test_dinov2_at_any_image_size(size, tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=3, mlp_ratio=4, image_size=20, patch_size=4
    )
    dino = shake(Dinov2Model(config).double().eval())
    ours = VisionTower(
        VisionConfig(
            image_size=size, patch=4, width=24, depth=3, heads=3, hidden=96, norm_eps=1e-6, act="gelu", init="timm",
            layer_scale=1.0, resample="dinov2",
        )
    ).double().eval()  # fmt: skip
    dino.save_pretrained(tmp_path)
    ours.load_state_dict(ours.fit_state(_state(load_file(tmp_path / "model.safetensors"))))
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    theirs = dino(images).last_hidden_state
    # transformers resamples in float32, whatever the table is in
    torch.testing.assert_close(ours(images).tokens, theirs, rtol=0, atol=1e-9 if size == 20 else 1e-6)
