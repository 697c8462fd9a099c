"""What ALBEF's and BLIP's published files have in common: timm's image tower, BERT with cross-attention, heads."""

from __future__ import annotations

from typing import Any

from mmzoo.spec import CLIP_MEAN, CLIP_STD
from mmzoo.weights.layout import Plain, Shapes, Unknown, count_blocks
from mmzoo.weights.maps.blocks import bert_block, bert_cross, weight_bias
from mmzoo.weights.rules import Arange, Drop, LogInverse, Rule, Tie

__all__ = [
    "SIGNATURE",
    "cosines",
    "describe_image",
    "describe_text",
    "describe_vision",
    "embeddings",
    "every_name",
    "is_blip",
    "leftovers",
    "transformer",
    "two_maps",
    "words",
]

SIGNATURE = ("visual_encoder.cls_token", "visual_encoder.blocks.0.norm1.weight")

_TEACHER = Drop(
    "a copy that the momentum teacher needs to go on training; start one from the weights instead"
)
_QUEUE = Drop("embeddings of the last training batches; a new run fills its own queue")


def is_blip(shapes: Shapes) -> bool:
    """Whether a file that could be either family's is BLIP's: its text transformer attends to images from layer 0 on.

    ALBEF's decoder of answers does so too, but never stands without an encoder.
    """
    encoder = "text_encoder.encoder.layer.0"
    if any(f"{encoder}.crossattention.{attention}.query.weight" in shapes for attention in ("self", "self0")):
        return True
    decoder = "text_decoder.bert.encoder.layer.0.crossattention.self.query.weight"
    return decoder in shapes and f"{encoder}.attention.self.query.weight" not in shapes


def _heads(width: int) -> Any:
    """The published code builds heads of 64 channels at its widths; no file tells others."""
    return {768: 12, 1024: 16}.get(width, Unknown("its heads"))


def describe_vision(shapes: Shapes) -> Plain:
    """The image tower."""
    patch = shapes["visual_encoder.patch_embed.proj.weight"]
    width, rows = patch[0], shapes["visual_encoder.pos_embed"][1]
    return {
        "image_size": round((rows - 1) ** 0.5) * patch[2], "patch": patch[2], "width": width,
        "depth": count_blocks(shapes, "visual_encoder.blocks.{i}.norm1.weight"), "heads": _heads(width),
        "hidden": shapes["visual_encoder.blocks.0.mlp.fc1.weight"][0], "norm_eps": 1e-6, "act": "gelu",
        "init": "timm", "resample": "albef",
    }  # fmt: skip


def describe_image(size: int) -> Plain:
    """The preprocessing of pictures of so many pixels."""
    return {"size": size, "mean": list(CLIP_MEAN), "std": list(CLIP_STD), "fit": "squash"}


def describe_text(shapes: Shapes, bert: str, cross: str = "self") -> Plain:
    """A text transformer whose names begin with `bert`, and whose cross-attention is called `cross`."""
    vocab, width = shapes[f"{bert}embeddings.word_embeddings.weight"]
    depth = count_blocks(shapes, f"{bert}encoder.layer.{{i}}.output.dense.weight")
    keys = {i: f"{bert}encoder.layer.{i}.crossattention.{cross}.key.weight" for i in range(depth)}
    layers = [i for i, name in keys.items() if name in shapes]
    return {
        "vocab": vocab, "context": shapes[f"{bert}embeddings.position_embeddings.weight"][0], "width": width,
        "depth": depth, "heads": _heads(width), "hidden": shapes[f"{bert}encoder.layer.0.intermediate.dense.weight"][0],
        "norm": "post", "norm_eps": 1e-12, "act": "gelu", "init": "bert",
        "token_types": shapes.get(f"{bert}embeddings.token_type_embeddings.weight", (0,))[0], "embed_norm": True,
        "dropout": 0.1, "attn_dropout": 0.1, "cross_layers": layers,
        "cross_width": shapes[keys[layers[0]]][1] if layers else None,
    }  # fmt: skip


def embeddings(source: str, target: str, config: Plain) -> list[Rule]:
    """Tables of words and positions, of token types where the config has them, and the norm."""
    types = config.get("token_types", 1)
    return [
        Rule(f"{source}.word_embeddings.weight", f"{target}.tok.weight"),
        Rule(f"{source}.position_embeddings.weight", f"{target}.pos.weight"),
        *([Rule(f"{source}.token_type_embeddings.weight", f"{target}.token_type.weight")] if types else []),
        *weight_bias(f"{source}.LayerNorm", f"{target}.norm"),
        Rule(f"{source}.position_ids", None, Arange(config["context"])),
    ]


def transformer(source: str, target: str, config: Plain) -> list[Rule]:
    """A text transformer with cross-attention."""
    return [
        *embeddings(f"{source}.embeddings", f"{target}.embed", config),
        *bert_block(f"{source}.encoder.layer.{{i}}", f"{target}.blocks.{{i}}"),
        *bert_cross(f"{source}.encoder.layer.{{i}}", f"{target}.blocks.{{i}}"),
    ]


def words(source: str, target: str, table: str) -> list[Rule]:
    """The word head; its decoder is a copy of the table of words, and its bias is stored twice."""
    return [
        Rule(f"{source}.bias", f"{target}.bias"),
        *weight_bias(f"{source}.transform.dense", f"{target}.dense"),
        *weight_bias(f"{source}.transform.LayerNorm", f"{target}.norm"),
        Rule(f"{source}.decoder.weight", table, Tie()),
        Rule(f"{source}.decoder.bias", f"{target}.bias", Tie()),
    ]


def two_maps(target: str) -> list[Rule]:
    """A classifier of two linear maps."""
    return [
        *weight_bias("cls_head.0", f"{target}.fc1"),
        *weight_bias("cls_head.2", f"{target}.fc2"),
    ]


def cosines() -> list[Rule]:
    """The common space and its temperature."""
    return [
        *weight_bias("vision_proj", "vision_proj"),
        *weight_bias("text_proj", "text_proj"),
        Rule("temp", "logit_scale", LogInverse()),
    ]


def leftovers() -> list[Rule]:
    """The training's state: the teacher's copies, and the queues with their pointer, under all its names."""
    copies = ("visual_encoder", "text_encoder", "text_decoder", "vision_proj", "text_proj", "cls_head")
    queues = ("image_queue", "text_queue", "idx_queue", "queue_ptr", "ptr_queue")
    return [
        *(Rule(f"{name}_m.{{*}}", None, _TEACHER) for name in copies),
        *(Rule(name, None, _QUEUE) for name in queues),
    ]


def every_name(tables: list[list[Rule]]) -> list[Rule]:
    """All names that a file of any task may have, to recognise one by; each once."""
    found: dict[tuple[str, ...], Rule] = {}
    for table in tables:
        found |= {rule.sources: rule for rule in table if rule.sources not in found}
    return list(found.values())
