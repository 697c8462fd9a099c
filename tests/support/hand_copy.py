"""Copies weights from other libraries' modules by hand, tensor by tensor: the parity tests' own map."""

from __future__ import annotations

import torch
from torch import nn


def _put(target: torch.Tensor, source: torch.Tensor) -> None:
    assert target.shape == source.shape, (target.shape, source.shape)
    with torch.no_grad():
        target.copy_(source)


def _pair(target: nn.Module, source: nn.Module) -> None:
    _put(target.weight, source.weight)
    if source.bias is not None:
        _put(target.bias, source.bias)


def _fused(target: nn.Module, parts: list[nn.Module]) -> None:
    _put(target.weight, torch.cat([p.weight for p in parts]))
    _put(target.bias, torch.cat([p.bias for p in parts]))


def copy_timm_vit(model: nn.Module, timm_model: nn.Module) -> None:
    """timm VisionTransformer into mmzoo's ViT."""
    v = model.vision
    _put(v.cls, timm_model.cls_token)
    _put(v.pos, timm_model.pos_embed)
    _pair(v.patch.proj, timm_model.patch_embed.proj)
    for ours, theirs in zip(v.blocks, timm_model.blocks, strict=True):
        _pair(ours.attn_norm, theirs.norm1)
        _pair(ours.attn.qkv, theirs.attn.qkv)
        _pair(ours.attn.out, theirs.attn.proj)
        _pair(ours.mlp_norm, theirs.norm2)
        _pair(ours.mlp.fc1, theirs.mlp.fc1)
        _pair(ours.mlp.fc2, theirs.mlp.fc2)
    _pair(v.norm, timm_model.norm)
    _pair(model.head, timm_model.head)


def copy_hf_vit(model: nn.Module, hf: nn.Module) -> None:
    """transformers ViTForImageClassification into mmzoo's ViT."""
    v = model.vision
    _put(v.cls, hf.vit.embeddings.cls_token)
    _put(v.pos, hf.vit.embeddings.position_embeddings)
    _pair(v.patch.proj, hf.vit.embeddings.patch_embeddings.projection)
    layers = hf.vit.layers if hasattr(hf.vit, "layers") else hf.vit.encoder.layer
    for ours, theirs in zip(v.blocks, layers, strict=True):
        names = dict(theirs.named_modules())

        def one(*candidates: str, names: dict = names) -> nn.Module:
            return next(names[c] for c in candidates if c in names)

        _pair(ours.attn_norm, one("layernorm_before"))
        _fused(
            ours.attn.qkv,
            [
                one("attention.q_proj", "attention.attention.query"),
                one("attention.k_proj", "attention.attention.key"),
                one("attention.v_proj", "attention.attention.value"),
            ],
        )
        _pair(ours.attn.out, one("attention.o_proj", "attention.output.dense"))
        _pair(ours.mlp_norm, one("layernorm_after"))
        _pair(ours.mlp.fc1, one("mlp.fc1", "intermediate.dense"))
        _pair(ours.mlp.fc2, one("mlp.fc2", "output.dense"))
    _pair(v.norm, hf.vit.layernorm)
    _pair(model.head, hf.classifier)


def copy_hf_vilt(model: nn.Module, hf: nn.Module) -> None:
    """transformers ViltModel into the stack of mmzoo's ViLT."""
    e, v, t = hf.embeddings, model.vision, model.text.embed
    _put(v.cls, e.cls_token)
    _put(v.pos, e.position_embeddings)
    _pair(v.patch.proj, e.patch_embeddings.projection)
    _put(t.tok.weight, e.text_embeddings.word_embeddings.weight)
    _put(t.pos.weight, e.text_embeddings.position_embeddings.weight)
    _put(t.token_type.weight, e.text_embeddings.token_type_embeddings.weight)
    _pair(t.norm, e.text_embeddings.LayerNorm)
    _put(model.modality.weight, e.token_type_embeddings.weight)
    for ours, theirs in zip(v.blocks, hf.encoder.layer, strict=True):
        attention = theirs.attention.attention
        _pair(ours.attn_norm, theirs.layernorm_before)
        _fused(ours.attn.qkv, [attention.query, attention.key, attention.value])
        _pair(ours.attn.out, theirs.attention.output.dense)
        _pair(ours.mlp_norm, theirs.layernorm_after)
        _pair(ours.mlp.fc1, theirs.intermediate.dense)
        _pair(ours.mlp.fc2, theirs.output.dense)
    _pair(v.norm, hf.layernorm)
    _pair(model.pooler.dense, hf.pooler.dense)


