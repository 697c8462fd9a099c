"""An image's cross-attention keys and values of every layer, projected once and shared by all that read the image.

The projection of the image is most of what a fusion layer costs (ALBEF at 384 px: 577 tokens against a dozen words),
and it does not depend on the text: matching, masked words, negatives, answers and beams can all use one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmzoo.errors import ZooError
from mmzoo.layers.attention import KV

__all__ = ["ImageKV", "check_reads"]


@dataclass(frozen=True)
class ImageKV:
    """Keys and values of B contexts, layer by layer. `TextBackbone.project_context` makes one.

    Attributes:
        layers: Each layer's keys and values (B, G, N, D) by layer number.
        keep: (B, N) bool, True at real context tokens; None means all.

    Example:
        >>> kv = ImageKV({6: KV(torch.zeros(4, 2, 9, 8), torch.zeros(4, 2, 9, 8))})
        >>> len(kv), len(kv[1:3]), len(kv[torch.tensor([0, 0, 3])]), len(kv[-1])
        (4, 2, 3, 1)
    """

    layers: dict[int, KV]
    keep: Tensor | None = None

    def __post_init__(self) -> None:
        sizes = {(x.shape[0], x.shape[2]) for kv in self.layers.values() for x in kv}
        if self.keep is not None:
            sizes.add((self.keep.shape[0], self.keep.shape[1]))
        if len(sizes) != 1:
            raise ZooError(
                "an ImageKV holds the same rows and tokens in each of its layers and in keep, found "
                f"{sorted(sizes) or 'no layer'}."
            )

    def __len__(self) -> int:
        return next(iter(self.layers.values())).k.shape[0]

    @property
    def tokens(self) -> int:
        """N, the tokens of a context, padding included."""
        return next(iter(self.layers.values())).k.shape[2]

    def __getitem__(self, index: int | slice | Tensor) -> ImageKV:
        """Take rows: one, a slice (no copy), or those that `index` (T,) int64 or (B,) bool names (a copy)."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"row {index} of {len(self)}")
            index = slice(index % len(self), index % len(self) + 1)
        keep = None if self.keep is None else self.keep[index]
        return ImageKV({i: KV(_rows(kv.k, index), _rows(kv.v, index)) for i, kv in self.layers.items()}, keep)

    def union(self, other: ImageKV) -> ImageKV:
        """Join the layers of two, for layers that read different images (NLVR2's pairs).

        Raises:
            ZooError: A layer is in both, or their rows or masks differ.
        """
        if both := sorted(self.layers.keys() & other.layers.keys()):
            raise ZooError(f"the layers {both} are in both: project each image for layers of its own.")
        masks = self.keep, other.keep
        if masks[0] is not masks[1] and (
            masks[0] is None or masks[1] is None or not torch.equal(masks[0], masks[1])
        ):
            raise ZooError("only contexts with the same mask can be joined: leave the padding out of both.")
        return ImageKV(self.layers | other.layers, self.keep)


def _rows(x: Tensor, index: slice | Tensor) -> Tensor:
    # projections lie token by token in memory (B, N, G, D); keeping that lets rows be laid end to end without a copy
    return x.transpose(1, 2)[index].transpose(1, 2)


def check_reads(contexts: int, index: Tensor | None, texts: int) -> None:
    """Refuse an index that does not say for each of `texts` which of `contexts` it reads; numbers are not looked at.

    Raises:
        ZooError: There is no index and not one context per text, or it has another shape or type.
    """
    if index is None and contexts != texts:
        raise ZooError(
            f"{texts} texts cannot read {contexts} contexts one by one: say with context_index which text reads "
            "which."
        )
    if index is not None and (index.shape != (texts,) or index.dtype != torch.int64):
        raise ZooError(
            f"context_index must be {texts} int64 numbers, one per text, got {index.dtype} {tuple(index.shape)}."
        )
