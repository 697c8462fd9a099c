"""Deciding: whether a text fits an image, or which of several answers is right."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmzoo.errors import ZooError
from mmzoo.losses.means import add_up, at_least_float32, share_of_each
from mmzoo.losses.tiles import full_precision

__all__ = ["Choice", "choice_loss", "match_loss"]


class Choice(NamedTuple):
    """What a classifying loss returns; scalars, float32 (float64 for float64 logits)."""

    loss: Tensor
    accuracy: Tensor
    """Share of valid rows whose best class is the label, no gradient; a label that only ties has not won."""


def match_loss(
    logits: Tensor, match: Tensor, *, valid: Tensor | None = None, over_ranks: bool = False
) -> Choice:
    """Image-text matching: the two-way cross-entropy of "fits" (class 1) and "does not" (class 0).

    Args:
        logits: (R, 2) of any floating type; computed in float32 at least.
        match: (R,) bool, True where text and image belong together.
        valid: (R,) bool, False for rows to leave out, as those for which no negative was found.
        over_ranks: Take the mean over the valid rows of all ranks; see `choice_loss`.

    Returns:
        Loss and accuracy; 0 and 0 if no row is valid.
    """
    return choice_loss(logits, match.long(), valid=valid, over_ranks=over_ranks)


def choice_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    valid: Tensor | None = None,
    teacher: Tensor | None = None,
    alpha: float = 0.0,
    over_ranks: bool = False,
) -> Choice:
    """Mean cross-entropy over valid rows against `(1 - alpha) * label + alpha * softmax(teacher)` (ALBEF, eq. 7).

    Args:
        logits: (R, C) of any floating type; computed in float32 at least.
        labels: (R,) int64 classes; of rows that are not valid anything.
        valid: (R,) bool, False for rows to leave out; None: all count.
        teacher: (R, C) the teacher's logits, without gradient.
        alpha: Share of the teacher in the target, in [0, 1].
        over_ranks: Take the mean over the valid rows of all ranks: the same loss on each and, averaged over ranks,
            the gradient of one process with all rows.

    Returns:
        Loss and accuracy; 0 and 0 if no row is valid.

    Raises:
        ZooError: The shapes do not fit each other, or `alpha` has no teacher.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ZooError(
            f"choice_loss takes logits (R, C) and labels (R,), not {tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    if not 0 <= alpha <= 1 or (alpha and teacher is None):
        raise ZooError(
            f"alpha is {alpha}; it is the teacher's share of the targets, in [0, 1], and 0 without a teacher."
        )
    with full_precision(logits.device):
        if valid is not None:
            logits, labels = logits[valid], labels[valid]
        logits = logits.to(at_least_float32(logits))
        share = share_of_each(torch.tensor(len(logits), dtype=logits.dtype, device=logits.device), over_ranks)
        log_p = logits.log_softmax(1)
        rows = -(1 - alpha) * log_p.gather(1, labels[:, None])[:, 0]
        if teacher is not None and alpha:
            teacher = teacher.detach() if valid is None else teacher.detach()[valid]
            rows = rows - alpha * (teacher.to(logits.dtype).softmax(1) * log_p).sum(1)
        with torch.no_grad():
            own = logits.gather(1, labels[:, None])
            rest = logits.scatter(1, labels[:, None], float("-inf")).amax(1, keepdim=True)
            right = (own > rest).sum() * share
        return Choice(add_up(rows.sum() * share, over_ranks), add_up(right, over_ranks))
