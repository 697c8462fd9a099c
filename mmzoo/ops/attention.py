"""The one function that the whole package attends through, and the choice of its backend."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from mmzoo.errors import UsageError, ZooError, nearest
from mmzoo.ops.backends.packed import Jagged, Varlen
from mmzoo.ops.backends.reference import Reference, reference_weights
from mmzoo.ops.backends.sdpa import SDPA
from mmzoo.ops.mask import CAUSAL, FULL, AttnMask, Packed, check
from mmzoo.ops.precision import cast_as_autocast

__all__ = [
    "BACKENDS",
    "CAUSAL",
    "FULL",
    "AttentionBackend",
    "AttnMask",
    "Packed",
    "attend",
    "attend_weights",
    "explain_choice",
]


class AttentionBackend(Protocol):
    """One way to compute attention."""

    name: str

    def refuses(self, q: Tensor, k: Tensor, v: Tensor, mask: AttnMask, dropout_p: float) -> str | None:
        """Tell why this call cannot be taken, or None if it can."""
        ...

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, mask: AttnMask, dropout_p: float, scale: float
    ) -> Tensor:
        """Attend; shapes have been checked and `refuses` said None."""
        ...


# What `auto` asks, in this order; the first that does not refuse computes. SDPA, segment by segment, stands before
# nested tensors because on the CPU it is 2.8 to 7.6 times as fast (one core of an AMD EPYC, torch 2.14.1):
# `python tools/bench_packed.py`.
BACKENDS: tuple[AttentionBackend, ...] = (Varlen(), SDPA(), Jagged(), Reference())


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: AttnMask = FULL,
    dropout_p: float = 0.0,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Scaled dot-product attention: `softmax(scale * q k^T + mask) v`.

    A query that may see no key gives zeros and a zero gradient, on every backend. Under autocast, float32
    inputs are cast to its dtype first, on every backend.

    Args:
        q: (B, H, Lq, D).
        k: (B, Hkv, Lk, D) with H a multiple of Hkv; each key head serves H/Hkv neighbouring query heads.
        v: (B, Hkv, Lk, Dv).
        mask: What may see what.
        dropout_p: Probability of dropping a weight. There is no training switch: pass 0 when evaluating.
        scale: Factor on the scores; None is `D ** -0.5`.
        backend: "auto", or the name of one of `BACKENDS`.

    Returns:
        (B, H, Lq, Dv) in the dtype of the inputs.

    Raises:
        ZooError: Shapes or dtypes do not fit, or the named backend refuses (with its reason).
        UsageError: There is no backend of that name.
    """
    q, k, v = cast_as_autocast(q), cast_as_autocast(k), cast_as_autocast(v)
    check(q, k, v, mask, dropout_p)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    chosen = _choose(backend, q, k, v, mask, dropout_p)
    return chosen(q, k, v, mask=mask, dropout_p=dropout_p, scale=scale)


def attend_weights(q: Tensor, k: Tensor, *, mask: AttnMask = FULL, scale: float | None = None) -> Tensor:
    """The weights that `attend` uses before dropout, for maps and their gradients (Lq x Lk memory).

    Args:
        q: (B, H, Lq, D).
        k: (B, Hkv, Lk, D).
        mask: What may see what.
        scale: Factor on the scores; None is `D ** -0.5`.

    Returns:
        (B, H, Lq, Lk) float32 (float64 for float64 inputs). A row sums to one, or to zero if it sees nothing.

    Raises:
        ZooError: Shapes or dtypes do not fit.
    """
    q, k = cast_as_autocast(q), cast_as_autocast(k)
    check(q, k, k, mask, 0.0)
    return reference_weights(q, k, mask, q.shape[-1] ** -0.5 if scale is None else scale)


def explain_choice(
    q: Tensor, k: Tensor, v: Tensor, *, mask: AttnMask = FULL, dropout_p: float = 0.0
) -> list[tuple[str, str | None]]:
    """Tell which backend `auto` takes for a call, and why not the others.

    Args:
        q: (B, H, Lq, D).
        k: (B, Hkv, Lk, D).
        v: (B, Hkv, Lk, Dv).
        mask: What may see what.
        dropout_p: Probability of dropping a weight.

    Returns:
        Name and refusal of every backend in the order asked; the first whose refusal is None is taken.

    Raises:
        ZooError: Shapes or dtypes do not fit.
    """
    q, k, v = cast_as_autocast(q), cast_as_autocast(k), cast_as_autocast(v)
    check(q, k, v, mask, dropout_p)
    return [(backend.name, backend.refuses(q, k, v, mask, dropout_p)) for backend in BACKENDS]


def _choose(name: str, q: Tensor, k: Tensor, v: Tensor, mask: AttnMask, dropout_p: float) -> AttentionBackend:
    if name == "auto":
        for backend in BACKENDS:
            if backend.refuses(q, k, v, mask, dropout_p) is None:
                return backend
        raise AssertionError("the reference backend never refuses")
    for backend in BACKENDS:
        if backend.name == name:
            reason = backend.refuses(q, k, v, mask, dropout_p)
            if reason is not None:
                raise ZooError(f"The attention backend {name!r} cannot take this call: {reason}.")
            return backend
    names = ["auto", *(backend.name for backend in BACKENDS)]
    raise UsageError(
        f"There is no attention backend {name!r}.{nearest(name, names)} Choose one of {', '.join(names)}."
    )
