"""Several caption sources as one, each with a range of ids of its own."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from mmzoo.data.sample import Sample, Source

__all__ = ["ID_RANGE", "JointSource"]

ID_RANGE = 2**32
"""Ids of the p-th different part begin at `p * ID_RANGE`: what is said of its pictures is about no other part's."""


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
        self._firsts = [distinct.index(id(part)) * ID_RANGE for part in parts]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}.")
        number = bisect_right(self._ends, index)
        part = self.parts[number]
        sample = part[index - (self._ends[number] - len(part))]
        first = self._firsts[number]
        return sample._replace(
            key=f"{part.name}/{sample.key}",
            text_ids=tuple(first + i for i in sample.text_ids),
            image_ids=tuple(first + i for i in sample.image_ids),
            label=None,
        )
