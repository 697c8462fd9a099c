"""Cross-entropy over a vocabulary: for labelled rows only, a chunk at a time, gradients made in the forward pass.

Most rows of a language loss ask for nothing (padding; 85 % of the tokens in masked-word modelling). They are left out
before anything of the vocabulary's width is computed. Of the rest, a chunk's logits turn into the gradients of hidden
states, weight and bias on the spot and are overwritten by the next chunk's: nothing is computed twice, and one or two
(chunk, V) buffers are all that exist. The idea is Liger's fused linear cross-entropy (arXiv 2410.10989).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmzoo.errors import ZooError
from mmzoo.losses.masking import NO_LABEL
from mmzoo.losses.means import add_up, at_least_float32, share_of_each
from mmzoo.losses.tiles import full_precision, spans

__all__ = ["SoftWords", "WordLoss", "word_loss"]


class WordLoss(NamedTuple):
    """What a language loss returns; scalars, float32 (float64 for float64 inputs)."""

    loss: Tensor
    accuracy: Tensor
    """Share of labelled rows whose best word is the label, no gradient; a label that only ties has not won."""


class SoftWords(NamedTuple):
    """A teacher's opinion of every row, as what its softmax is made from: a chunk of it lives only for its turn."""

    hidden: Tensor
    """(R, D) the teacher's hidden states, row for row those of the student."""
    weight: Tensor
    """(V, D) the teacher's decoder."""
    bias: Tensor | None = None
    """(V,)."""


def word_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    soft: SoftWords | Tensor | None = None,
    alpha: float = 0.0,
    label_smoothing: float = 0.0,
    row_weight: Tensor | None = None,
    over_ranks: bool = False,
    chunk: int = 256,
) -> WordLoss:
    """Mean cross-entropy of `hidden @ weight.T + bias` over the rows that have a label.

    A row's target is `(1 - alpha) * [(1 - label_smoothing) * label + label_smoothing / V] + alpha * soft`. Rows
    labelled -100 cost nothing; without any labelled row the loss is 0 and all gradients are zero.

    Args:
        hidden: (R, D) states before the decoder, of any floating type; computed in float32 whatever the autocast
            (float64 stays float64).
        weight: (V, D) the decoder, often tied to the token table.
        bias: (V,) or None.
        labels: (R,) int64, -100 where nothing is asked.
        soft: The teacher's hidden states and decoder, or its probabilities (R, V), which sum to 1. No gradient.
        alpha: Share of `soft` in the target, in [0, 1]; 0 without `soft`.
        label_smoothing: Share of the label's mass spread evenly over all words, in [0, 1].
        row_weight: (R,) what each row counts, for a weighted sum in place of the mean.
        over_ranks: Take the mean over the labelled rows of all ranks: the same loss on each and, averaged over
            ranks, the gradient of one process with all rows.
        chunk: Rows of logits in memory at once.

    Returns:
        Loss and accuracy.

    Raises:
        ZooError: The shapes do not fit each other, or `alpha` has no teacher.
    """
    _check(hidden, weight, bias, labels, soft, alpha, row_weight)
    dtype = at_least_float32(hidden, weight)
    with full_precision(hidden.device):
        (rows,) = (labels != NO_LABEL).nonzero(as_tuple=True)
        each = share_of_each(torch.tensor(len(rows), dtype=dtype, device=hidden.device), over_ranks)
        share = each.expand(len(rows)) if row_weight is None else row_weight[rows].to(dtype)
        teacher = _Teacher(soft, rows, dtype) if alpha and soft is not None else None
        loss, right = _Words.apply(  # type: ignore[no-untyped-call]
            hidden[rows].to(dtype),
            weight.to(dtype),
            None if bias is None else bias.to(dtype),
            _Targets(labels[rows], share, teacher, alpha, label_smoothing),
            chunk,
            torch.is_grad_enabled(),
        )
        return WordLoss(add_up(loss, over_ranks), add_up(right * each, over_ranks))


class _Teacher:
    """Gives the soft targets of a chunk of rows."""

    def __init__(self, soft: SoftWords | Tensor, rows: Tensor, dtype: torch.dtype) -> None:
        self._soft, self._rows, self._dtype = soft, rows, dtype

    def chunk(self, start: int, stop: int) -> Tensor:
        """(c, V) probabilities."""
        rows = self._rows[start:stop]
        if isinstance(self._soft, Tensor):
            return self._soft.detach()[rows].to(self._dtype)
        soft = self._soft
        bias = None if soft.bias is None else soft.bias.detach()
        z = _logits(soft.hidden.detach()[rows].to(self._dtype), soft.weight.detach().to(self._dtype), bias)
        return z.sub_(z.logsumexp(1, keepdim=True)).exp_()


