"""Karpathy's JSON files of COCO, Flickr30k and Flickr8k: captions with splits.

Layout: `{"images": [{"filepath": "val2014", "filename": "x.jpg", "split": "test", "sentences": [{"raw":
".."}]}]}` (Karpathy and Fei-Fei, "Deep Visual-Semantic Alignments for Generating Image Descriptions", 2015).
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from mmzoo.data.sample import Sample
from mmzoo.data.sources.common import check_relative, choose_split, read_inside
from mmzoo.errors import ZooError

__all__ = ["KarpathyPicture", "KarpathySource", "karpathy_splits", "read_karpathy"]

RESTVAL = "restval"  # COCO's validation pictures that Karpathy adds to training


class KarpathyPicture(NamedTuple):
    """One picture of such a file.

    Attributes:
        image: Its path, without the folder where the pictures lie.
        split: As in the file.
        captions: In the order of the file.
        identity: Its place in the file.
        number: Its `cocoid`, by which results files name it; `imgid` where there is none (Flickr30k).
    """

    image: str
    split: str
    captions: tuple[str, ...]
    identity: int
    number: int


class KarpathySource:
    """Captions of one split, pictures beside the JSON file or in its `images/` folder.

    `split="train"` includes COCO's `restval`, as all published results on this split do.

    Args:
        file: The JSON file.
        split: `train`, `val` or `test`; None reads all of them.

    Raises:
        ZooError: Not such a file, or none of its pictures lies where they are expected.
        UsageError: Unknown split.
    """

    classes: tuple[str, ...] | None = None

    def __init__(self, file: str | Path, split: str | None = None) -> None:
        path = Path(file)
        self._records = read_karpathy(path, split)
        self.name = path.stem if split is None else f"{path.stem}:{split}"
        self.root, self._flat = self._find_pictures(path)

    def _find_pictures(self, path: Path) -> tuple[Path, bool]:
        """Folder of the pictures, and whether they lie in it without their `filepath`."""
        first = self._records[0].image
        tries = [(root, flat) for root in (path.parent, path.parent / "images") for flat in (False, True)]
        for root, flat in tries:
            if (root / (Path(first).name if flat else first)).is_file():
                return root.resolve(), flat
        raise ZooError(f"{path}: found no picture {first} in {path.parent} or {path.parent / 'images'}.")

    def __len__(self) -> int:
        return len(self._records)

    def texts_of(self, index: int) -> tuple[str, ...]:
        """The captions of a picture, which need not be there."""
        return self._records[index].captions

    def __getitem__(self, index: int) -> Sample:
        record = self._records[index]
        file = Path(record.image).name if self._flat else record.image
        ids = (record.identity,) * len(record.captions)
        return Sample(record.image, read_inside(self.root, file), record.captions, ids, (record.identity,))


def read_karpathy(file: str | Path, split: str | None = None) -> list[KarpathyPicture]:
    """The pictures of a split with their captions; the pictures themselves need not be there.

    Raises:
        ZooError: Not such a file, or no captions.
        UsageError: Unknown split.
    """
    path = Path(file)
    if split is not None:
        choose_split(split, karpathy_splits(path), path)
    wanted = {split, RESTVAL} if split == "train" else {split}
    records = [r for r in _load(path) if split is None or r.split in wanted]
    if not any(text.strip() for r in records for text in r.captions):
        raise ZooError(f"{path} holds no captions" + (f" in its split {split!r}." if split else "."))
    return records


def karpathy_splits(file: str | Path) -> tuple[str, ...]:
    """Splits of a Karpathy file in the order of the file; `restval` counts as `train`."""
    names = dict.fromkeys("train" if r.split == RESTVAL else r.split for r in _load(Path(file)))
    return tuple(names)


def _load(path: Path) -> list[KarpathyPicture]:
    if not path.is_file():
        raise ZooError(f"no captions file {path}.")
    return _parse(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)  # splits of one file are opened one after another; COCO's takes seconds to parse
def _parse(path: Path, _changed: int) -> list[KarpathyPicture]:
    try:
        images = json.loads(path.read_text(encoding="utf-8"))["images"]
        return [
            KarpathyPicture(
                check_relative(
                    "/".join(filter(None, (r.get("filepath"), r["filename"]))), f"{path}, images[{i}]"
                ),
                r.get("split", "train"),
                tuple(s["raw"] for s in r["sentences"]),
                i,
                int(r.get("cocoid", r.get("imgid", i))),
            )
            for i, r in enumerate(images)
        ]
    except ZooError:
        raise
    except json.JSONDecodeError as error:
        raise ZooError(f"{path}: broken JSON ({error.msg} at line {error.lineno}).") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ZooError(
            f"{path} is not a Karpathy captions file ({type(error).__name__}: {error}); expected "
            '{"images": [{"filename": "x.jpg", "split": "train", "sentences": [{"raw": "..."}]}]}.'
        ) from None
