"""What is kept, as data to train on: `captions.jsonl` with its pictures, and tar shards."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmzoo.apps.capfilt.items import Item, picture_bytes, read_shard
from mmzoo.apps.capfilt.plan import Shard
from mmzoo.apps.capfilt.records import read_columns, record_file
from mmzoo.apps.lines import as_line
from mmzoo.files import atomic_path

__all__ = ["WRITES", "Pair", "kept_of", "write_outputs"]

WRITES = ("jsonl", "tar")
"""Ways to write what is kept."""


class Pair(NamedTuple):
    """A picture of which something is kept."""

    sample: int
    key: str
    texts: list[str]


def kept_of(out: Path, number: int) -> list[Pair]:
    """The pictures of a shard with the captions that are kept, in the order of the records."""
    found: list[Pair] = []
    for rows in read_columns(record_file(out, number), ("sample", "key", "text", "kept")):
        for sample, key, text, kept in zip(*rows.values(), strict=True):
            if kept and found and found[-1].sample == sample:
                found[-1].texts.append(text)
            elif kept:
                found.append(Pair(sample, key, [text]))
    return found


def write_outputs(out: Path, shards: Sequence[Shard], write: Sequence[str]) -> None:
    """Write what is kept of shards; files of an earlier selection are replaced, and what it kept alone is removed.

    `jsonl`: `out/captions.jsonl` with the pictures in `out/images/`, hard links where the input is a file beside it.
    `tar`: `out/tar/00000.tar`, with `key.json` holding the captions. Each file is there whole or not at all.

    Raises:
        OSError: The disk is full or gone.
    """
    for shard in shards if write else ():
        kept = {pair.sample: pair for pair in kept_of(out, shard.number)}
        if "jsonl" in write:
            _write_lines(out, shard, kept)
        if "tar" in write:
            _write_tar(out / "tar" / f"{shard.number:05}.tar", shard, kept)
    if "jsonl" in write:
        with atomic_path(out / "captions.jsonl") as part, part.open("wb") as file:
            for shard in shards:
                with _lines_of(out, shard).open("rb") as lines:
                    shutil.copyfileobj(lines, file)


def _lines_of(out: Path, shard: Shard) -> Path:
    return out / "images" / f"{shard.number:05}.jsonl"


def _pairs(shard: Shard, kept: dict[int, Pair]) -> Iterator[tuple[Item, Pair]]:
    if not kept:
        return
    for item in read_shard(shard, kept):
        if isinstance(item, Item) and item.sample in kept:
            yield item, kept[item.sample]


def _write_lines(out: Path, shard: Shard, kept: dict[int, Pair]) -> None:
    folder = out / "images" / f"{shard.number:05}"
    folder.mkdir(parents=True, exist_ok=True)
    stale = {file.name for file in folder.iterdir()}
    with atomic_path(_lines_of(out, shard)) as part, part.open("w", encoding="utf-8") as lines:
        for item, pair in _pairs(shard, kept):
            name = f"{item.sample:06}{_suffix(item)}"
            if name not in stale:
                _place(item, folder / name)
            stale.discard(name)
            record = {"image": f"images/{folder.name}/{name}", "captions": pair.texts, "id": pair.key}
            lines.write(as_line(record) + "\n")
    for name in stale:
        (folder / name).unlink()


def _place(item: Item, target: Path) -> None:
    """Put a picture where the list names it, without a second copy on the disk where that can be had."""
    if item.path is not None:
        try:
            os.link(item.path.resolve(), target)
        except OSError:
            pass  # another file system, or one without links
        else:
            return
    with atomic_path(target) as part:
        part.write_bytes(picture_bytes(item.image))


def _suffix(item: Item) -> str:
    return item.suffix or ".jpg"


def _write_tar(target: Path, shard: Shard, kept: dict[int, Pair]) -> None:
    if not kept:  # a tar without samples is none that could be read
        target.unlink(missing_ok=True)
        return
    with atomic_path(target) as part, tarfile.open(part, "w") as tar:
        for item, pair in _pairs(shard, kept):
            stem = f"{shard.number:05}{item.sample:06}"
            record: dict[str, Any] = {"captions": pair.texts, "id": pair.key, "key": pair.key}
            if item.url is not None:
                record["url"] = item.url
            for name, content in (
                (stem + _suffix(item), picture_bytes(item.image)),
                (f"{stem}.json", json.dumps(record, ensure_ascii=False).encode()),
            ):
                info = tarfile.TarInfo(name)  # no times and no owner: the same choice gives the same shard
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
