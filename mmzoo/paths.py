"""Finds the configs and the data that travel with mmzoo, in a clone and in an installed wheel alike."""

from __future__ import annotations

from pathlib import Path

from mmzoo.errors import UsageError, nearest

__all__ = ["find_config", "find_data", "share_dirs"]


def share_dirs() -> list[Path]:
    """Folders that may hold `configs/` and `data/`: the wheel's own, then the clone's root."""
    package = Path(__file__).resolve().parent
    return [d for d in (package / "_share", package.parent) if (d / "configs").is_dir()]


def find_config(name: str) -> Path:
    """Resolve a config given as a path or as the short name of a carried one (`clip/tiny`).

    Args:
        name: A file path, `configs/clip/tiny.yaml`, `clip/tiny.yaml` or `clip/tiny`.

    Raises:
        UsageError: No such file; the message lists what is carried.
    """
    tries = [Path(name)]
    for root in share_dirs():
        tries += [root / name, root / "configs" / name, root / "configs" / f"{name}.yaml"]
    for path in tries:
        if path.is_file():
            return path
    known = sorted(
        str(p.relative_to(root / "configs").with_suffix(""))
        for root in share_dirs()[:1]
        for p in (root / "configs").rglob("*.yaml")
    )
    raise UsageError(
        f"no config {name!r}.{nearest(name, known)} Carried configs: {', '.join(known) or 'none'}."
    )


def find_data(path: str | Path) -> Path:
    """Resolve a data path: as given if it exists, else under the carried share (`data/emoji`).

    Returns:
        The first path that exists, or the path as given (whoever opens it says what is missing).
    """
    given = Path(path)
    if given.exists() or given.is_absolute():
        return given
    return next((root / given for root in share_dirs() if (root / given).exists()), given)
