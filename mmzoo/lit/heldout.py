"""Held-out numbers collected over a validation loop, with what guessing would get."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from mmzoo import dist
from mmzoo.data.batch import CaptionBatch
from mmzoo.metrics.retrieval import recall
from mmzoo.ops.pairs import NO_ID, widen

__all__ = ["Collector", "HeldOutClasses", "HeldOutPairs", "Numbers", "Several", "Split", "splits_of"]

Numbers = dict[str, tuple[float, float]]
"""Metric to (value, what guessing gives)."""


class Collector(Protocol):
    """Collects what a model makes of one held-out split; how it is fed is between it and its family's `judge`."""

    score: tuple[str, ...]
    """Which of the numbers say how good the model is: their mean is what `best.ckpt` is best at."""

    def numbers(self) -> Numbers:
        """The split's numbers, once all of it has been judged; the same on every process."""
        ...


class Several:
    """Collectors of different kinds over the same split.

    Args:
        main: Its numbers keep their names, and its score is the split's.
        others: The others by name: `itm=HeldOutClasses()` gives `itm_top1`.

    Attributes:
        main: As given.
        others: As given.
    """

    def __init__(self, main: Collector, **others: Collector):
        self.main, self.others = main, others
        self.score = main.score

    def numbers(self) -> Numbers:
        """All numbers, the main ones first."""
        found = dict(self.main.numbers())
        for name, other in self.others.items():
            found |= {f"{name}_{metric}": number for metric, number in other.numbers().items()}
        return found


class Split(NamedTuple):
    """A held-out split of the data module.

    Attributes:
        name: As it stands in metrics.
        classes: Names that labels index, or None.
    """

    name: str
    classes: tuple[str, ...] | None


def splits_of(trainer: Trainer) -> list[Split]:
    """The splits that the running loop goes through, in the order of its loaders."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    sources = getattr(data, "test_sources" if trainer.testing else "val_sources", None)
    if sources:
        return [Split(name, source.classes) for name, source in sources.items()]
    loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    count = len(loaders) if isinstance(loaders, list | tuple) else 1
    return [Split("val" if count == 1 else f"val{i}", None) for i in range(count)]


def _gathered(parts: Sequence[Tensor]) -> Tensor:
    return dist.gather_no_grad(torch.cat(list(parts)))


class HeldOutPairs:
    """Embeddings of a split's images and texts.

    Args:
        classifier: Makes unit vectors (C, E) of the split's classes when the numbers are asked for; None where it has
            none.
    """

    score: tuple[str, ...] = ("i2t_r1", "t2i_r1")

    def __init__(self, classifier: Callable[[], Tensor] | None = None) -> None:
        self._classifier = classifier
        self._parts: list[tuple[Tensor, ...]] = []

    def add(self, image: Tensor, text: Tensor, batch: CaptionBatch) -> None:
        """Take unit vectors (B, E) of a batch's images and texts."""
        labels = batch.labels if batch.labels is not None else torch.full_like(batch.text_ids, NO_ID)
        self._parts.append((image.float(), text.float(), batch.image_ids, batch.text_ids, labels))

    def gathered(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Images (B, E), texts (B, E), image ids (B, m), text ids (B,) and labels (B,) of all processes."""
        columns = list(zip(*self._parts, strict=True))
        width = max(ids.shape[1] for ids in columns[2])
        if dist.world() > 1:
            width = int(dist.max_over_ranks(torch.tensor(width, device=columns[2][0].device)))
        columns[2] = tuple(widen(ids, width) for ids in columns[2])
        image, text, image_ids, text_ids, labels = (_gathered(column) for column in columns)
        return image, text, image_ids, text_ids, labels

    def numbers(self) -> Numbers:
        """Recall@1, 5 and 10 both ways over the whole split, and zero-shot accuracy where it has classes."""
        image, text, image_ids, text_ids, labels = self.gathered()
        recalls = recall(image, text, image_ids=image_ids, text_ids=text_ids)
        found: Numbers = {
            f"{way}_r{k}": (value, direction.chance[k])
            for way, direction in zip(recalls._fields, recalls, strict=True)
            for k, value in direction.recall.items()
        }
        known = labels >= 0
        if self._classifier is not None and bool(known.any()):
            guesses = (image[known] @ self._classifier().float().T).argmax(1)
            right = (guesses == labels[known]).double().mean()
            found["zeroshot_top1"] = (float(right), majority(labels[known]))
        return found


def majority(labels: Tensor) -> float:
    """Share of the most frequent label, which is what always guessing it gives."""
    return float(labels.bincount().max() / len(labels))


class HeldOutClasses:
    """Counts of a split's right answers."""

    score: tuple[str, ...] = ("top1",)

    def __init__(self) -> None:
        self._labels: list[Tensor] = []
        self._ranks: list[Tensor] = []
        self._classes = 0

    @property
    def empty(self) -> bool:
        """Whether nothing was taken."""
        return not self._labels

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take logits (B, C) and labels (B,); -1 is not counted."""
        known = labels >= 0
        logits, labels = logits[known].float(), labels[known]
        right = logits.gather(1, labels[:, None])
        # a class that ties with the right one counts as before it, so a constant model is not right by luck
        self._ranks.append((logits >= right).sum(1) - 1)
        self._labels.append(labels)
        self._classes = logits.shape[1]

    def numbers(self) -> Numbers:
        """Top-1 and top-5 accuracy; chance is the most frequent classes always guessed."""
        labels, ranks = _gathered(self._labels), _gathered(self._ranks)
        shares = (labels.bincount().double() / max(len(labels), 1)).sort(descending=True).values
        found: Numbers = {}
        for k in (1, 5):
            if k == 1 or self._classes > k:
                found[f"top{k}"] = (float((ranks < k).double().mean()), float(shares[:k].sum()))
        if math.isnan(found["top1"][0]):
            found["top1"] = (0.0, 0.0)
        return found
