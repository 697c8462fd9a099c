"""Which candidates are kept: a pure function of their scores and hashes, so that a new threshold is a query."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from mmzoo.apps.capfilt.records import SOURCES
from mmzoo.errors import UsageError

__all__ = ["REASONS", "SCORES", "Columns", "Decision", "Rules", "decide"]

SCORES = ("itm", "itc", "clip")
"""What a rule may go by."""
REASONS = (
    None, "empty", "too short", "too long", "repeated", "unscored", "below threshold", "below percentile", "duplicate",
    "near duplicate", "below top k",
)  # fmt: skip
"""Why a candidate is rejected, in the order in which the rules are asked; None is kept."""
_CODE = {reason: code for code, reason in enumerate(REASONS)}
HUMAN = SOURCES.index("human")


@dataclass(frozen=True)
class Rules:
    """How candidates are chosen. Texts by people pass all rules but those on empty, repeated and duplicate texts.

    Attributes:
        threshold: Least ITM probability (BLIP: 0.5); None asks for none.
        percentile: Least standing, from 0 to 100, among all candidates by the score `by`; None asks for none.
        top_k: So many of a picture's candidates, the best by the score `by` (BLIP-2: 2); 0 takes all.
        by: The score that `percentile` and `top_k` go by, one of `SCORES`.
        min_words: Fewest words of a text.
        max_words: Most words; 0 means any number.
        max_chars: Most characters; 0 means any number.
        dedup: `"exact"` keeps the first of the same pair of file and text; `"near"` also of pictures that look alike;
            `"none"` keeps all.
        distance: Bits in which the hashes of pictures that look the same may differ.

    Raises:
        UsageError: A value is out of range.
    """

    threshold: float | None = None
    percentile: float | None = None
    top_k: int = 0
    by: str = "itm"
    min_words: int = 1
    max_words: int = 0
    max_chars: int = 1000
    dedup: str = "exact"
    distance: int = 3

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UsageError(f"threshold={self.threshold} is a probability: between 0 and 1.")
        if self.percentile is not None and not 0 <= self.percentile <= 100:
            raise UsageError(f"percentile={self.percentile} lies between 0 (all) and 100.")
        for name in ("top_k", "min_words", "max_words", "max_chars"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name}={getattr(self, name)} must be 0 or more.")
        if self.by not in SCORES:
            raise UsageError(f"by={self.by!r}: choose {', '.join(SCORES)}.")
        if self.dedup not in ("none", "exact", "near"):
            raise UsageError(f"dedup={self.dedup!r}: choose none, exact or near.")
        if not 0 <= self.distance <= 15:
            raise UsageError(f"distance={self.distance} lies between 0 and 15 of the 64 bits.")

    def digest(self) -> str:
        """What tells selections apart that were made by different rules."""
        return hashlib.blake2b(json.dumps(asdict(self), sort_keys=True).encode(), digest_size=8).hexdigest()


class Columns(NamedTuple):
    """What the rules look at, for C candidates in the order of the records: 46 bytes each.

    Attributes:
        image: (C,) int64, number of the picture, ascending.
        source: (C,) uint8, index into `SOURCES`.
        words: (C,) int32, words of the text.
        chars: (C,) int32, its characters.
        text: (C,) uint64, hash of its normal form; 0 where that is empty.
        file: (C,) uint64, head of the picture's SHA-256.
        phash: (C,) uint64, its perceptual hash.
        itm: (C,) float32, nan where it was not scored.
        itc: (C,) float32.
        clip: (C,) float32.
    """

    image: np.ndarray
    source: np.ndarray
    words: np.ndarray
    chars: np.ndarray
    text: np.ndarray
    file: np.ndarray
    phash: np.ndarray
    itm: np.ndarray
    itc: np.ndarray
    clip: np.ndarray


class Decision(NamedTuple):
    """The outcome of `decide`.

    Attributes:
        codes: (C,) uint8, index into `REASONS`; 0 is kept.
        cut: The score that the percentile came to, nan where none was asked for.
    """

    codes: np.ndarray
    cut: float


def decide(columns: Columns, rules: Rules) -> Decision:
    """Choose among candidates.

    Each rule sees what the ones before it left: lengths, a text that its picture has already, the threshold, the
    percentile, duplicates (the first in the order of the records stays), and at last the best of each picture.

    Raises:
        UsageError: A rule goes by a score that no candidate has.
    """
    c, codes = columns, np.zeros(len(columns.image), np.uint8)
    score = {"itm": c.itm, "itc": c.itc, "clip": c.clip}
    judged = c.source != HUMAN
    by = score[rules.by]
    ranked = rules.percentile is not None or rules.top_k > 0
    for name, asked in (("itm", rules.threshold is not None), (rules.by, ranked)):
        if asked and judged.any() and np.isnan(score[name]).all():
            option = "--clip" if name == "clip" else "--filter"
            raise UsageError(f"no candidate has a {name} score: run the stage score with {option} first.")

    def reject(where: np.ndarray, reason: str) -> None:
        codes[where & (codes == 0)] = _CODE[reason]

    reject(c.text == 0, "empty")
    reject(judged & (c.words < rules.min_words), "too short")
    most_words, most_chars = rules.max_words or math.inf, rules.max_chars or math.inf
    reject(judged & ((c.words > most_words) | (c.chars > most_chars)), "too long")
    reject(_again(codes == 0, c.image, c.text), "repeated")
    if rules.threshold is not None:
        reject(judged & np.isnan(c.itm), "unscored")
        reject(judged & (c.itm < rules.threshold), "below threshold")
    if ranked:
        reject(judged & np.isnan(by), "unscored")
    cut = math.nan
    if rules.percentile is not None and (judged & (codes == 0)).any():
        cut = float(np.percentile(by[judged & (codes == 0)].astype(np.float64), rules.percentile))
        reject(judged & (by < cut), "below percentile")
    if rules.dedup != "none":
        reject(_again(codes == 0, c.file, c.text), "duplicate")
    if rules.dedup == "near":
        reject(_look_alikes(codes == 0, c.text, c.phash, rules.distance), "near duplicate")
    if rules.top_k:
        reject(_behind(judged & (codes == 0), c.image, by, rules.top_k), "below top k")
    return Decision(codes, cut)


def _again(alive: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    """(C,) bool: candidates whose keys all equal those of an earlier one that is alive too."""
    places = np.flatnonzero(alive)
    order = places[np.lexsort((places, *(key[places] for key in keys)))]
    same = np.ones(max(len(order) - 1, 0), bool)
    for key in keys:
        same &= key[order[1:]] == key[order[:-1]]
    found = np.zeros(len(alive), bool)
    found[order[1:][same]] = True
    return found


def _behind(alive: np.ndarray, image: np.ndarray, score: np.ndarray, k: int) -> np.ndarray:
    """(C,) bool: candidates that are not among the k best of their picture; of equals the first is better."""
    places = np.flatnonzero(alive)
    order = places[np.lexsort((places, -score[places], image[places]))]
    starts = (
        np.flatnonzero(np.r_[True, image[order[1:]] != image[order[:-1]]]) if len(order) else np.zeros(0, int)
    )
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    found = np.zeros(len(alive), bool)
    found[order[rank >= k]] = True
    return found


def _look_alikes(alive: np.ndarray, text: np.ndarray, phash: np.ndarray, distance: int) -> np.ndarray:
    """(C,) bool: candidates with the text of an earlier one that stays, and a picture at most `distance` bits away."""
    places = np.flatnonzero(alive)
    order = places[np.lexsort((places, text[places]))]
    found = np.zeros(len(alive), bool)
    if not len(order):
        return found
    edges = np.flatnonzero(np.r_[True, text[order[1:]] != text[order[:-1]], True])
    # of distance + 1 bands at least one is the same in two hashes so near: only those are compared
    bands = distance + 1
    width = 64 // bands
    for i in np.flatnonzero(np.diff(edges) > 1):
        stays: dict[tuple[int, int], list[int]] = defaultdict(list)
        for place in order[edges[i] : edges[i + 1]].tolist():
            bits = int(phash[place])
            cells = [(b, bits >> b * width & (1 << width) - 1) for b in range(bands)]
            if any((bits ^ other).bit_count() <= distance for cell in cells for other in stays[cell]):
                found[place] = True
            else:
                for cell in cells:
                    stays[cell].append(bits)
    return found
