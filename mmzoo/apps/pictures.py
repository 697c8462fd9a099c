"""Pictures that a person points at, and pictures of a data set, decoded batch by batch; broken ones are named."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mmzoo.data.reader import Broken
from mmzoo.data.sample import Sample, Source
from mmzoo.data.sources.common import IMAGE_SUFFIXES
from mmzoo.errors import UsageError, ZooError
from mmzoo.processing.image import BadImage, decode_image

__all__ = ["Files", "Loaded", "find_pictures", "none_readable", "read_batches", "read_some"]


class Loaded(NamedTuple):
    """Some samples of a source whose pictures could be decoded.

    Attributes:
        places: Their indices in the source.
        samples: The samples.
        images: Their pictures, RGB.
    """

    places: list[int]
    samples: list[Sample]
    images: list[Image.Image]


class Files:
    """Picture files as a `Source` without labels and texts; keys are the paths as given."""

    name = "pictures"
    classes = None

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        path = self.paths[index]
        return Sample(str(path), path.read_bytes(), (), (), (index,))


def find_pictures(patterns: Iterable[str | Path]) -> list[Path]:
    """Find the files that a list of files, folders and patterns means.

    Args:
        patterns: Files (taken whatever their name), folders (searched through for names that end like a
            picture's, hidden ones left out) and shell patterns (`**` goes through folders).

    Returns:
        Each file once, folders and patterns in the order of names. A file that does not exist is listed too, so
        that it is named with the unreadable ones instead of ending the run.

    Raises:
        UsageError: A folder or pattern holds no picture.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if _is_picture(file, path))
            if not files:
                raise UsageError(f"no pictures in {path} ({', '.join(sorted(IMAGE_SUFFIXES))}).")
        elif glob.has_magic(str(pattern)) and not path.exists():
            files = sorted(Path(name) for name in glob.glob(str(pattern), recursive=True))
            files = [file for file in files if file.is_file()]
            if not files:
                raise UsageError(f"no file matches {str(pattern)!r}.")
        else:
            files = [path]
        found.update(dict.fromkeys(files))
    return list(found)


def _is_picture(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return file.suffix.lower() in IMAGE_SUFFIXES and not hidden and file.is_file()


def read_batches(source: Source, batch_size: int, broken: list[Broken]) -> Iterator[Loaded]:
    """Decode a source in order.

    Args:
        source: Where the pictures are.
        batch_size: Samples per batch; batches hold fewer where pictures are broken.
        broken: Grows by each picture that cannot be read.

    Yields:
        Batches with at least one picture.

    Raises:
        ZooError: No picture at all could be read.
    """
    readable = 0
    for batch in read_some(source, range(len(source)), batch_size, broken):
        readable += len(batch.images)
        yield batch
    if not readable:
        raise ZooError(none_readable(source.name, broken))


def read_some(
    source: Source, places: Sequence[int], batch_size: int, broken: list[Broken]
) -> Iterator[Loaded]:
    """Decode some samples of a source, as `read_batches` does with all of them; there may be none that can be read.

    Args:
        source: Where the pictures are.
        places: Their indices.
        batch_size: Samples per batch.
        broken: Grows by each picture that cannot be read.

    Yields:
        Batches with at least one picture.
    """
    for start in range(0, len(places), batch_size):
        batch = Loaded([], [], [])
        for place in places[start : start + batch_size]:
            try:
                sample = source[place]
            except OSError as error:
                broken.append(
                    Broken(str(error.filename or f"{source.name}[{place}]"), error.strerror or str(error))
                )
                continue
            try:
                image = decode_image(sample.image)
            except BadImage as error:
                broken.append(Broken(sample.key, _reason(error)))
                continue
            batch.places.append(place)
            batch.samples.append(sample)
            batch.images.append(image)
        if batch.images:
            yield batch


def none_readable(name: str, broken: Sequence[Broken]) -> str:
    """The sentence for a source without a picture that can be read."""
    if not broken:
        return f"{name}: there are no pictures."
    first = broken[0]
    return f"none of {len(broken)} pictures could be read; the first, {first.key}: {first.reason}."


def _reason(error: BadImage) -> str:
    return str(error).removeprefix("the image ").rstrip(".")
