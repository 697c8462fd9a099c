"""Standing aside from autocast, or taking part in it, on every device (the meta device has none)."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

__all__ = ["autocast_off", "cast_as_autocast"]


def autocast_off(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A context in which operations keep the dtypes that they are given.

    Args:
        device: Where the tensors are.
    """
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def cast_as_autocast(x: Tensor) -> Tensor:
    """Cast as autocast casts the inputs of torch's own attention: float64 stays, and so does all outside autocast.

    Args:
        x: Any floating-point tensor.
    """
    device = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(device):
        return x
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
