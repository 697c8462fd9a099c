"""From samples to batches: one text drawn per picture, tokenised and cut to the longest, ids padded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mmzoo.data.batch import CaptionBatch, Captions, ClassBatch
from mmzoo.data.sample import Broken, Sample
from mmzoo.errors import ZooError
from mmzoo.ops.pairs import NO_ID, pad_ids

if TYPE_CHECKING:
    from mmzoo.processing.processor import Processor

__all__ = ["CaptionCollate", "ClassCollate", "Collate", "Drawn", "Tokens"]

MEMORY = 200_000  # texts whose tokens are remembered: every caption of Flickr30k, some 40 MB


class Drawn(NamedTuple):
    """A sample with its picture taken off and one of its `texts` chosen."""

    key: str
    text: str
    texts: tuple[str, ...]
    text_id: int
    image_ids: tuple[int, ...]
    label: int | None


class Collate(Protocol):
    """Makes samples of one kind a batch of one kind."""

    def draw(self, sample: Any, seed: int | None) -> Any:
        """Take what the batch needs of a sample, its pictures aside, or `Broken` where it lacks something.

        Args:
            sample: Of the kind that the source yields.
            seed: Number that decides what is drawn at random, or None in evaluation.
        """

    def __call__(self, drawn: Sequence[Any], images: Tensor) -> Any:
        """Make a batch of B drawn samples and their images; those of one sample follow each other."""


class Tokens:
    """Tokenises texts and remembers them, since every epoch asks for the same ones.

    Args:
        processor: Its `texts()` decides; the result here equals it.
        framed: What a decoder writes rather than what a model reads: its tokenizer's `framed()` decides.
    """

    def __init__(self, processor: Processor, *, framed: bool = False) -> None:
        spec = processor.text_spec
        if spec is None:
            raise ZooError("this model reads no text, so it cannot be trained on captions.")
        self._processor = processor
        self._framed = framed
        self._fixed = spec.context if spec.pad_to_context and not framed else None
        self._rows: dict[str, list[int]] = {}
        self._pad = processor.tokenizer.pad_id

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and keys of B texts.

        Returns:
            ids (B, L) int64 and keep (B, L) bool; L is the longest of the B, 0 of none.
        """
        missing = [text for text in dict.fromkeys(texts) if text not in self._rows]
        if missing:
            if len(self._rows) + len(missing) > MEMORY:
                self._rows.clear()
                missing = list(dict.fromkeys(texts))
            tokenize = self._processor.tokenizer.framed if self._framed else self._processor.texts
            ids, keep = tokenize(missing)
            for text, row, real in zip(missing, ids.tolist(), keep.sum(1).tolist()):
                self._rows[text] = row[:real]
        rows = [self._rows[text] for text in texts]
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        width = self._fixed or max(map(len, rows), default=0)
        padded = torch.tensor([row + [self._pad] * (width - len(row)) for row in rows], dtype=torch.int64)
        return padded.reshape(len(rows), width), torch.arange(width) < lengths[:, None]


class CaptionCollate:
    """Makes a `CaptionBatch`.

    Args:
        tokens: Tokeniser of the model.
        with_labels: Whether the source has classes.
        first: Choose the first text in training too.
    """

    def __init__(self, tokens: Tokens, *, with_labels: bool, first: bool = False) -> None:
        self.tokens = tokens
        self.with_labels = with_labels
        self.first = first

    def draw(self, sample: Sample, seed: int | None) -> Drawn | Broken:
        """Choose one text, passing over blank ones; the first of them in evaluation."""
        choices = [j for j, text in enumerate(sample.texts) if text.strip()]
        if not choices:
            return Broken(sample.key, "no caption")
        j = choices[0 if seed is None or self.first else seed % len(choices)]
        texts = tuple(sample.texts[j] for j in choices)
        return Drawn(sample.key, sample.texts[j], texts, sample.text_ids[j], sample.image_ids, sample.label)

    def __call__(self, drawn: Sequence[Drawn], images: Tensor) -> CaptionBatch:
        """Make a batch of B drawn samples and (B, 3, H, W) images."""
        ids, keep = self.tokens([d.text for d in drawn])
        return CaptionBatch(
            images=images,
            ids=ids,
            keep=keep,
            image_ids=pad_ids([d.image_ids for d in drawn]),
            text_ids=torch.tensor([d.text_id for d in drawn]),
            labels=_labels(drawn) if self.with_labels else None,
            keys=[d.key for d in drawn],
            captions=Captions([d.texts for d in drawn]),
        )


class ClassCollate:
    """Makes a `ClassBatch`."""

    def draw(self, sample: Sample, seed: int | None) -> Drawn:
        """Take the label; texts are of no use here."""
        return Drawn(sample.key, "", (), NO_ID, sample.image_ids, sample.label)

    def __call__(self, drawn: Sequence[Drawn], images: Tensor) -> ClassBatch:
        """Make a batch of B drawn samples and (B, 3, H, W) images."""
        return ClassBatch(images=images, labels=_labels(drawn), keys=[d.key for d in drawn])


def _labels(drawn: Sequence[Drawn]) -> Tensor:
    return torch.tensor([NO_ID if d.label is None else d.label for d in drawn])
