"""BLIP's published layouts: the authors' files, LAVIS's, and transformers' conversions.

Encoder and decoder share all but self-attention, and files of the pre-trained model hold what is shared twice, once
under each; the copies must be equal. The tasks' files hold the parts that the task needs: retrieval the encoder,
captions the decoder, answers an encoder and a decoder that share nothing. What training left beside the model is left
aside, as for ALBEF.

The authors and LAVIS name everything alike but the pointer of retrieval's queue (`ptr_queue`, `queue_ptr`), so that
files without it are taken for the authors', which comes to the same.

transformers has no class that reads and writes, none for pairs of images, and no temperature. Its names begin as the
authors' for texts. Two of its own defaults are not BLIP's: 8 heads in the text transformer, 1e-5 in the image tower
(BLIP: 12, 1e-6). What its saving code writes into `config.json` counts. Where a config by hand leaves the epsilon out,
transformers computes with its default, and so it counts too; heads that are left out at BLIP's width are not told, so
that the model's name says them.

Names are those of salesforce/BLIP (056a169, `models/`), salesforce/LAVIS (506965b, `lavis/models/blip_models`) and
transformers' `modeling_blip.py`.
"""

from __future__ import annotations

from typing import Any

from mmzoo.errors import ZooError
from mmzoo.spec import BERT_VOCAB
from mmzoo.weights.layout import Layout, Plain, Shapes, Unknown, count_blocks, own_act, transformers_act
from mmzoo.weights.maps.blocks import bert_block, timm_vision, weight_bias
from mmzoo.weights.maps.fusion import (
    SIGNATURE,
    cosines,
    describe_image,
    describe_text,
    describe_vision,
    embeddings,
    every_name,
    is_blip,
    leftovers,
    transformer,
    two_maps,
    words,
)
from mmzoo.weights.rules import Absent, Fuse, Rule, Tie

__all__ = ["LAYOUTS"]

_ENCODER, _DECODER = "text_encoder", "text_decoder.bert"
_HEAD = "text_decoder.cls.predictions"


# --- the authors' files and LAVIS's -------------------------------------------------------------------------------


def _tokens(vocab: int) -> Any:
    """The special tokens: [DEC] and [ENC] were appended to BERT's words."""
    if vocab != BERT_VOCAB + 2:
        return Unknown("its special tokens")
    return {"begin": BERT_VOCAB, "encode": BERT_VOCAB + 1, "end": 102, "pad": 0}


def _sides(shapes: Shapes) -> tuple[bool, bool]:
    """Whether there is an encoder, and whether there is a decoder."""
    table = "embeddings.word_embeddings.weight"
    return f"{_ENCODER}.{table}" in shapes, f"{_DECODER}.{table}" in shapes


def _texts(shapes: Shapes) -> Plain:
    """The fields that the texts' names and shapes tell, the class of the config among them."""
    reads, writes = _sides(shapes)
    twin = f"{_ENCODER}.encoder.layer.0.crossattention.self0.query.weight" in shapes
    text = describe_text(shapes, f"{_ENCODER if reads else _DECODER}.", "self0" if twin else "self")
    plain: Plain = {"text": text, "tokens": _tokens(text["vocab"])}
    merge = f"{_ENCODER}.encoder.layer.{{i}}.crossattention.output.merge_layer.weight"
    if twin:
        means = [i for i in range(text["depth"]) if merge.replace("{i}", str(i)) not in shapes]
        return plain | _words_in(text, 512) | {"kind": "BLIPNLVR2Config", "merge_from": len(means)}
    if reads and writes and "itm_head.weight" not in shapes:
        decoder = describe_text(shapes, f"{_DECODER}.") | {"causal": True}
        return plain | _words_in(text, 35, "blip_question") | {"kind": "BLIPVQAConfig", "decoder": decoder}
    # what only writes has no common space
    embed = shapes["vision_proj.weight"][0] if reads else Unknown("the width of its common space", 256)
    return (
        plain | _words_in(text, 40) | {"kind": "BLIPConfig", "reads": reads, "writes": writes, "embed": embed}
    )


def _words_in(text: Plain, context: int, clean: str = "blip") -> Plain:
    return {
        "text_input": {
            "kind": "bert",
            "context": min(context, text["context"]),
            "vocab": text["vocab"],
            "clean": clean,
        }
    }


def _describe(shapes: Shapes, side: dict[str, Any]) -> Plain:
    vision = describe_vision(shapes)
    return {"vision": vision, "image": describe_image(vision["image_size"]), **_texts(shapes)}


def _encoder(config: Plain) -> list[Rule]:
    return transformer(_ENCODER, "text", config["text"])


def _decoder(config: Plain) -> list[Rule]:
    return [
        *transformer(_DECODER, "decoder", config["decoder"] if "decoder" in config else config["text"]),
        *words(_HEAD, "lm", "decoder.embed.tok.weight"),
    ]


