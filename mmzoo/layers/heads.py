"""What stands on top of the towers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["UnitProjection"]


class UnitProjection(nn.Linear):
    """A linear map into a common space whose outputs have unit length.

    The length is computed in float32 whatever the autocast: cosines are multiplied by up to 100 afterwards.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (..., in_features) to unit vectors (..., out_features), float32 (float64 for float64 weights)."""
        out = super().forward(x)
        return F.normalize(out.float() if out.dtype in (torch.float16, torch.bfloat16) else out, dim=-1)