def copy_hf_classifier(head: nn.Module, hf: nn.Module) -> None:
    """The head of ViltForQuestionAnswering and ViltForImagesAndTextClassification, a sequence of four."""
    _pair(head.fc1, hf[0])
    _pair(head.norm, hf[1])
    _pair(head.fc2, hf[3])


def copy_hf_word_head(head: nn.Module, hf: nn.Module) -> None:
    """ViltMLMHead into mmzoo's head for masked words."""
    _pair(head.dense, hf.transform.dense)
    _pair(head.norm, hf.transform.LayerNorm)
    _put(head.decoder.weight, hf.decoder.weight)
    _put(head.bias, hf.decoder.bias)


def _copy_open_clip_blocks(ours: nn.ModuleList, theirs: nn.ModuleList) -> None:
    for a, b in zip(ours, theirs, strict=True):
        _pair(a.attn_norm, b.ln_1)
        _put(a.attn.qkv.weight, b.attn.in_proj_weight)
        _put(a.attn.qkv.bias, b.attn.in_proj_bias)
        _pair(a.attn.out, b.attn.out_proj)
        _pair(a.mlp_norm, b.ln_2)
        _pair(a.mlp.fc1, b.mlp.c_fc)
        _pair(a.mlp.fc2, b.mlp.c_proj)


def copy_open_clip(model: nn.Module, other: nn.Module) -> None:
    """open_clip's CLIP (ViT towers) into mmzoo's CLIP."""
    v, o = model.vision, other.visual
    width = o.class_embedding.shape[0]
    _put(v.cls, o.class_embedding.reshape(1, 1, width))
    _put(v.pos, o.positional_embedding[None])
    _put(v.patch.proj.weight, o.conv1.weight)
    _pair(v.pre_norm, o.ln_pre)
    _copy_open_clip_blocks(v.blocks, o.transformer.resblocks)
    _pair(v.norm, o.ln_post)
    _put(model.vision_proj.weight, o.proj.T)
    t = model.text
    _put(t.embed.tok.weight, other.token_embedding.weight)
    _put(t.embed.pos.weight, other.positional_embedding)
    _copy_open_clip_blocks(t.blocks, other.transformer.resblocks)
    _pair(t.norm, other.ln_final)
    _put(model.text_proj.weight, other.text_projection.T)
    _put(model.logit_scale, other.logit_scale)


def _copy_hf_clip_blocks(ours: nn.ModuleList, theirs: nn.ModuleList) -> None:
    for a, b in zip(ours, theirs, strict=True):
        _pair(a.attn_norm, b.layer_norm1)
        _fused(a.attn.qkv, [b.self_attn.q_proj, b.self_attn.k_proj, b.self_attn.v_proj])
        _pair(a.attn.out, b.self_attn.out_proj)
        _pair(a.mlp_norm, b.layer_norm2)
        _pair(a.mlp.fc1, b.mlp.fc1)
        _pair(a.mlp.fc2, b.mlp.fc2)


def copy_hf_clip(model: nn.Module, hf: nn.Module) -> None:
    """transformers CLIPModel into mmzoo's CLIP."""
    v, o = model.vision, hf.vision_model
    o = getattr(o, "vision_model", o)
    _put(v.cls, o.embeddings.class_embedding.reshape(1, 1, -1))
    _put(v.pos, o.embeddings.position_embedding.weight[None])
    _put(v.patch.proj.weight, o.embeddings.patch_embedding.weight)
    _pair(v.pre_norm, o.pre_layrnorm)
    _copy_hf_clip_blocks(v.blocks, o.encoder.layers)
    _pair(v.norm, o.post_layernorm)
    _put(model.vision_proj.weight, hf.visual_projection.weight)
    t, o = model.text, getattr(hf.text_model, "text_model", hf.text_model)
    _put(t.embed.tok.weight, o.embeddings.token_embedding.weight)
    _put(t.embed.pos.weight, o.embeddings.position_embedding.weight)
    _copy_hf_clip_blocks(t.blocks, o.encoder.layers)
    _pair(t.norm, o.final_layer_norm)
    _put(model.text_proj.weight, hf.text_projection.weight)
    _put(model.logit_scale, hf.logit_scale)


def shake(module: nn.Module, seed: int = 0, std: float = 0.1) -> nn.Module:
    """Give every parameter a random value, so that no bias or norm is at its quiet start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
            p.add_(noise * std if p.dim() < 2 else noise * 0.05)
    return module
