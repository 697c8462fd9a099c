"""ViT's published layouts: timm, transformers, Google's npz."""

from __future__ import annotations

from typing import Any

from mmzoo.weights.layout import Layout, Plain, Shapes, Unknown, count_blocks, own_act, transformers_act
from mmzoo.weights.maps.blocks import hf_vit_block, timm_block, weight_bias
from mmzoo.weights.rules import HWIO, Drop, Fuse, HeadsBias, HeadsIn, HeadsOut, Rule, Transpose

__all__ = ["LAYOUTS"]


def _config(
    patch: tuple[int, int],
    positions: tuple[int, ...],
    hidden: int,
    depth: int,
    heads: Any,
    act: Any,
    eps: Any,
    image: Any,
    classes: int,
    representation: int | None,
) -> Plain:
    """A ViTConfig as plain data; `patch` is (width, side)."""
    size = round((positions[1] - 1) ** 0.5) * patch[1]
    if isinstance(image, dict):
        image = {"size": size, **image}
    return {
        "vision": {
            "kind": "VisionConfig", "image_size": size, "patch": patch[1], "width": patch[0], "depth": depth,
            "heads": heads, "hidden": hidden, "norm_eps": eps, "act": act, "init": "google",
        },
        "image": image,
        "classes": classes,
        "representation": representation,
    }  # fmt: skip


# --- timm ---------------------------------------------------------------------------------------------------------

# timm's sizes by the word in an architecture's name: heads, for widths do not tell them
_TIMM_HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16}


def _timm(shapes: Shapes, side: dict[str, Plain]) -> Plain:
    told = side.get("config.json", {})
    word = str(told.get("architecture", "")).removeprefix("vit_").split("_")[0]
    heads: Any = _TIMM_HEADS.get(word, Unknown("its heads"))
    pre = told.get("pretrained_cfg", {})
    image: Any = Unknown("its preprocessing")
    if "mean" in pre and "std" in pre:
        image = {
            "mean": list(pre["mean"]),
            "std": list(pre["std"]),
            "crop_pct": pre.get("crop_pct", 0.875),
            "interpolation": pre.get("interpolation", "bicubic"),
        }
    weight = shapes["patch_embed.proj.weight"]
    fc = shapes.get("pre_logits.fc.weight")
    return _config(
        (weight[0], weight[2]),
        shapes["pos_embed"],
        shapes["blocks.0.mlp.fc1.weight"][0],
        count_blocks(shapes, "blocks.{i}.norm1.weight"),
        heads,
        "gelu",  # timm's VisionTransformer knows erf-GELU and eps 1e-6 unless an architecture says otherwise
        1e-6,
        image,
        shapes["head.weight"][0] if "head.weight" in shapes else 0,
        None if fc is None else fc[0],
    )


def _timm_rules(config: Plain) -> list[Rule]:
    return [
        Rule("cls_token", "vision.cls"),
        Rule("pos_embed", "vision.pos"),
        *weight_bias("patch_embed.proj", "vision.patch.proj"),
        *timm_block("blocks.{i}", "vision.blocks.{i}"),
        *weight_bias("norm", "vision.norm"),
        *weight_bias("pre_logits.fc", "representation"),
        *weight_bias("head", "head"),
    ]


def _timm_side(config: Plain) -> dict[str, Plain]:
    vision, image = config["vision"], config["image"]
    word = {
        (192, 3): "tiny",
        (384, 6): "small",
        (768, 12): "base",
        (1024, 16): "large",
        (1280, 16): "huge",
    }.get((vision["width"], vision["heads"]), "custom")
    name = f"vit_{word}_patch{vision['patch']}_{vision['image_size']}"
    return {
        "config.json": {
            "architecture": name,
            "num_classes": config["classes"],
            "num_features": vision["width"],
            "pretrained_cfg": {
                "input_size": [3, vision["image_size"], vision["image_size"]],
                "mean": image["mean"],
                "std": image["std"],
                "crop_pct": image.get("crop_pct", 1.0),
                "interpolation": image.get("interpolation", "bicubic"),
                "num_classes": config["classes"],
            },
        }
    }


# --- transformers -------------------------------------------------------------------------------------------------


def _transformers(shapes: Shapes, side: dict[str, Plain]) -> Plain:
    told = side.get("config.json")
    heads: Any = Unknown("its heads")
    act: Any = Unknown("its activation")
    eps: Any = Unknown("its epsilon")
    if told is not None:
        heads = told.get("num_attention_heads", 12)
        act = own_act(told.get("hidden_act", "gelu"))
        eps = told.get("layer_norm_eps", 1e-12)
    pre = side.get("preprocessor_config.json")
    image: Any = Unknown("its preprocessing")
    if pre is not None:
        # ViT's processors squash to the square; "resample" counts as PIL does
        image = {
            "mean": list(pre.get("image_mean", (0.5, 0.5, 0.5))),
            "std": list(pre.get("image_std", (0.5, 0.5, 0.5))),
            "fit": "crop" if pre.get("do_center_crop", False) else "squash",
            "interpolation": {2: "bilinear", 3: "bicubic"}.get(pre.get("resample", 2), "bilinear"),
        }
    weight = shapes["vit.embeddings.patch_embeddings.projection.weight"]
    pooler = shapes.get("vit.pooler.dense.weight")
    return _config(
        (weight[0], weight[2]),
        shapes["vit.embeddings.position_embeddings"],
        shapes["vit.encoder.layer.0.intermediate.dense.weight"][0],
        count_blocks(shapes, "vit.encoder.layer.{i}.layernorm_before.weight"),
        heads,
        act,
        eps,
        image,
        shapes["classifier.weight"][0] if "classifier.weight" in shapes else 0,
        None if pooler is None else pooler[0],
    )