def _tied_decoder(config: Plain) -> list[Rule]:
    """A decoder whose every tensor is a copy of the encoder's, except self-attention's."""
    rules = []
    for rule in _decoder(config):
        target = rule.target
        if target is not None and target.startswith("decoder.") and ".attn" not in target:
            op = rule.op if isinstance(rule.op, Tie) else Tie(rule.op)  # type: ignore[arg-type]
            rule = rule._replace(target=target.replace("decoder.", "text.", 1), op=op)
        rules.append(rule)
    return rules


def _matching() -> list[Rule]:
    return [*cosines(), *weight_bias("itm_head", "match_head")]


def _twins(config: Plain) -> list[Rule]:
    theirs, ours = f"{_ENCODER}.encoder.layer.{{i}}", "text.blocks.{i}"
    rules = [
        *embeddings(f"{_ENCODER}.embeddings", "text.embed", config["text"]),
        *bert_block(theirs, ours),
        *weight_bias(f"{theirs}.crossattention.output.LayerNorm", f"{ours}.cross_norm"),
        *weight_bias(f"{theirs}.crossattention.output.merge_layer", f"{ours}.cross.merge"),
    ]
    for number, place in enumerate(("first", "second")):
        attention, own = f"{theirs}.crossattention.self{number}", f"{ours}.cross.{place}"
        rules += [
            *weight_bias(f"{attention}.query", f"{own}.q"),
            *(
                Rule((f"{attention}.key.{part}", f"{attention}.value.{part}"), f"{own}.kv.{part}", Fuse())
                for part in ("weight", "bias")
            ),
            *weight_bias(f"{theirs}.crossattention.output.dense{number}", f"{own}.out"),
        ]
    return rules


def _task(config: Plain) -> list[Rule]:
    """The texts' table that a config asks for, by the fields that only one kind has."""
    if "decoder" in config:
        return [*_encoder(config), *_decoder(config)]
    if "merge_from" in config:
        return [*_twins(config), *two_maps("compare_head")]
    if not config["reads"]:
        return _decoder(config)
    return [*_encoder(config), *(_tied_decoder(config) if config["writes"] else []), *_matching()]


_EVERY: tuple[Plain, ...] = (
    {"reads": True, "writes": True},
    {"merge_from": 0},
)  # whose tables have all the names


def _rules(config: Plain) -> list[Rule]:
    kinds = [config | kind for kind in _EVERY] if "union" in config else [config]
    return [
        *timm_vision("visual_encoder", "vision"),
        *every_name([_task(kind) for kind in kinds]),
        *leftovers(),
    ]


# --- transformers -------------------------------------------------------------------------------------------------

_TEMPERATURE = (
    "transformers keeps no temperature; models for retrieval do not need one, training starts at 0.07"
)


def _transformers(shapes: Shapes, side: dict[str, Any]) -> Plain:
    told = side.get("config.json")
    embedding = shapes["vision_model.embeddings.patch_embedding.weight"]
    width, patch = embedding[0], embedding[2]
    size = round((shapes["vision_model.embeddings.position_embedding"][1] - 1) ** 0.5) * patch
    found = _texts(shapes)
    vision: Plain = {
        "image_size": size, "patch": patch, "width": width, "heads": Unknown("its heads"),
        "depth": count_blocks(shapes, "vision_model.encoder.layers.{i}.layer_norm1.weight"),
        "hidden": shapes["vision_model.encoder.layers.0.mlp.fc1.weight"][0], "norm_eps": Unknown("its epsilon"),
        "act": Unknown("its activation"), "init": "timm", "resample": "albef",
    }  # fmt: skip
    parts = [found[part] for part in ("text", "decoder") if part in found]
    if told is None:
        for part in parts:
            part |= {key: vision[key] for key in ("heads", "norm_eps", "act")}
    else:
        vision |= _told(told.get("vision_config") or {}, 12, 1e-5)
        texts = told.get("text_config") or {}
        # the width of the authors' models, which have 12 heads, not the 8 that are left out
        heads = Unknown("its heads") if found["text"]["width"] == 768 else 8
        for part in parts:
            part |= _told(texts, heads, 1e-12)
        found["tokens"] = _told_tokens(texts, found["text"]["vocab"])
    return {"vision": vision, "image": describe_image(size) | _told_image(side), **found}


def _told(config: Plain, heads: Any, eps: float) -> Plain:
    """What a part of `config.json` tells, or transformers' defaults."""
    return {
        "heads": config.get("num_attention_heads", heads),
        "norm_eps": config.get("layer_norm_eps", eps),
        "act": own_act(config.get("hidden_act", "gelu")),
    }


def _told_tokens(config: Plain, vocab: int) -> Plain:
    """The special tokens; transformers has no [ENC], so mmzoo writes it where its own configs hold others."""
    appended = BERT_VOCAB + 1 if vocab == BERT_VOCAB + 2 else Unknown("its [ENC] token")
    return {
        "begin": config.get("bos_token_id", BERT_VOCAB),
        "encode": config.get("enc_token_id", appended),
        "end": config.get("sep_token_id", 102),
        "pad": config.get("pad_token_id", 0),
    }


def _told_image(side: dict[str, Any]) -> Plain:
    pre = side.get("preprocessor_config.json") or {}
    return {ours: pre[key] for ours, key in (("mean", "image_mean"), ("std", "image_std")) if key in pre}


