"""From sample indices to a batch: read, decode, transform, draw one text, tokenise.

A reader is a map-style dataset of *batches*: asked for a `Step` (epoch, number, indices), it returns a
`Read`. All randomness is derived from (seed, epoch, index), so a step gives the same batch in any process at
any time: that makes every number of workers equal and an interrupted epoch resumable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmzoo.data.collate import Collate
from mmzoo.data.sample import AnySource, Broken, Pictured
from mmzoo.errors import ZooError
from mmzoo.processing.augment import BatchAugment
from mmzoo.processing.image import BadImage, ImageSource, ImageTransform, normalize, normalize_batch
from mmzoo.processing.randaugment import RandAugment
from mmzoo.seeds import mix
from mmzoo.spec import ImageSpec

__all__ = [
    "BatchReader",
    "Broken",
    "Changed",
    "Finish",
    "Item",
    "Normalise",
    "Prepare",
    "Read",
    "Step",
    "ToPixels",
    "Whole",
    "generator",
    "in_a_row",
    "nothing_usable",
]

ToPixels = Callable[[ImageSource, torch.Generator], Tensor]
"""Makes an undecoded or decoded picture (3, H, W) uint8; raises `BadImage`."""

Finish = Callable[[Sequence[Tensor], torch.Generator], Tensor]
"""Makes B pictures (3, H, W) uint8 a model's input; in training it may augment the whole batch at once."""

TRIES = 100  # so many broken samples in a row mean a broken set, whatever share is allowed


class Step(NamedTuple):
    """One batch of an epoch, by name.

    Attributes:
        epoch: Epoch, from 0.
        number: Which batch of the epoch, counted over all processes, from 0.
        indices: Which samples of the source.
    """

    epoch: int
    number: int
    indices: list[int]


class Item(NamedTuple):
    """A sample on its way into a batch.

    Attributes:
        drawn: What the collate made of it.
        pixels: Its pictures, (3, H, W) uint8 each.
    """

    drawn: Any
    pixels: tuple[Tensor, ...]


class Read(NamedTuple):
    """What a reader returns for a step.

    Attributes:
        batch: A batch NamedTuple; None where every sample was broken and none may be replaced.
        seen: How many samples were looked at.
        broken: Those of them that could not be used.
    """

    batch: Any
    seen: int
    broken: list[Broken]


def generator(seed: int) -> torch.Generator:
    """A CPU generator seeded with a number from `mix`."""
    return torch.Generator().manual_seed(seed)


class Whole:
    """`ToPixels` of evaluation: the model's own resizing and cropping, nothing random."""

    def __init__(self, transform: ImageTransform) -> None:
        self.transform = transform

    def __call__(self, image: ImageSource, generator: torch.Generator) -> Tensor:
        """Give (3, H, W) uint8."""
        return self.transform.pixels(image)


class Changed:
    """`ToPixels` of training with RandAugment.

    Args:
        pixels: Decodes and crops one picture.
        change: What is done to it then.
    """

    def __init__(self, pixels: ToPixels, change: RandAugment) -> None:
        self.pixels = pixels
        self.change = change

    def __call__(self, image: ImageSource, generator: torch.Generator) -> Tensor:
        """Give (3, H, W) uint8."""
        return self.change(self.pixels(image, generator), generator)


