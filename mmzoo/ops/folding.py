"""All texts that read one image, folded into one sequence of queries, so that the image's keys are never copied.

The rows of cross-attention do not see each other: k texts of L tokens against the N keys of their image give the same
numbers as one text of k * L tokens. Folding only says where each query stands; the keys stay as they are.

Legend: T texts, C contexts (images), N tokens of a context, Q query tokens of all texts together.
"""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from mmzoo.errors import ZooError
from mmzoo.ops.mask import AttnMask, Packed

__all__ = ["Fold", "fold"]

# Contexts are read by different numbers of queries. Filling them all up to the longest is one kernel with idle rows,
# leaving them as they are is one kernel for each run of equal numbers. One core of an AMD EPYC (torch 2.14.1, float32)
# takes as long for one more kernel as for 0.7 million query-key-channel products, and an idle row costs as much beside
# its keys as 100 keys do: so 17 keys of 128 channels are filled up, and 577 keys of 768 channels are not. Copying the
# keys for each text was slower, by 2 (padded) and by 10 (packed) in the attention of 16 texts with a picture of 577
# tokens; it won only where an eighth of 256 tiny contexts was read at all (a whole fusion half: 12 ms against 15).
RUN_COST = 700_000
ROW_COST = 100
# On a GPU a launch should cost more than idle rows (not measured); what is bounded there is memory.
MAX_FILL = 4


class Fold(NamedTuple):
    """Where the queries of T texts stand when all texts of one context form one sequence. `fold` makes one.

    Attributes:
        contexts: C.
        room: Queries per context if all are filled up to the longest, else None.
        into: (Q,) int64, each query's place in the folded row; None where it stands there already.
        packed: The segments, one per context, where they are not filled up.
    """

    contexts: int
    room: int | None
    into: Tensor | None
    packed: Packed | None

    def queries(self, x: Tensor) -> Tensor:
        """Put queries (B, L, D), B * L = Q, in their places: (C, room, D) or (1, Q, D)."""
        flat = x.flatten(0, 1)
        if self.room is None:
            assert self.packed is not None
            rows, shape = flat.shape[0], (1, flat.shape[0])
        else:
            rows, shape = self.contexts * self.room, (self.contexts, self.room)
        if self.into is not None:
            flat = flat.new_zeros(rows, flat.shape[1]).index_copy(0, self.into, flat)
        return flat.view(*shape, flat.shape[1])

    def keys(self, x: Tensor) -> Tensor:
        """Keys or values (C, G, N, D) as they are, or end to end (1, G, C * N, D): views where tokens lie in order."""
        return x if self.packed is None else x.transpose(1, 2).flatten(0, 1).transpose(0, 1)[None]

    def mask(self, keep: Tensor | None) -> AttnMask:
        """The mask of the folded attention; `keep` (C, N) is True at real context tokens."""
        if self.packed is not None and keep is not None:
            keep = keep.reshape(1, -1)
        return AttnMask(keep=keep, packed=self.packed)

    def back(self, x: Tensor, shape: tuple[int, int]) -> Tensor:
        """Undo `queries`: what was computed at their places, (C, room, D) or (1, Q, D), to (*shape, D)."""
        flat = x.flatten(0, 1)
        if self.into is not None:
            flat = flat.index_select(0, self.into)
        return flat.view(*shape, flat.shape[1])


def fold(reads: Tensor, contexts: int, *, keys: int, channels: int) -> Fold:
    """Find each query's place (waits for the device once).

    Args:
        reads: (Q,) int64, the context that each query reads. A context may be read by any number, or by none.
        contexts: C.
        keys: N, to weigh idle rows against kernels.
        channels: Channels of all heads together, likewise.

    Returns:
        The places; queries of one context keep their order.

    Raises:
        ZooError: There is no such context.
    """
    if not contexts and reads.numel():
        raise ZooError("there is no context to read: texts need at least one.")
    order = reads.argsort(stable=True)
    rows = reads[order]
    # modulo only for the count: numbers out of range are told right after the one wait for the device
    counts = reads.new_zeros(contexts).index_add(0, rows % max(contexts, 1), torch.ones_like(rows))
    facts = [((reads >= 0) & (reads < contexts)).all()[None], (reads.diff() >= 0).all()[None]]
    *per_context, in_range, in_order = torch.cat([counts, *facts]).tolist()
    if not in_range:
        raise ZooError(
            f"context_index must lie between 0 and {contexts - 1}, one of {contexts} contexts, "
            f"got {int(reads.min())} to {int(reads.max())}."
        )
    room = max(per_context, default=0)
    idle = contexts * room - len(rows)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    place = torch.arange(len(rows), device=reads.device)
    packed = None
    if _fills(idle, per_context, keys, channels, reads.device.type):
        place = place - offsets[rows] + rows * room
        in_order = in_order and not idle
    else:
        packed = Packed(offsets, torch.arange(contexts + 1, device=reads.device) * keys, room, keys)
    into = None if in_order else torch.empty_like(place).index_copy(0, order, place)
    return Fold(contexts, None if packed is not None else room, into, packed)


def _fills(idle: int, per_context: list[int], keys: int, channels: int, device: str) -> bool:
    if device != "cpu":
        return idle <= (MAX_FILL - 1) * sum(per_context)
    runs = sum(1 for count, _ in groupby(per_context) if count)
    return idle * (keys + ROW_COST) * channels <= RUN_COST * runs
