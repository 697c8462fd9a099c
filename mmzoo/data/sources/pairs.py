"""NLVR2: sentences about two pictures each, in the official layout and in ALBEF's and LAVIS's lists."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mmzoo.data.sample import PairSample
from mmzoo.data.sources.annotations import Annotated, Pictures, load_records, parse_all

__all__ = ["VERDICTS", "read_nlvr2", "read_nlvr2_list"]

log = logging.getLogger(__name__)

VERDICTS = ("false", "true")
"""In the order of the labels, and of the logits of all published weights."""


def read_nlvr2(file: Path, images: str | Path | None = None) -> Annotated[PairSample]:
    """Open NLVR2's official files (`train.json`, `dev.json`, `test1.json` of github.com/lil-lab/nlvr), a record a line.

    The pictures of `dev-850-0-1` are `dev-850-0-img0.png` and `dev-850-0-img1.png`, those of training in numbered
    folders.

    Args:
        file: The annotations.
        images: Folder with the pictures, or with `dev/` and the like.

    Raises:
        ZooError: Not that layout, or no pictures.
    """

    def one(row: Any) -> PairSample:
        identifier = str(row["identifier"])
        split, group, pair, sentence = identifier.rsplit("-", 3)
        folder = f"{split}/{row['directory']}" if "directory" in row else split
        left, right = (f"{folder}/{split}-{group}-{pair}-img{side}.png" for side in (0, 1))
        return PairSample(
            identifier, b"", b"", str(row["sentence"]), _verdict(row.get("label")), f"{split}-{group}-{sentence}",
            (left, right),
        )  # fmt: skip

    rows = parse_all(
        file, load_records(file), one, '{"identifier": "dev-1-0-0", "sentence": "...", "label": "True"}'
    )
    return _opened(file, images, rows)


def read_nlvr2_list(file: Path, images: str | Path | None = None) -> Annotated[PairSample]:
    """Open a list of pairs as ALBEF and LAVIS publish them (`nlvr_dev.json`).

    Args:
        file: The list.
        images: Folder that the pictures' paths are relative to.

    Raises:
        ZooError: Not that layout, or no pictures.
    """
    count = -1

    def one(row: Any) -> PairSample:
        nonlocal count
        count += 1
        left, right = map(str, row["images"])
        # dev/dev-850-0-img0.png: the sentence's group is told by the set of eight pictures that it was written for
        stem = Path(left).stem.rsplit("-", 2)[0]
        sentence = str(row["sentence"])
        return PairSample(
            f"{Path(left).stem.rpartition('-')[0]}/{count}", b"", b"", sentence, _verdict(row.get("label")),
            f"{stem}: {sentence}", (left, right),
        )  # fmt: skip

    rows = parse_all(
        file, load_records(file), one, '{"images": ["a.png", "b.png"], "sentence": "...", "label": "True"}'
    )
    return _opened(file, images, rows)


def _opened(file: Path, images: str | Path | None, rows: list[PairSample]) -> Annotated[PairSample]:
    unlabelled = sum(row.label is None for row in rows)
    if unlabelled:
        log.warning("%s: %d of %d pairs have no published label.", file.name, unlabelled, len(rows))
    pictures = Pictures(file, images, (name for row in rows for name in row.image_keys))
    return Annotated(file.stem, rows, pictures, VERDICTS)


def _verdict(label: Any) -> int | None:
    """1 or 0 of `"True"`, `"false"`, true, 1; None where there is none."""
    if label is None or label == "":
        return None
    text = str(label).lower()
    if text not in ("true", "false", "1", "0"):
        raise ValueError(f"a label is True or False, not {label!r},")
    return int(text in ("true", "1"))
