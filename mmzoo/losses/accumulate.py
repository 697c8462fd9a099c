"""Exact large contrastive batches in the memory of a chunk (GradCache, arXiv 2101.06983).

The loss of a contrastive batch does not split into chunks, but the towers do: embed all chunks without a graph, take
the one loss of all embeddings with its gradient, then embed each chunk again, with the same random numbers, and push
the stored gradient through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from mmzoo.errors import ZooError
from mmzoo.losses.tiles import Contrastive

__all__ = ["cached_step", "refuse_batch_statistics"]

Chunk = TypeVar("Chunk")


def cached_step(
    embed: Callable[[Chunk], tuple[Tensor, ...]],
    chunks: Sequence[Chunk],
    loss_of: Callable[..., Contrastive],
    *,
    backward: Callable[[Tensor], None] = torch.Tensor.backward,
) -> Contrastive:
    """Accumulate the gradient of one loss over all chunks, exact as if they were one batch.

    `embed` is called twice a chunk. Random numbers drawn from torch's global generators (dropout, patch dropout) are
    the same both times, and the generators end where one pass over the chunks leaves them; numbers from anywhere else
    are not replayed. `backward` is called `1 + len(chunks)` times, for the loss and then chunk by chunk; under DDP only
    the last call need synchronise. It may multiply its argument (a loss scaler does): that factor is read off and
    applied once.

    Args:
        embed: Gives the embeddings of a chunk, a tuple of tensors with the chunk's rows in front.
        chunks: The pieces of the batch.
        loss_of: Takes the concatenated embeddings, as many as `embed` gives, and returns the loss. Parameters that it
            uses itself (scale, bias) get their gradient too.
        backward: How to run backward from a scalar.

    Returns:
        What `loss_of` returned, detached.

    Example:
        >>> towers = nn.Linear(8, 4), nn.Linear(6, 4)
        >>> embed = lambda chunk: tuple(tower(x) for tower, x in zip(towers, chunk))
        >>> chunks = [(torch.randn(3, 8), torch.randn(3, 6)) for _ in range(4)]
        >>> from mmzoo.losses.contrastive import clip_loss
        >>> result = cached_step(embed, chunks, lambda image, text: clip_loss(image, text, 1.0))
        >>> towers[0].weight.grad.shape
        torch.Size([4, 8])
    """
    states, embedded = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_state())
            embedded.append(embed(chunk))
    # Before pytorch/pytorch#165068 autocast handed the graphless casts of the weights made above to the pass below.
    torch.clear_autocast_cache()
    # One entry for each of the tensors that `embed` gives. Full precision, or a scaled gradient would be rounded here.
    outputs = list(zip(*embedded, strict=True))
    sizes = [[len(x) for x in parts] for parts in outputs]
    leaves = [_full(torch.cat(parts)).requires_grad_() for parts in outputs]
    del embedded, outputs

    result = loss_of(*leaves)
    # Its gradient is whatever factor `backward` puts in.
    probe = torch.zeros_like(result.loss, requires_grad=True)
    backward(result.loss + probe)
    grads = [_gradient(leaf) / _gradient(probe) for leaf in leaves]

    pieces = zip(
        *(torch.split(grad, lengths) for grad, lengths in zip(grads, sizes, strict=True)), strict=True
    )
    for chunk, state, gradient in zip(chunks, states, pieces, strict=True):
        with _replay(state):
            again = embed(chunk)
        backward(torch.stack([(_full(x) * g).sum() for x, g in zip(again, gradient, strict=True)]).sum())
    return Contrastive(*(x.detach() for x in result))


def refuse_batch_statistics(module: nn.Module) -> None:
    """Stop if a module normalises over the batch, for chunks have other statistics than the whole.

    Args:
        module: The towers that are about to be run chunk by chunk.

    Raises:
        ZooError: It holds a batch norm in training mode.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training:
            raise ZooError(
                f"Exact accumulation cannot run {name or type(module).__name__}: a {type(part).__name__} in training "
                "mode sees a chunk where it should see the batch; freeze it with eval() or train without accumulation."
            )


_State = tuple[Tensor, dict[int, Tensor]]


def _devices() -> Iterable[int]:
    # Asking an unused CUDA device for its state would create a context on it.
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return range(torch.cuda.device_count()) if used else ()


def _random_state() -> _State:
    return torch.get_rng_state(), {device: torch.cuda.get_rng_state(device) for device in _devices()}


@contextmanager
def _replay(state: _State) -> Iterator[None]:
    cpu, cuda = state
    with torch.random.fork_rng(devices=cuda.keys()):
        torch.set_rng_state(cpu)
        for device, numbers in cuda.items():
            torch.cuda.set_rng_state(numbers, device)
        yield


def _full(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _gradient(leaf: Tensor) -> Tensor:
    return leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
