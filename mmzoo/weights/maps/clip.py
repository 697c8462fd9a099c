"""CLIP's published layouts: OpenAI's archives, open_clip, transformers."""

from __future__ import annotations

from typing import Any

from mmzoo.spec import CLIP_MEAN, CLIP_STD
from mmzoo.weights.layout import Layout, Plain, Shapes, Unknown, count_blocks, own_act, transformers_act
from mmzoo.weights.maps.blocks import hf_clip_block, openai_block, weight_bias
from mmzoo.weights.rules import Arange, Lead, Rule, Scalar, Transpose

__all__ = ["LAYOUTS"]


def _config(
    patch_weight: tuple[int, ...],
    positions: tuple[int, ...],
    words: tuple[int, ...],
    text_positions: tuple[int, ...],
    hidden: tuple[int, int],
    depth: tuple[int, int],
    embed: int,
    heads: tuple[Any, Any],
    act: tuple[Any, Any],
    eps: tuple[Any, Any],
    image: Any,
) -> Plain:
    """A CLIPConfig as plain data from shapes; pairs are (vision, text)."""
    patch, side = patch_weight[2], round((positions[0] - 1) ** 0.5)
    if isinstance(image, dict):
        image = {"size": side * patch, **image}
    vision = {
        "kind": "VisionConfig", "image_size": side * patch, "patch": patch, "width": patch_weight[0], "depth": depth[0],
        "heads": heads[0], "hidden": hidden[0], "norm_eps": eps[0], "act": act[0], "init": "clip", "patch_bias": False,
        "pre_norm": True,
    }  # fmt: skip
    text = {
        "vocab": words[0], "context": text_positions[0], "width": words[1], "depth": depth[1], "heads": heads[1],
        "hidden": hidden[1], "norm": "pre", "norm_eps": eps[1], "act": act[1], "init": "clip", "final_norm": True,
        "causal": True, "pool": "last_kept",
    }  # fmt: skip
    return {
        "vision": vision,
        "text": text,
        "embed": embed,
        "image": image,
        "text_input": {"kind": "clip", "context": text_positions[0], "vocab": words[0]},
    }


# --- OpenAI and open_clip: the same names ------------------------------------------------------------------------

_OPENAI_RULES = [
    Rule("visual.class_embedding", "vision.cls", Lead(2)),
    Rule("visual.positional_embedding", "vision.pos", Lead(1)),
    Rule("visual.conv1.weight", "vision.patch.proj.weight"),
    *weight_bias("visual.ln_pre", "vision.pre_norm"),
    *openai_block("visual.transformer.resblocks.{i}", "vision.blocks.{i}"),
    *weight_bias("visual.ln_post", "vision.norm"),
    Rule("visual.proj", "vision_proj.weight", Transpose()),
    Rule("token_embedding.weight", "text.embed.tok.weight"),
    Rule("positional_embedding", "text.embed.pos.weight"),
    *openai_block("transformer.resblocks.{i}", "text.blocks.{i}"),
    *weight_bias("ln_final", "text.norm"),
    Rule("text_projection", "text_proj.weight", Transpose()),
    Rule("logit_scale", "logit_scale"),
    Rule("logit_bias", "logit_bias"),
]


def _openai_shapes(shapes: Shapes, **rest: Any) -> Plain:
    return _config(
        shapes["visual.conv1.weight"],
        shapes["visual.positional_embedding"],
        shapes["token_embedding.weight"],
        shapes["positional_embedding"],
        (
            shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"][0],
            shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        ),
        (
            count_blocks(shapes, "visual.transformer.resblocks.{i}.ln_1.weight"),
            count_blocks(shapes, "transformer.resblocks.{i}.ln_1.weight"),
        ),
        shapes["text_projection"][1],
        **rest,
    )


