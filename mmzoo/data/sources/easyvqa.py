"""easy-VQA's pictures with the captions that follow from its answers: "a blue circle" (`data/easyvqa`)."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from mmzoo.data.sample import Sample
from mmzoo.data.sources.atlas import cut_atlas
from mmzoo.data.sources.common import choose_split
from mmzoo.errors import UsageError, ZooError, nearest
from mmzoo.paths import find_data

__all__ = ["SPLITS", "EasyVQASource"]

SPLITS = ("train", "val", "left-out", "all")
"""`train` and `val` lack six of the 24 pairs of colour and shape; `left-out` is the test pictures of those six."""

_BY = ("pair", "colour", "shape")


class EasyVQASource:
    """Pictures of 64 px with one shape of one of eight colours.

    Pictures whose questions do not settle both (one in ten) are left out. Each picture has one text, "a blue
    circle", in training too: captions of one word would teach that what is red is no circle.

    Attributes:
        classes: `by="pair"`: all 24 pairs, "blue circle", whatever the split, so that a left-out pair
            competes with the 18 trained ones; `by="colour"` and `by="shape"`: the words.
        tiles: (N, 64, 64, 3) uint8 RGB, the split's pictures in order.
    """

    def __init__(self, path: str | Path = "data/easyvqa", *, split: str | None = None, by: str | None = None):
        """Read the index and cut the split's atlas.

        Args:
            path: Folder with `easyvqa.json`, `train.webp` and `test.webp`.
            split: One of `SPLITS`; `train` if left out. `all` is every training picture, left-out pairs
                included.
            by: `"pair"` (default), `"colour"` or `"shape"`: what a label is.

        Raises:
            ZooError: The folder or a file of it is missing or altered.
            UsageError: Unknown split or `by`.
        """
        split = choose_split(split or "train", SPLITS, path)
        by = by or "pair"
        if by not in _BY:
            raise UsageError(f"easy-VQA classes are by {', '.join(_BY)}, not {by!r}.{nearest(by, _BY)}")
        folder = find_data(path)
        if not (folder / "easyvqa.json").is_file():
            raise ZooError(f"{path} holds no easyvqa.json; easy-VQA lies in data/easyvqa of the repository.")
        index = json.loads((folder / "easyvqa.json").read_text(encoding="utf-8"))
        part = "train" if split in ("train", "all") else "test"
        pictures: list[str | None] = index["pictures"][part]
        tiles = cut_atlas(
            folder / f"{part}.webp",
            tile=index["tile"],
            columns=index["columns"],
            count=len(pictures),
            pixels=index["pixels"][part],
        )
        left_out = set(index["left_out"])
        chosen = [
            i
            for i, pair in enumerate(pictures)
            if pair is not None and (split == "all" or (pair in left_out) == (split == "left-out"))
        ]
        colours, shapes = index["colours"], index["shapes"]
        self._pairs = [f"{colour} {shape}" for colour in colours for shape in shapes]
        names = {"pair": self._pairs, "colour": colours, "shape": shapes}[by]
        self.name = f"easyvqa:{split}"
        self.classes: tuple[str, ...] = tuple(names)
        self.tiles = tiles[chosen]
        self._rows: list[tuple[str, str, int]] = []  # key, pair, label
        for i in chosen:
            pair = str(pictures[i])
            word = {"pair": pair, "colour": pair.split()[0], "shape": pair.split()[1]}[by]
            self._rows.append((f"{part}/{i}", pair, names.index(word)))

    def __len__(self) -> int:
        return len(self._rows)

    def caption(self, index: int) -> str:
        """The text of a picture, which is not made."""
        return f"a {self._rows[index][1]}"

    def __getitem__(self, index: int) -> Sample:
        key, pair, label = self._rows[index]
        pair_id = self._pairs.index(pair)
        return Sample(
            key, Image.fromarray(self.tiles[index]), (self.caption(index),), (pair_id,), (pair_id,), label
        )
