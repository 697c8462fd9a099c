"""Turns whatever ends a command into one sentence on stderr and an exit status."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

from mmzoo.errors import UsageError, ZooError

__all__ = ["explain", "guarded"]


def _explain_os(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}; nothing half-written was kept. Free some space and run again."
    if isinstance(error, PermissionError):
        return f"permission denied{where}. Choose a place that you may read and write."
    if error.strerror is None:  # raised by a library with a text of its own
        return f"{type(error).__name__}: {_first_line(error)}"
    return f"{error.strerror[:1].lower()}{error.strerror[1:]}{where}."


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return lines[0] if lines[0].endswith((".", "!", "?")) else f"{lines[0]}."


def explain(error: BaseException) -> tuple[str, int] | None:
    """Say in one sentence what went wrong, where that is known.

    Args:
        error: What a command raised.

    Returns:
        The sentence and the exit status (1 failed, 2 wrong usage), or None for an error nobody foresaw.
    """
    if isinstance(error, ZooError):
        return str(error), 2 if isinstance(error, UsageError) else 1
    if isinstance(error, OSError):
        return _explain_os(error), 1
    # torch's out-of-memory errors are RuntimeErrors; told by name and text, since torch may not be loaded
    exhausted = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and exhausted):
        return "out of memory: try a smaller --batch-size or a smaller model.", 1
    return None


def _say(sentence: str) -> None:
    print(f"mmzoo: {sentence}", file=sys.stderr)


def _forget_stdout() -> None:
    # The reader of our output has gone; without this the interpreter complains at exit, flushing stdout.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def guarded(command: Callable[[], int], *, traceback: bool = False) -> int:
    """Run a command; whatever it raises becomes one sentence on stderr and an exit status.

    Args:
        command: Returns the exit status when all goes well.
        traceback: Print the full traceback of a failure as well.

    Returns:
        0, 1 or 2 as in `explain`; 130 after Ctrl-C. A closed pipe (`mmzoo list | head -1`) is a reader
        who has seen enough: quiet, 0.
    """
    try:
        status = command()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        _forget_stdout()
        return 0
    except KeyboardInterrupt:
        _say("interrupted.")
        return 130
    except Exception as error:
        if traceback:
            from traceback import print_exc

            print_exc()
        told = explain(error)
        if told is None:
            hint = "" if traceback else " Run again with --traceback to see where, and please report it."
            told = f"unexpected {type(error).__name__}: {_first_line(error)}{hint}", 1
        _say(told[0])
        return told[1]
