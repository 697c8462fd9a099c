"""Several caption sources as one, each with a range of ids of its own."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from mmzoo.data.sample import Sample, Source
from mmzoo.errors import UsageError

__all__ = ["ID_BITS", "JointSource"]

MOST = 64  # parts that have ranges of their own within an int64
ID_BITS = 56
"""Ids of the p-th different part begin at `p * 2**ID_BITS`: what is said of its pictures is about no other part's."""


class JointSource:
    """The samples of several sources, one source after the other.

    Samples carry no labels, since classes of different sources have nothing to do with each other; keys begin with the
    source's name.

    Args:
        parts: The sources, at least one. One that stands here several times is read that often each epoch.

    Attributes:
        classes: None.

    Example:
        >>> from mmzoo.data.open import open_source
        >>> both = JointSource([open_source("data/emoji"), open_source("data/easyvqa")])
        >>> both.name
        'emoji:train+easyvqa:train'
    """

    classes: tuple[str, ...] | None = None

    def __init__(self, parts: Sequence[Source]) -> None:
        self.parts = tuple(parts)
        self.name = "+".join(part.name for part in parts)
        self._ends = list(accumulate(len(part) for part in parts))
        distinct = list(dict.fromkeys(id(part) for part in parts))
        if len(distinct) > MOST:
            raise UsageError(f"at most {MOST} sources can be one, not {len(distinct)}.")
        self._numbers = [distinct.index(id(part)) for part in parts]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}.")
        number = bisect_right(self._ends, index)
        part = self.parts[number]
        sample = part[index - (self._ends[number] - len(part))]
        distinct = self._numbers[number]
        return sample._replace(
            key=f"{part.name}/{sample.key}",
            text_ids=tuple(_moved(i, distinct) for i in sample.text_ids),
            image_ids=tuple(_moved(i, distinct) for i in sample.image_ids),
            label=None,
        )


def _moved(identity: int, part: int) -> int:
    """An id in the range of its part.

    Ids that count samples stay as they are. Those made from names (`stable_id`) have the bit 62 set: as many of their
    bits are kept as fit, and one that keeps the two kinds apart.
    """
    named = identity >> 62
    return part << ID_BITS | named << (ID_BITS - 1) | identity & ((1 << (ID_BITS - 1)) - 1)
