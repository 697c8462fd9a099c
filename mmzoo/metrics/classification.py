"""Classification in a stream: top-k accuracy, a table per class and who is taken for whom, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmzoo.errors import ZooError

__all__ = ["ClassRow", "Classification", "Report", "topk_accuracy"]


class ClassRow(NamedTuple):
    """How one class fared."""

    name: str
    samples: int
    """Samples of it."""
    accuracy: float
    """Share of them that were predicted right; nan without samples."""
    confused_with: str | None
    """The wrong class most often predicted for it, the first in class order on a tie; None if it never was wrong."""
    confused_share: float
    """Share of its samples that went there."""


class Report(NamedTuple):
    """What a stream of predictions amounts to."""

    top: dict[int, float]
    """k -> share of samples whose label is among the first k predictions (0 to 1)."""
    mean_per_class: float
    """Mean of the accuracies of the classes that have samples: each class counts alike, however rare."""
    samples: int
    """Samples seen."""
    classes: list[ClassRow]
    """One row a class, in class order."""
    confusion: Tensor
    """(C, C) int64 on the CPU: rows are true classes, columns predicted ones."""
    majority: float
    """What always answering the most frequent class would reach; for the predictions to beat."""


class Classification:
    """Accumulates predictions batch by batch; memory is C x C counts, 8 MB at 1,000 classes.

    Args:
        classes: Their names, in the order of the logits, or how many there are.
        ks: Cut-offs of top-k accuracy; those above the number of classes are left out, being always met.

    Example:
        >>> metric = Classification(["cat", "dog", "owl"], ks=(1, 2))
        >>> metric.update(torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), torch.tensor([0, 1]))
        >>> report = metric.compute()
        >>> report.top, report.classes[1].confused_with
        ({1: 0.5, 2: 1.0}, 'cat')
    """

    def __init__(self, classes: Sequence[str] | int, ks: Sequence[int] = (1, 5)) -> None:
        self.names = [str(i) for i in range(classes)] if isinstance(classes, int) else list(classes)
        self.ks = tuple(k for k in ks if k <= len(self.names))
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._hits = dict.fromkeys(self.ks, 0)
        self._confusion = torch.zeros(len(self.names) ** 2, dtype=torch.int64)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Take (B, C) scores, higher being likelier, and (B,) int64 labels. Ties fall as `torch.topk` breaks them.

        Raises:
            ZooError: The shapes do not fit the classes, a score is nan, or a label is out of range.
        """
        if logits.ndim != 2 or logits.shape[1] != len(self.names):
            raise ZooError(f"Logits are {tuple(logits.shape)}, but there are {len(self.names)} classes.")
        if bool(logits.isnan().any()):
            raise ZooError("Logits hold nan, which would rank as the highest score; the model has diverged.")
        self.update_topk(logits.topk(max(self.ks, default=1), dim=1).indices, labels)

    def update_topk(self, predicted: Tensor, labels: Tensor) -> None:
        """Take (B, K) class indices, likeliest first, K at least the largest cut-off, and (B,) int64 labels.

        Raises:
            ZooError: The shapes do not fit the cut-offs, or a class is out of range.
        """
        predicted, labels = predicted.cpu(), labels.cpu()
        if (
            predicted.ndim != 2
            or predicted.shape[1] < max(self.ks, default=1)
            or labels.shape != predicted.shape[:1]
        ):
            raise ZooError(
                f"Predictions {tuple(predicted.shape)} and labels {tuple(labels.shape)} do not fit top-"
                f"{max(self.ks, default=1)} accuracy; they are (B, K) and (B,)."
            )
        for name, values in (("label", labels), ("predicted class", predicted)):
            if bool(((values < 0) | (values >= len(self.names))).any()):
                raise ZooError(
                    f"A {name} lies outside 0 to {len(self.names) - 1}, the {len(self.names)} classes."
                )
        right = predicted == labels[:, None]
        for k in self.ks:
            self._hits[k] += int(right[:, :k].any(1).sum())
        pairs = labels * len(self.names) + predicted[:, 0]
        self._confusion += torch.bincount(pairs, minlength=len(self._confusion))

    def compute(self) -> Report:
        """Summarise what has been seen."""
        confusion = self._confusion.view(len(self.names), -1).clone()
        counts = confusion.sum(1)
        accuracy = confusion.diag().double() / counts  # nan without samples
        total = int(counts.sum())
        wrong = confusion.clone().fill_diagonal_(0)
        most, whom = wrong.max(1)
        rows = [
            ClassRow(
                name,
                int(counts[i]),
                float(accuracy[i]),
                self.names[int(whom[i])] if most[i] else None,
                int(most[i]) / max(int(counts[i]), 1),
            )
            for i, name in enumerate(self.names)
        ]
        return Report(
            top={k: hits / total if total else math.nan for k, hits in self._hits.items()},
            mean_per_class=float(accuracy.nanmean()),
            samples=total,
            classes=rows,
            confusion=confusion,
            majority=int(counts.max()) / total if total else math.nan,
        )


def topk_accuracy(logits: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """Give the share of a batch whose label is among the k highest scores, for a training log.

    Args:
        logits: (B, C) scores.
        labels: (B,) int64.
        k: Cut-off, at most C.

    Returns:
        Scalar float32, on the device of the logits; no gradient.

    Example:
        >>> topk_accuracy(torch.eye(3), torch.tensor([0, 1, 0]))
        tensor(0.6667)
    """
    return (logits.detach().topk(k, dim=1).indices == labels[:, None]).any(1).float().mean()
