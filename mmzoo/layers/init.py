"""The published initialisations, one function per school.

Sources: google-research/vision_transformer (flax defaults of its modules), timm's original ViT initialisation
(used by ALBEF, BLIP and ViLT), OpenAI CLIP's `initialize_parameters`, and BERT.
Modules on the meta device are left alone: they have no memory to fill.
"""

from __future__ import annotations

import math

from torch import nn

from mmzoo.layers.block import BlockStack, TransformerBlock
from mmzoo.layers.patch import PatchEmbed

__all__ = ["init_bert", "init_clip", "init_google", "init_timm"]


def _linears(module: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, m) for name, m in module.named_modules() if isinstance(m, nn.Linear)]


def _zero_bias(linear: nn.Linear) -> None:
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def init_timm(module: nn.Module, std: float = 0.02) -> None:
    """Truncated normal linear weights, zero biases; the patch convolution keeps torch's default."""
    for _, linear in _linears(module):
        nn.init.trunc_normal_(linear.weight, std=std)
        _zero_bias(linear)


def init_bert(module: nn.Module, std: float = 0.02) -> None:
    """Normal linear and embedding weights, zero biases."""
    for _, linear in _linears(module):
        nn.init.normal_(linear.weight, std=std)
        _zero_bias(linear)
    for m in module.modules():
        if isinstance(m, nn.Embedding):
            nn.init.normal_(m.weight, std=std)


def init_google(module: nn.Module) -> None:
    """Google ViT: LeCun-normal patches, Xavier-uniform linears, MLP biases N(0, 1e-6), other biases zero.

    Query, key and value are separate layers there, so each third of the fused `qkv` gets its own Xavier bound.
    """
    for name, linear in _linears(module):
        if name.endswith("attn.qkv"):
            bound = math.sqrt(6 / (linear.in_features + linear.out_features / 3))
            nn.init.uniform_(linear.weight, -bound, bound)
            _zero_bias(linear)
        else:
            nn.init.xavier_uniform_(linear.weight)
            if ".mlp." in f".{name}" and linear.bias is not None:
                nn.init.normal_(linear.bias, std=1e-6)
            else:
                _zero_bias(linear)
    for m in module.modules():
        if isinstance(m, PatchEmbed):
            fan_in = m.proj.weight[0].numel()
            # flax's lecun_normal truncates at two standard deviations and corrects the variance for it
            std = math.sqrt(1 / fan_in) / 0.87962566103423978
            nn.init.trunc_normal_(m.proj.weight, std=std, a=-2 * std, b=2 * std)
            if m.proj.bias is not None:
                nn.init.zeros_(m.proj.bias)


def init_clip(blocks: BlockStack) -> None:
    """OpenAI CLIP's blocks: attention N(0, 1/w), outputs scaled down by the depth; MLP biases keep torch's default."""
    for block in blocks:
        assert isinstance(block, TransformerBlock)
        width, depth = block.config.width, len(blocks)
        shrunk = width**-0.5 * (2 * depth) ** -0.5
        nn.init.normal_(block.attn.qkv.weight, std=width**-0.5)
        nn.init.normal_(block.attn.out.weight, std=shrunk)
        nn.init.normal_(block.mlp.fc1.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.mlp.fc2.weight, std=shrunk)
        _zero_bias(block.attn.qkv)
        _zero_bias(block.attn.out)
