"""What captions are judged by: pictures with references, under the numbers that results files call them by.

A results file is the COCO challenge's: `[{"image_id": 391895, "caption": "a man riding a motorcycle"}, ...]`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmzoo.data.open import open_source, recognise_source
from mmzoo.data.sample import Source
from mmzoo.data.sources.annotations import load_records, parse_all
from mmzoo.data.sources.coco_captions import CocoCaptionsSource, read_coco_captions
from mmzoo.data.sources.karpathy import KarpathySource, read_karpathy
from mmzoo.errors import UsageError, ZooError
from mmzoo.files import atomic_path

__all__ = ["Described", "open_described", "read_results", "write_results"]

PictureId = int | str

COCO_NAME = re.compile(r"COCO_\w+_(\d{12})$")
RESULT = '{"image_id": 1, "caption": "..."}'


class Described(NamedTuple):
    """Pictures and what people said of them.

    Attributes:
        name: What to call the set.
        source: The pictures, the i-th being that of `ids[i]`; None where they are not needed.
        ids: What a results file calls each: its number in COCO's, NoCaps' and Karpathy's files and in COCO's names of
            files, else its name.
        references: Of each, blank ones left out.
        domains: NoCaps' domain of each, None elsewhere.
    """

    name: str
    source: Source | None
    ids: list[PictureId]
    references: list[tuple[str, ...]]
    domains: list[str | None]


def open_described(
    path: str | Path,
    *,
    images: str | Path | None = None,
    split: str | None = None,
    pictures: bool = True,
) -> Described:
    """Open pictures with references.

    Args:
        path: COCO's or NoCaps' captions, or what else `open_source` opens.
        images: Folder with the pictures of COCO's and NoCaps' captions; left out: beside them.
        split: A split's name, as for `open_source`.
        pictures: Whether the pictures must be there.

    Raises:
        ZooError: Nothing lies there, nothing that can be recognised, no captions, or no pictures.
        UsageError: Unknown split, or `images` where the data says itself where they are.
    """
    kind, file = recognise_source(path, split)
    source: Source | None
    if images is not None and kind != "coco":
        raise UsageError(
            f"{path}: 'images' belongs to COCO's and NoCaps' captions; these name their pictures."
        )
    if kind == "coco":
        rows = read_coco_captions(file)
        source = CocoCaptionsSource(file, images) if pictures else None
        found = Described(
            file.stem, source, [r.number for r in rows], [r.captions for r in rows], [r.domain for r in rows]
        )
    elif kind == "karpathy":
        told = read_karpathy(file, split)
        source = KarpathySource(file, split) if pictures else None
        found = Described(
            file.stem, source, [r.number for r in told], [r.captions for r in told], [None] * len(told)
        )
    elif kind == "list" and not pictures:
        found = _listed(file)
    else:
        found = _any(open_source(path, split=split))
    blank = [tuple(text for text in texts if text.strip()) for texts in found.references]
    if not any(blank):
        raise ZooError(f"{path} holds no captions, so there is nothing to compare with.")
    twice = len(found.ids) - len(set(found.ids))
    if twice:
        raise ZooError(
            f"{path} names {twice:,} pictures more than once, so captions of them cannot be told apart; give a record "
            "per picture with a list of captions."
        )
    return found._replace(references=blank)


def _any(source: Source) -> Described:
    """Any source: its samples' keys are the names."""
    samples = [source[i] for i in range(len(source))]
    return Described(
        source.name,
        source,
        [_number(s.key) for s in samples],
        [s.texts for s in samples],
        [None] * len(samples),
    )


def _listed(file: Path) -> Described:
    """ALBEF's and LAVIS's lists, whose pictures are not needed."""

    def one(row: Any) -> tuple[str, tuple[str, ...]]:
        texts = row.get("caption", row.get("text"))
        return str(row["image"]), (texts,) if isinstance(texts, str) else tuple(map(str, texts))

    rows = parse_all(file, load_records(file), one, '{"image": "a.jpg", "caption": ["..."]}')
    ids = [_number(image) for image, _ in rows]
    return Described(file.stem, None, ids, [texts for _, texts in rows], [None] * len(rows))


def _number(key: str) -> PictureId:
    """The number in a name of COCO's (`val2014/COCO_val2014_000000391895.jpg`), else the name."""
    name = key.rpartition("#")[0] or key  # lists number their records
    known = COCO_NAME.search(Path(name).stem)
    return int(known[1]) if known else name


def read_results(file: str | Path) -> dict[PictureId, str]:
    """Read captions in the COCO challenge's format.

    Args:
        file: A JSON list of `{"image_id": 1, "caption": "..."}`, or a file with a record a line.

    Returns:
        Picture to caption, in the order of the file.

    Raises:
        ZooError: No such file, not that format, or two captions of one picture.
    """
    path = Path(file)
    if not path.is_file():
        raise ZooError(f"no results file {path}.")
    found: dict[PictureId, str] = {}
    for number, caption in parse_all(path, load_records(path), _result, RESULT):
        if number in found:
            raise ZooError(f"{path} has two captions of picture {number}; a results file has one of each.")
        found[number] = caption
    return found


def _result(row: Any) -> tuple[PictureId, str]:
    number, caption = row["image_id"], row["caption"]
    if isinstance(number, bool) or not isinstance(number, int | str) or not isinstance(caption, str):
        raise TypeError("image_id is a number or a name, and caption a text,")
    return number, caption


def write_results(captions: Mapping[PictureId, str], file: str | Path) -> None:
    """Write captions in the COCO challenge's format, all or nothing.

    Args:
        captions: Picture to caption.
        file: Where to.
    """
    rows = [{"image_id": number, "caption": caption} for number, caption in captions.items()]
    with atomic_path(Path(file)) as part:
        part.write_text(json.dumps(rows, ensure_ascii=False) + "\n", encoding="utf-8")
