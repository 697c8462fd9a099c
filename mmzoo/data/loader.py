"""A loader that knows where it stands: exact epochs, split over processes, resumed where it was left.

Lightning saves and restores any loader with `state_dict`/`load_state_dict` and tells it the epoch through
`loader.batch_sampler.sampler`; `ResumableLoader` has both. It is not a torch `DataLoader` (it drives one), so
Lightning leaves its sharding alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from mmzoo.data.reader import Broken, Read, Step, generator, nothing_usable
from mmzoo.errors import ZooError
from mmzoo.seeds import mix

__all__ = [
    "BatchOrder",
    "BrokenTally",
    "MapReads",
    "Reads",
    "ResumableLoader",
    "batch_loader",
    "stop_workers",
]

log = logging.getLogger(__name__)
T = TypeVar("T")

NAMED = 10  # broken samples that are named in the log; later ones are only counted
ENOUGH = 1000  # a share of broken samples is judged after so many, or after the first pass over a smaller set


@dataclass(frozen=True)
class BatchOrder:
    """Which samples make up which batch of which epoch.

    Each batch over all processes (`batch_size * world` samples) is a slice of one permutation, dealt out in
    turn, so N processes see together what one process with N times the batch would.

    Attributes:
        size: Samples in the source.
        batch_size: Samples per batch and process.
        shuffle: A new permutation every epoch, or the source's order.
        last: What becomes of the samples that do not fill a batch of every process. `"drop"` leaves them out;
            other ones the next epoch, since the permutation is another. `"share"` makes a smaller batch of
            them, and leaves them out only where they are fewer than the processes, which would wait in training
            for one without a batch. `"keep"` leaves out none, so that held-out numbers do not depend on the
            number of processes: some may have one batch less.
        seed: Root of the permutations.
        rank: This process.
        world: How many processes there are.
    """

    size: int
    batch_size: int
    shuffle: bool = False
    last: Literal["drop", "share", "keep"] = "keep"
    seed: int = 0
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ZooError(f"batch_size is {self.batch_size}; it must be at least 1.")
        if self.size < 1:
            raise ZooError("there are no samples to read.")
        if self._used >= self.world:
            return
        if self.last == "drop":
            total = self.batch_size * self.world
            raise ZooError(
                f"{self.size} samples do not fill one batch of {total}"
                + (f" ({self.batch_size} on each of {self.world} processes)" if self.world > 1 else "")
                + "; lower batch_size, or set drop_last to false."
            )
        raise ZooError(f"{self.size} samples leave some of {self.world} processes without any; use fewer.")

    @property
    def _used(self) -> int:
        """Samples in an epoch of all processes together."""
        rest = self.size % (self.batch_size * self.world)
        out = {"drop": rest > 0, "share": rest < self.world, "keep": False}[self.last]
        return self.size - rest if out else self.size

    @property
    def samples(self) -> int:
        """Samples in an epoch of this process."""
        return len(range(self.rank, self._used, self.world))

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def steps(self, epoch: int, start: int = 0) -> Iterator[Step]:
        """The steps of an epoch for this process, from batch `start` on."""
        if self.shuffle:
            order = torch.randperm(self.size, generator=generator(mix(self.seed, epoch)))
        else:
            order = torch.arange(self.size)
        order = order[: self._used]
        total = self.batch_size * self.world
        for batch in range(start, len(self)):
            indices = order[batch * total + self.rank : (batch + 1) * total : self.world]
            yield Step(epoch, batch * self.world + self.rank, indices.tolist())


class BrokenTally:
    """Counts broken samples, names the first ones, and stops the run when there are too many.

    Args:
        name: What the samples come from.
        max_share: Largest share of broken samples that is put up with.
        enough: Judge once so many samples were looked at.
    """

    def __init__(self, name: str, max_share: float, enough: int) -> None:
        if not 0 <= max_share <= 1:
            raise ZooError(f"max_broken is {max_share}; it is a share between 0 and 1.")
        self.name = name
        self.max_share = max_share
        self.enough = enough
        self.seen = 0
        self.count = 0
        self.first: list[Broken] = []

    def add(self, seen: int, broken: list[Broken]) -> None:
        """Count a batch's samples.

        Raises:
            ZooError: More than the stated share is broken; the first ones are named.
        """
        self.seen += seen
        self.count += len(broken)
        for item in broken:
            if len(self.first) < NAMED and item not in self.first:
                self.first.append(item)
                last = "; further ones are only counted" if len(self.first) == NAMED else ""
                log.warning("%s: passed over %s: %s%s", self.name, item.key, item.reason, last)
        if self.seen >= self.enough and self.count > self.max_share * self.seen:
            raise ZooError(self.sentence())

    def sentence(self) -> str:
        """Say how many are broken, which, and what can be done."""
        named = "; ".join(f"{b.key} ({b.reason.rstrip('.')})" for b in self.first[:3])
        return (
            f"{self.name}: {self.count} of {self.seen} samples are broken, more than max_broken = "
            f"{self.max_share:g} allows: {named}{'; ...' if self.count > 3 else ''}. "
            "Mend or remove them, or raise max_broken."
        )


class Reads(Protocol):
    """Where a `ResumableLoader` gets its batches from."""

    def __call__(self, epoch: int, position: int) -> Iterator[Read | ZooError]:
        """The epoch's reads from that batch on."""

    def close(self) -> None:
        """Stop what runs in the background."""


