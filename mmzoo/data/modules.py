"""The DataModules of the command line: from paths and numbers to loaders that resume exactly."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule

from mmzoo.data.cached import CachedReader
from mmzoo.data.collate import CaptionCollate, ClassCollate, Collate, Tokens
from mmzoo.data.loader import BatchOrder, MapReads, Reads, ResumableLoader
from mmzoo.data.open import list_splits, open_source
from mmzoo.data.reader import BatchReader, Changed, Normalise, Prepare, ToPixels, Whole
from mmzoo.data.sample import AnySource, Source
from mmzoo.errors import UsageError, ZooError
from mmzoo.processing.augment import BatchAugment
from mmzoo.processing.image import ImageTransform, TrainTransform
from mmzoo.processing.processor import Processor
from mmzoo.processing.randaugment import RandAugment

__all__ = ["CaptionsData", "ClassificationData", "Crop", "PictureData", "Stream"]

HELD_OUT = ("val", "valid", "validation", "dev")  # names of the split to validate on, where nobody names one


@dataclass(frozen=True)
class Crop:
    """The random crop that each training picture is cut to.

    Attributes:
        scale: Bounds of the crop's share of the picture's area.
        ratio: Bounds of its width / height.
        flip: Mirror half of the pictures; captions that speak of left and right forbid it.
        fast_decode: Decode large JPEGs at 1/2, 1/4 or 1/8 where that is enough: faster, not quite the same
            pixels.
    """

    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False
    fast_decode: bool = False


@dataclass(frozen=True)
class Stream:
    """Reading shards from front to back instead of at random, for remote ones.

    An epoch begins at the beginnings of shards drawn at random, so it should be long against a shard.

    Attributes:
        samples: Samples per epoch, over all processes.
        pool: Undecoded samples to shuffle among, per worker.
    """

    samples: int
    pool: int = 5000


class PictureData(LightningDataModule, ABC):
    """What `CaptionsData` and `ClassificationData` share; use one of these.

    Everything random depends on the seed, the epoch and the sample alone: any number of workers gives the
    same batches, and a run that was stopped in the middle of an epoch goes on with the batch that was next.

    Args:
        source: Training data: a folder, file, shards or the name of a carried set, or several of them, as a list or
            joined by `+`; see `mmzoo.data.open.open_source`.
        train_split: Split of the source to train on. A source without splits is taken whole.
        val: Held-out data, if it lies elsewhere than the training data.
        val_splits: Held-out splits, each with its own numbers. Left out: the split `val`, or all of `val` if
            that has no splits. An empty list: none.
        test_splits: Splits that `test` and `predict` look at; left out: the same.
        by: What a class is, for sets that know several answers (emoji: `name` or `group`).
        batch_size: Samples per training batch, on each process.
        val_batch_size: Samples per evaluation batch, on each process.
        num_workers: Processes that read ahead; 0 reads in the training process.
        seed: Root of order and augmentation; left out: the run's seed (`seed_everything`).
        crop: Random crop of each training picture; left out: between 90 % and all of it, or the whole picture
            for models that read pictures in their own shape (ViLT).
        rand_augment: RandAugment of each training picture, after its crop; left out: none.
        augment: Changes to whole training batches; the default changes nothing.
        cache_images: Decode everything once and keep it at the model's size; for small sets. There is no crop
            then, only `augment`.
        drop_last: Leave out the samples that do not fill a last training batch (other ones every epoch).
        max_broken: Share of broken samples (truncated, not an image, without caption) that is put up with.
            They are named and passed over; more of them stop the run.
        stream: Read training shards as a stream (needs the extra `stream`); captions only.
        first_text: Always take a picture's first and plainest text, where training would draw one; captions only.
    """

    def __init__(
        self,
        source: str | list[str],
        train_split: str | None = "train",
        val: str | None = None,
        val_splits: tuple[str, ...] | None = None,
        test_splits: tuple[str, ...] | None = None,
        by: str | None = None,
        batch_size: int = 128,
        val_batch_size: int = 256,
        num_workers: int = 0,
        seed: int | None = None,
        crop: Crop | None = None,
        rand_augment: RandAugment | None = None,
        augment: BatchAugment = BatchAugment(),  # noqa: B008 - frozen
        cache_images: bool = False,
        drop_last: bool = True,
        max_broken: float = 0.01,
        stream: Stream | None = None,
        first_text: bool = False,
    ) -> None:
        super().__init__()
        if num_workers < 0:
            raise UsageError(f"num_workers is {num_workers}; it must be at least 0.")
        for name, given in (("crop", crop), ("rand_augment", rand_augment)):
            if cache_images and given is not None:
                raise UsageError(
                    f"{name} works on one picture at a time and cache_images on none: leave out one of them."
                )
        if cache_images and stream is not None:
            raise UsageError("a stream cannot be cached: leave out cache_images or stream.")
        self.source = source if isinstance(source, str) else "+".join(source)
        self.train_split = train_split
        self.val = val
        self.val_splits = val_splits
        self.test_splits = test_splits
        self.by = by
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size
        self.num_workers = num_workers
        self.seed = torch.initial_seed() % 2**63 if seed is None else seed
        self.crop = crop
        self.rand_augment = rand_augment
        self.augment = augment
        self.cache_images = cache_images
        self.drop_last = drop_last
        self.max_broken = max_broken
        self.stream = stream
        self.first_text = first_text
        self.processor: Processor | None = None
        self.train_source: AnySource | None = None
        self.val_sources: dict[str, AnySource] = {}
        self.test_sources: dict[str, AnySource] = {}
        self._loaders: list[ResumableLoader] = []

    # -- sources
    # ------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Open what a stage needs. The processor is the model's, unless `processor` was set before.

        Raises:
            ZooError: Missing, empty or unfit data.
        """
        if self.processor is None:
            assert self.trainer is not None, "set `processor` to use a data module without a trainer"
            self.processor = cast(Processor, self.trainer.lightning_module.processor)
        if stage == "fit" and self.stream is None:
            self.train_source = self._opened(self.source, self._train_split())
        if stage in ("fit", "validate"):
            self.val_sources = self._open(self.val_splits)
        if stage == "validate" and not self.val_sources:
            raise UsageError("nothing to validate on: give val_splits or val.")
        if stage in ("test", "predict"):
            self.test_sources = self._open(self.val_splits if self.test_splits is None else self.test_splits)
            if not self.test_sources:
                raise UsageError(f"nothing to {stage} on: give test_splits, val_splits or val.")

    def _train_split(self) -> str | None:
        """The split to open; the default name is no demand where there are no splits."""
        return None if self.train_split == "train" and not self.list_splits(self.source) else self.train_split

    def open(self, where: str, split: str | None) -> AnySource:
        """Open a split of the data at a path."""
        return open_source(where, split=split, by=self.by)

    def list_splits(self, where: str) -> tuple[str, ...]:
        """Names of the splits of the data at a path; empty where it is one undivided set."""
        return list_splits(where)

    def _open(self, splits: tuple[str, ...] | None) -> dict[str, AnySource]:
        where = self.val or self.source
        if splits is None:
            known = self.list_splits(where) if self.stream is None or self.val else ()
            splits = tuple(name for name in HELD_OUT if name in known)[:1]
            if not splits and self.val:
                if known:
                    raise UsageError(f"{where} holds the splits {', '.join(known)}; name some in val_splits.")
                return {"val": self._opened(where, None)}
        return {split: self._opened(where, split) for split in splits}

    def _opened(self, where: str, split: str | None) -> AnySource:
        source = self.open(where, split)
        self.check(source)
        return source

    @abstractmethod
    def check(self, source: Any) -> None:
        """Refuse a source that is of no use to this kind of training."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names of the training source, or of the first held-out one where nothing is trained."""
        sources = [self.train_source, *self.val_sources.values(), *self.test_sources.values()]
        return next((source.classes for source in sources if source is not None), None)

    @property
    def val_names(self) -> list[str]:
        """Names of the validation loaders, in their order."""
        return list(self.val_sources)

    # -- loaders
    # ------------------------------------------------------------------------------------------------

    @abstractmethod
    def collate(self, source: Any) -> Collate:
        """How samples of this source become batches; None stands for a stream."""

    def train_dataloader(self) -> ResumableLoader:
        """Batches of shuffled and augmented samples."""
        assert self.processor is not None
        finish = Normalise(
            self.processor.transform.spec, None if self.augment == BatchAugment() else self.augment
        )
        if self.stream is not None:
            return self._stream(Prepare(self._crop(), finish, self.collate(None), seed=self.seed, train=True))
        assert self.train_source is not None
        pixels = Whole(self.processor.transform) if self.cache_images else self._crop()
        prepare = Prepare(pixels, finish, self.collate(self.train_source), seed=self.seed, train=True)
        return self._loader(self.train_source, prepare, self.batch_size)

    def _crop(self) -> ToPixels:
        assert self.processor is not None
        whole = self.processor.transform.spec.fit == "aspect"
        crop = self.crop or (Crop(scale=(1, 1)) if whole else Crop())
        cut = TrainTransform(
            self.processor.transform.spec,
            scale=crop.scale,
            ratio=crop.ratio,
            flip=crop.flip,
            fast_decode=crop.fast_decode,
        )
        return cut if self.rand_augment is None else Changed(cut, self.rand_augment)

    def val_dataloader(self) -> list[ResumableLoader]:
        """One loader for each held-out split, in the order of `val_names`."""
        return [self._held_out(source) for source in self.val_sources.values()]

    def test_dataloader(self) -> list[ResumableLoader]:
        """One loader for each of `test_sources`."""
        return [self._held_out(source) for source in self.test_sources.values()]

    predict_dataloader = test_dataloader

    def _held_out(self, source: AnySource) -> ResumableLoader:
        assert self.processor is not None
        transform: ImageTransform = self.processor.transform
        finish = Normalise(self.processor.transform.spec)
        prepare = Prepare(Whole(transform), finish, self.collate(source), seed=self.seed, train=False)
        return self._loader(source, prepare, self.val_batch_size)

    def _loader(self, source: AnySource, prepare: Prepare, batch_size: int) -> ResumableLoader:
        assert self.processor is not None
        train = prepare.train
        overfit = train and bool(getattr(self.trainer, "overfit_batches", 0))  # the same batches every epoch
        cached = (
            CachedReader(source, prepare, self.processor.transform.spec.size) if self.cache_images else None
        )
        rank, world = self._processes()
        order = BatchOrder(
            len(source) if cached is None else len(cached),
            batch_size,
            shuffle=train and not overfit,
            last="keep" if not train else "drop" if self.drop_last else "share",
            seed=self.seed,
            rank=rank,
            world=world,
        )
        reads = MapReads(
            BatchReader(source, prepare) if cached is None else cached,
            order,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )
        loader = self._loader_of(order, reads, source.name)
        if cached is not None:
            loader.tally.add(cached.seen, cached.broken)
        return loader

    def _stream(self, prepare: Prepare) -> ResumableLoader:
        from mmzoo.data.sources.stream import ShardStream, StreamReads

        assert self.stream is not None
        rank, world = self._processes()
        order = BatchOrder(
            self.stream.samples, self.batch_size, last="drop", seed=self.seed, rank=rank, world=world
        )
        stream = ShardStream(self.source, prepare, order, pool=self.stream.pool)
        reads = StreamReads(stream, num_workers=self.num_workers, pin_memory=torch.cuda.is_available())
        return self._loader_of(order, reads, self.source)

    def _loader_of(self, order: BatchOrder, reads: Reads, name: str) -> ResumableLoader:
        self._loaders.append(ResumableLoader(order, reads, max_broken=self.max_broken, name=name))
        return self._loaders[-1]

    def teardown(self, stage: str) -> None:
        """Stop the workers of all loaders."""
        while self._loaders:
            self._loaders.pop().close()

    def _processes(self) -> tuple[int, int]:
        """This process and how many there are."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


class CaptionsData(PictureData):
    """Pictures with captions, for contrastive training: yields `CaptionBatch`.

    Class folders work too: the class's name is the caption.
    """

    _tokens: Tokens | None = None

    def check(self, source: Source) -> None:
        """Refuse a source whose first samples have no text at all."""
        if not any(source[i].texts for i in range(min(len(source), 100))):
            raise ZooError(f"{source.name}: no captions among its first samples; CaptionsData needs them.")

    def collate(self, source: Source | None) -> CaptionCollate:
        """Tokenise, with labels where the source has classes."""
        if self._tokens is None:
            assert self.processor is not None
            self._tokens = Tokens(self.processor)
        labelled = source is not None and source.classes is not None
        return CaptionCollate(self._tokens, with_labels=labelled, first=self.first_text)


class ClassificationData(PictureData):
    """Pictures with classes: yields `ClassBatch`."""

    def check(self, source: Source) -> None:
        """Refuse a source without classes, with one only, or with others than the training source."""
        if source.classes is None:
            raise ZooError(f"{source.name} has no classes; ClassificationData reads class folders.")
        if len(source.classes) < 2:
            raise ZooError(
                f"{source.name} has one class only ({source.classes[0]}); there is nothing to tell apart."
            )
        known = self.classes
        if known is not None and known != source.classes:
            odd = sorted(set(known) ^ set(source.classes))[:5]
            raise ZooError(
                f"{source.name} has other classes than the training data: {', '.join(odd)}, for example."
            )

    def collate(self, source: Source | None) -> ClassCollate:
        """Stack pictures and labels."""
        if source is None:
            raise UsageError(
                "streamed shards carry no classes; use CaptionsData, or class folders without stream."
            )
        return ClassCollate()
