"""What the records of a run hold, in numbers: `report.json`, and what the page is drawn from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from typing import Any, NamedTuple

import numpy as np

from mmzoo.apps.capfilt.manifest import Manifest
from mmzoo.apps.capfilt.records import SOURCES, State
from mmzoo.apps.capfilt.rules import REASONS, SCORES, Rules
from mmzoo.apps.capfilt.select import Selection
from mmzoo.apps.doctor import versions

__all__ = ["BINS", "Histogram", "OfSource", "Summary", "summarise"]

BINS = 20
NAMED = 100
"""Faults that are named in the report; all are counted."""
DUPLICATE = "duplicate key"
LIMITS = {"itm": (0.0, 1.0), "itc": (-1.0, 1.0), "clip": (-1.0, 1.0)}


class OfSource(NamedTuple):
    """Candidates from one source.

    Attributes:
        candidates: All.
        kept: Those that are kept.
        reasons: How many were rejected for each reason.
    """

    candidates: int
    kept: int
    reasons: dict[str, int]

    @property
    def share(self) -> float:
        """Part of them that is kept."""
        return self.kept / self.candidates if self.candidates else 0.0


class Histogram(NamedTuple):
    """A score of one source: counts of kept and rejected candidates in `BINS` equal bins from `low` to `high`."""

    score: str
    source: str
    low: float
    high: float
    kept: list[int]
    rejected: list[int]


class Summary(NamedTuple):
    """What the records hold.

    Attributes:
        input: What was read.
        shards: How many shards have records, of how many.
        images: Pictures that could be read.
        images_kept: Those of which something is kept.
        candidates: Texts.
        kept: Those that are kept.
        sources: The same by source.
        rules: How was selected.
        cut: The score that a percentile came to, or None.
        histograms: Scores, by source.
        stages: Models and settings of the stages, from the manifest.
        fault_counts: What could not be used, by kind.
        faults: The first ones, `[kind, key, reason]`.
        failed: Shards without records, and why.
        speed: Pictures, texts and seconds of work, summed over workers and runs.
        versions: Of mmzoo and torch.
        written: The day.
    """

    input: str
    shards: tuple[int, int]
    images: int
    images_kept: int
    candidates: int
    kept: int
    sources: dict[str, OfSource]
    rules: dict[str, Any]
    cut: float | None
    histograms: list[Histogram]
    stages: dict[str, Any]
    fault_counts: dict[str, int]
    faults: list[tuple[str, str, str]]
    failed: list[tuple[str, str]]
    speed: dict[str, float]
    versions: dict[str, str]
    written: str


def summarise(
    manifest: Manifest,
    rules: Rules,
    chosen: Selection,
    states: Mapping[int, State],
    failed: Sequence[tuple[str, str]],
) -> Summary:
    """Count what the records hold."""
    columns, codes = chosen.columns, chosen.decision.codes
    faults = [fault for number in sorted(states) for fault in states[number].faults]
    named = {key for kind, key, _ in faults if kind == DUPLICATE}
    faults += [
        (DUPLICATE, key, "stands in several shards") for key in chosen.repeated_keys if key not in named
    ]
    counts: Counter[str] = Counter()
    for state in states.values():
        counts.update(dict(state.fault_counts))
    counts[DUPLICATE] = max(counts[DUPLICATE], chosen.repeated)
    speed: Counter[str] = Counter()
    for line in manifest.logged():
        if line.get("failed") is None:
            speed.update({name: line[name] for name in ("images", "written", "scored", "seconds")})
    cut = chosen.decision.cut
    return Summary(
        input=manifest.told["input"],
        shards=(len(states), len(manifest.shards)),
        images=sum(state.images for state in states.values()),
        images_kept=len(np.unique(columns.image[codes == 0])),
        candidates=len(codes),
        kept=int((codes == 0).sum()),
        sources={
            name: _of_source(codes[columns.source == number])
            for number, name in enumerate(SOURCES)
            if (columns.source == number).any()
        },
        rules=asdict(rules),
        cut=None if cut != cut else cut,
        histograms=list(_histograms(chosen)),
        stages={stage: manifest.told[stage] for stage in ("caption", "score") if stage in manifest.told},
        fault_counts={kind: count for kind, count in sorted(counts.items()) if count},
        faults=faults[:NAMED],
        failed=list(failed),
        speed=dict(speed),
        versions=versions("mmzoo", "torch", "pyarrow"),
        written=date.today().isoformat(),
    )


def _of_source(codes: np.ndarray) -> OfSource:
    counts = np.bincount(codes, minlength=len(REASONS)).tolist()
    reasons = {str(reason): n for reason, n in zip(REASONS, counts, strict=True) if reason is not None and n}
    return OfSource(len(codes), counts[0], reasons)


def _histograms(chosen: Selection) -> list[Histogram]:
    columns, kept = chosen.columns, chosen.decision.codes == 0
    found = []
    for score in SCORES:
        values, (low, high) = getattr(columns, score), LIMITS[score]
        for number, source in enumerate(SOURCES):
            scored = (columns.source == number) & ~np.isnan(values)
            if scored.any():
                # rounding may put a cosine a little outside
                some = np.clip(values[scored], low, high)
                both = [
                    np.histogram(some[mask], BINS, (low, high))[0].tolist()
                    for mask in (kept[scored], ~kept[scored])
                ]
                found.append(Histogram(score, source, low, high, *both))
    return found
