"""Accuracy of answers to questions (VQA) and of verdicts about pairs of pictures (NLVR2), in a stream."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmzoo import dist
from mmzoo.errors import ZooError
from mmzoo.processing.answers import normalise_answer

__all__ = [
    "PairReport",
    "PairVerdicts",
    "QuestionReport",
    "VQAAccuracy",
    "answer_accuracy",
    "constant_accuracy",
]

AGREE = 3  # so many of the other annotators make an answer fully right

Sums = dict[str, tuple[float, int]]
"""Type of answer to the sum of its accuracies and their number."""


def answer_accuracy(predicted: str, said: Sequence[str]) -> float:
    """Official accuracy of one answer: min(annotators who agree / 3, 1), averaged over leaving out each annotator.

    As in the evaluation kit (`vqaEval.py` of github.com/GT-Vision-Lab/VQA, a013f00): where the annotators are of one
    mind, answers are compared as written, else normalised. A question with one annotator (easy-VQA, Visual Genome),
    which the kit cannot count, is right where the normalised answers are equal.

    Args:
        predicted: The model's answer.
        said: Every annotator's answer, repeats included.

    Returns:
        0 to 1.

    Raises:
        ZooError: There are no annotators.

    Example:
        >>> round(answer_accuracy("cats", ["cats"] * 3 + ["dogs"] * 7), 3)
        0.9
    """
    if not said:
        raise ZooError("this question has no published answers, so nothing can be counted.")
    guess, truth = _plain(predicted), [_plain(answer) for answer in said]
    if len(truth) == 1 or len(set(truth)) > 1:
        guess, truth = normalise_answer(guess), [normalise_answer(answer) for answer in truth]
    if len(truth) == 1:
        return float(guess == truth[0])
    agree, total = truth.count(guess), len(truth)
    # an annotator who agrees does not count for himself, one who does not leaves all who do
    left_out, kept = min((agree - 1) / AGREE, 1.0), min(agree / AGREE, 1.0)
    return (agree * left_out + (total - agree) * kept) / total if agree else 0.0


def constant_accuracy(said: Sequence[Sequence[str]]) -> float:
    """Accuracy of always giving the answer that annotators gave most often: what a model has to beat.

    Under several processes each gives the questions of its own, and gets the accuracy over all of them.

    Args:
        said: What each question's annotators said; questions without any are left out.

    Returns:
        0 to 1; 0 where there is no answer at all.
    """
    counts: Counter[str] = Counter()
    for theirs in dist.gather_objects(Counter(answer for answers in said for answer in answers)):
        counts.update(theirs)
    constant = VQAAccuracy()
    if counts:
        # of equally frequent answers the first by alphabet, whatever the order of processes
        best = min(counts, key=lambda answer: (-counts[answer], answer))
        constant.update([best] * len(said), said, [""] * len(said))
    report = constant.compute()
    return report.accuracy if report.questions else 0.0


def _plain(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


class QuestionReport(NamedTuple):
    """What a stream of answers amounts to."""

    accuracy: float
    """Mean over all questions (0 to 1); nan without any."""
    by_kind: dict[str, float]
    """Mean by published type of answer, in alphabetical order."""
    counts: dict[str, int]
    """Questions by type."""
    questions: int
    """Questions counted."""
    unpublished: int
    """Questions left out because no answers are published for them."""


class VQAAccuracy:
    """Accumulates answers in any order; under several processes `compute` reports on all of them.

    Example:
        >>> metric = VQAAccuracy()
        >>> metric.update(["yes", "2"], [("yes",) * 10, ("2",) * 3 + ("3",) * 7], ["yes/no", "number"])
        >>> metric.compute().by_kind
        {'number': 0.9, 'yes/no': 1.0}
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._scores: dict[str, list[float]] = {}
        self._unpublished = 0

    def update(self, predicted: Sequence[str], said: Sequence[Sequence[str]], kinds: Sequence[str]) -> None:
        """Count a batch.

        Args:
            predicted: B answers of the model.
            said: What each question's annotators said, repeats included; an empty one is counted apart.
            kinds: B types of answer.
        """
        for guess, truth, kind in zip(predicted, said, kinds, strict=True):
            if truth:
                self._scores.setdefault(kind, []).append(answer_accuracy(guess, truth))
            else:
                self._unpublished += 1

    def compute(self) -> QuestionReport:
        """Summarise what has been seen, by all processes together."""
        mine = {kind: (math.fsum(scores), len(scores)) for kind, scores in self._scores.items()}
        everyone = dist.gather_objects((mine, self._unpublished))
        sums = _added([sums for sums, _ in everyone])
        total = sum(count for _, count in sums.values())
        return QuestionReport(
            accuracy=math.fsum(s for s, _ in sums.values()) / total if total else math.nan,
            by_kind={kind: s / count for kind, (s, count) in sums.items()},
            counts={kind: count for kind, (_, count) in sums.items()},
            questions=total,
            unpublished=sum(count for _, count in everyone),
        )


