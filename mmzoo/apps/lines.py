"""A file that grows by a line of JSON for each thing done, and is gone on with where an earlier run was stopped."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mmzoo.errors import UsageError
from mmzoo.files import locked

__all__ = ["GrowingLines", "as_line", "growing_lines", "lines_path"]


def as_line(record: dict[str, Any]) -> str:
    """A record as one line of JSON, in the letters of all scripts."""
    line = json.dumps(record, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # a file name that is not UTF-8: escaped, it survives the way there and back
        return json.dumps(record)
    return line


def lines_path(path: str | Path) -> Path:
    """The file of lines that `path` names, checked before any work is done for it.

    Raises:
        UsageError: It has another ending than .jsonl, or is a folder.
    """
    file = Path(path)
    if file.suffix.lower() != ".jsonl":
        raise UsageError(f"{path}: lines of JSON go into a file that ends in .jsonl.")
    if file.is_dir():
        raise UsageError(f"{path} is a folder; name a file in it.")
    return file


class GrowingLines:
    """Lines of a file, those of earlier runs and new ones.

    Attributes:
        path: The file.
        there: Records that the file held when it was opened.
    """

    def __init__(self, path: Path, there: list[dict[str, Any]], file: BinaryIO) -> None:
        self.path, self.there, self._file = path, there, file

    def add(self, record: dict[str, Any]) -> None:
        """Write one more line; it is in the file, whole, when this returns.

        Raises:
            OSError: The disk is full or gone; nothing of the line is kept.
        """
        line = as_line(record).encode() + b"\n"
        end = self._file.tell()
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, "No space left on device", str(self.path))
        except OSError:
            self._file.truncate(end)
            raise


@contextmanager
def growing_lines(path: Path, by: str) -> Iterator[GrowingLines]:
    """Open a file of lines to go on with, or begin one; other processes wait meanwhile.

    A last line that was being written when the earlier run was killed is dropped, its record to be made again.

    Args:
        path: From `lines_path`. Its folder is made if missing.
        by: What the records are made by, a digest of the model and all settings; it stands under `"by"` in each.

    Yields:
        The lines.

    Raises:
        UsageError: The file holds something else, or records made by something else. It is left as it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        there, end = _read(path, by)
        # unbuffered, so that a line that was added is beyond the reach of whatever ends this process
        with path.open("ab", buffering=0) as file:
            file.truncate(end)
            file.seek(end)
            yield GrowingLines(path, there, file)


def _read(path: Path, by: str) -> tuple[list[dict[str, Any]], int]:
    """The records of a file, and where the last whole line ends."""
    if not path.exists():
        return [], 0
    content = path.read_bytes()
    *lines, tail = content.split(b"\n")
    records = [_record(line, f"{path}, line {number}", by) for number, line in enumerate(lines, 1)]
    start = b'{"image": '
    if tail[: len(start)] != start[: len(tail)]:
        raise UsageError(f"{path}, line {len(lines) + 1}: {_OTHER}")
    return records, len(content) - len(tail)


_OTHER = "this is no line of such a file, so nothing is added to it: name another one."


def _record(line: bytes, where: str, by: str) -> dict[str, Any]:
    try:
        record: Any = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("image"), str) or "by" not in record:
        raise UsageError(f"{where}: {_OTHER}")
    if record["by"] != by:
        raise UsageError(
            f"{where}: made by another model or with other settings, and one file holds one kind: name another file, "
            "or remove this one to begin anew."
        )
    return record
