"""LayerNorm and RMSNorm whose statistics are always computed in float32 (float64 for float64 inputs).

BERT's epsilon of 1e-12 vanishes in float16, and a variance taken in bfloat16 keeps three digits: so the reduction
never runs in the low precision, whether it comes from autocast or from half-precision weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["LayerNorm", "RMSNorm", "build_norm"]

_HALF = (torch.float16, torch.bfloat16)


class LayerNorm(nn.Module):
    """Layer normalisation over the last dimension.

    Args:
        width: Size of the last dimension.
        eps: Added to the variance. It has no default because it is where ports go wrong: 1e-5 in CLIP, 1e-6 in
            ViT, 1e-12 in BERT.
    """

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.width, self.eps = width, eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (..., width); the result has the dtype of `x`."""
        if x.dtype in _HALF:
            out = F.layer_norm(x.float(), (self.width,), self.weight.float(), self.bias.float(), self.eps)
            return out.to(x.dtype)
        return F.layer_norm(x, (self.width,), self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:  # noqa: D102
        return f"{self.width}, eps={self.eps:g}"


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last dimension (Zhang & Sennrich 2019), without a bias.

    Args:
        width: Size of the last dimension.
        eps: Added to the mean square.
    """

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.width, self.eps = width, eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (..., width); the result has the dtype of `x`."""
        wide = x.float() if x.dtype in _HALF else x
        out = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        # the weight multiplies after the cast, as Llama does, so that half-precision results agree with it
        return out.to(x.dtype) * self.weight.to(x.dtype)

    def extra_repr(self) -> str:  # noqa: D102
        return f"{self.width}, eps={self.eps:g}"


def build_norm(kind: str, width: int, eps: float) -> nn.Module:
    """Build the norm that a config names: `"layer"` or `"rms"`."""
    return {"layer": LayerNorm, "rms": RMSNorm}[kind](width, eps)
