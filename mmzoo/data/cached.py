"""A small set decoded once: every later batch is one gather, one augmentation and one look-up of tokens.

For sets of a few thousand small pictures, where decoding and cropping one by one would cost more than
training.
"""

from __future__ import annotations

from torch import Tensor
from torch.utils.data import Dataset

from mmzoo.data.reader import Broken, Prepare, Read, Step, nothing_usable
from mmzoo.data.sample import Sample, Source
from mmzoo.errors import ZooError
from mmzoo.seeds import mix

__all__ = ["CachedReader"]

LARGEST = 4 * 2**30  # bytes of pixels


class CachedReader(Dataset[Read | ZooError]):
    """Holds a whole source as pixels at the model's size.

    Broken samples are found once, here, and left out; their share is judged by the caller from `seen` and
    `broken`.

    Args:
        source: What to hold.
        prepare: What is done to samples; its `pixels` must not be random, since it is asked only once.
        size: Side of what `prepare.pixels` gives in pixels, the short one where pictures keep their shape.

    Raises:
        ZooError: The set is too large for this, or nothing in it is usable.
    """

    def __init__(self, source: Source, prepare: Prepare, size: int) -> None:
        total = len(source) * 3 * size * size
        if total > LARGEST:
            raise ZooError(
                f"{source.name}: {len(source):,} pictures of {size} px take {total / 2**30:.1f} GiB of "
                "memory; set cache_images to false for a set of this size."
            )
        self.prepare = prepare
        self.seen = len(source)
        self.broken: list[Broken] = []
        self._samples: list[Sample] = []
        self._pixels: list[Tensor] = []
        for index in range(len(source)):
            try:
                sample = source[index]
            except OSError as error:
                self.broken.append(Broken(str(error.filename or index), error.strerror or str(error)))
                continue
            found = prepare.one(sample, mix(prepare.seed, index))
            if isinstance(found, Broken):
                self.broken.append(found)
                continue
            self._pixels.append(found[1].contiguous())
            self._samples.append(sample._replace(image=b""))
        if not self._samples:
            raise ZooError(nothing_usable(source.name, len(source), self.broken))

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, step: Step) -> Read | ZooError:
        prepare = self.prepare
        drawn = [prepare.draw(self._samples[i], mix(prepare.seed, step.epoch, i)) for i in step.indices]
        usable = [d for d in drawn if d is not None]
        assert len(usable) == len(drawn), "samples without a text were left out"
        pixels = [self._pixels[i] for i in step.indices]
        batch = prepare.batch(usable, pixels, step.epoch, step.number)
        return Read(batch, len(drawn), [])
