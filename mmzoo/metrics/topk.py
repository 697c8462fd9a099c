"""The best items of each query out of any number, in the memory of a block of scores."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["TopK"]


class TopK:
    """Keeps the k best items of each query while blocks of scores pass by.

    The order is that of a stable sort of the whole matrix, which is never there: higher scores first, and of equal
    scores the item that came first, however the items were cut into blocks.

    Args:
        queries: Q, how many queries there are.
        k: How many items to keep for each.

    Example:
        >>> best = TopK(queries=1, k=2)
        >>> best.add(torch.tensor([[0.1, 0.9]]))
        >>> best.add(torch.tensor([[0.9, 0.5]]))
        >>> best.places.tolist()
        [[1, 2]]
    """

    def __init__(self, queries: int, k: int) -> None:
        assert k > 0, "keeping nothing"
        self.k = k
        self.seen = 0
        """Items that have passed."""
        self.scores = torch.empty(queries, 0)
        """(Q, min(k, seen)) their scores, best first, in the dtype of the blocks."""
        self.places = torch.empty(queries, 0, dtype=torch.int64)
        """(Q, min(k, seen)) int64, counted over all blocks."""

    def add(self, scores: Tensor) -> None:
        """Take the scores (Q, n) of the next n items; they must be finite."""
        assert scores.shape[:1] == self.places.shape[:1], "one row of scores for each query"
        count = min(self.k, scores.shape[1])
        values, places = scores.topk(count, dim=1)
        # topk may take any of the items that tie for its last place; where there are several, a stable sort decides
        tied = (scores >= values[:, -1:]).sum(1) > count
        if bool(tied.any()):
            ranked = scores[tied].sort(dim=1, descending=True, stable=True)
            values[tied], places[tied] = ranked.values[:, :count], ranked.indices[:, :count]
        places, order = places.sort(dim=1)
        # equal scores now stand in the order of their items on either side, and all that was kept came before
        values = torch.cat([self.scores.to(values), values.gather(1, order)], 1)
        places = torch.cat([self.places.to(places.device), places + self.seen], 1)
        ranked = values.sort(dim=1, descending=True, stable=True)
        self.scores = ranked.values[:, : self.k]
        self.places = places.gather(1, ranked.indices[:, : self.k])
        self.seen += scores.shape[1]
