"""CIDEr-D, the consensus of a caption with the references of its picture, as an evaluation and as a reward."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmzoo.errors import ZooError
from mmzoo.metrics.ptb import ptb_tokenize, split_words

__all__ = ["CiderD", "DocumentFrequencies"]

ORDERS = 4
SIGMA = 6.0  # words by which a candidate may be longer or shorter before it costs much
BITS = 24  # of a word's number within an n-gram's: 16 million words

Words = Sequence[str]
Grams = list[Counter[int]]
"""How often each n-gram occurs, by its number, for n from 1 to 4."""


class DocumentFrequencies(NamedTuple):
    """In how many pictures' references each n-gram occurs.

    Attributes:
        numbers: Word to its number.
        counts: For n from 1 to 4: n-gram, by its words' numbers, to pictures.
        pictures: How many pictures there are.
    """

    numbers: dict[str, int]
    counts: tuple[dict[int, int], ...]
    pictures: int

    @classmethod
    def of(cls, references: Sequence[Sequence[Words]]) -> DocumentFrequencies:
        """Count n-grams.

        Args:
            references: For each picture its references, cut into words.
        """
        numbers: dict[str, int] = {}
        counts: tuple[dict[int, int], ...] = tuple({} for _ in range(ORDERS))
        for texts in references:
            seen: list[set[int]] = [set() for _ in range(ORDERS)]
            for words in texts:
                row = [numbers.setdefault(word, len(numbers) + 1) for word in words]
                for own, grams in zip(seen, _grams(row), strict=True):
                    own.update(grams)
            for own, count in zip(seen, counts, strict=True):
                for gram in own:
                    count[gram] = count.get(gram, 0) + 1
        return cls(numbers, counts, len(references))


class _Vector(NamedTuple):
    """A text as its n-grams weighted by frequency and rarity."""

    weights: list[dict[int, float]]
    norms: list[float]
    length: int


class CiderD:
    """Scores captions against the references of a fixed set of pictures, whose frequencies are counted once.

    The mean over n = 1 to 4 and over a picture's references of the cosine of tf-idf vectors, the candidate's weights
    clipped to the reference's, damped by exp(-d^2 / 2 sigma^2) for d words of difference in length, times 10. So says
    "CIDEr-D" in Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation" (CVPR 2015), section 5, and so
    does the COCO kit (`cider_scorer.py` of github.com/tylin/coco-caption) under the name CIDEr, whose habits are kept:

    - Lengths are compared in bigrams, so that no word is as long as one.
    - An n-gram without any reference counts like one that a single picture has.
    - With a single picture every n-gram is in all pictures, so all weights are log(1) = 0 and the score is 0.

    Args:
        references: For each picture its references, cut into words as by `ptb_tokenize`; at least one each.
        frequencies: Of a larger set, where the pictures at hand are few. Left out: those of the references.

    Raises:
        ZooError: There are no pictures, or one without references.
    """

    def __init__(
        self, references: Sequence[Sequence[Words]], frequencies: DocumentFrequencies | None = None
    ) -> None:
        if not references or not all(references):
            raise ZooError("CIDEr-D compares with references: there is no picture, or one without any.")
        self._references = [[split_words(words) for words in texts] for texts in references]
        known = DocumentFrequencies.of(self._references) if frequencies is None else frequencies
        self._numbers = known.numbers
        self._rarest = math.log(known.pictures)
        self._counts = known.counts

    @classmethod
    def of_texts(cls, references: Sequence[Sequence[str]]) -> CiderD:
        """Make one from references that are not cut into words yet."""
        words = iter(ptb_tokenize([text for texts in references for text in texts]))
        return cls([[next(words) for _ in texts] for texts in references])

    def __len__(self) -> int:
        """How many pictures there are."""
        return len(self._references)

    def scores(self, candidates: Sequence[Words], pictures: Sequence[int] | None = None) -> list[float]:
        """Score any number of candidates.

        Args:
            candidates: Captions cut into words.
            pictures: For each candidate the number of its picture; left out: one candidate for each, in order.

        Returns:
            A score for each, 0 to 10 (published numbers are the mean times 100).

        Raises:
            ZooError: There is not one picture for each candidate.
        """
        chosen = range(len(self)) if pictures is None else pictures
        if len(candidates) != len(chosen):
            raise ZooError(
                f"{len(candidates)} candidates for {len(chosen)} pictures: CIDEr-D takes one of each."
            )
        vectors: dict[
            int, list[_Vector]
        ] = {}  # several candidates of one picture share its references' vectors
        found = []
        for words, picture in zip(candidates, chosen, strict=True):
            if picture not in vectors:
                if pictures is None:
                    vectors.clear()
                vectors[picture] = [self._vector(own) for own in self._references[picture]]
            theirs = vectors[picture]
            mine = self._vector(split_words(words))
            found.append(10.0 * sum(_similarity(mine, own) for own in theirs) / len(theirs))
        return found

    def reward(self, texts: Sequence[str], pictures: Sequence[int]) -> Tensor:
        """Score captions as written, for self-critical training.

        Args:
            texts: N captions.
            pictures: For each the number of its picture.

        Returns:
            (N,) float32 on the CPU.

        Example:
            >>> cider = CiderD.of_texts([["a red cat", "the cat"], ["a blue dog"], ["a green bird"]])
            >>> cider.reward(["a red cat", "a dog", "a red cat"], [0, 0, 1])
            tensor([4.3664, 0.0000, 0.0000])
        """
        return torch.tensor(self.scores(ptb_tokenize(texts), pictures), dtype=torch.float32)

    def _vector(self, words: Words) -> _Vector:
        new: dict[str, int] = {}
        numbers = self._numbers
        row = [
            numbers[word] if word in numbers else new.setdefault(word, len(numbers) + len(new) + 1)
            for word in words
        ]
        weights, norms = [], []
        for grams, counts in zip(_grams(row), self._counts, strict=True):
            own = {g: n * (self._rarest - math.log(counts.get(g, 1))) for g, n in grams.items()}
            weights.append(own)
            norms.append(math.sqrt(sum(weight * weight for weight in own.values())))
        return _Vector(weights, norms, max(len(words) - 1, 0))


def _grams(row: Sequence[int]) -> Grams:
    """N-grams of a text given as numbers of words."""
    found = [Counter(row)]
    grams: Sequence[int] = row
    for n in range(1, ORDERS):
        grams = [gram << BITS | last for gram, last in zip(grams, row[n:], strict=False)]
        found.append(Counter(grams))
    return found


def _similarity(mine: _Vector, theirs: _Vector) -> float:
    """Mean over n of the clipped cosine, damped by the difference in length."""
    total = 0.0
    for own, other, norm, other_norm in zip(
        mine.weights, theirs.weights, mine.norms, theirs.norms, strict=True
    ):
        if norm and other_norm:
            shared = sum(min(w, other[gram]) * other[gram] for gram, w in own.items() if gram in other)
            total += shared / (norm * other_norm)
    off = mine.length - theirs.length
    return total / ORDERS * math.exp(-(off * off) / (2 * SIGMA**2))
