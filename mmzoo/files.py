"""Files written whole or not at all, by one process at a time, and the folder for what can be fetched again."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["atomic_path", "cache_dir", "locked"]

log = logging.getLogger(__name__)


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


@contextmanager
def locked(target: Path) -> Iterator[bool]:
    """Keep other processes from making `target` at the same time; wait where one is at it. The folder must exist.

    The lock is the kernel's and ends with its process, so the file `.NAME.lock` that a crash leaves holds nobody up.

    Yields:
        False where the system or the file system has no locks, and nobody is kept out.
    """
    path = target.with_name(f".{target.name}.lock")
    handle = None if fcntl is None else _lock(path)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            path.unlink(missing_ok=True)
            os.close(handle)


def _lock(path: Path) -> int | None:
    """An open handle that holds the lock, or None where the file system has no locks."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        held = False
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.warning("another process is at %s; waiting for it.", path.parent)
                fcntl.flock(handle, fcntl.LOCK_EX)
            # its last holder removed the file before letting go: ours may be a name that nobody sees any more
            with suppress(FileNotFoundError):
                held = os.path.samestat(os.fstat(handle), path.stat())
        except OSError:
            return None
        finally:
            if not held:
                os.close(handle)
        if held:
            return handle
