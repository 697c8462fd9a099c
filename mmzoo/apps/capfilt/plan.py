"""What is worked on at a time: a shard of the input, planned once and written down for all later runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmzoo.apps.capfilt.records import URL_LIST, parquet_groups
from mmzoo.data.open import list_splits, open_source, recognise_source
from mmzoo.data.sources.common import IMAGE_SUFFIXES
from mmzoo.data.sources.shards import expand_shards
from mmzoo.errors import UsageError, ZooError
from mmzoo.files import atomic_path
from mmzoo.paths import find_data

__all__ = ["PICTURES", "Shard", "plan"]

PICTURES = "pictures.jsonl"
"""The list of a bare folder's pictures, in the folder of the run."""


class Shard(NamedTuple):
    """A part of the input that is read, worked on and written as one.

    Attributes:
        number: Its place among all; it names the files that are made of it.
        kind: `"tar"`, `"lines"` (captions.jsonl), `"pictures"` (a bare folder's list), `"parquet"`, or `"source"` (what
            else `open_source` reads).
        path: The file, or what `open_source` is given.
        start: Where it begins: a byte of a file of lines, a row of a Parquet row group, an index of a source.
        samples: How many are in it; -1 where only reading the shard tells (tar).
        group: The Parquet row group.
        root: Folder that the pictures' paths begin at.
        split: Split of a source.
        stamp: Size and time of change of the file when it was planned.
    """

    number: int
    kind: str
    path: str
    start: int = 0
    samples: int = -1
    group: int = 0
    root: str = ""
    split: str | None = None
    stamp: tuple[int, int] | None = None

    @classmethod
    def of(cls, record: dict[str, Any]) -> Shard:
        """A shard as JSON holds it."""
        stamp = record.get("stamp")
        return cls(**record | {"stamp": None if stamp is None else tuple(stamp)})

    def check(self) -> None:
        """Refuse a file that is another one than when it was planned.

        Raises:
            ZooError: It has changed.
        """
        if self.stamp is not None and _stamp(Path(self.path)) != self.stamp:
            raise ZooError(
                f"{self.path} has changed since the run began, so its records would not fit: begin anew in another "
                "folder."
            )


def plan(source: str | Path, out: Path, *, split: str | None, size: int) -> list[Shard]:
    """Divide an input into shards.

    Args:
        source: A folder of pictures (a `.txt` beside one is its caption), a `captions.jsonl` or its folder, a Parquet
            list or a folder of such, tar shards, or what else `open_source` reads.
        out: The folder of the run; it gets the list of a bare folder's pictures.
        split: A split's name.
        size: Samples of a shard. A tar file is one, whatever it holds.

    Raises:
        ZooError: There is nothing, or nothing that can be recognised.
        UsageError: A split is asked for where there are none.
    """
    found = [row._replace(number=i) for i, row in enumerate(_plan(source, out, split, size))]
    if not found:
        raise ZooError(f"{source}: there are no pictures.")
    return found


def _plan(source: str | Path, out: Path, split: str | None, size: int) -> Iterator[Shard]:
    place = find_data(source)
    lists = sorted(place.glob("*.parquet")) if place.is_dir() else [place] * (place.suffix == ".parquet")
    if lists and split is not None:
        raise UsageError(f"{source} has no splits; leave the split out.")
    if lists:
        for file in lists:
            yield from _parquet(file.resolve(), size)
        return
    kind, found = _recognise(source, place, split)
    if kind == "tar":
        for file in expand_shards(str(found)):
            yield Shard(0, "tar", str(file.resolve()), stamp=_stamp(file))
    elif kind == "jsonl":
        file = (found / "captions.jsonl" if found.is_dir() else found).resolve()
        yield from _lines(file, "lines", file.parent, size)
    elif kind == "pictures":
        root = (found / split if split is not None else found).resolve()
        _list_pictures(root, out)
        yield from _lines((out / PICTURES).resolve(), "pictures", root, size)
    else:
        where = str(Path(source).resolve()) if Path(source).exists() else str(source)
        if split is None and (names := list_splits(source)):
            raise UsageError(f"{source} holds the splits {', '.join(names)}; say which one with --split.")
        count = len(open_source(where, split=split))
        for start in range(0, count, size):
            yield Shard(0, "source", where, start, min(size, count - start), split=split)


def _recognise(source: str | Path, place: Path, split: str | None) -> tuple[str, Path]:
    """As `recognise_source`, but for folders of pictures, whose folders' names are no captions."""
    if place.is_dir() and split is not None and (place / split).is_dir():
        return _recognise(place / split, place / split, None)
    try:
        kind, found = recognise_source(source, split)
    except ZooError:
        if not place.is_dir() or next(_pictures(place), None) is None:
            raise
        kind, found = "pictures", place
    if kind in ("folder", "splits"):
        kind = "pictures"
    if kind in ("tar", "jsonl", "pictures") and split is not None:
        raise UsageError(f"{source} has no split {split!r}; leave it out to read all.")
    return kind, found


def _pictures(root: Path) -> Iterator[str]:
    for file in root.rglob("*"):
        inner = file.relative_to(root)
        hidden = any(part.startswith(".") for part in inner.parts)
        if not hidden and file.suffix.lower() in IMAGE_SUFFIXES and file.is_file():
            yield inner.as_posix()


def _list_pictures(root: Path, out: Path) -> None:
    """Write down the pictures of a folder by name; what lies in the run's own folder is not input."""
    names = sorted(_pictures(root))
    if out.resolve().is_relative_to(root):
        own = out.resolve().relative_to(root).as_posix() + "/"
        names = [name for name in names if not name.startswith(own)]
    with atomic_path(out / PICTURES) as part, part.open("w", encoding="utf-8") as file:
        for name in names:
            file.write(json.dumps({"image": name}) + "\n")


def _lines(file: Path, kind: str, root: Path, size: int) -> Iterator[Shard]:
    """Shards of a file of lines, which is read once and not kept."""
    stamp, start, count, place = _stamp(file), 0, 0, 0
    with file.open("rb") as lines:
        for line in lines:
            place += len(line)
            count += 1
            if count == size:
                yield Shard(0, kind, str(file), start, count, root=str(root), stamp=stamp)
                start, count = place, 0
    if count:
        yield Shard(0, kind, str(file), start, count, root=str(root), stamp=stamp)


def _parquet(file: Path, size: int) -> Iterator[Shard]:
    names, groups = parquet_groups(file)
    if not set(names) & set(URL_LIST["image"]):
        raise ZooError(
            f"{file} names no local pictures: it needs a column {', '.join(URL_LIST['image'])} beside the "
            f"captions; found {', '.join(names[:8])}."
        )
    for group, rows in enumerate(groups):
        for start in range(0, rows, size):
            count = min(size, rows - start)
            yield Shard(0, "parquet", str(file), start, count, group, str(file.parent), stamp=_stamp(file))


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
