"""Keys and values of earlier tokens, owned by whoever generates. Models keep no memory between calls."""

from __future__ import annotations

from torch import Tensor

__all__ = ["KVCache", "LayerCache"]


class LayerCache:
    """Self-attention keys and values of one layer in a buffer that grows by doubling.

    Writing is in place, so a cache is for inference only.
    """

    def __init__(self) -> None:
        self.length = 0
        self._k: Tensor | None = None
        self._v: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens, each (B, H, L, D).

        Returns:
            All keys and values so far, each (B, H, length, D), as views of the buffers.
        """
        new = self.length + k.shape[2]
        if self._k is None or self._v is None or new > self._k.shape[2]:
            room = max(new, 2 * self.length, 16)
            grown = [x.new_empty(*x.shape[:2], room, x.shape[3]) for x in (k, v)]
            if self._k is not None and self._v is not None:
                grown[0][:, :, : self.length] = self._k[:, :, : self.length]
                grown[1][:, :, : self.length] = self._v[:, :, : self.length]
            self._k, self._v = grown
        self._k[:, :, self.length : new] = k
        self._v[:, :, self.length : new] = v
        self.length = new
        return self._k[:, :, :new], self._v[:, :, :new]

    def reorder(self, index: Tensor) -> None:
        """Keep the rows that `index` (B',) int64 names, in that order: what beam search does after each step."""
        if self._k is not None and self._v is not None:
            self._k, self._v = self._k.index_select(0, index), self._v.index_select(0, index)


class KVCache:
    """One `LayerCache` per layer.

    Args:
        depth: Number of layers of the backbone.

    Example:
        >>> cache = KVCache(depth=2)
        >>> keys, values = cache[0].append(torch.ones(1, 4, 3, 8), torch.ones(1, 4, 3, 8))
        >>> cache.length, tuple(keys.shape)
        (3, (1, 4, 3, 8))
    """

    def __init__(self, depth: int):
        self.layers = [LayerCache() for _ in range(depth)]

    def __getitem__(self, layer: int) -> LayerCache:
        return self.layers[layer]

    @property
    def length(self) -> int:
        """Number of tokens that the cache holds."""
        return max((layer.length for layer in self.layers), default=0)

    def reorder(self, index: Tensor) -> None:
        """Reorder the rows of every layer by `index` (B',) int64."""
        for layer in self.layers:
            layer.reorder(index)
