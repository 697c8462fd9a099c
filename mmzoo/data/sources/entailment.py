"""SNLI-VE: sentences that a picture entails, contradicts or leaves open."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mmzoo.data.sample import EntailSample
from mmzoo.data.sources.annotations import Annotated, Pictures, load_records, parse_all
from mmzoo.errors import ZooError

__all__ = ["VERDICTS", "read_snli_ve", "read_snli_ve_list"]

log = logging.getLogger(__name__)

VERDICTS = ("contradiction", "neutral", "entailment")
"""In the order of the labels, which is that of the logits of ALBEF's and LAVIS's published weights."""

UNDECIDED = ("-", "")  # SNLI's gold label where its annotators did not agree
FLICKR_KEYS = ("Flickr30K_ID", "Flickr30kID", "Flikr30kID")


def read_snli_ve(file: Path, images: str | Path | None = None) -> Annotated[EntailSample]:
    """Open SNLI-VE's official files (`snli_ve_dev.jsonl` of github.com/necla-ml/SNLI-VE), a record a line.

    Args:
        file: The annotations.
        images: Flickr30k's folder of pictures.

    Raises:
        ZooError: Not that layout, or no pictures.
    """

    def one(row: Any) -> EntailSample:
        picture = next((str(row[key]) for key in FLICKR_KEYS if key in row), None)
        if picture is None:
            raise KeyError("Flickr30K_ID")
        key = str(row.get("pairID", f"{picture}: {row['sentence2']}"))
        return EntailSample(key, b"", str(row["sentence2"]), _verdict(row["gold_label"]), _jpg(picture))

    return _opened(file, images, one, '{"Flickr30K_ID": "1", "sentence2": "...", "gold_label": "neutral"}')


def read_snli_ve_list(file: Path, images: str | Path | None = None) -> Annotated[EntailSample]:
    """Open a list of sentences as ALBEF and LAVIS publish them (`ve_dev.json`).

    Args:
        file: The list.
        images: Flickr30k's folder of pictures.

    Raises:
        ZooError: Not that layout, or no pictures.
    """

    def one(row: Any) -> EntailSample:
        picture, sentence = _jpg(str(row["image"])), str(row["sentence"])
        return EntailSample(f"{picture}: {sentence}", b"", sentence, _verdict(row["label"]), picture)

    return _opened(file, images, one, '{"image": "1", "sentence": "...", "label": "neutral"}')


def _opened(file: Path, images: str | Path | None, one: Any, expected: str) -> Annotated[EntailSample]:
    rows = parse_all(file, load_records(file), one, expected)
    decided = [row for row in rows if row.label is not None]
    if not decided:
        raise ZooError(f"{file}: not one of its {len(rows)} sentences has a label.")
    if len(decided) < len(rows):
        log.warning(
            "%s: left out %d of %d sentences, on whose label the annotators did not agree.",
            file.name, len(rows) - len(decided), len(rows),
        )  # fmt: skip
    return Annotated(file.stem, decided, Pictures(file, images, (row.image_key for row in decided)), VERDICTS)


def _jpg(name: str) -> str:
    return name if Path(name).suffix else f"{name}.jpg"


def _verdict(label: Any) -> int | None:
    if label in UNDECIDED:
        return None
    if label not in VERDICTS:
        raise ValueError(f"a label is {', '.join(VERDICTS)}, not {label!r},")
    return VERDICTS.index(label)
