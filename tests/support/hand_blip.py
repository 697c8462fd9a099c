"""Copies transformers' BLIP captioner into mmzoo's by hand, tensor by tensor."""

from __future__ import annotations

from typing import Any

from hand_copy import _fused, _pair, _put


def copy_hf_captioner(model: Any, hf: Any) -> None:
    """BlipForConditionalGeneration into what mmzoo builds of a config with `reads=False`."""
    copy_hf_vision(model.vision, hf.vision_model)
    copy_hf_decoder(model.decoder, model.lm, hf.text_decoder)


def copy_hf_vision(v: Any, hf: Any) -> None:
    """BlipVisionModel."""
    e = hf.embeddings
    _put(v.cls, e.class_embedding)
    _put(v.pos, e.position_embedding)
    _pair(v.patch.proj, e.patch_embedding)
    for ours, theirs in zip(v.blocks, hf.encoder.layers, strict=True):
        _pair(ours.attn_norm, theirs.layer_norm1)
        _pair(ours.attn.qkv, theirs.self_attn.qkv)
        _pair(ours.attn.out, theirs.self_attn.projection)
        _pair(ours.mlp_norm, theirs.layer_norm2)
        _pair(ours.mlp.fc1, theirs.mlp.fc1)
        _pair(ours.mlp.fc2, theirs.mlp.fc2)
    _pair(v.norm, hf.post_layernorm)


def copy_hf_decoder(decoder: Any, head: Any, hf: Any) -> None:
    """BlipTextLMHeadModel into a causal backbone and its word head, whose table is the embeddings'."""
    e = hf.bert.embeddings
    assert hf.cls.predictions.decoder.weight is e.word_embeddings.weight
    _put(decoder.embed.tok.weight, e.word_embeddings.weight)
    _put(decoder.embed.pos.weight, e.position_embeddings.weight)
    _pair(decoder.embed.norm, e.LayerNorm)
    for ours, theirs in zip(decoder.blocks, hf.bert.encoder.layer, strict=True):
        own, cross = theirs.attention, theirs.crossattention
        _fused(ours.attn.qkv, [own.self.query, own.self.key, own.self.value])
        _pair(ours.attn.out, own.output.dense)
        _pair(ours.attn_norm, own.output.LayerNorm)
        _pair(ours.cross.q, cross.self.query)
        _fused(ours.cross.kv, [cross.self.key, cross.self.value])
        _pair(ours.cross.out, cross.output.dense)
        _pair(ours.cross_norm, cross.output.LayerNorm)
        _pair(ours.mlp.fc1, theirs.intermediate.dense)
        _pair(ours.mlp.fc2, theirs.output.dense)
        _pair(ours.mlp_norm, theirs.output.LayerNorm)
    predictions = hf.cls.predictions
    _pair(head.dense, predictions.transform.dense)
    _pair(head.norm, predictions.transform.LayerNorm)
    _put(head.bias, predictions.decoder.bias)
