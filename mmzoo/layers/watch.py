"""Attention that can be looked at: one layer computes its weights eagerly and keeps them, the others stay fused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from mmzoo.errors import ZooError
from mmzoo.ops.attention import AttnMask, attend_weights
from mmzoo.ops.precision import autocast_off

if TYPE_CHECKING:
    from mmzoo.layers.attention import CrossAttention, SelfAttention

__all__ = ["Seen", "watch"]


class Seen:
    """What `watch` saw.

    Attributes:
        weights: (B, H, L, N) attention weights of the latest call before dropout, float32 at least. They are part of
            its graph: after `backward()` their gradient is `weights.grad`, and `torch.autograd.grad` takes them too.
    """

    def __init__(self) -> None:
        self._weights: Tensor | None = None

    @property
    def weights(self) -> Tensor:  # noqa: D102 - an attribute to those who read it
        if self._weights is None:
            raise ZooError(
                "the watched attention has not been called: run the model inside `with watch(...)`."
            )
        return self._weights

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, mask: AttnMask, dropout_p: float) -> Tensor:
        """As `mmzoo.ops.attention.attend`, in Lq x Lk memory.

        Raises:
            ZooError: The rows are packed or folded.
        """
        if mask.packed is not None:
            raise ZooError("packed texts cannot be watched: call with packed=False.")
        weights = attend_weights(q, k, mask=mask)
        if torch.is_grad_enabled():
            if weights.requires_grad:
                weights.retain_grad()
            else:  # a frozen model: the graph begins here
                weights.requires_grad_()
        self._weights = weights
        with autocast_off(q.device):
            values = v.to(weights.dtype).repeat_interleave(q.shape[1] // v.shape[1], dim=1)
            return (F.dropout(weights, dropout_p, dropout_p > 0) @ values).to(v.dtype)


@contextmanager
def watch(attention: SelfAttention | CrossAttention) -> Iterator[Seen]:
    """Let one attention layer keep its weights, so that they and their gradient can be looked at.

    What the layer computes stays the same. A watched cross-attention takes one context per text (`kv[index]` instead
    of `context_index`), and nothing may be packed.

    Args:
        attention: `block.attn` or `block.cross`.

    Yields:
        Where the weights are.

    Example:
        >>> from mmzoo.layers.attention import SelfAttention
        >>> attention = SelfAttention(8, 2, kv_heads=2, head_dim=4)
        >>> with watch(attention) as seen:
        ...     attention(torch.randn(3, 5, 8)).sum().backward()
        >>> seen.weights.shape, seen.weights.grad.shape
        (torch.Size([3, 2, 5, 5]), torch.Size([3, 2, 5, 5]))
    """
    assert attention.seen is None, "this attention is being watched already"
    attention.seen = seen = Seen()
    try:
        yield seen
    finally:
        attention.seen = None
