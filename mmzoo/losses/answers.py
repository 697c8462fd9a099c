"""Answering from a closed list where several answers may be right (VQA)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmzoo.errors import ZooError
from mmzoo.losses.means import add_up, at_least_float32, share_of_each
from mmzoo.losses.tiles import full_precision

__all__ = ["Answers", "answer_loss"]


class Answers(NamedTuple):
    """What the loss returns; scalars, float32 (float64 for float64 logits)."""

    loss: Tensor
    score: Tensor
    """Mean target of the best answer, no gradient; an answer that only ties has not won."""


def answer_loss(logits: Tensor, targets: Tensor, *, over_ranks: bool = False) -> Answers:
    """Binary cross-entropy of every answer, summed over the list and averaged over questions (ViLT, as BAN before it).

    Args:
        logits: (B, A) of any floating type; computed in float32 at least.
        targets: (B, A) how right each answer is, 0 to 1.
        over_ranks: Take the mean over the questions of all ranks: the same loss on each and, averaged over ranks, the
            gradient of one process with all questions.

    Raises:
        ZooError: The shapes do not fit each other.
    """
    if logits.ndim != 2 or logits.shape != targets.shape:
        raise ZooError(
            f"the targets stand for {tuple(targets.shape)} questions and answers, the model's logits for "
            f"{tuple(logits.shape)}: give the model as many answers as the list has."
        )
    with full_precision(logits.device):
        logits = logits.to(at_least_float32(logits))
        targets = targets.to(logits)
        share = share_of_each(logits.new_tensor(float(len(logits))), over_ranks)
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") * share
        with torch.no_grad():
            best = logits.amax(1, keepdim=True)
            alone = (logits == best).sum(1) == 1
            score = (targets.gather(1, logits.argmax(1, keepdim=True))[:, 0] * alone).sum() * share
        return Answers(add_up(loss, over_ranks), add_up(score, over_ranks))
