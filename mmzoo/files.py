"""Files written whole or not at all, and the folder for what can be fetched or made again."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_path", "cache_dir"]


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Give a temporary path beside `target`; on success it takes the target's place, on failure it is removed.

    The content reaches the disk before the name changes, so a crash leaves the old file or the new one, never half
    of one.

    Example:
        with atomic_path(Path("a.json")) as path:
            path.write_text("{}")
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp makes files private; a saved model is an ordinary file
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def cache_dir() -> Path:
    """`$MMZOO_CACHE`, else `mmzoo` in `$XDG_CACHE_HOME` or `~/.cache`. It need not exist yet."""
    own = os.environ.get("MMZOO_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mmzoo"
