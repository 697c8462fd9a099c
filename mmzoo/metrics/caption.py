"""How good captions are: BLEU-1 to 4, ROUGE-L and CIDEr-D as the COCO caption kit counts them, without Java."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from mmzoo import dist
from mmzoo.errors import ZooError
from mmzoo.metrics.cider import CiderD, Words
from mmzoo.metrics.ptb import ptb_tokenize, split_words

__all__ = ["CaptionReport", "Captioning", "bleu", "rouge_l", "score_captions", "tokenized"]

K = TypeVar("K", bound=Hashable)

ORDERS = 4
BETA = 1.2  # how much more recall counts in ROUGE-L
TINY, SMALL = 1e-15, 1e-9  # the kit's guards against dividing by zero; they show in per-picture scores
NAMED = 3


class CaptionReport(NamedTuple, Generic[K]):
    """What captions of a set of pictures amount to.

    Attributes:
        numbers: `bleu1` to `bleu4`, `rouge_l` and `exact` (0 to 1), `cider_d` (0 to 10); tables print them times 100.
            `exact` is the share of captions that equal a reference word for word, punctuation and capitals aside.
        keys: The pictures.
        each: The same for each picture, in the order of `keys`. Their mean is the number of the whole, except for BLEU,
            which adds up n-grams first.
    """

    numbers: dict[str, float]
    keys: tuple[K, ...]
    each: dict[str, list[float]]


def score_captions(candidates: Mapping[K, str], references: Mapping[K, Sequence[str]]) -> CaptionReport[K]:
    """Score one caption for each picture as `COCOEvalCap` does.

    Args:
        candidates: Picture to caption.
        references: Picture to references, whose number may differ. Their order decides that of the report, and in
            rare cases on the cutting into words, see `ptb_tokenize`.

    Raises:
        ZooError: The pictures differ, there are none, or one has no reference.

    Example:
        >>> report = score_captions({1: "A cat.", 2: "a dog runs"}, {1: ["a cat"], 2: ["the dog runs", "a dog"]})
        >>> round(report.numbers["bleu1"], 6), report.each["exact"]
        (1.0, [1.0, 0.0])
    """
    mine, theirs = tokenized(candidates, references)
    orders = bleu(mine, theirs)
    each = {f"bleu{n}": scores for n, (_, scores) in enumerate(orders, 1)}
    each["rouge_l"] = [rouge_l(words, own) for words, own in zip(mine, theirs, strict=True)]
    each["cider_d"] = CiderD(theirs).scores(mine)
    each["exact"] = [float(words in own) for words, own in zip(mine, theirs, strict=True)]
    numbers = {name: math.fsum(scores) / len(scores) for name, scores in each.items()}
    numbers |= {f"bleu{n}": corpus for n, (corpus, _) in enumerate(orders, 1)}
    return CaptionReport(numbers, tuple(references), each)


def tokenized(
    candidates: Mapping[K, str], references: Mapping[K, Sequence[str]]
) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Cut candidates and references into words, both in the order of the references.

    Raises:
        ZooError: The pictures differ, there are none, or one has no reference.
    """
    if not references:
        raise ZooError("there are no pictures with references, so no caption can be scored.")
    for which, keys in (
        ("without a caption", [key for key in references if key not in candidates]),
        ("that the references do not know", [key for key in candidates if key not in references]),
        ("without any reference", [key for key, texts in references.items() if not texts]),
    ):
        if keys:
            named = ", ".join(map(str, keys[:NAMED])) + (", ..." if len(keys) > NAMED else "")
            raise ZooError(f"{len(keys):,} of {len(references):,} pictures {which}: {named}.")
    words = iter(ptb_tokenize([text for texts in references.values() for text in texts]))
    theirs = [[next(words) for _ in texts] for texts in references.values()]
    return ptb_tokenize([candidates[key] for key in references]), theirs


