"""Features of frozen towers, computed once for each input."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Remembered"]


class Remembered:
    """Gives for each row of its input what a frozen tower gave for the same row before.

    Rows are known by their content, so augmented pictures, which never come again, are computed like any others and
    only fill the memory (some 2 KB each). Rows that are new are computed together; what a tower gives can depend on the
    other rows of a batch in the last bits, so a resumed run repeats an uninterrupted one up to rounding.

    Args:
        compute: The tower: tensors with B rows to (B, D), without gradient.
    """

    def __init__(self, compute: Callable[..., Tensor]):
        self._compute = compute
        self._rows: dict[bytes, Tensor] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @torch.no_grad()
    def __call__(self, *inputs: Tensor, keep: Tensor | None = None) -> Tensor:
        """Look up or compute.

        Args:
            inputs: Tensors with B rows each.
            keep: (B, L) bool, the real tokens of the one input (B, L); it goes to the tower too. Two texts are the same
                if their real tokens are, however long their padding.

        Returns:
            (B, D).
        """
        if keep is None:
            keys = [_digest(*row) for row in zip(*inputs, strict=True)]
        else:
            keys = [_digest(ids[real]) for ids, real in zip(*inputs, keep, strict=True)]
        new = {key: row for row, key in enumerate(keys) if key not in self._rows}
        if new:
            index = torch.tensor(list(new.values()), device=inputs[0].device)
            given = [*inputs, keep] if keep is not None else list(inputs)
            out = self._compute(*(tensor[index] for tensor in given))
            self._rows |= {key: out[i].clone() for i, key in enumerate(new)}
        return torch.stack([self._rows[key] for key in keys])


def _digest(*row: Tensor) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in row:
        plain = tensor.detach().cpu().contiguous()
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()
