"""Tar shards read at random: an index of offsets beside each shard makes them map-style.

So shards are shuffled, sharded over processes and resumed by the same exact epochs as folders, without
unpacking.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from mmzoo.data.sample import Sample
from mmzoo.data.sources.shards import IMAGE_EXTENSIONS, TEXT_EXTENSIONS, expand_shards, parse_text, split_key
from mmzoo.errors import ZooError
from mmzoo.files import atomic_path, cache_dir

__all__ = ["TarSource", "build_index", "load_index"]

log = logging.getLogger(__name__)

VERSION = 1
NO_MEMBER = (0, -1)  # offset and size of a member that a sample lacks


class TarSource:
    """Samples `key.jpg` + `key.txt` (one caption) or `key.json` (`captions`, `id`) of local tar shards.

    Args:
        pattern: A path, a glob, or braces: `shards/*.tar`, `train-{0000..0099}.tar`.

    Raises:
        ZooError: No such shard, a damaged one, or shards without pictures or without texts.
    """

    classes: tuple[str, ...] | None = None

    def __init__(self, pattern: str) -> None:
        self.shards = expand_shards(pattern)
        self.name = self.shards[0].stem if len(self.shards) == 1 else f"{self.shards[0].parent.name}/*.tar"
        rows = [load_index(shard) for shard in self.shards]
        # Arrays rather than lists: forked workers share them without copying, and ten million samples fit.
        self._keys = np.array([row[0].encode() for shard in rows for row in shard])
        self._spans = np.array([row[2:6] for shard in rows for row in shard], dtype=np.int64).reshape(-1, 4)
        self._json = np.array([row[1] == "json" for shard in rows for row in shard], dtype=bool)
        self._starts = np.cumsum([0] + [len(shard) for shard in rows])
        if not (self._spans[:, 1] >= 0).any():
            raise ZooError(
                f"{pattern}: no pictures in {len(self.shards)} shard(s); expected key.jpg with key.txt."
            )
        if not (self._spans[:, 3] > 0).any():
            raise ZooError(
                f"{pattern}: no captions in {len(self.shards)} shard(s); expected key.txt or key.json."
            )

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = self.shards[int(np.searchsorted(self._starts, index, side="right")) - 1]
        image_at, image_size, text_at, text_size = self._spans[index].tolist()
        with shard.open("rb") as file:
            image = _read(file, image_at, image_size)
            text = _read(file, text_at, text_size)
        extension = "json" if self._json[index] else "txt"
        texts, identity = parse_text(text, extension, index) if text_size > 0 else ((), index)
        key = f"{shard.stem}/{self._keys[index].decode()}"
        return Sample(key, image, texts, (identity,) * len(texts), (identity,))


def _read(file: Any, offset: int, size: int) -> bytes:
    if size <= 0:
        return b""
    file.seek(offset)
    data: bytes = file.read(size)
    return data


def load_index(shard: Path) -> list[list[Any]]:
    """Rows `[key, text extension, image offset, image size, text offset, text size]` of a shard's samples.

    Read from `<shard>.idx.json`, which is built on first use and again whenever the shard's size or
    modification time has changed; in the user's cache folder where the shard's own folder cannot be written.

    Raises:
        ZooError: The shard is damaged.
    """
    stat = shard.stat()
    stamp = {"version": VERSION, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    beside = shard.with_name(shard.name + ".idx.json")
    name = hashlib.sha256(str(shard.resolve()).encode()).hexdigest()[:24]
    cached = cache_dir() / "tar-index" / f"{name}.idx.json"
    for place in (beside, cached):
        try:
            stored = json.loads(place.read_text(encoding="utf-8"))
            if stored["stamp"] == stamp:
                return stored["samples"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # none there, half-written by a dying machine, or not ours: build it
    samples = build_index(shard)
    content = json.dumps({"stamp": stamp, "samples": samples}, separators=(",", ":"))
    for place in (beside, cached):
        try:
            with atomic_path(place) as part:
                part.write_text(content, encoding="utf-8")
            break
        except OSError:
            continue
    else:
        log.warning("could not store the index of %s; it will be built again next time.", shard)
    return samples


def build_index(shard: Path) -> list[list[Any]]:
    """Read a shard's headers once and pair pictures with texts by key.

    Raises:
        ZooError: The shard is not a plain tar file, is cut off, or holds two pictures under one key.
    """
    keys: dict[str, None] = {}  # in the order of the shard, which is also the fastest to read it in
    pictures: dict[str, tuple[int, int]] = {}
    texts: dict[str, tuple[str, int, int]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                if not member.isreg():
                    continue
                key, extension = split_key(member.name)
                span = (member.offset_data, member.size)
                if extension in IMAGE_EXTENSIONS:
                    if key in pictures:
                        raise ZooError(f"{shard} holds two pictures under the key {key!r}.")
                    pictures[key], keys[key] = span, None
                elif extension in TEXT_EXTENSIONS and (key not in texts or extension == TEXT_EXTENSIONS[0]):
                    texts[key], keys[key] = (extension, *span), None
    except (tarfile.TarError, EOFError) as error:
        raise ZooError(f"shard {shard} is damaged or not a plain tar file ({error}).") from None
    none = ("txt", *NO_MEMBER)
    return [
        [key, texts.get(key, none)[0], *pictures.get(key, NO_MEMBER), *texts.get(key, none)[1:]]
        for key in keys
    ]
