"""Text models' published layouts: transformers' BERT, and llama.cpp's names for Llama inside GGUF."""

from __future__ import annotations

from typing import Any

from mmzoo.errors import ZooError
from mmzoo.weights.layout import Layout, Plain, Shapes, Unknown, count_blocks, own_act, transformers_act
from mmzoo.weights.maps.blocks import bert_block, weight_bias
from mmzoo.weights.rules import Arange, Drop, Fuse, RotaryPairs, Rule, Same, Tie

__all__ = ["LAYOUTS"]

# --- transformers' BERT -------------------------------------------------------------------------------------------


def _bert(shapes: Shapes, side: dict[str, Any]) -> Plain:
    told = side.get("config.json")
    heads: Any = Unknown("its heads")
    act: Any = Unknown("its activation")
    eps: Any = Unknown("its epsilon")
    dropout = {}
    if told is not None:
        if told.get("position_embedding_type", "absolute") != "absolute":
            raise ZooError(
                f"config.json says that positions are {told['position_embedding_type']!r}: mmzoo's BERT has a learned "
                "table of absolute ones only."
            )
        heads = told.get("num_attention_heads", 12)
        act = own_act(told.get("hidden_act", "gelu"))
        eps = told.get("layer_norm_eps", 1e-12)
        dropout = {
            "dropout": told.get("hidden_dropout_prob", 0.1),
            "attn_dropout": told.get("attention_probs_dropout_prob", 0.1),
        }
    vocab, width = shapes["bert.embeddings.word_embeddings.weight"]
    context = shapes["bert.embeddings.position_embeddings.weight"][0]
    longest = side.get("sentence_bert_config.json", {}).get("max_seq_length") or context
    return {
        "text": {
            "vocab": vocab, "context": context, "width": width,
            "depth": count_blocks(shapes, "bert.encoder.layer.{i}.output.dense.weight"), "heads": heads,
            "hidden": shapes["bert.encoder.layer.0.intermediate.dense.weight"][0], "norm": "post", "norm_eps": eps,
            "act": act, "init": "bert", "token_types": shapes["bert.embeddings.token_type_embeddings.weight"][0],
            "embed_norm": True, "pool": _bert_pool(side), **dropout,
        },
        "text_input": {"kind": "bert", "context": min(context, longest), "vocab": vocab},
        "unit": any(step.get("type") == _NORMALIZE for step in side.get("modules.json", [])),
    }  # fmt: skip


# what sentence-transformers writes beside a BERT: which steps lead from tokens to one vector
_MODULES = "sentence_transformers.models"
_NORMALIZE = f"{_MODULES}.Normalize"
_POOLING = "1_Pooling/config.json"


def _bert_pool(side: dict[str, Any]) -> str:
    """How tokens become one vector; a BERT of which nothing is said has its first token."""
    told = side.get(_POOLING)
    if told is None or told.get("pooling_mode_cls_token"):
        return "first"
    if told.get("pooling_mode_mean_tokens"):
        return "mean"
    modes = ", ".join(key for key, on in told.items() if key.startswith("pooling_mode") and on)
    raise ZooError(f"{_POOLING} pools by {modes or 'nothing'}: mmzoo knows the first token and the mean.")


_POOLER = Drop("only next-sentence prediction and classifiers read the pooled first token")
_MLM = Drop("the head that guesses masked words; mmzoo's families bring their own")
_NSP = Drop("the head that tells whether two sentences follow each other")


def _bert_rules(config: Plain) -> list[Rule]:
    heads = [
        ("bert.pooler.dense", _POOLER),
        ("cls.predictions.transform.dense", _MLM),
        ("cls.predictions.transform.LayerNorm", _MLM),
        ("cls.predictions.decoder", _MLM),
        ("cls.seq_relationship", _NSP),
    ]
    return [
        Rule("bert.embeddings.word_embeddings.weight", "text.embed.tok.weight"),
        Rule("bert.embeddings.position_embeddings.weight", "text.embed.pos.weight"),
        Rule("bert.embeddings.token_type_embeddings.weight", "text.embed.token_type.weight"),
        *weight_bias("bert.embeddings.LayerNorm", "text.embed.norm"),
        *bert_block("bert.encoder.layer.{i}", "text.blocks.{i}"),
        Rule("bert.embeddings.position_ids", None, Arange(config["text"]["context"])),
        *(Rule(f"{name}.{part}", None, why) for name, why in heads for part in ("weight", "bias")),
        Rule("cls.predictions.bias", None, _MLM),
    ]


