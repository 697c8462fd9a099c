"""What a loss needs of other processes: gathering with gradient, uneven batches included.

Everything here is the identity without a process group, so callers need no branch for a single process.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

__all__ = [
    "gather_no_grad",
    "gather_objects",
    "gather_sizes",
    "gather_with_grad",
    "max_over_ranks",
    "rank",
    "sum_over_ranks",
    "world",
]

T = TypeVar("T")


def world() -> int:
    """Give the number of processes, 1 without a process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Give this process's number, 0 without a process group."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def gather_sizes(size: int, device: torch.device | str = "cpu") -> list[int]:
    """Tell every rank how many rows each rank holds.

    Args:
        size: The number of rows on this rank.
        device: Where the exchange happens; NCCL wants a CUDA device.

    Returns:
        One number a rank, in rank order.
    """
    if world() == 1:
        return [size]
    mine = torch.tensor([size], dtype=torch.int64, device=device)
    sizes = [torch.empty_like(mine) for _ in range(world())]
    distributed.all_gather(sizes, mine)
    return torch.cat(sizes).tolist()


def gather_no_grad(x: Tensor, sizes: list[int] | None = None) -> Tensor:
    """Concatenate a tensor of every rank along its first dimension, without gradient.

    Args:
        x: (n, ...) of any type; n may differ between ranks, the other dimensions may not.
        sizes: What `gather_sizes(n)` returned, if the caller has it already.

    Returns:
        (sum of n, ...), rank 0 first.
    """
    if world() == 1:
        return x.detach()
    return _gather(x.detach(), sizes or gather_sizes(len(x), x.device))


def gather_objects(mine: T) -> list[T]:
    """Give what every rank holds, rank 0 first: for a few plain numbers and names, once an epoch.

    Args:
        mine: Anything that can be pickled.
    """
    if world() == 1:
        return [mine]
    everyone: list[Any] = [None] * world()
    distributed.all_gather_object(everyone, mine)
    return everyone


def gather_with_grad(x: Tensor, sizes: list[int] | None = None) -> Tensor:
    """Concatenate a tensor of every rank along its first dimension, with gradient.

    The gradient of this rank's rows is the *sum* of the gradients which all ranks have for them. Averaged over
    ranks, as DDP does with parameter gradients, it is the gradient of the mean of the ranks' losses.

    Args:
        x: (n, ...) floating; n may differ between ranks, the other dimensions may not.
        sizes: What `gather_sizes(n)` returned, if the caller has it already.

    Returns:
        (sum of n, ...), rank 0 first.
    """
    if world() == 1:
        return x
    gathered: Tensor = _GatherWithGrad.apply(x, sizes or gather_sizes(len(x), x.device))  # type: ignore[no-untyped-call]
    return gathered


def sum_over_ranks(x: Tensor) -> Tensor:
    """Add up a tensor over ranks, in place, without gradient. Its shape is the same everywhere."""
    if world() > 1:
        distributed.all_reduce(x, distributed.ReduceOp.SUM)
    return x


def max_over_ranks(x: Tensor) -> Tensor:
    """Take the elementwise maximum of a tensor over ranks, in place, without gradient."""
    if world() > 1:
        distributed.all_reduce(x, distributed.ReduceOp.MAX)
    return x


def _gather(x: Tensor, sizes: list[int]) -> Tensor:
    # Collectives want equal shapes: shorter ranks are padded to the longest, and the padding is cut off again.
    longest = max(sizes)
    padded = x.contiguous()
    if len(x) < longest:
        padded = x.new_zeros(longest, *x.shape[1:])
        padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class _GatherWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        return _gather(x, sizes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        mine = grad.new_empty(ctx.sizes[rank()], *grad.shape[1:])
        distributed.reduce_scatter(mine, list(grad.contiguous().split(ctx.sizes)))
        return mine, None