def _added(everyone: Sequence[Sums]) -> Sums:
    """Add up sums and counts by type over processes, each of which may have met other types."""
    return {
        kind: (
            math.fsum(sums[kind][0] for sums in everyone if kind in sums),
            sum(sums[kind][1] for sums in everyone if kind in sums),
        )
        for kind in sorted({kind for sums in everyone for kind in sums})
    }


class PairReport(NamedTuple):
    """What a stream of verdicts about pairs amounts to."""

    accuracy: float
    """Share of right verdicts (0 to 1); nan without any."""
    consistency: float
    """Share of sentences all of whose pairs were judged right (0 to 1); nan without any."""
    pairs: int
    """Verdicts counted."""
    sentences: int
    """Sentences they were about."""
    unpublished: int
    """Pairs left out because their label is not published."""
    majority: float
    """What always giving the more frequent verdict would reach; to beat."""

    @property
    def guessed_consistency(self) -> float:
        """What guessing gets of sentences with as many pairs as the average; nan without any.

        A constant verdict is right about all pairs of few sentences, and half to the power of their number is not exact
        either.
        """
        return self.majority ** (self.pairs / self.sentences) if self.sentences else math.nan


class PairVerdicts:
    """Accumulates NLVR2's verdicts in any order; under several processes `compute` reports on all of them.

    Accuracy and consistency are those of `nlvr2/eval/metrics.py` of github.com/lil-lab/nlvr.

    Example:
        >>> metric = PairVerdicts()
        >>> metric.update(torch.tensor([1, 0, 1]), torch.tensor([1, 0, 0]), groups=torch.tensor([5, 5, 6]))
        >>> metric.compute()[:2]
        (0.6666666666666666, 0.5)
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._parts: list[Tensor] = []

    def update(self, predicted: Tensor, labels: Tensor, groups: Tensor) -> None:
        """Count a batch.

        Args:
            predicted: (B,) int64 verdicts, or (B, 2) scores of false and true.
            labels: (B,) int64, 1 true, 0 false, -1 not published.
            groups: (B,) int64, equal for the pairs of one sentence.

        Raises:
            ZooError: The shapes do not fit each other, or a score is nan.
        """
        if predicted.ndim == 2 and predicted.is_floating_point():
            if bool(predicted.isnan().any()):
                raise ZooError("Scores hold nan, which would count as a verdict; the model has diverged.")
            predicted = predicted.argmax(1)
        if not predicted.shape == labels.shape == groups.shape or predicted.ndim != 1:
            raise ZooError(
                f"Verdicts {tuple(predicted.shape)}, labels {tuple(labels.shape)} and groups {tuple(groups.shape)} do "
                "not fit each other; they are (B,) or (B, 2), (B,) and (B,)."
            )
        self._parts.append(torch.stack([groups, labels, (predicted == labels).long()], dim=1))

    def compute(self) -> PairReport:
        """Summarise what has been seen, by all processes together."""
        rows = torch.cat(self._parts) if self._parts else torch.empty(0, 3, dtype=torch.int64)
        rows = dist.gather_no_grad(rows).cpu()
        known = rows[rows[:, 1] >= 0]
        if not len(known):
            return PairReport(math.nan, math.nan, 0, 0, len(rows), math.nan)
        groups, labels, right = known.unbind(1)
        _, which = torch.unique(groups, return_inverse=True)
        all_right = torch.ones(int(which.max()) + 1, dtype=torch.int64).scatter_reduce_(
            0, which, right, "amin"
        )
        return PairReport(
            accuracy=float(right.double().mean()),
            consistency=float(all_right.double().mean()),
            pairs=len(known),
            sentences=len(all_right),
            unpublished=len(rows) - len(known),
            majority=float(labels.bincount().max() / len(labels)),
        )
