"""ViLT's published layouts: the authors' Lightning checkpoints and transformers' conversions.

Names are those of dandelin/ViLT (762fd39, `vilt/modules`) and of transformers' `modeling_vilt.py`.
"""

from __future__ import annotations

from typing import Any

from mmzoo.spec import HALF
from mmzoo.weights.layout import Layout, Plain, Shapes, Unknown, count_blocks, own_act, transformers_act
from mmzoo.weights.maps.blocks import hf_vit_block, timm_vision, weight_bias
from mmzoo.weights.rules import Arange, Drop, Rule

__all__ = ["LAYOUTS"]

_LONGEST = (
    1333 / 800
)  # of the long side over the short one, in the authors' transform and transformers' alike


def _config(
    shapes: Shapes, patch: str, positions: str, text: str, depth: int, hidden: int, heads: Any, act: Any,
    eps: Any,
) -> Plain:  # fmt: skip
    """A StackConfig as plain data; what the text's missing blocks would be follows the stack."""
    width, _, side, _ = shapes[patch]
    size = round((shapes[positions][1] - 1) ** 0.5) * side
    vocab, context = (
        shapes[f"{text}.word_embeddings.weight"][0],
        shapes[f"{text}.position_embeddings.weight"][0],
    )
    return {
        "vision": {
            "image_size": size, "patch": side, "width": width, "depth": depth, "heads": heads, "hidden": hidden,
            "norm_eps": eps, "act": act, "init": "timm", "resample": "vilt", "dropout": 0.1,
        },
        "text": {
            "vocab": vocab, "context": context, "width": width, "depth": 0, "heads": heads, "hidden": hidden,
            "norm": "post", "norm_eps": 1e-12, "act": "gelu", "init": "bert", "embed_norm": True, "dropout": 0.1,
            "token_types": shapes[f"{text}.token_type_embeddings.weight"][0],
        },
        "image": {
            "size": size, "mean": list(HALF), "std": list(HALF), "fit": "aspect", "longest": int(_LONGEST * size),
            "multiple": side,
        },
        "text_input": {"kind": "bert", "context": context, "vocab": vocab},
    }  # fmt: skip


def _heads(shapes: Shapes, match: str, words: str, rank: str) -> Plain:
    """Which heads a file of the main model holds."""
    return {"kind": "ViLTConfig", "match": match in shapes, "words": words in shapes, "rank": rank in shapes}


def _embeddings(source: str, config: Plain) -> list[Rule]:
    return [
        Rule(f"{source}.word_embeddings.weight", "text.embed.tok.weight"),
        Rule(f"{source}.position_embeddings.weight", "text.embed.pos.weight"),
        Rule(f"{source}.token_type_embeddings.weight", "text.embed.token_type.weight"),
        *weight_bias(f"{source}.LayerNorm", "text.embed.norm"),
        Rule(f"{source}.position_ids", None, Arange(config["text"]["context"])),
    ]


def _classifier(source: str, target: str) -> list[Rule]:
    return [
        *weight_bias(f"{source}.0", f"{target}.fc1"),
        *weight_bias(f"{source}.1", f"{target}.norm"),
        *weight_bias(f"{source}.3", f"{target}.fc2"),
    ]


def _words(bias: str) -> list[Rule]:
    return [
        *weight_bias("mlm_score.transform.dense", "mlm.dense"),
        *weight_bias("mlm_score.transform.LayerNorm", "mlm.norm"),
        Rule("mlm_score.decoder.weight", "mlm.decoder.weight"),
        Rule(bias, "mlm.bias"),
    ]


# --- the authors' checkpoints -------------------------------------------------------------------------------------

_COLOURS = Drop("the head that guessed the colours of hidden patches, which the authors gave up")


def _official(shapes: Shapes, side: dict[str, Any]) -> Plain:
    width = shapes["transformer.patch_embed.proj.weight"][0]
    found = _config(
        shapes,
        "transformer.patch_embed.proj.weight",
        "transformer.pos_embed",
        "text_embeddings",
        count_blocks(shapes, "transformer.blocks.{i}.norm1.weight"),
        shapes["transformer.blocks.0.mlp.fc1.weight"][0],
        # the published code builds 12 heads at its one width; no file tells others
        12 if width == 768 else Unknown("its heads"),
        "gelu",
        1e-6,
    )
    if "vqa_classifier.3.weight" in shapes:
        return found | {"kind": "ViLTVQAConfig", "answers": shapes["vqa_classifier.3.weight"][0]}
    if "nlvr2_classifier.3.weight" in shapes:
        return found | {"kind": "ViLTNLVR2Config"}
    return found | _heads(shapes, "itm_score.fc.weight", "mlm_score.bias", "rank_output.weight")


def _official_rules(config: Plain) -> list[Rule]:
    return [
        *timm_vision("transformer", "vision"),
        *_embeddings("text_embeddings", config),
        Rule("token_type_embeddings.weight", "modality.weight"),
        *weight_bias("pooler.dense", "pooler.dense"),
        *weight_bias("itm_score.fc", "match_head"),
        *_words("mlm_score.bias"),
        *weight_bias("rank_output", "rank_head"),
        *_classifier("vqa_classifier", "answer_head"),
        *_classifier("nlvr2_classifier", "compare_head"),
        Rule("mpp_score.{*}", None, _COLOURS),
    ]


