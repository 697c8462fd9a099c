"""The linear layer of the blocks."""

from __future__ import annotations

from torch import Tensor, nn

from mmzoo.ops.linear import linear

__all__ = ["Linear"]


class Linear(nn.Linear):
    """`torch.nn.Linear`, quicker for the few rows of a decoding step on the CPU (see `mmzoo.ops.linear`)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (..., in_features) to (..., out_features)."""
        return linear(x, self.weight, self.bias)
