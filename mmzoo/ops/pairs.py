"""Which images and texts belong together, said by ids and asked for tile by tile, never as a dense matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["NO_ID", "Diagonal", "Positives", "pad_ids", "widen"]

NO_ID = -1
"""Pads ids, and stands where there is no id; matches nothing."""


def pad_ids(ids: Sequence[Sequence[int]]) -> Tensor:
    """Ids of B things, some with more than others, as (B, m) int64; (0, 0) of none."""
    width = max(map(len, ids), default=0)
    rows = [[*row, *[NO_ID] * (width - len(row))] for row in ids]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(ids), width)


def widen(ids: Tensor, width: int) -> Tensor:
    """Pad ids (B, m) to (B, width), where width is at least m."""
    return torch.nn.functional.pad(ids, (0, width - ids.shape[1]), value=NO_ID)


class Positives:
    """The positive pairs between rows and columns: pairs whose ids intersect.

    One side carries any number of ids (an image is an instance of several things), the other exactly one (a text is
    about one thing); -1 pads and matches nothing. Memory is that of the ids; a tile's pairs come from a binary
    search, so asking costs no comparison of every row with every column.

    Args:
        rows: (R,) or (R, m) int64 ids.
        columns: (C,) or (C, n) int64 ids; at most one of m and n may exceed 1.

    Example:
        >>> positives = Positives(torch.tensor([[1, 9], [2, -1]]), torch.tensor([9, 2, 1]))
        >>> positives.tile(0, 2)
        (tensor([0, 0, 1]), tensor([2, 0, 1]))
    """

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        rows, columns = _distinct(rows), _distinct(columns)
        assert rows.shape[1] <= 1 or columns.shape[1] <= 1, "ids of one side must be single"
        ids, order = columns.flatten().sort()
        self._columns = order // columns.shape[1]
        self._first = torch.searchsorted(ids, rows)
        self._count = torch.where(rows < 0, 0, torch.searchsorted(ids, rows, right=True) - self._first)
        self.counts = self._count.sum(1)
        """(R,) int64, the number of positive columns of each row."""

    def tile(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """List the positive pairs of rows `start` to `stop`, each once.

        Args:
            start: The first row.
            stop: The row after the last.

        Returns:
            (P,) int64 row, counted from `start`, and (P,) int64 column of each pair, ordered by row.
        """
        first, count = self._first[start:stop], self._count[start:stop]
        each = count.flatten()
        total = int(each.sum())
        slot = torch.repeat_interleave(each, output_size=total)
        within = torch.arange(total, device=each.device) - (each.cumsum(0) - each)[slot]
        return slot // max(first.shape[1], 1), self._columns[first.flatten()[slot] + within]


class Diagonal(Positives):
    """The pairs of two lists in the same order: row i with column `first + i`, without any search.

    Args:
        rows: How many rows.
        first: The column of the first.
        device: Where the answers shall lie.
    """

    def __init__(self, rows: int, first: int = 0, device: torch.device | str = "cpu") -> None:
        self._row = torch.arange(rows, device=device)
        self._column = self._row + first if first else self._row
        self.counts = torch.ones_like(self._row)

    def tile(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """List the pairs of rows `start` to `stop`, as `Positives.tile` does."""
        return self._row[: stop - start], self._column[start:stop]


def _distinct(ids: Tensor) -> Tensor:
    """(n, m) ids of which a row holds none twice, the repeats turned into padding."""
    if ids.ndim == 1:
        return ids[:, None]
    ids = ids.sort(1).values
    repeated = torch.zeros_like(ids, dtype=torch.bool)
    repeated[:, 1:] = ids[:, 1:] == ids[:, :-1]
    return ids.masked_fill(repeated, NO_ID)
