"""How a share reads, on a page and in a terminal alike."""

from __future__ import annotations

__all__ = ["percent"]


def percent(share: float | None, digits: int | None = None) -> str:
    """A share from 0 to 1 as `"12.3 %"`, below one percent `"0.13 %"`; `"-"` where there is none."""
    if share is None:
        return "-"
    return f"{100 * share:.{(2 if 0 < share < 0.01 else 1) if digits is None else digits}f} %"