def _transformers_rules(config: Plain) -> list[Rule]:
    return [
        Rule("vit.embeddings.cls_token", "vision.cls"),
        Rule("vit.embeddings.position_embeddings", "vision.pos"),
        *weight_bias("vit.embeddings.patch_embeddings.projection", "vision.patch.proj"),
        *hf_vit_block("vit.encoder.layer.{i}", "vision.blocks.{i}"),
        *weight_bias("vit.layernorm", "vision.norm"),
        *weight_bias("vit.pooler.dense", "representation"),
        *weight_bias("classifier", "head"),
        Rule("vit.embeddings.mask_token", None, Drop("only masked-image pre-training reads it")),
    ]


def _transformers_side(config: Plain) -> dict[str, Plain]:
    vision, image = config["vision"], config["image"]
    size = vision["image_size"]
    labels = {str(i): f"LABEL_{i}" for i in range(config["classes"])}
    model = {
        "architectures": ["ViTForImageClassification" if config["classes"] else "ViTModel"],
        "model_type": "vit", "hidden_size": vision["width"], "num_hidden_layers": vision["depth"],
        "num_attention_heads": vision["heads"], "intermediate_size": vision["hidden"], "image_size": size,
        "patch_size": vision["patch"], "hidden_act": transformers_act(vision["act"]),
        "layer_norm_eps": vision["norm_eps"], "qkv_bias": True, "id2label": labels,
        "label2id": {v: int(k) for k, v in labels.items()},
    }  # fmt: skip
    pre = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True,
        "rescale_factor": 1 / 255, "resample": 3, "size": {"height": size, "width": size},
        "image_mean": image["mean"], "image_std": image["std"],
    }  # fmt: skip
    return {"config.json": model, "preprocessor_config.json": pre}


# --- Google's npz -------------------------------------------------------------------------------------------------

_BLOCK = "Transformer/encoderblock_{i}"
_ATTN = f"{_BLOCK}/MultiHeadDotProductAttention_1"


def _google(shapes: Shapes, side: dict[str, Plain]) -> Plain:
    kernel = shapes["embedding/kernel"]
    return _config(
        (kernel[3], kernel[0]),
        shapes["Transformer/posembed_input/pos_embedding"],
        shapes["Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel"][1],
        count_blocks(shapes, f"{_BLOCK}/LayerNorm_0/scale"),
        shapes["Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"][1],
        Unknown(
            "which GELU to use (flax trained with the tanh form; timm and transformers use the erf form)"
        ),
        1e-6,
        Unknown("its preprocessing"),
        shapes["head/kernel"][1] if "head/kernel" in shapes else 0,
        shapes["pre_logits/kernel"][1] if "pre_logits/kernel" in shapes else None,
    )


def _flax(source: str, target: str) -> list[Rule]:
    return [
        Rule(f"{source}/kernel", f"{target}.weight", Transpose()),
        Rule(f"{source}/bias", f"{target}.bias"),
    ]


def _flax_norm(source: str, target: str) -> list[Rule]:
    return [Rule(f"{source}/scale", f"{target}.weight"), Rule(f"{source}/bias", f"{target}.bias")]


def _google_rules(config: Plain) -> list[Rule]:
    heads = config["vision"]["heads"]
    qkv = ("query", "key", "value")
    return [
        Rule("cls", "vision.cls"),
        Rule("Transformer/posembed_input/pos_embedding", "vision.pos"),
        Rule("embedding/kernel", "vision.patch.proj.weight", HWIO()),
        Rule("embedding/bias", "vision.patch.proj.bias"),
        *_flax_norm(f"{_BLOCK}/LayerNorm_0", "vision.blocks.{i}.attn_norm"),
        Rule(
            tuple(f"{_ATTN}/{p}/kernel" for p in qkv),
            "vision.blocks.{i}.attn.qkv.weight",
            Fuse(each=HeadsIn(heads)),
        ),
        Rule(
            tuple(f"{_ATTN}/{p}/bias" for p in qkv),
            "vision.blocks.{i}.attn.qkv.bias",
            Fuse(each=HeadsBias(heads)),
        ),
        Rule(f"{_ATTN}/out/kernel", "vision.blocks.{i}.attn.out.weight", HeadsOut(heads)),
        Rule(f"{_ATTN}/out/bias", "vision.blocks.{i}.attn.out.bias"),
        *_flax_norm(f"{_BLOCK}/LayerNorm_2", "vision.blocks.{i}.mlp_norm"),
        *_flax(f"{_BLOCK}/MlpBlock_3/Dense_0", "vision.blocks.{i}.mlp.fc1"),
        *_flax(f"{_BLOCK}/MlpBlock_3/Dense_1", "vision.blocks.{i}.mlp.fc2"),
        *_flax_norm("Transformer/encoder_norm", "vision.norm"),
        *_flax("pre_logits", "representation"),
        *_flax("head", "head"),
    ]


LAYOUTS = [
    Layout(
        "vit/timm",
        "vit",
        ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight"),
        _timm,
        _timm_rules,
        _timm_side,
    ),
    Layout(
        "vit/transformers",
        "vit",
        ("vit.embeddings.cls_token", "vit.embeddings.patch_embeddings.projection.weight"),
        _transformers,
        _transformers_rules,
        _transformers_side,
        prefix="vit.",
    ),
    Layout(
        "vit/google",
        "vit",
        ("embedding/kernel", "Transformer/posembed_input/pos_embedding"),
        _google,
        _google_rules,
        lambda config: {},
        "model.npz",
    ),
]
