"""What can be searched: pictures, captions, and files of embeddings; each gives its vectors block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image
from torch import Tensor

from mmzoo.apps.embeddings import SUFFIXES, Embeddings, Kind, open_embeddings
from mmzoo.apps.labels import read_lines
from mmzoo.apps.opening import Opened, Progress, finite
from mmzoo.apps.pictures import Files, find_pictures, read_batches
from mmzoo.data.open import open_source
from mmzoo.data.reader import Broken
from mmzoo.data.sample import Source
from mmzoo.errors import UsageError, ZooError
from mmzoo.metrics.zeroshot import encode_texts
from mmzoo.processing.image import decode_image
from mmzoo.processing.processor import Processor

__all__ = [
    "Captions",
    "Pictures",
    "Rows",
    "Searched",
    "captions_at",
    "captions_of",
    "cosines",
    "cut_texts",
    "pictures_at",
]

SLAB = 4096
"""Captions embedded at once; sorted by length among each other."""


class Searched(Protocol):
    """A collection of pictures or texts with a vector each.

    Attributes:
        kind: Whether they are pictures or texts.
        name: What to call the collection.
        keys: Keys of the pictures, or the texts; grows while the blocks pass by, where pictures may be unreadable.
    """

    kind: Kind
    name: str
    keys: list[str]

    def __len__(self) -> int:
        """How many there are, unreadable ones included."""
        ...

    def blocks(
        self, opened: Opened, rows: int, broken: list[Broken], progress: Progress | None
    ) -> Iterator[Tensor]:
        """Vectors in the order of `keys`, at most `rows` at a time, float32 on the CPU."""
        ...

    def picture(self, place: int) -> Image.Image:
        """The picture at a place of `keys`.

        Raises:
            BadImage: It cannot be decoded.
            OSError: It cannot be read.
        """
        ...


class Pictures:
    """The pictures of a source, embedded as they are asked for.

    Args:
        source: Where they are.
        batch_size: Pictures per forward pass.
        name: What to call them; the source's name if left out.
    """

    kind: Kind = "image"

    def __init__(self, source: Source, batch_size: int, name: str | None = None) -> None:
        self.source, self.batch_size = source, batch_size
        self.name = name or source.name
        self.keys: list[str] = []
        self._places: list[int] = []

    def __len__(self) -> int:
        return len(self.source)

    def blocks(
        self, opened: Opened, rows: int, broken: list[Broken], progress: Progress | None = None
    ) -> Iterator[Tensor]:
        """A block per batch; `rows` bounds a batch as well."""
        for batch in read_batches(self.source, min(rows, self.batch_size), broken):
            pixels = opened.processor.images(batch.images).to(opened.device)
            vectors = finite(opened.model.encode_image(pixels), opened).float().cpu()
            self.keys += [sample.key for sample in batch.samples]
            self._places += batch.places
            yield vectors
            if progress is not None:
                progress(batch.places[-1] + 1, len(self))

    def picture(self, place: int) -> Image.Image:
        """Read a picture again."""
        return decode_image(self.source[self._places[place]].image)


class Captions:
    """Texts, embedded as they are asked for; of equal ones only the first is there.

    Args:
        texts: The texts.
        name: What to call them.
        batch_size: Texts per forward pass.
    """

    kind: Kind = "text"

    def __init__(self, texts: Sequence[str], name: str, batch_size: int) -> None:
        self.keys = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
        self.name, self.batch_size = name, batch_size
        if not self.keys:
            raise ZooError(f"{name} holds no captions.")

    def __len__(self) -> int:
        return len(self.keys)

    def blocks(
        self, opened: Opened, rows: int, broken: list[Broken], progress: Progress | None = None
    ) -> Iterator[Tensor]:
        """A block per slab of captions."""
        step = min(rows, SLAB)
        for start in range(0, len(self), step):
            slab = self.keys[start : start + step]
            vectors = encode_texts(
                opened.model, opened.processor, slab, batch_size=self.batch_size, device=opened.device
            )
            yield finite(vectors, opened).float().cpu()
            if progress is not None:
                progress(start + len(slab), len(self))

    def picture(self, place: int) -> Image.Image:
        """There is none."""
        raise FileNotFoundError(f"{self.name} holds texts")


class Rows:
    """The vectors of one kind in a file that `mmzoo embed` wrote; pictures are looked for where they were then.

    Raises:
        ZooError: The file holds none of that kind.
    """

    def __init__(self, file: Embeddings, kind: Kind) -> None:
        self.file, self.kind = file, kind
        self.name = file.path.name
        if not file.count(kind):
            wanted, there = ("pictures", "texts") if kind == "image" else ("texts", "pictures")
            raise ZooError(f"{file.path} holds {there} only, no {wanted} to search.")
        self.keys = file.keys(kind)

    def __len__(self) -> int:
        return len(self.keys)

    def check(self, model: str, weights_sha256: str) -> None:
        """Make sure that a model of that name and those weights made the vectors.

        Raises:
            ZooError: Another one did.
        """
        if self.file.weights_sha256 != weights_sha256:
            raise ZooError(
                f"{self.file.path} was made by {self.file.model} (weights {self.file.weights_sha256[:12]}), not by "
                f"{model} ({weights_sha256[:12]}); search it with that model, or embed again with this one."
            )

    def blocks(
        self, opened: Opened, rows: int, broken: list[Broken], progress: Progress | None = None
    ) -> Iterator[Tensor]:
        """The file's vectors."""
        done = 0
        each = math.prod(
            self.file.shape(self.kind)[:-1]
        )  # where pictures have several vectors, scores have too
        for vectors in self.file.blocks(self.kind, max(1, rows // each)):
            if not bool(vectors.isfinite().all()):
                raise ZooError(f"{self.file.path} holds numbers that are not finite; embed again.")
            yield vectors
            done += len(vectors)
            if progress is not None:
                progress(done, len(self))

    def picture(self, place: int) -> Image.Image:
        """Read the picture, if it still lies where its key says."""
        return decode_image(Path(self.keys[place]).read_bytes())


def pictures_at(places: Sequence[str | Path], batch_size: int) -> Searched:
    """Pictures to search: files, folders and patterns, or one file of embeddings.

    Raises:
        UsageError: A folder holds no picture, or a file of embeddings stands among other things.
        ZooError: The file of embeddings is damaged or holds no pictures.
    """
    files = [place for place in places if Path(place).suffix in SUFFIXES]
    if not files:
        name = str(places[0]) if len(places) == 1 else f"{places[0]} and {len(places) - 1} more"
        return Pictures(Files(find_pictures(places)), batch_size, name)
    if len(places) > 1:
        raise UsageError(f"--images: {files[0]} holds embeddings and is searched alone; leave the rest out.")
    return Rows(open_embeddings(files[0]), "image")


def captions_at(captions: str | Path | Sequence[str], batch_size: int) -> Searched:
    """Captions to search: a list, a text file, a data set with captions, or a file of embeddings.

    Raises:
        UsageError: No such file, or one that is not text.
        ZooError: There are no captions in it, or it is damaged.
    """
    if not isinstance(captions, (str, Path)):
        return Captions(captions, "captions", batch_size)
    path = Path(captions)
    if path.suffix in SUFFIXES:
        return Rows(open_embeddings(path), "text")
    if path.suffix == ".txt" or (path.is_file() and path.suffix not in (".jsonl", ".json", ".tar")):
        return Captions(read_lines(path), path.name, batch_size)
    source = open_source(captions)
    return Captions(captions_of(source), source.name, batch_size)


@runtime_checkable
class _KnowsTexts(Protocol):
    """A source whose captions can be had without its pictures."""

    def texts_of(self, index: int) -> tuple[str, ...]: ...


def captions_of(source: Source) -> list[str]:
    """All texts of a source in order; pictures that cannot be read have theirs left out, where they lie together."""
    found: list[str] = []
    for index in range(len(source)):
        if isinstance(source, _KnowsTexts):
            found += source.texts_of(index)
            continue
        try:
            found += source[index].texts
        except OSError:
            continue
    return found


def cut_texts(processor: Processor, texts: Sequence[str]) -> list[int]:
    """Places of the texts that are longer than the model reads."""
    if processor.text_spec is None or not texts:
        return []
    places: list[int] = []
    for start in range(0, len(texts), SLAB):
        slab = list(texts[start : start + SLAB])
        full = processor.texts(slab).keep.sum(1) >= processor.text_spec.context
        places += [start + i for i in full.nonzero().flatten().tolist() if processor.tokenizer.cuts(slab[i])]
    return places


def cosines(opened: Opened, kind: Kind, queries: Tensor, items: Searched, block: Tensor) -> Tensor:
    """Compare queries with a block of what is searched.

    Args:
        opened: The model that made both; where pictures have several vectors each, it knows how to compare them.
        kind: What the queries are.
        queries: (Q, E), or (Q, vectors, E).
        items: What the block is of.
        block: (n, E), or (n, vectors, E).

    Returns:
        Cosines (Q, n).

    Raises:
        ZooError: The vectors have different widths, or are pictures on both sides with several vectors each.
    """
    if queries.shape[-1] != block.shape[-1]:
        raise ZooError(
            f"{items.name} holds vectors of {block.shape[-1]} numbers, but {opened.name} makes {queries.shape[-1]}; "
            "embed again with this model."
        )
    if kind == items.kind:
        if queries.dim() != 2:
            raise ZooError(
                f"{opened.name} gives several vectors per picture, so it cannot compare pictures with pictures."
            )
        return queries @ block.T
    if kind == "image":
        similarity: Tensor = opened.model.similarity(queries, block)
        return similarity
    return opened.model.similarity(block, queries).T
