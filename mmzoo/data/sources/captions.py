"""Lists of captions as ALBEF, LAVIS and BLIP train on: a JSON list of pictures, each with a caption or several.

Pre-training has millions of records, so neither the file's parsed content nor a Python object per record is kept: the
list is parsed record by record, and its words lie in one block of bytes that worker processes share.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmzoo.data.sample import Sample
from mmzoo.data.sources.annotations import Pictures
from mmzoo.data.sources.common import as_captions, stable_id
from mmzoo.errors import ZooError

__all__ = ["CaptionListSource"]

EXPECTED = '{"image": "a.jpg", "caption": "..."}'
_BETWEEN = re.compile(r"[\s,]*")


class CaptionListSource:
    """Records of `{"image": "a.jpg", "caption": "...", "image_id": ...}` in one JSON list, or one a line.

    A caption may be a list of them, of which training draws one; RefCOCO+'s lists call it `text`. Records with the same
    `image_id`, or of the same picture where there is none, show the same thing and are never each other's negatives. A
    record without words is a broken sample and counted as such when it is read.

    Args:
        file: The list. Its pictures lie beside it or in the folder `images` there.

    Raises:
        ZooError: No such file, broken JSON, a record that is not such a one (with its number), no captions at all, or
            none of the first pictures is there.
    """

    classes: tuple[str, ...] | None = None

    def __init__(self, file: str | Path) -> None:
        path = Path(file)
        if not path.is_file():
            raise ZooError(f"no captions file {path}.")
        self.name = path.stem
        self._images, self._captions = _Words(), _Words()
        self._ids, self._first = (
            array("q"),
            array("q", [0]),
        )  # record i has the captions first[i] to first[i + 1]
        words = False
        for number, record in enumerate(_records(path)):
            image, captions, identity = _parse(record, f"{path}, record {number}")
            self._images.append(image)
            self._ids.append(stable_id(identity))
            for caption in captions:
                self._captions.append(caption)
                words = words or bool(caption.strip())
            self._first.append(len(self._captions))
        if not words:
            raise ZooError(f"{path} holds no captions; expected a list of records like {EXPECTED}.")
        self._pictures = Pictures(path, None, (self._images[i] for i in range(len(self))))

    def __len__(self) -> int:
        return len(self._ids)

    def texts_of(self, index: int) -> tuple[str, ...]:
        """The captions of a picture, which need not be there."""
        return tuple(self._captions[i] for i in range(self._first[index], self._first[index + 1]))

    def __getitem__(self, index: int) -> Sample:
        image, texts, identity = self._images[index], self.texts_of(index), self._ids[index]
        # several records may name one picture, and keys are unique
        key = f"{image}#{index}"
        return Sample(key, self._pictures.read(image), texts, (identity,) * len(texts), (identity,))


class _Words:
    """A list of strings in one block of bytes."""

    def __init__(self) -> None:
        self._block = bytearray()
        self._ends = array("q", [0])

    def append(self, text: str) -> None:
        self._block += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._block))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        return self._block[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogatepass")


def _records(file: Path) -> Iterator[Any]:
    """Records of a JSON list or of a file with one a line, parsed one at a time."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ZooError(f"{file}: not UTF-8 text.") from None
    decoder, end = json.JSONDecoder(), len(text.rstrip())
    listed = text.lstrip().startswith("[")
    if listed and not text.endswith("]", 0, end):
        raise ZooError(f"{file}: broken JSON (its list does not end).")
    end -= listed
    place = _BETWEEN.match(text, text.index("[") + 1 if listed else 0).end()  # type: ignore[union-attr]
    while place < end:
        try:
            record, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise ZooError(f"{file}: broken JSON ({error.msg} at line {error.lineno}).") from None
        yield record
        place = _BETWEEN.match(text, place).end()  # type: ignore[union-attr]


def _parse(record: Any, where: str) -> tuple[str, tuple[str, ...], Any]:
    """The picture's path, its captions, and what tells it from others."""
    told = record if isinstance(record, dict) else {}
    image, caption = told.get("image"), told.get("caption", told.get("text"))
    captions = (caption,) if isinstance(caption, str) else as_captions(caption)
    if not isinstance(image, str) or captions is None:
        raise ZooError(f"{where}: expected {EXPECTED}, found {json.dumps(record)[:80]}")
    return image, captions, told.get("image_id", image)