class _Targets(NamedTuple):
    labels: Tensor
    """(n,) of the labelled rows."""
    share: Tensor
    """(n,) what each row counts."""
    teacher: _Teacher | None
    alpha: float
    smoothing: float


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return hidden @ weight.T if bias is None else torch.addmm(bias.to(hidden.dtype), hidden, weight.T)


class _Words(torch.autograd.Function):
    """The sum over rows of `share * cross_entropy`, and how many rows are right."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: _Targets,
        chunk: int,
        grad: bool,
    ) -> tuple[Tensor, Tensor]:
        loss, right = hidden.new_zeros(()), hidden.new_zeros(())
        wants = [grad and wanted for wanted in ctx.needs_input_grad[:3]]
        hidden_grad = torch.empty_like(hidden) if wants[0] else None
        weight_grad = torch.zeros_like(weight) if wants[1] else None
        bias_grad = torch.zeros_like(bias) if wants[2] and bias is not None else None
        alpha = targets.alpha if targets.teacher is not None else 0.0
        hard = (1 - alpha) * (1 - targets.smoothing)
        spread = (1 - alpha) * targets.smoothing / len(weight)
        for start, stop in spans(len(hidden), chunk):
            label, share = targets.labels[start:stop, None], targets.share[start:stop, None]
            z = _logits(hidden[start:stop], weight, bias)
            own = z.gather(1, label)
            z.scatter_(1, label, float("-inf"))
            rest = z.amax(1, keepdim=True)
            z.scatter_(1, label, own)
            right += (own > rest).sum()
            # the cross-entropy of targets that sum to 1: normaliser - sum(target * logit)
            cross = hard * own
            if spread:
                cross += spread * z.sum(1, keepdim=True)
            p = None if targets.teacher is None else targets.teacher.chunk(start, stop)
            if p is not None:
                cross += alpha * torch.linalg.vecdot(p, z)[:, None]
            top = torch.maximum(own, rest)
            total = z.sub_(top).exp_().sum(1, keepdim=True)
            loss += (share * (top + total.log() - cross)).sum()
            if not any(wants):
                continue
            z.mul_(share / total)  # the gradient of the logits: share * (softmax - target)
            if spread:
                z.sub_(share * spread)
            if p is not None:
                z.sub_(p.mul_(share * alpha))
            z.scatter_add_(1, label, -hard * share)
            if hidden_grad is not None:
                torch.mm(z, weight, out=hidden_grad[start:stop])
            if weight_grad is not None:
                weight_grad.addmm_(z.T, hidden[start:stop])
            if bias_grad is not None:
                bias_grad += z.sum(0)
        ctx.grads = hidden_grad, weight_grad, bias_grad
        ctx.mark_non_differentiable(right)
        return loss, right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if g is None else g * grad_loss for g in ctx.grads), None, None, None


def _check(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    soft: SoftWords | Tensor | None,
    alpha: float,
    row_weight: Tensor | None,
) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ZooError(
            f"word_loss takes hidden (R, D) and weight (V, D), not {tuple(hidden.shape)} and {tuple(weight.shape)}."
        )
    for name, each in (("label", labels), ("weight", row_weight)):
        if each is not None and each.shape != hidden.shape[:1]:
            raise ZooError(
                f"word_loss takes a {name} for each of {len(hidden)} rows, not {tuple(each.shape)}."
            )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ZooError(f"word_loss takes a bias for each of {len(weight)} words, not {tuple(bias.shape)}.")
    if not 0 <= alpha <= 1 or (alpha and soft is None):
        raise ZooError(
            f"alpha is {alpha}; it is the teacher's share of the targets, in [0, 1], and 0 without `soft`."
        )
    if soft is not None:
        shape = (
            (len(soft), soft.shape[1]) if isinstance(soft, Tensor) else (len(soft.hidden), len(soft.weight))
        )
        if shape != (len(hidden), len(weight)):
            raise ZooError(
                f"word_loss takes the teacher's word for {len(hidden)} rows and {len(weight)} words, not {shape}."
            )
