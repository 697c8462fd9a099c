"""The page of a CapFilt run: what was kept of which source, the scores, and samples of both kinds; JSON beside it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmzoo.apps.capfilt.items import Item, read_shard
from mmzoo.apps.capfilt.plan import Shard
from mmzoo.apps.capfilt.records import SOURCES, read_columns, record_file
from mmzoo.apps.report.shares import percent
from mmzoo.apps.report.thumbs import thumbnail
from mmzoo.errors import ZooError
from mmzoo.files import atomic_path
from mmzoo.processing.image import BadImage, decode_image

if TYPE_CHECKING:
    from mmzoo.apps.capfilt.select import Selection
    from mmzoo.apps.capfilt.summary import Summary

__all__ = ["Shown", "write_report"]

SHEET, SHARDS = 24, 8
"""Samples of each source that are shown, kept and rejected; and most shards that are opened for them."""
LETTERS = 300
"""Most characters of a text on the page."""
_READ = ("sample", "key", "text", "source", "itm_prob", "itc_cos", "clip_cos", "kept", "reason")


class Shown(NamedTuple):
    """A candidate on the page; scores in words."""

    key: str
    image: str
    text: str
    source: str
    kept: bool
    reason: str
    scores: str


def write_report(
    out: Path, summary: Summary, chosen: Selection, shards: Sequence[Shard], *, html: bool
) -> None:
    """Write `report.json`, and `report.html` if asked for, each whole or not at all.

    Args:
        out: The folder of the run.
        summary: What the records hold.
        chosen: What was decided; samples are drawn of it, the same ones each time.
        shards: Those that have records.
        html: Whether to write the page.
    """
    with atomic_path(out / "report.json") as part:
        part.write_text(json.dumps(_plain(summary), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if not html:
        return
    import jinja2  # torch brings it, but only a report needs it

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = percent
    files = resources.files("mmzoo.apps.report")
    page = environment.from_string((files / "capfilt.html.jinja").read_text(encoding="utf-8"))
    shown = list(_shown(out, chosen, {shard.number: shard for shard in shards}))
    with atomic_path(out / "report.html") as part:
        told = {
            "s": summary,
            "sheets": [
                (name, [one for one in shown if one.kept == kept])
                for name, kept in (("Kept", True), ("Rejected", False))
            ],
            "style": (files / "gallery.css").read_text(encoding="utf-8"),
            "policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'",
        }
        part.write_text(page.render(told), encoding="utf-8")


def _plain(value: Any) -> Any:
    """Named tuples as mappings, all the way down."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _shown(out: Path, chosen: Selection, shards: dict[int, Shard]) -> Iterator[Shown]:
    """Some candidates of each source and kind, drawn by the hash of their text from a few shards far apart."""
    numbers = sorted(chosen.spans)
    numbers = [
        numbers[i * len(numbers) // min(SHARDS, len(numbers))] for i in range(min(SHARDS, len(numbers)))
    ]
    pool = np.concatenate([np.arange(*chosen.spans[number]) for number in numbers])
    wanted: dict[int, set[int]] = defaultdict(set)
    for source in range(len(SOURCES)):
        for kept in (True, False):
            some = pool[
                (chosen.columns.source[pool] == source) & ((chosen.decision.codes[pool] == 0) == kept)
            ]
            order = np.argsort(chosen.columns.text[some] ^ chosen.columns.file[some], kind="stable")
            for place in some[order[:SHEET]].tolist():
                number = next(n for n in numbers if chosen.spans[n][0] <= place < chosen.spans[n][1])
                wanted[number].add(place - chosen.spans[number][0])
    for number in sorted(wanted):
        rows: list[dict[str, Any]] = []
        place = 0
        for columns in read_columns(record_file(out, number), _READ):
            for values in zip(*(columns[name] for name in _READ), strict=True):
                if place in wanted[number]:
                    rows.append(dict(zip(_READ, values, strict=True)))
                place += 1
        pictures = _thumbnails(shards[number], {row["sample"] for row in rows})
        for row in rows:
            scores = [("match", "itm_prob"), ("itc", "itc_cos"), ("clip", "clip_cos")]
            told = " · ".join(
                f"{name} {row[column]:.2f}" for name, column in scores if row[column] is not None
            )
            text = row["text"] if len(row["text"]) <= LETTERS else row["text"][:LETTERS] + "…"
            image = pictures.get(row["sample"], "")
            yield Shown(row["key"], image, text, row["source"], row["kept"], row["reason"] or "", told)


def _thumbnails(shard: Shard, samples: set[int]) -> dict[int, str]:
    found = {}
    try:
        for item in read_shard(shard, samples):
            if isinstance(item, Item) and item.sample in samples:
                found[item.sample] = thumbnail(decode_image(item.image))
    except (OSError, ZooError, BadImage):  # gone since: the page does without
        pass
    return found
