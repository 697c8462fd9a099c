"""What a model must do to write. Models import this file and nothing else of the generation package.

Legend: C contexts (images, questions), R rows of text, L tokens, V words.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["Decoder"]


@runtime_checkable
class Decoder(Protocol):
    """One piece of writing: R rows of text over C contexts, and what has been read and written so far.

    A search calls `start` once, then `step` for the begin token with the prompt, and then `step` for each new token,
    with `reorder` between steps wherever rows are dropped, doubled or exchanged. It asks for no gradients.
    """

    @property
    def bos_id(self) -> int:
        """The token that every row begins with (BLIP: [DEC])."""
        ...

    @property
    def eos_id(self) -> int:
        """The token that ends a row."""
        ...

    @property
    def pad_id(self) -> int:
        """What fills up rows behind their end."""
        ...

    @property
    def vocab(self) -> int:
        """V, the words that a row can go on with: the columns of the logits."""
        ...

    @property
    def context(self) -> int:
        """Most tokens that `step` may be given for a row, begin token and prompt included."""
        ...

    @property
    def device(self) -> torch.device:
        """Where ids are expected and logits arrive."""
        ...

    def __len__(self) -> int:
        """C, the contexts that can be read."""
        ...

    def start(self, reads: Tensor) -> None:
        """Begin anew: forget all rows.

        Args:
            reads: (R,) int64, row r reads context `reads[r]`; rows of one context are adjacent.
        """
        ...

    def step(self, ids: Tensor) -> Tensor:
        """Append tokens to every row.

        Args:
            ids: (R, L) int64, L >= 1.

        Returns:
            (R, V) logits of what follows, float32 (float64 for a float64 model).
        """
        ...

    def reorder(self, rows: Tensor) -> None:
        """Go on with other rows: row r' continues what was row `rows[r']`, and keeps reading its context.

        Args:
            rows: (R',) int64, any number of rows, each may be named several times; rows of one context stay adjacent.
        """
        ...
