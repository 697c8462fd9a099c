"""Held-out numbers of the tasks: answers by the official accuracy, verdicts about pairs, several heads at once."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmzoo.data.batch import PairBatch, QuestionBatch
from mmzoo.lit.heldout import HeldOutClasses, Numbers
from mmzoo.metrics.vqa import PairVerdicts, VQAAccuracy, constant_accuracy

__all__ = ["HeldOutAnswers", "HeldOutHeads", "HeldOutVerdicts"]


class HeldOutHeads:
    """Right answers of several heads over the same split.

    Args:
        heads: Their names: `itm` gives `itm_top1`.
        score: The number that says how good the model is.
    """

    def __init__(self, *heads: str, score: str) -> None:
        self.score: tuple[str, ...] = (score,)
        self._heads = {head: HeldOutClasses() for head in heads}

    def add(self, head: str, logits: Tensor, labels: Tensor) -> None:
        """Take logits (B, C) and labels (B,) of a head."""
        self._heads[head].add(logits, labels)

    def numbers(self) -> Numbers:
        """Accuracy of every head."""
        return {
            f"{head}_{metric}": number
            for head, counts in self._heads.items()
            if not counts.empty
            for metric, number in counts.numbers().items()
        }


class HeldOutAnswers:
    """Answers by the official accuracy, in all and by type; chance is the answer that is given most often."""

    score: tuple[str, ...] = ("accuracy",)

    def __init__(self) -> None:
        self._accuracy = VQAAccuracy()
        self._said: list[tuple[str, tuple[str, ...]]] = []

    def add(self, answers: Sequence[str], batch: QuestionBatch) -> None:
        """Take the model's answers to a batch's questions."""
        self._accuracy.update(answers, batch.said, batch.kinds)
        self._said += zip(batch.kinds, batch.said, strict=True)

    def numbers(self) -> Numbers:
        """`accuracy`, and `accuracy_<type>` where types are published; 0 where nothing could be counted."""
        report = self._accuracy.compute()
        found = {"accuracy": (report.accuracy if report.questions else 0.0, self._always(None))}
        for kind, accuracy in report.by_kind.items():
            if kind:
                found[f"accuracy_{kind}"] = (accuracy, self._always(kind))
        return found

    def _always(self, kind: str | None) -> float:
        """Accuracy of always giving the most frequent answer, to all questions or to those of a type."""
        said = [answers for its, answers in self._said if answers and kind in (None, its)]
        return constant_accuracy(said)


class HeldOutVerdicts:
    """Verdicts about pairs of pictures; chance is the more frequent verdict."""

    score: tuple[str, ...] = ("accuracy",)

    def __init__(self) -> None:
        self._verdicts = PairVerdicts()

    def add(self, logits: Tensor, batch: PairBatch) -> None:
        """Take logits (B, 2) of false and true."""
        self._verdicts.update(logits.float(), batch.labels, batch.groups)

    def numbers(self) -> Numbers:
        """Accuracy, and the share of sentences all of whose pairs are right; 0 where no label is published."""
        report = self._verdicts.compute()
        if not report.pairs:
            return {"accuracy": (0.0, 0.0), "consistency": (0.0, 0.0)}
        return {
            "accuracy": (report.accuracy, report.majority),
            "consistency": (report.consistency, report.guessed_consistency),
        }
