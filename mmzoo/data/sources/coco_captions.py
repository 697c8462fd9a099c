"""Captions in COCO's own layout: `captions_val2014.json`, and NoCaps' `nocaps_val_4500_captions.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from mmzoo.data.sample import Sample
from mmzoo.data.sources.annotations import Pictures, load_json, parse_all
from mmzoo.data.sources.common import stable_id
from mmzoo.errors import ZooError

__all__ = ["CocoCaptionsSource", "CocoPicture", "read_coco_captions"]

FOLDERS = ("train2014", "val2014", "test2014", "train2017", "val2017", "test2017", "train", "val", "test")
IMAGE = '{"images": [{"id": 1, "file_name": "x.jpg"}], ...}'
ANNOTATION = '{"annotations": [{"image_id": 1, "id": 2, "caption": "..."}], ...}'


class CocoPicture(NamedTuple):
    """One picture of such a file.

    Attributes:
        number: Its `id`, by which results files name it.
        file: Name of the picture's file.
        captions: In the order of the file; none where they are not published (`nocaps_val_image_info.json`).
        domain: NoCaps: `in-domain`, `near-domain` or `out-domain`.
    """

    number: int
    file: str
    captions: tuple[str, ...]
    domain: str | None


def read_coco_captions(file: str | Path) -> list[CocoPicture]:
    """Read a file in the layout of the COCO caption challenge (Chen et al., "Microsoft COCO Captions", 2015).

    Args:
        file: `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "id", "caption"}]}`. NoCaps (Agrawal et
            al., 2019) adds `domain` and `open_images_id` to each picture.

    Returns:
        The pictures in the order of the file.

    Raises:
        ZooError: Not that layout, two pictures of one id, or a caption of a picture that is not listed.
    """
    path = Path(file)
    content = load_json(path)
    if not isinstance(content, dict):
        raise ZooError(f"{path} is not in COCO's layout: expected {ANNOTATION}.")
    captions: dict[int, list[str]] = {}
    for number, *_ in parse_all(path, content.get("images"), _image, IMAGE):
        if number in captions:
            raise ZooError(f"{path}: two pictures have the id {number}.")
        captions[number] = []
    if "annotations" in content:
        for number, caption in parse_all(path, content["annotations"], _annotation, ANNOTATION):
            if number not in captions:
                raise ZooError(f"{path}: a caption is about picture {number}, which the file does not list.")
            captions[number].append(caption)
    return [
        CocoPicture(number, name, tuple(captions[number]), domain)
        for number, name, domain in map(_image, content["images"])
    ]


def _image(row: Any) -> tuple[int, str, str | None]:
    name = row["file_name"] if "file_name" in row else f"{row['open_images_id']}.jpg"
    return int(row["id"]), str(name), row.get("domain")


def _annotation(row: Any) -> tuple[int, str]:
    return int(row["image_id"]), str(row["caption"])


class CocoCaptionsSource:
    """Pictures with the captions of such a file.

    Args:
        file: As for `read_coco_captions`.
        images: Folder with the pictures, with or without `val2014/` and the like in it, or several joined by `+`. Left
            out: the file's own folder, or `images` in it.

    Raises:
        ZooError: Not that layout, no captions, or no pictures.
    """

    classes: tuple[str, ...] | None = None

    def __init__(self, file: str | Path, images: str | Path | None = None) -> None:
        path = Path(file)
        self.name = path.stem
        self._rows = read_coco_captions(path)
        if not any(text.strip() for row in self._rows for text in row.captions):
            raise ZooError(f"{path} holds no captions, only pictures; expected {ANNOTATION}.")
        self._pictures = Pictures(path, images, (row.file for row in self._rows), FOLDERS)

    def __len__(self) -> int:
        return len(self._rows)

    def texts_of(self, index: int) -> tuple[str, ...]:
        """The captions of a picture, which need not be there."""
        return self._rows[index].captions

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[index]
        identity = stable_id(row.number)
        ids = (identity,) * len(row.captions)
        return Sample(row.file, self._pictures.read(row.file), row.captions, ids, (identity,))
