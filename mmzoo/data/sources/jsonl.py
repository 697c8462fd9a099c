"""A folder with `captions.jsonl`: one picture and its captions a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmzoo.data.sample import Sample
from mmzoo.data.sources.common import as_captions, check_relative, read_inside, stable_id
from mmzoo.errors import ZooError

__all__ = ["JsonlSource"]

EXPECTED = '{"image": "a.jpg", "captions": ["..."], "id": ...}'


class JsonlSource:
    """Lines of `{"image": "a.jpg", "captions": ["..."], "id": ...}`, pictures relative to the file's folder.

    `id` is optional, a string or a number: lines with the same id show the same thing and are never each
    other's negatives. An empty list of captions, or blank ones, is a broken sample and counted as such when
    it is read.

    Args:
        path: The file, or the folder that holds `captions.jsonl`.

    Raises:
        ZooError: No such file, a line that is not such a record (with its number), a picture outside the
        folder, or
            no captions at all.
    """

    classes: tuple[str, ...] | None = None

    def __init__(self, path: str | Path) -> None:
        file = Path(path)
        if file.is_dir():
            file = file / "captions.jsonl"
        if not file.is_file():
            raise ZooError(f"no captions file {file}.")
        self.root = file.parent.resolve()
        self.name = file.parent.name
        self._records: list[tuple[str, tuple[str, ...], int]] = []
        with file.open("rb") as lines:
            for number, raw in enumerate(lines, 1):
                if raw.strip():
                    self._records.append(self._parse(raw, f"{file}, line {number}"))
        if not any(text.strip() for _, captions, _ in self._records for text in captions):
            raise ZooError(f"{file} holds no captions; expected lines like {EXPECTED}.")

    def _parse(self, raw: bytes, where: str) -> tuple[str, tuple[str, ...], int]:
        try:
            line = raw.decode("utf-8-sig")
            record: Any = json.loads(line)
        except UnicodeDecodeError:
            raise ZooError(f"{where}: not UTF-8 text.") from None
        except json.JSONDecodeError as error:
            raise ZooError(f"{where}: broken JSON ({error.msg} at column {error.colno}).") from None
        image = record.get("image") if isinstance(record, dict) else None
        captions = as_captions(record.get("captions")) if isinstance(record, dict) else None
        if not isinstance(image, str) or captions is None:
            raise ZooError(f"{where}: expected {EXPECTED}, found {line.strip()[:80]}")
        identity = record.get("id")
        return (
            check_relative(image, where),
            captions,
            len(self._records) if identity is None else stable_id(identity),
        )

    def __len__(self) -> int:
        return len(self._records)

    def texts_of(self, index: int) -> tuple[str, ...]:
        """The captions of a picture, which need not be there."""
        return self._records[index][1]

    def __getitem__(self, index: int) -> Sample:
        image, captions, identity = self._records[index]
        return Sample(
            image, read_inside(self.root, image), captions, (identity,) * len(captions), (identity,)
        )
