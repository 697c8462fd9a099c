"""What a written caption is worth: CIDEr-D against what people said, for self-critical training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from mmzoo.errors import UsageError
from mmzoo.metrics.cider import CiderD, DocumentFrequencies
from mmzoo.metrics.ptb import ptb_tokenize

__all__ = ["Rewards", "advantages", "training_captions"]


def training_captions(trainer: Trainer) -> list[tuple[str, ...]]:
    """What is said of each training picture, which is not read where the source knows its captions without.

    Raises:
        UsageError: The data are no finite set of captioned pictures.
    """
    source: Any = getattr(getattr(trainer, "datamodule", None), "train_source", None)
    if source is None:
        raise UsageError(
            "objective scst weighs words by how many training pictures they are said of: give data of the kind "
            "CaptionsData, and no stream."
        )
    texts = getattr(source, "texts_of", lambda index: source[index].texts)
    said = (tuple(text for text in texts(i) if text.strip()) for i in range(len(source)))
    return [each for each in said if each]


class Rewards:
    """CIDEr-D of captions, its words weighted by their frequency in a set of captions that stays the same.

    Args:
        captions: All that is said of each picture of the set.
    """

    def __init__(self, captions: Sequence[Sequence[str]]) -> None:
        self._frequencies = DocumentFrequencies.of(_cut(captions))

    def __call__(
        self, texts: Sequence[str], pictures: Sequence[int], captions: Sequence[Sequence[str]]
    ) -> Tensor:
        """Score N texts.

        Args:
            texts: As written.
            pictures: For each the number of its picture.
            captions: What people said of each picture.

        Returns:
            (N,) float32 on the CPU, 0 to 10.
        """
        return CiderD(_cut(captions), self._frequencies).reward(texts, pictures)


def _cut(captions: Sequence[Sequence[str]]) -> list[list[list[str]]]:
    words = iter(ptb_tokenize([text for texts in captions for text in texts]))
    return [[next(words) for _ in texts] for texts in captions]


def advantages(reward: Tensor, baseline: Tensor | None) -> Tensor:
    """How much better each caption is than its baseline.

    Args:
        reward: (B, K) rewards of K captions of each picture.
        baseline: (B,) rewards to beat; None: the mean of the picture's other captions.

    Returns:
        (B, K). Without a baseline those of a picture add up to 0.
    """
    if baseline is not None:
        return reward - baseline[:, None]
    count = reward.shape[1]
    return (reward - reward.mean(1, keepdim=True)) * (count / (count - 1))