def _bert_side(config: Plain) -> dict[str, Any]:
    """A `BertModel` without pooler (`add_pooling_layer=False`), and sentence-transformers' files where it is one."""
    text = config["text"]
    steps = [("", "Transformer"), ("1_Pooling", "Pooling")] + [("2_Normalize", "Normalize")] * config["unit"]
    sentence = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"{_MODULES}.{kind}"}
            for i, (path, kind) in enumerate(steps)
        ],
        _POOLING: {
            "word_embedding_dimension": text["width"],
            "pooling_mode_cls_token": text["pool"] == "first",
            "pooling_mode_mean_tokens": text["pool"] == "mean",
        },
        "sentence_bert_config.json": {
            "max_seq_length": config["text_input"]["context"],
            "do_lower_case": False,
        },
    }
    return {
        "config.json": {
            "architectures": ["BertModel"], "model_type": "bert", "vocab_size": text["vocab"],
            "hidden_size": text["width"], "num_hidden_layers": text["depth"], "num_attention_heads": text["heads"],
            "intermediate_size": text["hidden"], "hidden_act": transformers_act(text["act"]),
            "max_position_embeddings": text["context"], "type_vocab_size": text["token_types"],
            "layer_norm_eps": text["norm_eps"], "hidden_dropout_prob": text.get("dropout", 0.0),
            "attention_probs_dropout_prob": text.get("attn_dropout", 0.0), "pad_token_id": 0,
        },
        **(sentence if config["unit"] or text["pool"] == "mean" else {}),
    }  # fmt: skip


# --- Llama inside GGUF --------------------------------------------------------------------------------------------


def _gguf(shapes: Shapes, side: dict[str, Any]) -> Plain:
    told = side.get("gguf", {})
    kind = told.get("general.architecture", "llama")
    if kind != "llama":
        raise ZooError(f"the file holds a model of the architecture {kind!r}; mmzoo reads llama.")

    def known(key: str, what: str) -> Any:
        return told.get(f"llama.{key}", Unknown(what))

    vocab, width = shapes["token_embd.weight"]
    eps = known("attention.layer_norm_rms_epsilon", "its epsilon")
    context = known("context_length", "its context")
    return {
        "text": {
            "vocab": vocab, "context": context, "width": width, "depth": count_blocks(shapes, "blk.{i}.attn_q.weight"),
            "heads": known("attention.head_count", "its heads"),
            "kv_heads": known("attention.head_count_kv", "its key/value heads"),
            "hidden": shapes["blk.0.ffn_up.weight"][0], "norm": "pre",
            "norm_eps": float(f"{eps:.6g}") if isinstance(eps, float) else eps,  # written as float32
            "act": "swiglu", "init": "bert", "norm_kind": "rms", "positions": "rope",
            "rope_base": known("rope.freq_base", "its rotary base"), "rope_convention": "half", "final_norm": True,
            "causal": True, "bias": False, "pool": "last_kept",
        },
        "text_input": {"kind": "smollm", "context": context, "vocab": vocab},
        "unit": False,
    }  # fmt: skip


def _gguf_rules(config: Plain) -> list[Rule]:
    text = config["text"]
    heads, kv_heads = text["heads"], text["kv_heads"]
    block, to = "blk.{i}", "text.blocks.{i}"
    dim = text.get("width", heads) // heads
    return [
        Rule("token_embd.weight", "text.embed.tok.weight"),
        Rule("output.weight", "text.embed.tok.weight", Tie()),
        Rule("output_norm.weight", "text.norm.weight"),
        Rule(f"{block}.attn_norm.weight", f"{to}.attn_norm.weight"),
        # llama.cpp rotates neighbouring channels, so its queries and keys lie in pairs
        Rule(
            (f"{block}.attn_q.weight", f"{block}.attn_k.weight", f"{block}.attn_v.weight"),
            f"{to}.attn.qkv.weight",
            Fuse(
                sizes=(heads * dim, kv_heads * dim, kv_heads * dim),
                each=(RotaryPairs(heads), RotaryPairs(kv_heads), Same()),
            ),
        ),
        Rule(f"{block}.attn_output.weight", f"{to}.attn.out.weight"),
        Rule(f"{block}.ffn_norm.weight", f"{to}.mlp_norm.weight"),
        Rule((f"{block}.ffn_gate.weight", f"{block}.ffn_up.weight"), f"{to}.mlp.fc1.weight", Fuse()),
        Rule(f"{block}.ffn_down.weight", f"{to}.mlp.fc2.weight"),
    ]


LAYOUTS = [
    Layout(
        "bert/transformers",
        "text",
        ("bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.intermediate.dense.weight"),
        _bert,
        _bert_rules,
        _bert_side,
        prefix="bert.",
        old_names=((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias")),
    ),
    Layout(
        "gguf/llama",
        "text",
        ("token_embd.weight", "blk.0.attn_q.weight"),
        _gguf,
        _gguf_rules,
        lambda config: {},
        read_only="llama.cpp writes GGUF itself, out of transformers' files",
    ),
]