def _openai(shapes: Shapes, side: dict[str, Plain]) -> Plain:
    # OpenAI's code has no other activation and epsilon, and computes the heads as width // 64
    return _openai_shapes(
        shapes,
        heads=(shapes["visual.conv1.weight"][0] // 64, shapes["token_embedding.weight"][1] // 64),
        act=("quick_gelu", "quick_gelu"),
        eps=(1e-5, 1e-5),
        image={"mean": list(CLIP_MEAN), "std": list(CLIP_STD)},
    )


def _openai_rules(config: Plain) -> list[Rule]:
    return [
        *_OPENAI_RULES,
        Rule("input_resolution", None, Scalar(config["vision"]["image_size"])),
        Rule("context_length", None, Scalar(config["text"]["context"])),
        Rule("vocab_size", None, Scalar(config["text"]["vocab"])),
    ]


def _open_clip(shapes: Shapes, side: dict[str, Plain]) -> Plain:
    told = side.get("open_clip_config.json", {})
    model = told.get("model_cfg")
    if model is None:
        heads: tuple[Any, Any] = (Unknown("the image tower's heads"), Unknown("the text tower's heads"))
        act: tuple[Any, Any] = (Unknown("its activation, GELU or QuickGELU"),) * 2
    else:
        vision, text = model["vision_cfg"], model["text_cfg"]
        heads = (vision["width"] // vision.get("head_width", 64), text["heads"])
        act = ("quick_gelu" if model.get("quick_gelu", False) else "gelu",) * 2
    pre = told.get("preprocess_cfg")
    image: Any = Unknown("its preprocessing")
    if pre is not None:
        image = {
            "mean": list(pre.get("mean", CLIP_MEAN)),
            "std": list(pre.get("std", CLIP_STD)),
            "fit": "squash" if pre.get("resize_mode") == "squash" else "crop",
            "interpolation": pre.get("interpolation", "bicubic"),
        }
    # every CLIP class of open_clip has LayerNorm's default epsilon
    return _openai_shapes(shapes, heads=heads, act=act, eps=(1e-5, 1e-5), image=image)


def _open_clip_side(config: Plain) -> dict[str, Plain]:
    vision, text, image = config["vision"], config["text"], config["image"]
    model = {
        "embed_dim": config["embed"],
        "vision_cfg": {
            "image_size": vision["image_size"],
            "layers": vision["depth"],
            "width": vision["width"],
            "head_width": vision["width"] // vision["heads"],
            "mlp_ratio": vision["hidden"] / vision["width"],
            "patch_size": vision["patch"],
        },
        "text_cfg": {
            "context_length": text["context"],
            "vocab_size": text["vocab"],
            "width": text["width"],
            "heads": text["heads"],
            "layers": text["depth"],
            "mlp_ratio": text["hidden"] / text["width"],
        },
        "quick_gelu": vision["act"] == "quick_gelu",
    }
    pre = {
        "mean": image["mean"],
        "std": image["std"],
        "interpolation": image.get("interpolation", "bicubic"),
        "resize_mode": "squash" if image.get("fit") == "squash" else "shortest",
    }
    return {"open_clip_config.json": {"model_cfg": model, "preprocess_cfg": pre}}


# --- transformers -------------------------------------------------------------------------------------------------


def _transformers(shapes: Shapes, side: dict[str, Plain]) -> Plain:
    told = side.get("config.json")
    heads: tuple[Any, Any] = (Unknown("the image tower's heads"), Unknown("the text tower's heads"))
    act: tuple[Any, Any] = (Unknown("its activation, GELU or QuickGELU"),) * 2
    eps: tuple[Any, Any] = (Unknown("its epsilon"),) * 2
    if told is not None:
        # transformers leaves out what equals its own defaults
        vision, text = told.get("vision_config", {}), told.get("text_config", {})
        heads = (vision.get("num_attention_heads", 12), text.get("num_attention_heads", 8))
        act = (own_act(vision.get("hidden_act", "quick_gelu")), own_act(text.get("hidden_act", "quick_gelu")))
        eps = (vision.get("layer_norm_eps", 1e-5), text.get("layer_norm_eps", 1e-5))
    pre = side.get("preprocessor_config.json")
    image: Any = Unknown("its preprocessing")
    if pre is not None:
        image = {
            "mean": list(pre.get("image_mean", CLIP_MEAN)),
            "std": list(pre.get("image_std", CLIP_STD)),
            "fit": "crop" if pre.get("do_center_crop", True) else "squash",
        }
    layers = ("vision_model.encoder.layers", "text_model.encoder.layers")
    return _config(
        shapes["vision_model.embeddings.patch_embedding.weight"],
        shapes["vision_model.embeddings.position_embedding.weight"],
        shapes["text_model.embeddings.token_embedding.weight"],
        shapes["text_model.embeddings.position_embedding.weight"],
        (shapes[f"{layers[0]}.0.mlp.fc1.weight"][0], shapes[f"{layers[1]}.0.mlp.fc1.weight"][0]),
        (
            count_blocks(shapes, f"{layers[0]}.{{i}}.layer_norm1.weight"),
            count_blocks(shapes, f"{layers[1]}.{{i}}.layer_norm1.weight"),
        ),
        shapes["text_projection.weight"][0],
        heads,
        act,
        eps,
        image,
    )


def _transformers_rules(config: Plain) -> list[Rule]:
    vision, text = config["vision"], config["text"]
    patches = (vision["image_size"] // vision["patch"]) ** 2
    return [
        Rule("vision_model.embeddings.class_embedding", "vision.cls", Lead(2)),
        Rule("vision_model.embeddings.position_embedding.weight", "vision.pos", Lead(1)),
        Rule("vision_model.embeddings.patch_embedding.weight", "vision.patch.proj.weight"),
        *weight_bias("vision_model.pre_layrnorm", "vision.pre_norm"),  # misspelt upstream
        *hf_clip_block("vision_model.encoder.layers.{i}", "vision.blocks.{i}"),
        *weight_bias("vision_model.post_layernorm", "vision.norm"),
        Rule("visual_projection.weight", "vision_proj.weight"),
        Rule("text_model.embeddings.token_embedding.weight", "text.embed.tok.weight"),
        Rule("text_model.embeddings.position_embedding.weight", "text.embed.pos.weight"),
        *hf_clip_block("text_model.encoder.layers.{i}", "text.blocks.{i}"),
        *weight_bias("text_model.final_layer_norm", "text.norm"),
        Rule("text_projection.weight", "text_proj.weight"),
        Rule("logit_scale", "logit_scale"),
        # buffers that transformers saved until version 4.31
        Rule("vision_model.embeddings.position_ids", None, Arange(patches + 1)),
        Rule("text_model.embeddings.position_ids", None, Arange(text["context"])),
    ]


def _transformers_side(config: Plain) -> dict[str, Plain]:
    vision, text, image = config["vision"], config["text"], config["image"]
    common = {"projection_dim": config["embed"]}
    model = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        **common,
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": vision["width"], "intermediate_size": vision["hidden"],
            "num_hidden_layers": vision["depth"], "num_attention_heads": vision["heads"],
            "image_size": vision["image_size"], "patch_size": vision["patch"],
            "hidden_act": transformers_act(vision["act"]), "layer_norm_eps": vision["norm_eps"], **common,
        },
        "text_config": {
            "model_type": "clip_text_model", "vocab_size": text["vocab"], "hidden_size": text["width"],
            "intermediate_size": text["hidden"], "num_hidden_layers": text["depth"],
            "num_attention_heads": text["heads"], "max_position_embeddings": text["context"],
            "hidden_act": transformers_act(text["act"]), "layer_norm_eps": text["norm_eps"],
            # CLIP's own vocabulary ends with the start and the end of text; transformers pools at the latter
            "bos_token_id": text["vocab"] - 2, "eos_token_id": text["vocab"] - 1, "pad_token_id": 0, **common,
        },
    }  # fmt: skip
    crop = image.get("fit", "crop") == "crop"
    size = image["size"]
    pre = {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "do_center_crop": crop, "do_rescale": True,
        "do_normalize": True, "do_convert_rgb": True, "rescale_factor": 1 / 255, "resample": 3,
        "size": {"shortest_edge": size} if crop else {"height": size, "width": size},
        "crop_size": {"height": size, "width": size}, "image_mean": image["mean"], "image_std": image["std"],
    }  # fmt: skip
    return {"config.json": model, "preprocessor_config.json": pre}


LAYOUTS = [
    Layout(
        "clip/openai",
        "clip",
        ("visual.class_embedding", "token_embedding.weight", "input_resolution"),
        _openai,
        _openai_rules,
        lambda config: {},
        "model.pt",
    ),
    Layout(
        "clip/open_clip",
        "clip",
        ("visual.class_embedding", "token_embedding.weight", "visual.transformer.resblocks.0.ln_1.weight"),
        _open_clip,
        lambda config: _OPENAI_RULES,
        _open_clip_side,
        "open_clip_model.safetensors",
    ),
    Layout(
        "clip/transformers",
        "clip",
        ("vision_model.pre_layrnorm.weight", "text_model.embeddings.token_embedding.weight"),
        _transformers,
        _transformers_rules,
        _transformers_side,
    ),
]