def _transformers_rules(config: Plain) -> list[Rule]:
    ours, theirs = "vision.blocks.{i}", "vision_model.encoder.layers.{i}"
    inner = (
        ("attn_norm", "layer_norm1"), ("attn.qkv", "self_attn.qkv"), ("attn.out", "self_attn.projection"),
        ("mlp_norm", "layer_norm2"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2"),
    )  # fmt: skip
    union = "union" in config
    table = every_name([_task(config | kind) for kind in _EVERY]) if union else _task(config)
    return [
        Rule("vision_model.embeddings.class_embedding", "vision.cls"),
        Rule("vision_model.embeddings.position_embedding", "vision.pos"),
        *weight_bias("vision_model.embeddings.patch_embedding", "vision.patch.proj"),
        *(rule for own, name in inner for rule in weight_bias(f"{theirs}.{name}", f"{ours}.{own}")),
        *weight_bias("vision_model.post_layernorm", "vision.norm"),
        *(rule if rule.target != "logit_scale" else _no_temperature(config) for rule in table),
    ]


def _no_temperature(config: Plain) -> Rule:
    return Rule((), "logit_scale", Absent(config.get("logit_scale", 0.0), _TEMPERATURE))


def _transformers_side(config: Plain) -> dict[str, Any]:
    vision, text, image, tokens = (config[part] for part in ("vision", "text", "image", "tokens"))
    model = {
        "architectures": [_architecture(config)], "model_type": "blip", "tie_word_embeddings": True,
        "image_text_hidden_size": config.get("embed", 256),
        "vision_config": {
            "model_type": "blip_vision_model", "hidden_size": vision["width"], "intermediate_size": vision["hidden"],
            "num_hidden_layers": vision["depth"], "num_attention_heads": vision["heads"],
            "image_size": vision["image_size"], "patch_size": vision["patch"],
            "hidden_act": transformers_act(vision["act"]), "layer_norm_eps": vision["norm_eps"],
        },
        "text_config": {
            "model_type": "blip_text_model", "vocab_size": text["vocab"], "hidden_size": text["width"],
            "encoder_hidden_size": vision["width"], "intermediate_size": text["hidden"],
            "num_hidden_layers": text["depth"], "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context"], "hidden_act": transformers_act(text["act"]),
            "layer_norm_eps": text["norm_eps"], "hidden_dropout_prob": text["dropout"],
            "attention_probs_dropout_prob": text["attn_dropout"], "is_decoder": True,
            "bos_token_id": tokens["begin"], "sep_token_id": tokens["end"], "pad_token_id": tokens["pad"],
            "enc_token_id": tokens["encode"],
        },
    }  # fmt: skip
    pre = {
        "image_processor_type": "BlipImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True,
        "do_convert_rgb": True, "rescale_factor": 1 / 255, "resample": 3, "image_mean": image["mean"],
        "image_std": image["std"], "size": {"height": image["size"], "width": image["size"]},
    }  # fmt: skip
    return {"config.json": model, "preprocessor_config.json": pre}


def _architecture(config: Plain) -> str:
    """The class of transformers.

    Raises:
        ZooError: It has none for this model.
    """
    if "merge_from" in config:
        raise ZooError("transformers has no BLIP for pairs of images: write blip/official.")
    if "decoder" in config:
        one, other = config["vision"]["width"], config["decoder"]["cross_width"]
        if one != other:
            raise ZooError(
                f"transformers builds BLIP's decoder of answers for states as wide as the image tower's tokens; here "
                f"they are {other} and {one} wide: write blip/official."
            )
        return "BlipForQuestionAnswering"
    if config["reads"] and config["writes"]:
        raise ZooError(
            "transformers has no BLIP that reads and writes: take one face by mmzoo.start.grown(model, config) with "
            "reads=False (captions) or writes=False (retrieval), or write blip/official."
        )
    return "BlipForConditionalGeneration" if config["writes"] else "BlipForImageTextRetrieval"


def _lavis_pointer(shapes: Shapes) -> bool:
    return "queue_ptr" in shapes and "idx_queue" in shapes


_PROBE: Plain = {"union": True, "text": {"context": 1, "token_types": 0}}

LAYOUTS = [
    Layout(
        "blip/official",
        "blip",
        SIGNATURE,
        _describe,
        _rules,
        lambda config: {},
        "model.pth",
        probe=_PROBE,
        apart=lambda shapes: is_blip(shapes) and not _lavis_pointer(shapes),
    ),
    Layout(
        "blip/lavis",
        "blip",
        SIGNATURE,
        _describe,
        _rules,
        lambda config: {},
        "model.pth",
        probe=_PROBE,
        apart=lambda shapes: is_blip(shapes) and _lavis_pointer(shapes),
    ),
    Layout(
        "blip/transformers",
        "blip",
        ("vision_model.embeddings.class_embedding", "vision_model.encoder.layers.0.self_attn.qkv.weight"),
        _transformers,
        _transformers_rules,
        _transformers_side,
        probe=_PROBE,
    ),
]
