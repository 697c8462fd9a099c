"""How results look in a terminal: JSON, aligned tables, and progress where somebody watches."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["plain", "print_json", "progress_bar", "say", "say_broken", "size", "table"]


def plain(value: Any) -> Any:
    """Turn results into JSON-ready data: named tuples and dataclasses to dicts, paths to strings, NaN to null."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(item) for name, item in value._asdict().items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)


def print_json(value: Any) -> None:
    """Print a result as one JSON document on stdout."""
    print(json.dumps(plain(value), indent=1, ensure_ascii=False))


def say(text: str) -> None:
    """Talk: a line on stderr, so that stdout holds results only."""
    print(text, file=sys.stderr)


def say_broken(broken: Sequence[tuple[str, str]], count: int = 10) -> None:
    """Name pictures that could not be read, the first `count` of them, on stderr."""
    if not broken:
        return
    say(f"mmzoo: {len(broken)} unreadable picture{'s' if len(broken) > 1 else ''}, left out:")
    for key, reason in broken[:count]:
        say(f"  {key}: {reason}")
    if len(broken) > count:
        say(f"  and {len(broken) - count} more")


def size(count: int) -> str:
    """A number of parameters in three digits: `"151 M"`."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.{2 if count < 10 * unit else 1 if count < 100 * unit else 0}f} {letter}"
    return str(count)


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[int] = ()) -> str:
    """Align columns with spaces.

    Args:
        heads: Column headings.
        rows: One sequence per row, as long as `heads`.
        right: Columns to align to the right, from 0.
    """
    cells = [[str(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    lines = []
    for row in cells:
        parts = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on stderr, only where that is a terminal; None elsewhere, so that logs stay clean.

    Args:
        label: What is being done.

    Yields:
        A function that takes how many items are done and how many there are, or None.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    # rich would send what is printed meanwhile to stderr as well, above the bar; results that go into a file stay there
    console, to_terminal = Console(stderr=True), sys.stdout.isatty()
    with Progress(console=console, transient=True, redirect_stdout=to_terminal) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
