"""Held-out numbers of captions: how likely the true ones are, and how good the written ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from mmzoo import dist
from mmzoo.lit.heldout import Numbers
from mmzoo.losses.words import WordLoss
from mmzoo.metrics.caption import score_captions

__all__ = ["HeldOutCaptions"]

_TOLD = ("exact", "cider_d", "bleu4")


class HeldOutCaptions:
    """A split's captions, true and written.

    Args:
        vocab: Words of the model.
    """

    score: tuple[str, ...] = ("cider_d",)

    def __init__(self, vocab: int) -> None:
        self._loss = torch.zeros(3, dtype=torch.float64)  # summed loss, right words, words
        self._counts = torch.zeros(vocab, dtype=torch.int64)
        self._rows: dict[str, tuple[str, tuple[str, ...]]] = {}

    def add_words(self, words: WordLoss, labels: Tensor) -> None:
        """Take the mean loss and accuracy over the tokens `labels` (R,) of a batch's true captions."""
        if len(labels):
            means = torch.stack([words.loss, words.accuracy, words.loss.new_ones(())]).detach()
            self._loss += means.double().cpu() * len(labels)
            self._counts += labels.cpu().bincount(minlength=len(self._counts))

    def add(self, keys: Sequence[str], written: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Take the captions written of B pictures, and what people said of them."""
        for key, caption, texts in zip(keys, written, references, strict=True):
            self._rows[key] = caption, tuple(texts)

    def numbers(self) -> Numbers:
        """Loss and accuracy by token, then exact matches, CIDEr-D (0 to 10) and BLEU-4.

        Chance is the split's own words guessed by their frequency, and its most frequent caption written of every
        picture.
        """
        parts = dist.gather_objects((self._loss, self._counts))
        loss, right, count = torch.stack([part for part, _ in parts]).sum(0).tolist()
        shares = torch.stack([part for _, part in parts]).sum(0).double() / max(count, 1)
        found: Numbers = {
            "loss": (loss / max(count, 1), float(torch.special.entr(shares).sum())),
            "token_accuracy": (right / max(count, 1), float(shares.max())),
        }
        rows = {key: row for part in dist.gather_objects(self._rows) for key, row in part.items()}
        if rows:
            references = {key: texts for key, (_, texts) in rows.items()}
            constant = Counter(text for texts in references.values() for text in texts).most_common(1)[0][0]
            written = score_captions({key: caption for key, (caption, _) in rows.items()}, references).numbers
            always = score_captions(dict.fromkeys(references, constant), references).numbers
            found |= {name: (written[name], always[name]) for name in _TOLD}
        else:
            found |= dict.fromkeys(_TOLD, (0.0, 0.0))
        return found