class Normalise:
    """`Finish` of every model: augment the batch if asked to, then subtract the mean and divide.

    Pictures of different sizes are augmented one by one, and padded last of all: padding must stay exactly zero.

    Args:
        spec: Gives mean and standard deviation.
        augment: Changes pixels before that; None in evaluation.
    """

    def __init__(self, spec: ImageSpec, augment: BatchAugment | None = None) -> None:
        self.spec = spec
        self.augment = augment

    def __call__(self, pixels: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        """Give (B, 3, H, W) float32."""
        if self.augment is None:
            return normalize_batch(pixels, self.spec)
        alike = len({picture.shape for picture in pixels}) == 1
        groups = [torch.stack(list(pixels))] if alike else [picture[None] for picture in pixels]
        changed = [self.augment(group, generator) for group in groups]
        if self.spec.fit != "aspect":
            return normalize(changed[0], self.spec)
        # back to whole grey levels, none of which normalises to the exact zero that marks padding
        levels = [picture for group in changed for picture in (group * 255).round().to(torch.uint8)]
        return normalize_batch(levels, self.spec)


class Prepare:
    """Makes samples a batch; what indexed, cached and streamed reading have in common.

    Args:
        pixels: Decodes and crops one picture.
        finish: Normalises and stacks pictures, and augments them in training.
        collate: Makes drawn samples and finished images a batch.
        seed: Root of all randomness.
        train: Draw texts at random; otherwise the first one is taken.
    """

    def __init__(self, pixels: ToPixels, finish: Finish, collate: Collate, *, seed: int, train: bool) -> None:
        self.pixels = pixels
        self.finish = finish
        self.collate = collate
        self.seed = seed
        self.train = train

    def one(self, sample: Pictured, seed: int) -> Item | Broken:
        """Draw a text and decode the pictures, or say why that cannot be done.

        Args:
            sample: Undecoded.
            seed: Of this sample in this epoch.
        """
        drawn = self.draw(sample, seed)
        if isinstance(drawn, Broken):
            return drawn
        draws = generator(seed)
        pixels: list[Tensor] = []
        for picture in sample.pictures:
            try:
                pixels.append(self.pixels(picture, draws))
            except BadImage as error:
                return Broken(_named(sample, len(pixels)), str(error))
        return Item(drawn, tuple(pixels))

    def draw(self, sample: Pictured, seed: int) -> Any:
        """What the collate takes of a sample, or `Broken` where that lacks something."""
        return self.collate.draw(sample, seed if self.train else None)

    def batch(self, items: Sequence[Item], epoch: int, number: int) -> Any:
        """Finish and collate B samples."""
        pixels = [picture for item in items for picture in item.pixels]
        images = self.finish(pixels, generator(mix(self.seed, epoch, number, 1)))
        return self.collate([item.drawn for item in items], images)


def _named(sample: Pictured, picture: int) -> str:
    """What to call a picture in a message: its sample's key, and its own name where that is another."""
    name = sample.picture_keys[picture]
    return name if name == sample.key else f"{sample.key}, picture {name}"


class BatchReader(Dataset[Read | ZooError]):
    """Reads batches of a source.

    A broken sample (unreadable, not an image, too large, without a caption where one is needed) is named in
    `Read`. In training the next healthy sample of the source takes its place, so that batch sizes stay exact;
    in evaluation it is left out, so that nothing is counted twice.

    Args:
        source: Where samples come from.
        prepare: What is done to them.
    """

    def __init__(self, source: AnySource, prepare: Prepare) -> None:
        self.source = source
        self.prepare = prepare

    def __getitem__(self, step: Step) -> Read | ZooError:
        # A sentence for a person must leave a worker process whole: torch would bury a raised one in a
        # traceback.
        try:
            broken: list[Broken] = []
            found = [self._healthy(step.epoch, index, broken) for index in step.indices]
            items = [item for item in found if item is not None]
            if not items:
                return Read(None, len(broken), broken)
            batch = self.prepare.batch(items, step.epoch, step.number)
            return Read(batch, len(items) + len(broken), broken)
        except ZooError as error:
            return error

    def _healthy(self, epoch: int, index: int, broken: list[Broken]) -> Item | None:
        """The sample at `index`; if it is broken, the next healthy one (training) or None (evaluation)."""
        count = len(self.source)
        first = len(broken)
        for offset in range(min(TRIES, count) if self.prepare.train else 1):
            candidate = (index + offset) % count
            found = self._try(candidate, mix(self.prepare.seed, epoch, candidate))
            if not isinstance(found, Broken):
                return found
            broken.append(found)
        if self.prepare.train:
            raise ZooError(in_a_row(self.source.name, broken[first:]))
        return None

    def _try(self, index: int, seed: int) -> Item | Broken:
        try:
            sample = self.source[index]
        except OSError as error:
            name = error.filename or f"{self.source.name}[{index}]"
            return Broken(str(name), error.strerror or str(error))
        return self.prepare.one(sample, seed)


def in_a_row(name: str, broken: Sequence[Broken]) -> str:
    """The sentence for nothing but broken samples."""
    first = broken[0]
    return (
        f"{name}: {len(broken)} broken samples in a row, from {first.key} on ({first.reason.rstrip('.')}); "
        "is this the right folder, and are its files whole?"
    )


def nothing_usable(name: str, count: int, broken: Sequence[Broken]) -> str:
    """The sentence for a whole set of broken samples."""
    first = broken[0]
    return (
        f"{name}: none of its {count} samples can be used, {first.key} for example ({first.reason.rstrip('.')}); "
        "is this the right folder, and are its files whole?"
    )
