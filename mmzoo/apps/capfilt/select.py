"""The stage `select`: reads scores and hashes out of all records, decides, and writes the decision back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmzoo.apps.capfilt.likeness import normal_text, text_hash
from mmzoo.apps.capfilt.records import SOURCES, read_columns, record_file, write_decisions
from mmzoo.apps.capfilt.rules import REASONS, Columns, Decision, Rules, decide

__all__ = ["Selection", "select"]

NAMED = 100
"""Repeated keys that are named; all are counted."""
_READ = ("sample", "key", "text", "source", "sha256", "phash", "itm_prob", "itc_cos", "clip_cos")
_TYPES = {
    "image": np.int64, "source": np.uint8, "words": np.int32, "chars": np.int32, "text": np.uint64, "file": np.uint64,
    "phash": np.uint64, "itm": np.float32, "itc": np.float32, "clip": np.float32,
}  # fmt: skip


class Selection(NamedTuple):
    """What was decided.

    Attributes:
        columns: What it was decided by, of all candidates.
        decision: Which are kept.
        spans: The candidates of each shard, by its number: first and one behind the last.
        changed: Files that were written because something in them is decided otherwise than before.
        repeated: How many keys stand with more than one picture, in one shard or in several.
        repeated_keys: The first of them.
    """

    columns: Columns
    decision: Decision
    spans: dict[int, tuple[int, int]]
    changed: int
    repeated: int
    repeated_keys: list[str]


def select(out: Path, numbers: Sequence[int], rules: Rules) -> Selection:
    """Decide which candidates are kept.

    No text and no picture is held: memory is that of `Columns`, under 50 bytes a candidate, and of one shard.

    Args:
        out: The folder of the run.
        numbers: Shards that have records.
        rules: How to choose.

    Raises:
        UsageError: A rule goes by a score that no candidate has.
    """
    parts: list[Columns] = []
    keys: list[np.ndarray] = []
    spans: dict[int, tuple[int, int]] = {}
    images = first = 0
    for number in numbers:
        columns, names = _gather(record_file(out, number))
        keys.append(names)
        if len(columns.image):
            columns = columns._replace(image=columns.image + images)
            images = int(columns.image[-1]) + 1
        parts.append(columns)
        spans[number] = (first, first + len(columns.image))
        first += len(columns.image)
    together = Columns(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    decision = decide(together, rules)
    digest, changed = rules.digest(), 0
    for number, (start, end) in spans.items():
        codes = decision.codes[start:end].tolist()
        reasons = [REASONS[code] for code in codes]
        changed += write_decisions(record_file(out, number), [code == 0 for code in codes], reasons, digest)
    found, times = np.unique(np.concatenate(keys), return_counts=True)
    repeated = found[times > 1]
    return Selection(together, decision, spans, changed, len(repeated), _names(out, numbers, repeated))


def _names(out: Path, numbers: Sequence[int], hashes: np.ndarray) -> list[str]:
    """The first keys that have some of these hashes."""
    wanted = set(hashes.tolist()[:NAMED])
    found: dict[str, None] = {}
    for number in numbers if wanted else ():
        for rows in read_columns(record_file(out, number), ("key",)):
            found |= {key: None for key in dict.fromkeys(rows["key"]) if text_hash(key) in wanted}
    return list(found)


def _gather(path: Path) -> tuple[Columns, np.ndarray]:
    """The columns of one shard, its pictures numbered from 0, and a hash of each picture's key."""
    keys: list[int] = []
    parts: list[tuple[np.ndarray, ...]] = []
    image, last = -1, None
    for rows in read_columns(path, _READ):
        numbers = []
        for sample, key in zip(rows["sample"], rows["key"], strict=True):
            if sample != last:
                image, last = image + 1, sample
                keys.append(text_hash(key))
            numbers.append(image)
        normal = [normal_text(text) for text in rows["text"]]
        nan = float("nan")
        found = {
            "image": numbers,
            "source": [SOURCES.index(source) for source in rows["source"]],
            "words": [len(text.split()) for text in normal],
            "chars": [len(text) for text in rows["text"]],
            "text": [text_hash(text) if text else 0 for text in normal],
            "file": [int(sha[:16], 16) for sha in rows["sha256"]],
            "phash": rows["phash"],
            "itm": [nan if value is None else value for value in rows["itm_prob"]],
            "itc": [nan if value is None else value for value in rows["itc_cos"]],
            "clip": [nan if value is None else value for value in rows["clip_cos"]],
        }
        parts.append(tuple(np.array(found[name], kind) for name, kind in _TYPES.items()))
    parts = parts or [tuple(np.zeros(0, kind) for kind in _TYPES.values())]
    return Columns(*(np.concatenate(column) for column in zip(*parts, strict=True))), np.array(
        keys, np.uint64
    )
