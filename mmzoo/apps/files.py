"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["replace_whole", "write_whole"]


def replace_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step.

    If `write` raises (a full disk, Ctrl-C), the temporary file goes and whatever was at `path` stays.

    Args:
        path: The file to make or replace; missing parent folders are made.
        write: Called with the temporary path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes files for the owner alone; give this one the rights any new file gets.
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write bytes whole or not at all; see `replace_whole`."""
    replace_whole(path, lambda part: part.write_bytes(data) and None)
