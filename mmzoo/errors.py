"""Errors meant for a person: one clear sentence that says what is wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["UsageError", "ZooError", "nearest"]


class ZooError(ValueError):
    """A fault that the caller can mend. The command line prints its text alone and exits with status 1."""


class UsageError(ZooError):
    """The call itself is wrong (unknown name, flag or choice). The command line exits with status 2."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Suggest names close to a misspelt one.

    Args:
        name: What was asked for.
        known: The names that exist.
        count: At most so many suggestions.

    Returns:
        `" Did you mean a, b?"`, or an empty string when nothing is close.

    Example:
        >>> nearest("clip-tiney", ["clip-tiny", "vit-tiny"], count=1)
        ' Did you mean clip-tiny?'
    """
    close = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f" Did you mean {', '.join(close)}?" if close else ""
