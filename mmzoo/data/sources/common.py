"""What the file-based sources share: safe paths, picture suffixes, split names, ids from names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mmzoo.errors import UsageError, ZooError, nearest

__all__ = [
    "IMAGE_SUFFIXES",
    "as_captions",
    "check_relative",
    "choose_split",
    "read_inside",
    "stable_id",
    "subfolders",
]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})


def check_relative(relative: str, where: str) -> str:
    """Refuse a path, written in a data file, that names something outside the data folder.

    A captions file is often somebody else's: `../../.ssh/id_rsa` must not turn into a file that is read.

    Args:
        relative: Path as written in the data.
        where: The place it is written at, for the message.

    Returns:
        The path unchanged.

    Raises:
        ZooError: The path is absolute or climbs with `..`.
    """
    climbs = ".." in relative and ".." in PurePosixPath(relative.replace("\\", "/")).parts
    if climbs or relative.startswith(("/", "\\")):
        raise ZooError(
            f"{where}: the path {relative!r} leads out of the data folder; put the file inside it."
        )
    return relative


def read_inside(root: Path, relative: str) -> bytes:
    """Read a file of the data folder, refusing symbolic links that lead out of it.

    Args:
        root: The data folder, already resolved (`Path.resolve()`).
        relative: A path that `check_relative` let through.

    Raises:
        ZooError: The file lies outside the folder.
        OSError: There is no such file, or it cannot be read.
    """
    path = root / relative
    if not path.resolve().is_relative_to(root):
        raise ZooError(f"{path} is a link that leads out of the data folder {root}; put the file inside it.")
    return path.read_bytes()


def as_captions(value: Any) -> tuple[str, ...] | None:
    """Captions of a JSON record: a list of strings, or None where the value is anything else."""
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return tuple(value)
    return None


def stable_id(value: object) -> int:
    """Turn a name or number of a data file into a non-negative int64 that is the same in every run and split.

    The highest usable bit is set, so these never meet the small ids that count samples.
    """
    digest = hashlib.blake2b(str(value).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") & (2**62 - 1) | 2**62


def choose_split(split: str, known: Sequence[str], path: str | Path) -> str:
    """Return `split` if it exists, else say which splits do.

    Raises:
        UsageError: Unknown split; the message holds the nearest names and all of them.
    """
    if split not in known:
        raise UsageError(f"{path} has no split {split!r}.{nearest(split, known)} It has: {', '.join(known)}.")
    return split


def subfolders(folder: Path) -> list[Path]:
    """Visible subfolders, sorted by name."""
    return sorted(
        (p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")), key=lambda p: p.name
    )