def bleu(
    candidates: Sequence[Words], references: Sequence[Sequence[Words]]
) -> list[tuple[float, list[float]]]:
    """BLEU-1 to BLEU-4 (Papineni et al., ACL 2002) with the kit's `option='closest'`.

    Of several references the one nearest in length counts for the brevity penalty, of equally near ones the shorter.

    Args:
        candidates: One caption for each picture, cut into words.
        references: References of each picture.

    Returns:
        For each n the score of the whole, from n-grams added up over all pictures, and the score of each picture.
    """
    each: list[list[float]] = [[] for _ in range(ORDERS)]
    lengths, right, guessed = [0, 0], [0] * ORDERS, [0] * ORDERS
    for words, texts in zip(candidates, references, strict=True):
        mine, theirs = split_words(words), [split_words(text) for text in texts]
        nearest = min((abs(len(text) - len(mine)), len(text)) for text in theirs)[1]
        hits = _clipped(mine, theirs)
        tries = [max(0, len(mine) - n) for n in range(ORDERS)]
        for scores, score in zip(each, _bleu(hits, tries, len(mine), nearest), strict=True):
            scores.append(score)
        lengths = [lengths[0] + len(mine), lengths[1] + nearest]
        right = [a + b for a, b in zip(right, hits, strict=True)]
        guessed = [a + b for a, b in zip(guessed, tries, strict=True)]
    return list(zip(_bleu(right, guessed, *lengths), each, strict=True))


def _clipped(words: Words, texts: Sequence[Words]) -> list[int]:
    """How many n-grams of a candidate its references have, each at most as often as one of them."""
    hits = []
    for n in range(1, ORDERS + 1):
        theirs = [_ngrams(text, n) for text in texts]
        known = set().union(*theirs)
        found = 0
        for gram, count in Counter(_ngrams(words, n)).items():
            if gram in known:
                found += 1 if count == 1 else min(count, max(own.count(gram) for own in theirs))
        hits.append(found)
    return hits


def _ngrams(words: Words, n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def _bleu(right: Sequence[int], guessed: Sequence[int], length: int, reference: int) -> list[float]:
    """Geometric means of the precisions up to each n, times the brevity penalty."""
    ratio = (length + TINY) / (reference + SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for n, (hits, tries) in enumerate(zip(right, guessed, strict=True), 1):
        product *= (hits + TINY) / (tries + SMALL)
        scores.append(product ** (1 / n) * brevity)
    return scores


def rouge_l(candidate: Words, references: Sequence[Words]) -> float:
    """ROUGE-L (Lin, 2004) with the kit's beta of 1.2: F of the best precision and the best recall over references.

    As in the kit, a caption without words has one empty word, so that it equals an empty reference and nothing else.

    Args:
        candidate: A caption, cut into words.
        references: At least one.
    """
    mine = list(candidate) or [""]
    common = [(_common(mine, text or [""]), len(text or [""])) for text in references]
    precision = max(length for length, _ in common) / len(mine)
    recall = max(length / total for length, total in common)
    if not precision:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common(a: Words, b: Words) -> int:
    """Length of the longest common subsequence, a row of the table at a time in the bits of one integer.

    Allison and Dix, "A bit-string longest-common-subsequence algorithm" (1986), in the form of Hyyrö (2004): bit i of
    the row is 0 where the length grows at word i of `a`.
    """
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    whole = (1 << len(a)) - 1
    row = whole
    for word in b:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & whole
    return len(a) - row.bit_count()


class Captioning:
    """Collects captions in any order, for a held-out loop; under several processes `compute` reports on all of them.

    Example:
        >>> metric = Captioning()
        >>> metric.update(["1", "2"], ["a cat", "a dog"], [["a cat", "one cat"], ["the dog"]])
        >>> metric.compute().numbers["exact"]
        0.5
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._rows: dict[str, tuple[str, tuple[str, ...]]] = {}

    def update(
        self, keys: Sequence[str], candidates: Sequence[str], references: Sequence[Sequence[str]]
    ) -> None:
        """Take a batch of B pictures; one that was there before counts once, with what is said now."""
        for key, caption, texts in zip(keys, candidates, references, strict=True):
            self._rows[key] = (caption, tuple(texts))

    def compute(self) -> CaptionReport[str]:
        """Score what has been seen, by all processes together.

        Raises:
            ZooError: Nothing has, or a picture has no reference.
        """
        rows = {key: row for part in dist.gather_objects(self._rows) for key, row in part.items()}
        return score_captions(
            {key: caption for key, (caption, _) in rows.items()},
            {key: texts for key, (_, texts) in rows.items()},
        )