class ResumableLoader:
    """Iterates over batches; its state is where in which epoch it stands.

    A pass that neither `set_epoch` nor `load_state_dict` has announced is the next epoch. The state counts
    batches that were handed out, not those that workers have prepared ahead.

    Args:
        order: How long an epoch is; the state is only valid for the same order.
        reads: Where batches come from.
        max_broken: Largest share of broken samples that is put up with.
        name: What to call the data in messages.
    """

    def __init__(
        self,
        order: BatchOrder,
        reads: Reads,
        *,
        max_broken: float = 0.01,
        name: str = "data",
    ) -> None:
        self.order = order
        self.tally = BrokenTally(name, max_broken, min(ENOUGH, order.samples))
        self._reads = reads
        self._epoch = 0
        self._position = 0
        self._announced = True  # the next pass is the one that (epoch, position) names

    def __len__(self) -> int:
        return len(self.order)

    @property
    def batch_sampler(self) -> SimpleNamespace:
        """Leads back here: Lightning announces epochs by `loader.batch_sampler.sampler.set_epoch(epoch)`."""
        return SimpleNamespace(sampler=self)

    def set_epoch(self, epoch: int) -> None:
        """Announce the epoch of the next pass; one that is under way or restored goes on."""
        finished = not self._announced and self._position >= len(self)
        if epoch != self._epoch or finished:
            self._epoch, self._position, self._announced = epoch, 0, True

    def __iter__(self) -> Iterator[Any]:
        # A generator, so that nothing happens before a batch is asked for: Lightning makes iterators that it
        # never uses, and announces the epoch after making one that it does.
        if not self._announced or self._position >= len(self):
            self._epoch, self._position = self._epoch + 1, 0
        self._announced = False
        nothing = self._position == 0
        for read in self._reads(self._epoch, self._position):
            if isinstance(read, ZooError):
                raise read
            self._position += 1
            self.tally.add(read.seen, read.broken)
            if read.batch is not None:
                nothing = False
                yield read.batch
        if nothing:
            raise ZooError(nothing_usable(self.tally.name, self.order.samples, self.tally.first))

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, in plain numbers."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "seen": self.tally.seen,
            "broken": self.tally.count,
            "order": self._signature(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a saved loader stood.

        With another batch size, seed, set or number of processes there is no such place: the epoch then
        starts again, and a warning says so.
        """
        self._epoch, self._position, self._announced = state["epoch"], 0, True
        changed = [k for k, v in self._signature().items() if state["order"].get(k) != v]
        if changed:
            log.warning(
                "%s: %s changed since the checkpoint was written, so epoch %d starts again from batch 1.",
                self.tally.name,
                ", ".join(changed),
                self._epoch,
            )
            return
        self._position = state["position"]
        self.tally.seen, self.tally.count = state["seen"], state["broken"]

    def close(self) -> None:
        """Stop the workers; the loader is of no use afterwards."""
        self._reads.close()

    def _signature(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self.order).items() if k != "rank"}  # rank 0 writes for all


class MapReads:
    """Reads of a map-style reader for `ResumableLoader`, in this process or ahead in workers that live on.

    Args:
        reader: From `Step` to `Read`.
        order: Which samples come when.
        num_workers: Processes that read ahead; 0 reads in this one. The batches are the same.
        pin_memory: Put batches into page-locked memory for a GPU.
    """

    def __init__(
        self,
        reader: Dataset[Read | ZooError],
        order: BatchOrder,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self._steps = _Steps(order)
        self._loader = batch_loader(reader, self._steps, num_workers, pin_memory, persistent=num_workers > 0)
        self._passing: Iterator[Read | ZooError] | None = None

    def __call__(self, epoch: int, position: int) -> Iterator[Read | ZooError]:
        """The epoch's reads from that batch on."""
        self._steps.epoch, self._steps.start = epoch, position
        self._passing = iter(self._loader)
        return self._passing

    def close(self) -> None:
        """Stop the workers; this object is of no use afterwards."""
        stop_workers(self._passing)


def batch_loader(
    dataset: Dataset[Any],
    sampler: Iterable[Any] | None,
    num_workers: int,
    pin_memory: bool,
    *,
    persistent: bool = False,
) -> DataLoader[Any]:
    """A torch loader over a dataset whose items are batches already."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=_as_is,
        pin_memory=pin_memory,
        persistent_workers=persistent,
        generator=generator(0),  # each iterator draws a seed: not from the training's own randomness
    )


def stop_workers(passing: Iterator[Any] | None) -> None:
    """Stop the workers of a torch loader's iterator now.

    The garbage collector does it too, but inside a reference cycle, as with everything that a Trainer holds,
    it closes the queues first: workers then miss the message to end and are waited for, five seconds each.
    """
    shutdown = getattr(passing, "_shutdown_workers", None)
    if shutdown is not None:
        shutdown()


class _Steps:
    """The sampler of a DataLoader: steps of the epoch that was set last."""

    def __init__(self, order: BatchOrder) -> None:
        self.order = order
        self.epoch = 0
        self.start = 0

    def __iter__(self) -> Iterator[Step]:
        return self.order.steps(self.epoch, self.start)

    def __len__(self) -> int:
        return len(self.order) - self.start


def _as_is(item: T) -> T:
    return item
