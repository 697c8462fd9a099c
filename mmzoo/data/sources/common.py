"""What the file-based sources share: safe paths, picture suffixes, split names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmzoo.errors import UsageError, ZooError, nearest

__all__ = ["IMAGE_SUFFIXES", "choose_split", "inside", "subfolders"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})


def inside(root: Path, relative: str, where: str) -> Path:
    """Join a path from a data file to the data folder, and refuse one that leads out of it.

    A captions file is often somebody else's; `../../.ssh/id_rsa`, an absolute path or a symbolic link out of the
    folder must not turn into a file that is read.

    Args:
        root: The data folder, already resolved (`Path.resolve()`).
        relative: Path as written in the data.
        where: The place it is written at, for the message.

    Raises:
        ZooError: The path leads out of the folder.
    """
    path = root / relative
    if not path.resolve().is_relative_to(root):
        raise ZooError(
            f"{where}: the picture {relative!r} lies outside the data folder {root}; move or copy it inside."
        )
    return path


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
