"""ALBEF's published layouts: the authors' files and LAVIS's, which differ in what their texts are given.

Both hold the training's state beside the model: the teacher's copies, the queues of embeddings and where they stand.
Those are left aside, since a run cannot go on from weights alone. Files of the pre-trained model keep the text
transformer one level deeper (`text_encoder.bert`), for it carries the head for masked words; files of single tasks
do not.

Names are those of salesforce/ALBEF (b9727e4, `models/`) and salesforce/LAVIS (506965b, `lavis/models/albef_models`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mmzoo.spec import CLIP_MEAN, CLIP_STD
from mmzoo.weights.layout import Layout, Plain, Shapes, Unknown, count_blocks
from mmzoo.weights.maps.blocks import bert_block, bert_cross, timm_vision, weight_bias
from mmzoo.weights.rules import Arange, Drop, LogInverse, Rule, Tie

__all__ = ["LAYOUTS"]

_TEACHER = Drop(
    "a copy that the momentum teacher needs to go on training; start one from the weights instead"
)
_QUEUE = Drop("embeddings of the last training batches; a new run fills its own queue")
_COSINES = Drop(
    "a common space and its temperature, which a model for comparing pairs of images does not read"
)

# 25 tokens in pre-training and for questions; single sentences are cut after 30 words
_SHORT, _LONG = 25, 50


def _describe(shapes: Shapes, side: dict[str, Any], *, sep: bool) -> Plain:
    patch = shapes["visual_encoder.patch_embed.proj.weight"]
    width, rows = patch[0], shapes["visual_encoder.pos_embed"][1]
    size = round((rows - 1) ** 0.5) * patch[2]
    bert = (
        "text_encoder.bert."
        if "text_encoder.bert.embeddings.word_embeddings.weight" in shapes
        else "text_encoder."
    )
    answers = "text_decoder.bert.embeddings.word_embeddings.weight" in shapes
    text = _text(shapes, bert)
    plain: Plain = {
        "vision": {
            "image_size": size, "patch": patch[2], "width": width,
            "depth": count_blocks(shapes, "visual_encoder.blocks.{i}.norm1.weight"), "heads": _heads(width),
            "hidden": shapes["visual_encoder.blocks.0.mlp.fc1.weight"][0], "norm_eps": 1e-6, "act": "gelu",
            "init": "timm", "resample": "albef",
        },
        "text": text,
        "image": {"size": size, "mean": list(CLIP_MEAN), "std": list(CLIP_STD), "fit": "squash"},
        "text_input": {
            "kind": "bert", "context": _SHORT if answers or bert.endswith("bert.") else _LONG, "vocab": text["vocab"],
            "sep": sep, "clean": "albef",
        },
    }  # fmt: skip
    if answers:
        decoder = _text(shapes, "text_decoder.bert.") | {"causal": True}
        return plain | {"kind": "ALBEFVQAConfig", "decoder": decoder}
    if "ta_head.weight" in shapes:
        embed = shapes["vision_proj.weight"][0]
        return plain | {"kind": "ALBEFNLVR2Config", "task": "assign", "embed": embed}
    if "cls_head.2.weight" in shapes and shapes["cls_head.2.weight"][0] == 2:
        return plain | {"kind": "ALBEFNLVR2Config", "task": "compare"}
    if "cls_head.2.weight" in shapes:
        return plain | {"kind": "ALBEFVEConfig", "classes": shapes["cls_head.2.weight"][0]}
    embed = shapes["vision_proj.weight"][0]
    return plain | {"kind": "ALBEFConfig", "embed": embed, "words": bert.endswith("bert.")}


def _heads(width: int) -> Any:
    """The published code builds 12 heads at its one width; no file tells others."""
    return 12 if width == 768 else Unknown("its heads")


def _text(shapes: Shapes, bert: str) -> Plain:
    vocab, width = shapes[f"{bert}embeddings.word_embeddings.weight"]
    depth = count_blocks(shapes, f"{bert}encoder.layer.{{i}}.output.dense.weight")
    cross = [i for i in range(depth) if f"{bert}encoder.layer.{i}.crossattention.self.key.weight" in shapes]
    types = shapes.get(f"{bert}embeddings.token_type_embeddings.weight", (0,))[0]
    first = f"{bert}encoder.layer.{cross[0]}.crossattention.self.key.weight" if cross else ""
    return {
        "vocab": vocab, "context": shapes[f"{bert}embeddings.position_embeddings.weight"][0], "width": width,
        "depth": depth, "heads": _heads(width), "hidden": shapes[f"{bert}encoder.layer.0.intermediate.dense.weight"][0],
        "norm": "post", "norm_eps": 1e-12, "act": "gelu", "init": "bert", "token_types": types, "embed_norm": True,
        "dropout": 0.1, "attn_dropout": 0.1, "cross_layers": cross,
        "cross_width": shapes[first][1] if cross else None,
    }  # fmt: skip


def _embeddings(source: str, target: str, config: Plain) -> list[Rule]:
    types = config.get("token_types", 1)
    return [
        Rule(f"{source}.word_embeddings.weight", f"{target}.tok.weight"),
        Rule(f"{source}.position_embeddings.weight", f"{target}.pos.weight"),
        *([Rule(f"{source}.token_type_embeddings.weight", f"{target}.token_type.weight")] if types else []),
        *weight_bias(f"{source}.LayerNorm", f"{target}.norm"),
        Rule(f"{source}.position_ids", None, Arange(config["context"])),
    ]


def _transformer(source: str, target: str, config: Plain) -> list[Rule]:
    return [
        *_embeddings(f"{source}.embeddings", f"{target}.embed", config),
        *bert_block(f"{source}.encoder.layer.{{i}}", f"{target}.blocks.{{i}}"),
        *bert_cross(f"{source}.encoder.layer.{{i}}", f"{target}.blocks.{{i}}"),
    ]


def _words(source: str, target: str, table: str) -> list[Rule]:
    return [
        Rule(f"{source}.bias", f"{target}.bias"),
        *weight_bias(f"{source}.transform.dense", f"{target}.dense"),
        *weight_bias(f"{source}.transform.LayerNorm", f"{target}.norm"),
        Rule(f"{source}.decoder.weight", table, Tie()),
        Rule(f"{source}.decoder.bias", f"{target}.bias", Tie()),
    ]


def _classifier(target: str) -> list[Rule]:
    return [
        *weight_bias("cls_head.0", f"{target}.fc1"),
        *weight_bias("cls_head.2", f"{target}.fc2"),
    ]


def _cosines() -> list[Rule]:
    return [
        *weight_bias("vision_proj", "vision_proj"),
        *weight_bias("text_proj", "text_proj"),
        Rule("temp", "logit_scale", LogInverse()),
    ]


def _pretrained(config: Plain) -> list[Rule]:
    return [
        *_transformer("text_encoder.bert", "text", config["text"]),
        *_words("text_encoder.cls.predictions", "mlm", "text.embed.tok.weight"),
        *_cosines(),
        *weight_bias("itm_head", "match_head"),
    ]


def _retrieval(config: Plain) -> list[Rule]:
    encoder = _transformer("text_encoder", "text", config["text"])
    return [*encoder, *_cosines(), *weight_bias("itm_head", "match_head")]


def _vqa(config: Plain) -> list[Rule]:
    return [
        *_transformer("text_encoder", "text", config["text"]),
        *_transformer("text_decoder.bert", "decoder", config["decoder"]),
        *_words("text_decoder.cls.predictions", "lm", "decoder.embed.tok.weight"),
    ]


def _compare(config: Plain) -> list[Rule]:
    return [*_transformer("text_encoder", "text", config["text"]), *_classifier("compare_head")]


def _assign(config: Plain) -> list[Rule]:
    return [
        *_transformer("text_encoder", "text", config["text"]),
        *weight_bias("vision_proj", "vision_proj"),
        *(Rule(name, None, _COSINES) for name in ("text_proj.weight", "text_proj.bias", "temp")),
        *weight_bias("ta_head", "assign_head"),
    ]


def _entail(config: Plain) -> list[Rule]:
    return [*_transformer("text_encoder", "text", config["text"]), *_classifier("entail_head")]


def _task(config: Plain) -> Callable[[Plain], list[Rule]]:
    """Which table a config asks for, by the fields that only one kind has."""
    if "decoder" in config:
        return _vqa
    if "task" in config:
        return _compare if config["task"] == "compare" else _assign
    if "classes" in config:
        return _entail
    return _pretrained if config.get("words", True) else _retrieval


def _rules(config: Plain) -> list[Rule]:
    table = _union(config) if "union" in config else _task(config)(config)
    training = ["visual_encoder_m.{*}", "text_encoder_m.{*}", "text_decoder_m.{*}", "vision_proj_m.{*}"]
    training += ["text_proj_m.{*}", "cls_head_m.{*}"]
    return [
        *timm_vision("visual_encoder", "vision"),
        *table,
        *(Rule(name, None, _TEACHER) for name in training),
        *(Rule(name, None, _QUEUE) for name in ("image_queue", "text_queue", "idx_queue", "queue_ptr")),
    ]


def _union(config: Plain) -> list[Rule]:
    """All names that a file of any task may have, to recognise one by; each once."""
    found: dict[tuple[str, ...], Rule] = {}
    for table in (_pretrained, _retrieval, _vqa, _compare, _assign):
        found |= {rule.sources: rule for rule in table(config) if rule.sources not in found}
    return list(found.values())


_SIGNATURE = ("visual_encoder.cls_token", "visual_encoder.blocks.0.norm1.weight")
_TYPES = "text_encoder.embeddings.token_type_embeddings.weight"
_PROBE: Plain = {"union": True, "decoder": {"context": 1}}


LAYOUTS = [
    Layout(
        "albef/official",
        "albef",
        (*_SIGNATURE, _TYPES),
        partial(_describe, sep=False),
        _rules,
        lambda config: {},
        "model.pth",
        probe=_PROBE,
    ),
    Layout(
        "albef/lavis",
        "albef",
        _SIGNATURE,
        partial(_describe, sep=True),
        _rules,
        lambda config: {},
        "model.pth",
        probe=_PROBE
        | {"text": {"context": 1, "token_types": 0}, "decoder": {"context": 1, "token_types": 0}},
    ),
]
