"""Names of tar shards and what lies inside one: shared by indexed and streamed reading."""

from __future__ import annotations

import glob
import json
import re
from pathlib import Path
from typing import Any

from mmzoo.data.sources.common import IMAGE_SUFFIXES, as_captions, stable_id
from mmzoo.errors import ZooError

__all__ = ["IMAGE_EXTENSIONS", "TEXT_EXTENSIONS", "expand_braces", "expand_shards", "parse_text", "split_key"]

IMAGE_EXTENSIONS = frozenset(s.removeprefix(".") for s in IMAGE_SUFFIXES)
TEXT_EXTENSIONS = (
    "json",
    "txt",
)  # in this order where a sample has both: JSON may hold several captions and an id

_BRACES = re.compile(r"\{([^{}]*)\}")


def expand_braces(pattern: str) -> list[str]:
    """Expand `{000..009}` and `{a,b}` as a shell does.

    Example:
        >>> expand_braces("s-{08..10}.tar")
        ['s-08.tar', 's-09.tar', 's-10.tar']
    """
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    inner = match.group(1)
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", inner):
        low, high = span.groups()
        choices = [str(n).zfill(len(low)) for n in range(int(low), int(high) + 1)]
    else:
        choices = inner.split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [name for choice in choices for name in expand_braces(head + choice + tail)]


def expand_shards(pattern: str) -> list[Path]:
    """Local shards that a path, a glob or a brace pattern names, sorted as given.

    Raises:
        ZooError: Nothing matches, or a shard of a brace pattern is missing.
    """
    shards: list[Path] = []
    for name in expand_braces(pattern):
        if any(c in name for c in "*?["):
            shards += [Path(p) for p in sorted(glob.glob(name))]
        elif Path(name).is_file():
            shards.append(Path(name))
        else:
            raise ZooError(f"no shard {name} (from {pattern}).")
    if not shards:
        raise ZooError(f"no shards match {pattern}.")
    return shards


def split_key(name: str) -> tuple[str, str]:
    """Split a member's name into the sample's key and the extension, at the first dot of the last part.

    Example:
        >>> split_key("a/b.c.jpg")
        ('a/b', 'c.jpg')
    """
    folder, slash, file = name.rpartition("/")
    key, _, extension = file.partition(".")
    return folder + slash + key, extension.lower()


def parse_text(data: bytes, extension: str, default_id: int) -> tuple[tuple[str, ...], int]:
    """Captions and id of a sample's `.txt` or `.json` member.

    A text file is one caption. A JSON file holds `captions` (a list) or `caption` (a string), and maybe `id`.
    Anything else yields no captions, which makes the sample a broken one, to be counted by whoever reads it.

    Args:
        data: The member's bytes.
        extension: `"txt"` or `"json"`.
        default_id: The id of a sample that names none.
    """
    text = data.decode("utf-8", errors="replace")
    if extension == "txt":
        return (text.strip(),), default_id
    try:
        record: Any = json.loads(text)
    except json.JSONDecodeError:
        return (), default_id
    if not isinstance(record, dict):
        return (), default_id
    captions = as_captions(record.get("captions"))
    if captions is None:
        captions = (record["caption"],) if isinstance(record.get("caption"), str) else ()
    return captions, default_id if record.get("id") is None else stable_id(record["id"])
