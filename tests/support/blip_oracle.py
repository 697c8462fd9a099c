"""transformers' BLIP at a small size, its weights copied into mmzoo's by hand; and a model for NLVR2 of BERT's pieces.

transformers has no BLIP for pairs of images; the one here follows what salesforce/BLIP says of it and shares no code
with mmzoo.
"""

from __future__ import annotations

import torch
from albef_oracle import _linear, _put, additive
from torch import Tensor, nn

VISION, WIDTH, HEADS, VOCAB, CONTEXT, EMBED = 24, 32, 4, 61, 20, 16
IMAGE, PATCH, DEPTH = 16, 8, 3
TOKENS = {"begin": 57, "encode": 58, "end": 3, "pad": 0}


def hf_config(
    *, vision: int = VISION, text_eps: float = 1e-12, vision_eps: float = 1e-6, smoothing: float = 0.0
):
    from transformers import BlipConfig

    return BlipConfig(
        vision_config={
            "hidden_size": vision, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3,
            "image_size": IMAGE, "patch_size": PATCH, "layer_norm_eps": vision_eps,
        },
        text_config={
            "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": DEPTH,
            "num_attention_heads": HEADS, "max_position_embeddings": CONTEXT, "layer_norm_eps": text_eps,
            "bos_token_id": TOKENS["begin"], "sep_token_id": TOKENS["end"], "pad_token_id": TOKENS["pad"],
            "label_smoothing": smoothing,
        },
        image_text_hidden_size=EMBED,
    )  # fmt: skip


def config(name: str = "blip-base", *, vision: int = VISION, vision_eps: float = 1e-6, **changes):
    """Ours of the same shapes."""
    from dataclasses import replace

    from mmzoo.models.blip import VARIANTS
    from mmzoo.models.writing import SpecialTokens
    from mmzoo.spec import ImageSpec, TextSpec

    base = VARIANTS[name]
    tower = replace(
        base.vision, image_size=IMAGE, patch=PATCH, width=vision, depth=2, heads=3, hidden=40, norm_eps=vision_eps,
        drop_path=0.0,
    )  # fmt: skip
    sizes = {
        "vocab": VOCAB, "context": CONTEXT, "width": WIDTH, "depth": DEPTH, "heads": HEADS, "hidden": 48,
        "cross_layers": tuple(range(DEPTH)), "dropout": 0.0, "attn_dropout": 0.0,
    }  # fmt: skip
    if name.endswith("-vqa"):
        changes["decoder"] = replace(base.decoder, cross_width=WIDTH, **sizes)
    elif not name.endswith("-nlvr2"):
        changes.setdefault("embed", EMBED)
    return replace(
        base, vision=tower, text=replace(base.text, cross_width=vision, **sizes), image=ImageSpec(IMAGE, fit="squash"),
        text_input=TextSpec("bert", CONTEXT, VOCAB, clean="blip"), tokens=SpecialTokens(**TOKENS), **changes,
    )  # fmt: skip


