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

from mmzoo.weights.layout import Layout, Plain, Shapes
from mmzoo.weights.maps.blocks import timm_vision, weight_bias
from mmzoo.weights.maps.fusion import (
    SIGNATURE,
    cosines,
    describe_image,
    describe_text,
    describe_vision,
    every_name,
    is_blip,
    leftovers,
    transformer,
    two_maps,
    words,
)
from mmzoo.weights.rules import Drop, Rule

__all__ = ["LAYOUTS"]

_COSINES = Drop(
    "a common space and its temperature, which a model for comparing pairs of images does not read"
)

# 25 tokens in pre-training and for questions; single sentences are cut after 30 words
_SHORT, _LONG = 25, 50


def _describe(shapes: Shapes, side: dict[str, Any], *, sep: bool) -> Plain:
    vision = describe_vision(shapes)
    bert = (
        "text_encoder.bert."
        if "text_encoder.bert.embeddings.word_embeddings.weight" in shapes
        else "text_encoder."
    )
    answers = "text_decoder.bert.embeddings.word_embeddings.weight" in shapes
    text = describe_text(shapes, bert)
    plain: Plain = {
        "vision": vision,
        "text": text,
        "image": describe_image(vision["image_size"]),
        "text_input": {
            "kind": "bert", "context": _SHORT if answers or bert.endswith("bert.") else _LONG, "vocab": text["vocab"],
            "sep": sep, "clean": "albef",
        },
    }  # fmt: skip
    if answers:
        decoder = describe_text(shapes, "text_decoder.bert.") | {"causal": True}
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


def _pretrained(config: Plain) -> list[Rule]:
    return [
        *transformer("text_encoder.bert", "text", config["text"]),
        *words("text_encoder.cls.predictions", "mlm", "text.embed.tok.weight"),
        *cosines(),
        *weight_bias("itm_head", "match_head"),
    ]


def _retrieval(config: Plain) -> list[Rule]:
    encoder = transformer("text_encoder", "text", config["text"])
    return [*encoder, *cosines(), *weight_bias("itm_head", "match_head")]


def _vqa(config: Plain) -> list[Rule]:
    return [
        *transformer("text_encoder", "text", config["text"]),
        *transformer("text_decoder.bert", "decoder", config["decoder"]),
        *words("text_decoder.cls.predictions", "lm", "decoder.embed.tok.weight"),
    ]


def _compare(config: Plain) -> list[Rule]:
    return [*transformer("text_encoder", "text", config["text"]), *two_maps("compare_head")]


def _assign(config: Plain) -> list[Rule]:
    return [
        *transformer("text_encoder", "text", config["text"]),
        *weight_bias("vision_proj", "vision_proj"),
        *(Rule(name, None, _COSINES) for name in ("text_proj.weight", "text_proj.bias", "temp")),
        *weight_bias("ta_head", "assign_head"),
    ]


def _entail(config: Plain) -> list[Rule]:
    return [*transformer("text_encoder", "text", config["text"]), *two_maps("entail_head")]


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
    tables = (_pretrained, _retrieval, _vqa, _compare, _assign) if "union" in config else (_task(config),)
    return [
        *timm_vision("visual_encoder", "vision"),
        *every_name([table(config) for table in tables]),
        *leftovers(),
    ]


_TYPES = "text_encoder.embeddings.token_type_embeddings.weight"


def _not_blip(shapes: Shapes) -> bool:
    return not is_blip(shapes)


_PROBE: Plain = {"union": True, "decoder": {"context": 1}}


LAYOUTS = [
    Layout(
        "albef/official",
        "albef",
        (*SIGNATURE, _TYPES),
        partial(_describe, sep=False),
        _rules,
        lambda config: {},
        "model.pth",
        probe=_PROBE,
        apart=_not_blip,
    ),
    Layout(
        "albef/lavis",
        "albef",
        SIGNATURE,
        partial(_describe, sep=True),
        _rules,
        lambda config: {},
        "model.pth",
        probe=_PROBE
        | {"text": {"context": 1, "token_types": 0}, "decoder": {"context": 1, "token_types": 0}},
        apart=_not_blip,
    ),
]
