"""The feed-forward part of a block, with the activations that the six families use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmzoo.layers.linear import Linear

__all__ = ["ACTIVATIONS", "MLP", "Activation", "quick_gelu"]

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "swiglu"]


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI CLIP's approximation of GELU, `x * sigmoid(1.702 x)`."""
    return x * torch.sigmoid(1.702 * x)


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _swiglu(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,  # flax's default, hence Google's original ViT
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "swiglu": _swiglu,
}


class MLP(nn.Module):
    """Two linear maps with an activation between them.

    Args:
        width: Size of input and output.
        hidden: Size between the maps. With `"swiglu"`, `fc1` gives gate and value, `2 * hidden` in all.
        act: Name of the activation.
        bias: Whether the maps have biases.
        dropout: Probability of dropping an output element in training.
    """

    def __init__(self, width: int, hidden: int, act: Activation, *, bias: bool = True, dropout: float = 0.0):
        super().__init__()
        self.fc1 = Linear(width, 2 * hidden if act == "swiglu" else hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, width, bias=bias)
        self.act, self.dropout = act, dropout

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (..., width) to (..., width)."""
        out = self.fc2(ACTIVATIONS[self.act](self.fc1(x)))
        return F.dropout(out, self.dropout, self.training)
