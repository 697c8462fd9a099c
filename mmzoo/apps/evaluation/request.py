"""What every task of `mmzoo evaluate` is asked and gives, and how several processes share it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from mmzoo import dist
from mmzoo.apps.opening import Progress
from mmzoo.data.reader import Broken
from mmzoo.data.sample import AnySource
from mmzoo.errors import UsageError, ZooError

__all__ = [
    "First",
    "Measure",
    "Outcome",
    "Request",
    "gathered",
    "limited",
    "share",
    "shared_source",
    "together",
]

T = TypeVar("T")


class Measure(NamedTuple):
    """A number that a model reached.

    Attributes:
        value: A share from 0 to 1, a rank from 1 on, or a score that may exceed 1 (CIDEr-D).
        chance: What guessing gives, or None where that means nothing.
        unit: Which of the three it is.
    """

    value: float
    chance: float | None = None
    unit: Literal["share", "rank", "score"] = "share"


@dataclass(frozen=True)
class Request:
    """What `mmzoo.apps.evaluate.evaluate` was asked, as described there; None where an option was not given."""

    data: str | Path
    split: str | None = None
    images: str | Path | None = None
    limit: int | None = None
    rerank: int | None = None
    score: str | None = None
    by: str | None = None
    labels: str | Path | None = None
    templates: str | None = None
    answers: str | Path | None = None
    predictions: str | Path | None = None
    prompt: str | None = None
    beams: int | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    extra: str | None = None
    batch_size: int = 32
    progress: Progress | None = None
    say: Callable[[str], None] | None = None

    def talk(self, sentence: str) -> None:
        """Say something to whoever waits, once for all processes."""
        if self.say is not None and dist.rank() == 0:
            self.say(sentence)


class Outcome(NamedTuple):
    """What a task found.

    Attributes:
        numbers: Name to value and chance.
        data: What was evaluated: its name and how much of what there is.
        protocol: What else decides the numbers.
        notes: Sentences that a reader of the numbers must know.
        broken: Samples that could not be used, and why.
        predictions: Where the answers were written.
    """

    numbers: dict[str, Measure]
    data: dict[str, str | int]
    protocol: dict[str, Any]
    notes: list[str]
    broken: list[Broken]
    predictions: Path | None = None


class First:
    """The first samples of a source.

    Args:
        source: All of them.
        count: How many.
    """

    def __init__(self, source: Any, count: int) -> None:
        self.name: str = source.name
        self.classes: tuple[str, ...] | None = source.classes
        self._source, self._count = source, count

    def __len__(self) -> int:
        return self._count

    def told(self, index: int) -> Any:
        """A sample without its pictures."""
        return self._source.told(index)

    def __getitem__(self, index: int) -> Any:
        return self._source[index]


def limited(source: Any, limit: int | None) -> Any:
    """The source, or the first `limit` of its samples.

    Raises:
        UsageError: `limit` is below 1.
        ZooError: There are no samples.
    """
    if not len(source):
        raise ZooError(f"{source.name} is empty: there is nothing to evaluate.")
    if limit is None or limit >= len(source):
        return source
    if limit < 1:
        raise UsageError(f"--limit {limit}: it is a number of samples, at least 1.")
    return First(source, limit)


def share(count: int) -> range:
    """The places of `count` things that are this process's: one run each, about as long as the others'."""
    rank, world = dist.rank(), dist.world()
    return range(count * rank // world, count * (rank + 1) // world)


def shared_source(source: AnySource) -> None:
    """Refuse a source with fewer samples than there are processes.

    Raises:
        ZooError: It has.
    """
    if len(source) < dist.world():
        raise ZooError(
            f"{source.name}: {len(source)} samples leave some of {dist.world()} processes without any; use fewer."
        )


def together(work: Callable[[], T]) -> T:
    """Do this process's part of a work; where it fails on one process, it fails on all.

    Otherwise the others would wait for the failed one for as long as their connection lets them.

    Raises:
        ZooError: The first process's that failed, or its OSError.
    """
    result: T | None = None
    error: ZooError | OSError | None = None
    try:
        result = work()
    except (ZooError, OSError) as raised:
        error = raised
    for failed in dist.gather_objects(error):
        if failed is not None:
            raise failed
    return result  # type: ignore[return-value]


def gathered(parts: list[Tensor], device: torch.device) -> Tensor:
    """Rows of all processes, rank 0 first, of parts (n, ...); a process may have no part at all.

    Raises:
        ZooError: No process has any.
    """
    mine = torch.cat(parts) if parts else None
    like = [
        known for known in dist.gather_objects(None if mine is None else mine[:0].cpu()) if known is not None
    ]
    if not like:
        raise ZooError("there is nothing to evaluate.")
    return dist.gather_no_grad(like[0].to(device) if mine is None else mine)
