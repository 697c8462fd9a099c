"""Tar shards read from front to back, local or remote, through webdataset (extra `stream`).

Shards are drawn with replacement and an epoch is a stated number of samples: with uneven shards dealt out to
processes, some would run dry early and the others wait for them forever.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from mmzoo.data.loader import BatchOrder, batch_loader, stop_workers
from mmzoo.data.reader import Item, Prepare, Read, in_a_row
from mmzoo.data.sample import Broken, Sample
from mmzoo.data.sources.common import stable_id
from mmzoo.data.sources.shards import (
    IMAGE_EXTENSIONS,
    TEXT_EXTENSIONS,
    expand_braces,
    expand_shards,
    parse_text,
)
from mmzoo.errors import ZooError
from mmzoo.seeds import mix

__all__ = ["ShardStream", "StreamReads"]

UNREADABLE = 10  # so many shards in a row that cannot be read mean that none can


class ShardStream(IterableDataset[Read | ZooError]):
    """The batches of one process from a position on; an endless supply of samples behind a shuffle pool.

    The pool holds undecoded bytes, a tenth or less of what pixels would take. A broken sample's place in its
    batch is taken by the next healthy one of the same batch, so every batch consumes the same number of
    samples: that makes it possible to skip batches without decoding when an epoch is resumed, exactly for an
        equal number of
    workers.

    Args:
        pattern: Shards: a path, glob or braces, or URLs with braces (`https://.../{0000..0999}.tar`).
        prepare: What is done to samples.
        order: Batch size, length of an epoch, this process; its indices are not used.
        pool: Samples to shuffle among, per worker.
    """

    def __init__(self, pattern: str, prepare: Prepare, order: BatchOrder, *, pool: int) -> None:
        if pool < 1:
            raise ZooError(f"stream.pool is {pool}; it must be at least 1.")
        remote = "://" in pattern or pattern.startswith("pipe:")
        self.urls = expand_braces(pattern) if remote else [str(path) for path in expand_shards(pattern)]
        self.name = pattern
        self.prepare = prepare
        self.order = order
        self.pool = pool
        self.epoch = 0
        self.position = 0

    def __iter__(self) -> Iterator[Read | ZooError]:
        info = get_worker_info()
        workers = info.num_workers if info else 1
        # Batches come from the workers in turn, so after a resume the first worker must play the part of the
        # one whose turn it was.
        part = ((info.id if info else 0) + self.position) % workers
        broken: list[Broken] = []
        samples = self._shuffled(part, broken)
        try:
            for number in range(part, len(self.order), workers):
                raw = list(islice(samples, self.order.batch_size))
                if number >= self.position:
                    yield self._read(raw, number, broken)
                    broken.clear()
        except ZooError as error:
            yield error

    def _read(self, raw: list[Sample], number: int, unreadable: list[Broken]) -> Read:
        overall = number * self.order.world + self.order.rank
        first = overall * self.order.batch_size
        found = [
            self.prepare.one(s, mix(self.prepare.seed, self.epoch, first + i)) for i, s in enumerate(raw)
        ]
        broken = [item for item in found if isinstance(item, Broken)]
        if len(broken) == len(raw):
            raise ZooError(in_a_row(self.name, broken))
        items = [_next_healthy(found, i) for i in range(len(found))]
        batch = self.prepare.batch(items, self.epoch, overall)
        return Read(batch, len(raw) + len(unreadable), unreadable + broken)

    def _shuffled(self, part: int, broken: list[Broken]) -> Iterator[Sample]:
        draw = random.Random(mix(self.prepare.seed, self.epoch, self.order.rank, part))
        samples = self._endless(draw, broken)
        pool = list(islice(samples, self.pool))
        for sample in samples:
            place = draw.randrange(self.pool)
            pool[place], sample = sample, pool[place]
            yield sample

    def _endless(self, draw: random.Random, broken: list[Broken]) -> Iterator[Sample]:
        try:
            from webdataset.tariterators import tarfile_samples
        except ImportError:
            raise ZooError("streamed shards need webdataset: pip install 'mmzoo[stream]'.") from None
        failed: list[Broken] = []
        while len(failed) < UNREADABLE:
            url = draw.choice(self.urls)
            found = False
            try:
                for record in tarfile_samples([{"url": url}]):
                    sample = _to_sample(record)
                    if sample is not None:
                        found = True
                        yield sample
                problem = None if found else "no pictures in it"
            # What reading a URL raises depends on the transport: sockets, subprocesses, tarfile.
            except Exception as error:
                problem = f"{type(error).__name__}: {error.args[0] if error.args else ''}"
            if problem is not None:
                failed.append(Broken(url, problem))
                broken.append(failed[-1])
            if found:
                failed.clear()
        raise ZooError(
            f"{self.name}: {len(failed)} shards in a row could not be read, "
            f"the last {failed[-1].key} ({failed[-1].reason})."
        )


def _next_healthy(found: list[Item | Broken], index: int) -> Item:
    for offset in range(len(found)):
        item = found[(index + offset) % len(found)]
        if not isinstance(item, Broken):
            return item
    raise AssertionError("the caller has made sure that one is healthy")


def _to_sample(record: dict[str, Any]) -> Sample | None:
    image = next((data for name, data in record.items() if name in IMAGE_EXTENSIONS), None)
    if image is None:
        return None
    key = f"{record['__url__'].rpartition('/')[2].removesuffix('.tar')}/{record['__key__']}"
    extension = next((e for e in TEXT_EXTENSIONS if e in record), None)
    identity = stable_id(f"{record['__url__']}/{record['__key__']}")
    texts: tuple[str, ...] = ()
    if extension is not None:
        texts, identity = parse_text(record[extension], extension, identity)
    return Sample(key, image, texts, (identity,) * len(texts), (identity,))


class StreamReads:
    """Reads of a stream for `ResumableLoader`: workers start anew every epoch, knowing where to begin."""

    def __init__(self, stream: ShardStream, *, num_workers: int = 0, pin_memory: bool = False) -> None:
        self.stream = stream
        self._loader = batch_loader(stream, None, num_workers, pin_memory)
        self._passing: Iterator[Read | ZooError] | None = None

    def __call__(self, epoch: int, position: int) -> Iterator[Read | ZooError]:
        """The epoch's reads from that batch on."""
        stop_workers(self._passing)  # of an epoch that was cut short
        self.stream.epoch, self.stream.position = epoch, position
        self._passing = iter(self._loader)
        return self._passing

    def close(self) -> None:
        """Stop the workers."""
        stop_workers(self._passing)