def inputs(count: int = 4, length: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Images, ids that begin as a tokenizer makes them, and keep."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, IMAGE, IMAGE, generator=generator, dtype=torch.float64)
    ids = torch.randint(4, 57, (count, length), generator=generator)
    ids[:, 0] = 2
    keep = torch.arange(length) < torch.tensor([7, 3, 5, 1])[:count, None]
    return images, ids.masked_fill(~keep, TOKENS["pad"]), keep


def led_by(token: str, ids: Tensor) -> Tensor:
    """The same texts with another first token."""
    out = ids.clone()
    out[:, 0] = TOKENS[token]
    return out


# -- copying --------------------------------------------------------------------------------------------------------


def copy_vision(ours: nn.Module, theirs: nn.Module) -> None:
    e = theirs.embeddings
    _put(ours.cls, e.class_embedding)
    _put(ours.pos, e.position_embedding)
    _linear(ours.patch.proj, e.patch_embedding)
    for a, b in zip(ours.blocks, theirs.encoder.layers, strict=True):
        _linear(a.attn_norm, b.layer_norm1)
        _linear(a.attn.qkv, b.self_attn.qkv)
        _linear(a.attn.out, b.self_attn.projection)
        _linear(a.mlp_norm, b.layer_norm2)
        _linear(a.mlp.fc1, b.mlp.fc1)
        _linear(a.mlp.fc2, b.mlp.fc2)
    _linear(ours.norm, theirs.post_layernorm)


def _attention(ours: nn.Module, theirs: nn.Module) -> None:
    _linear(ours.qkv, theirs.self.query, theirs.self.key, theirs.self.value)
    _linear(ours.out, theirs.output.dense)


def _cross(ours: nn.Module, theirs: nn.Module, dense: nn.Module) -> None:
    _linear(ours.q, theirs.query)
    _linear(ours.kv, theirs.key, theirs.value)
    _linear(ours.out, dense)


def copy_text(ours: nn.Module, theirs: nn.Module) -> None:
    """BlipTextModel, or anything with its names."""
    e = theirs.embeddings
    _put(ours.embed.tok.weight, e.word_embeddings.weight)
    _put(ours.embed.pos.weight, e.position_embeddings.weight)
    _linear(ours.embed.norm, e.LayerNorm)
    for a, b in zip(ours.blocks, theirs.encoder.layer, strict=True):
        _attention(a.attn, b.attention)
        _linear(a.attn_norm, b.attention.output.LayerNorm)
        if hasattr(b, "crossattention"):
            _cross(a.cross, b.crossattention.self, b.crossattention.output.dense)
            _linear(a.cross_norm, b.crossattention.output.LayerNorm)
        else:
            _cross(a.cross.first, b.self0, b.dense0)
            _cross(a.cross.second, b.self1, b.dense1)
            if b.merge_layer is not None:
                _linear(a.cross.merge, b.merge_layer)
            _linear(a.cross_norm, b.cross_norm)
        _linear(a.mlp.fc1, b.intermediate.dense)
        _linear(a.mlp.fc2, b.output.dense)
        _linear(a.mlp_norm, b.output.LayerNorm)


def copy_words(ours: nn.Module, theirs: nn.Module) -> None:
    """BlipTextLMPredictionHead."""
    _linear(ours.dense, theirs.transform.dense)
    _linear(ours.norm, theirs.transform.LayerNorm)
    _put(ours.bias, theirs.decoder.bias)


def copy_hf(ours: nn.Module, hf: nn.Module) -> None:
    """Everything that one of transformers' three models has."""
    copy_vision(ours.vision, hf.vision_model)
    if hasattr(hf, "text_encoder"):
        copy_text(ours.text, hf.text_encoder)
    if hasattr(hf, "text_decoder"):
        copy_text(ours.decoder, hf.text_decoder.bert)
        copy_words(ours.lm, hf.text_decoder.cls.predictions)
    if hasattr(hf, "itm_head"):
        _linear(ours.match_head, hf.itm_head)
        _linear(ours.vision_proj, hf.vision_proj)
        _linear(ours.text_proj, hf.text_proj)


# -- NLVR2 ----------------------------------------------------------------------------------------------------------


class TwinLayer(nn.Module):
    """BERT's layer whose cross-attention looks at two images: outputs averaged, or joined by a linear map."""

    def __init__(self, merges: bool):
        from transformers import BertConfig
        from transformers.models.bert.modeling_bert import (
            BertAttention,
            BertIntermediate,
            BertOutput,
        )
        from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

        super().__init__()
        bert = BertConfig(
            vocab_size=VOCAB, hidden_size=WIDTH, num_attention_heads=HEADS, intermediate_size=48,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="eager",
        )  # fmt: skip
        text = hf_config().text_config
        self.attention = BertAttention(bert)
        self.self0, self.self1 = (BlipTextSelfAttention(text, is_cross_attention=True) for _ in range(2))
        self.dense0, self.dense1 = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.merge_layer = nn.Linear(2 * WIDTH, WIDTH) if merges else None
        self.cross_norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.intermediate, self.output = BertIntermediate(bert), BertOutput(bert)

    def forward(self, x: Tensor, mask: Tensor, first: Tensor, second: Tensor) -> Tensor:
        x = self.attention(x, mask)[0]
        one = self.dense0(self.self0(x, encoder_hidden_states=first)[0])
        two = self.dense1(self.self1(x, encoder_hidden_states=second)[0])
        both = (one + two) / 2 if self.merge_layer is None else self.merge_layer(torch.cat([one, two], -1))
        x = self.cross_norm(x + both)
        return self.output(self.intermediate(x), x)


class Pairs(nn.Module):
    """BLIP for NLVR2, whose layers before `merge_from` average."""

    def __init__(self, merge_from: int = 2):
        from transformers.models.blip.modeling_blip import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextEmbeddings

        super().__init__()
        config = hf_config()
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = nn.Module()
        self.text_encoder.embeddings = BlipTextEmbeddings(config.text_config)
        self.text_encoder.encoder = nn.Module()
        self.text_encoder.encoder.layer = nn.ModuleList(TwinLayer(i >= merge_from) for i in range(DEPTH))
        self.cls_head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))

    def forward(self, first: Tensor, second: Tensor, ids: Tensor, keep: Tensor) -> Tensor:
        one, two = (self.vision_model(images).last_hidden_state for images in (first, second))
        x = self.text_encoder.embeddings(led_by("encode", ids))
        for layer in self.text_encoder.encoder.layer:
            x = layer(x, additive(keep), one, two)
        return self.cls_head(x[:, 0])


def copy_pairs(ours: nn.Module, oracle: Pairs) -> None:
    copy_vision(ours.vision, oracle.vision_model)
    copy_text(ours.text, oracle.text_encoder)
    _linear(ours.compare_head.fc1, oracle.cls_head[0])
    _linear(ours.compare_head.fc2, oracle.cls_head[2])
