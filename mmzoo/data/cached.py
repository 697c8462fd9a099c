"""A small set decoded once: every later batch is one gather, one augmentation and one look-up of tokens.

For sets of a few thousand small pictures, where decoding and cropping one by one would cost more than
training.
"""

from __future__ import annotations

from torch import Tensor
from torch.utils.data import Dataset

from mmzoo.data.reader import Item, Prepare, Read, Step, nothing_usable
from mmzoo.data.sample import AnySource, Broken, Pictured
from mmzoo.errors import ZooError
from mmzoo.seeds import mix

__all__ = ["CachedReader"]

LARGEST = 4 * 2**30  # bytes of pixels


class CachedReader(Dataset[Read | ZooError]):
    """Holds a whole source as pixels at the model's size; a picture that several samples share is held once.

    Broken samples are found once, here, and left out; their share is judged by the caller from `seen` and
    `broken`.

    Args:
        source: What to hold.
        prepare: What is done to samples; its `pixels` must not be random, since it is asked only once.
        size: Side of what `prepare.pixels` gives in pixels, the short one where pictures keep their shape.

    Raises:
        ZooError: The set is too large for this, or nothing in it is usable.
    """

    def __init__(self, source: AnySource, prepare: Prepare, size: int) -> None:
        pictures = _pictures(source)
        total = pictures * 3 * size * size
        if total > LARGEST:
            raise ZooError(
                f"{source.name}: {pictures:,} pictures of {size} px take {total / 2**30:.1f} GiB of "
                "memory; set cache_images to false for a set of this size."
            )
        self.prepare = prepare
        self.seen = len(source)
        self.broken: list[Broken] = []
        self._held: list[tuple[Pictured, tuple[Tensor, ...]]] = []
        pixels: dict[str, Tensor] = {}
        for index in range(len(source)):
            try:
                sample = source[index]
            except OSError as error:
                self.broken.append(Broken(str(error.filename or index), error.strerror or str(error)))
                continue
            found = self._decode(sample, mix(prepare.seed, index), pixels)
            if found is not None:
                self.broken.append(found)
                continue
            self._held.append((sample.bare(), tuple(pixels[key] for key in sample.picture_keys)))
        if not self._held:
            raise ZooError(nothing_usable(source.name, len(source), self.broken))

    def _decode(self, sample: Pictured, seed: int, pixels: dict[str, Tensor]) -> Broken | None:
        """Add a sample's pictures to those that are held, or say what is wrong with it."""
        if all(key in pixels for key in sample.picture_keys):
            drawn = self.prepare.draw(sample, seed)
            return drawn if isinstance(drawn, Broken) else None
        found = self.prepare.one(sample, seed)
        if isinstance(found, Broken):
            return found
        pixels.update(zip(sample.picture_keys, (picture.contiguous() for picture in found.pixels)))
        return None

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, step: Step) -> Read | ZooError:
        prepare = self.prepare
        items = []
        for index in step.indices:
            sample, pixels = self._held[index]
            drawn = prepare.draw(sample, mix(prepare.seed, step.epoch, index))
            assert not isinstance(drawn, Broken), "samples without a text were left out"
            items.append(Item(drawn, pixels))
        return Read(prepare.batch(items, step.epoch, step.number), len(items), [])


def _pictures(source: AnySource) -> int:
    """How many different pictures a source has."""
    told = getattr(source, "told", None)
    if told is None:
        return len(source)
    return len({key for index in range(len(source)) for key in told(index).picture_keys})
