"""Rows that several maps share: a transformer block under the names of each school."""

from __future__ import annotations

from mmzoo.weights.rules import Fuse, Rule

__all__ = [
    "bert_block",
    "bert_cross",
    "hf_clip_block",
    "hf_vit_block",
    "openai_block",
    "timm_block",
    "timm_vision",
    "weight_bias",
]


def weight_bias(source: str, target: str) -> list[Rule]:
    """The weight and the bias of one layer."""
    return [Rule(f"{source}.{p}", f"{target}.{p}") for p in ("weight", "bias")]


def _split_qkv(sources: tuple[str, ...], target: str) -> list[Rule]:
    return [Rule(tuple(f"{s}.{p}" for s in sources), f"{target}.{p}", Fuse()) for p in ("weight", "bias")]


def timm_block(source: str, target: str) -> list[Rule]:
    """timm's ViT block, also ALBEF's and BLIP's vision: fused qkv."""
    return [
        rule
        for ours, theirs in (
            ("attn_norm", "norm1"),
            ("attn.qkv", "attn.qkv"),
            ("attn.out", "attn.proj"),
            ("mlp_norm", "norm2"),
            ("mlp.fc1", "mlp.fc1"),
            ("mlp.fc2", "mlp.fc2"),
        )
        for rule in weight_bias(f"{source}.{theirs}", f"{target}.{ours}")
    ]


def openai_block(source: str, target: str) -> list[Rule]:
    """OpenAI CLIP's residual attention block (torch's MultiheadAttention), also open_clip's."""
    return [
        *weight_bias(f"{source}.ln_1", f"{target}.attn_norm"),
        Rule(f"{source}.attn.in_proj_weight", f"{target}.attn.qkv.weight"),
        Rule(f"{source}.attn.in_proj_bias", f"{target}.attn.qkv.bias"),
        *weight_bias(f"{source}.attn.out_proj", f"{target}.attn.out"),
        *weight_bias(f"{source}.ln_2", f"{target}.mlp_norm"),
        *weight_bias(f"{source}.mlp.c_fc", f"{target}.mlp.fc1"),
        *weight_bias(f"{source}.mlp.c_proj", f"{target}.mlp.fc2"),
    ]


def hf_clip_block(source: str, target: str) -> list[Rule]:
    """transformers' CLIP encoder layer: q, k and v apart."""
    attn = f"{source}.self_attn"
    return [
        *weight_bias(f"{source}.layer_norm1", f"{target}.attn_norm"),
        *_split_qkv((f"{attn}.q_proj", f"{attn}.k_proj", f"{attn}.v_proj"), f"{target}.attn.qkv"),
        *weight_bias(f"{attn}.out_proj", f"{target}.attn.out"),
        *weight_bias(f"{source}.layer_norm2", f"{target}.mlp_norm"),
        *weight_bias(f"{source}.mlp.fc1", f"{target}.mlp.fc1"),
        *weight_bias(f"{source}.mlp.fc2", f"{target}.mlp.fc2"),
    ]


def hf_vit_block(source: str, target: str) -> list[Rule]:
    """transformers' ViT layer: q, k and v apart."""
    attn = f"{source}.attention.attention"
    return [
        *weight_bias(f"{source}.layernorm_before", f"{target}.attn_norm"),
        *_split_qkv((f"{attn}.query", f"{attn}.key", f"{attn}.value"), f"{target}.attn.qkv"),
        *weight_bias(f"{source}.attention.output.dense", f"{target}.attn.out"),
        *weight_bias(f"{source}.layernorm_after", f"{target}.mlp_norm"),
        *weight_bias(f"{source}.intermediate.dense", f"{target}.mlp.fc1"),
        *weight_bias(f"{source}.output.dense", f"{target}.mlp.fc2"),
    ]


def bert_block(source: str, target: str) -> list[Rule]:
    """BERT's layer, also the text side of ALBEF, BLIP and the Q-Former: q, k and v apart, norms after the sums."""
    attn = f"{source}.attention.self"
    return [
        *_split_qkv((f"{attn}.query", f"{attn}.key", f"{attn}.value"), f"{target}.attn.qkv"),
        *weight_bias(f"{source}.attention.output.dense", f"{target}.attn.out"),
        *weight_bias(f"{source}.attention.output.LayerNorm", f"{target}.attn_norm"),
        *weight_bias(f"{source}.intermediate.dense", f"{target}.mlp.fc1"),
        *weight_bias(f"{source}.output.dense", f"{target}.mlp.fc2"),
        *weight_bias(f"{source}.output.LayerNorm", f"{target}.mlp_norm"),
    ]


def bert_cross(source: str, target: str) -> list[Rule]:
    """The cross-attention that ALBEF, BLIP and the Q-Former put into BERT's layer: keys and values are one map here."""
    cross = f"{source}.crossattention"
    return [
        *weight_bias(f"{cross}.self.query", f"{target}.cross.q"),
        *_split_qkv((f"{cross}.self.key", f"{cross}.self.value"), f"{target}.cross.kv"),
        *weight_bias(f"{cross}.output.dense", f"{target}.cross.out"),
        *weight_bias(f"{cross}.output.LayerNorm", f"{target}.cross_norm"),
    ]


def timm_vision(source: str, target: str) -> list[Rule]:
    """timm's ViT without a head, as ALBEF, BLIP and ViLT hold it."""
    return [
        Rule(f"{source}.cls_token", f"{target}.cls"),
        Rule(f"{source}.pos_embed", f"{target}.pos"),
        *weight_bias(f"{source}.patch_embed.proj", f"{target}.patch.proj"),
        *timm_block(f"{source}.blocks.{{i}}", f"{target}.blocks.{{i}}"),
        *weight_bias(f"{source}.norm", f"{target}.norm"),
    ]