# --- transformers -------------------------------------------------------------------------------------------------


def _transformers(shapes: Shapes, side: dict[str, Any]) -> Plain:
    told = side.get("config.json")
    heads: Any = Unknown("its heads")
    act: Any = Unknown("its activation")
    eps: Any = Unknown("its epsilon")
    if told is not None:
        # transformers leaves out what equals its own defaults; its LayerNorms all share one epsilon, which the
        # embeddings' 1e-12 (the authors') and the blocks' 1e-6 contradict: the blocks' counts
        heads, act = told.get("num_attention_heads", 12), own_act(told.get("hidden_act", "gelu"))
        eps = told.get("layer_norm_eps", 1e-12)
    found = _config(
        shapes,
        "vilt.embeddings.patch_embeddings.projection.weight",
        "vilt.embeddings.position_embeddings",
        "vilt.embeddings.text_embeddings",
        count_blocks(shapes, "vilt.encoder.layer.{i}.layernorm_before.weight"),
        shapes["vilt.encoder.layer.0.intermediate.dense.weight"][0],
        heads,
        act,
        eps,
    )
    found["text"]["norm_eps"] = eps
    width, first = found["vision"]["width"], shapes.get("classifier.0.weight")
    if first is None:
        kind = _heads(shapes, "", "mlm_score.decoder.weight", "rank_output.weight")
    elif first == (2 * width, 2 * width):
        kind = {"kind": "ViLTNLVR2Config"}
    else:
        kind = {"kind": "ViLTVQAConfig", "answers": shapes["classifier.3.weight"][0]}
    return found | kind


def _transformers_words(side: dict[str, Any]) -> tuple[str, ...] | None:
    """Answers by their numbers; a list that nobody has named has `LABEL_0` and so on, or is left out."""
    told = side.get("config.json", {}).get("id2label")
    if not isinstance(told, dict):
        return None
    words = tuple(told.get(str(i)) for i in range(len(told)))
    found = tuple(word for i, word in enumerate(words) if isinstance(word, str) and word != f"LABEL_{i}")
    return found if len(found) == len(told) else None


def _transformers_rules(config: Plain) -> list[Rule]:
    target = "answer_head" if "answers" in config else "compare_head"
    return [
        Rule("vilt.embeddings.cls_token", "vision.cls"),
        Rule("vilt.embeddings.position_embeddings", "vision.pos"),
        *weight_bias("vilt.embeddings.patch_embeddings.projection", "vision.patch.proj"),
        *hf_vit_block("vilt.encoder.layer.{i}", "vision.blocks.{i}"),
        *weight_bias("vilt.layernorm", "vision.norm"),
        *_embeddings("vilt.embeddings.text_embeddings", config),
        Rule("vilt.embeddings.token_type_embeddings.weight", "modality.weight"),
        *weight_bias("vilt.pooler.dense", "pooler.dense"),
        *_words("mlm_score.decoder.bias"),
        *weight_bias("rank_output", "rank_head"),
        *_classifier("classifier", target),
    ]


def _transformers_side(config: Plain) -> dict[str, Any]:
    vision, text, image = config["vision"], config["text"], config["image"]
    if "answers" in config:
        architecture, extra = "ViltForQuestionAnswering", {"num_labels": config["answers"]}
    elif "match" not in config:
        architecture, extra = (
            "ViltForImagesAndTextClassification",
            {"num_images": 2, "modality_type_vocab_size": 3},
        )
    elif config["rank"]:
        architecture, extra = "ViltForImageAndTextRetrieval", {}
    else:
        architecture, extra = "ViltForMaskedLM", {}
    model = {
        "architectures": [architecture], "model_type": "vilt", "vocab_size": text["vocab"],
        "hidden_size": vision["width"], "num_hidden_layers": vision["depth"], "num_attention_heads": vision["heads"],
        "intermediate_size": vision["hidden"], "hidden_act": transformers_act(vision["act"]),
        "layer_norm_eps": vision["norm_eps"], "image_size": vision["image_size"], "patch_size": vision["patch"],
        "max_position_embeddings": text["context"], "type_vocab_size": text["token_types"],
        "tie_word_embeddings": False, "max_image_length": -1, **extra,
    }  # fmt: skip
    pre = {
        "image_processor_type": "ViltImageProcessor", "do_resize": True, "size": {"shortest_edge": image["size"]},
        "size_divisor": image["multiple"], "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": image["mean"], "image_std": image["std"], "do_pad": True,
    }  # fmt: skip
    return {"config.json": model, "preprocessor_config.json": pre}


LAYOUTS = [
    Layout(
        "vilt/official",
        "vilt",
        ("transformer.cls_token", "text_embeddings.word_embeddings.weight", "token_type_embeddings.weight"),
        _official,
        _official_rules,
        lambda config: {},
        "model.ckpt",
    ),
    Layout(
        "vilt/transformers",
        "vilt",
        ("vilt.embeddings.cls_token", "vilt.embeddings.token_type_embeddings.weight"),
        _transformers,
        _transformers_rules,
        _transformers_side,
        # until version 5 the decoder had no bias of its own
        old_names=(("mlm_score.bias", "mlm_score.decoder.bias"),),
        words=_transformers_words,
    ),
]
