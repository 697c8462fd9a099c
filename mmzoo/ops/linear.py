"""A linear map of a few rows, which decoding is made of, without the weakness of the library's product for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["linear"]

# MKL's float32 product of 2 to 5 rows with a wide table takes twice as long as that of 1 row, and more than the same
# product asked for the other way round. A table of tens of thousands of words is better multiplied in slices, which
# stay in the cache. One core of an AMD EPYC, torch 2.14.1, 768 channels, milliseconds as asked, turned, in slices:
#     30,524 words, 5 rows: 21, 11, 16;  40 rows: 42, 42, 32;  1 row: 7, 7, 8
#     3,072 channels, 5 rows (twelve such tables): 22, 15, 20;  40 rows: 42, 51, 39
TURNED = range(2, 6)
SLICE, MANY = 1024, 16_384


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, quicker where a CPU decodes: float32, few rows, no gradient.

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out,) or None.

    Returns:
        (..., out), equal up to rounding.
    """
    rows = x.numel() // max(x.shape[-1], 1)
    wide = weight.shape[0] > weight.shape[1]
    if (
        not wide
        or rows < 2
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or x.device.type != "cpu"
        or type(weight) not in (Tensor, nn.Parameter)  # a quantized weight has a product of its own
        or not x.dtype == weight.dtype == torch.float32
        or torch.is_autocast_enabled("cpu")
    ):
        return F.linear(x, weight, bias)
    flat = x.reshape(rows, x.shape[-1])
    if rows in TURNED:
        out = F.linear(weight, flat).t().contiguous()
        out = out if bias is None else out.add_(bias)
    elif weight.shape[0] >= MANY:
        out = flat.new_empty(rows, weight.shape[0])
        for part in range(0, weight.shape[0], SLICE):
            some = slice(part, part + SLICE)
            torch.mm(flat, weight[some].t(), out=out[:, some])
        out = out if bias is None else out.add_(bias)
    else:
        return F.linear(x, weight, bias)
    return out.view(*x.shape[:-1], weight.shape[0])
