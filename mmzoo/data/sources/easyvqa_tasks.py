"""More of easy-VQA than its captions: its questions, and captions that are right or wrong by one word."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mmzoo.data.sample import QuestionSample, Sample
from mmzoo.data.sources.atlas import cut_atlas
from mmzoo.data.sources.common import choose_split
from mmzoo.data.sources.easyvqa import EasyVQASource
from mmzoo.errors import ZooError
from mmzoo.paths import find_data

__all__ = ["MATCH_SPLITS", "QUESTION_SPLITS", "EasyVQAMatches", "EasyVQAQuestions", "hard_captions"]

QUESTION_SPLITS = ("train", "val")
"""The package's training and test part: 38,575 questions about 4,000 pictures and 9,673 about 1,000 others."""

MATCH_SPLITS = ("val-match", "left-out-match")
"""Pictures of `val` and `left-out`, each with a right and a wrong caption."""

_PARTS = {"train": "train", "val": "test"}


class EasyVQAQuestions:
    """Questions about coloured shapes, each with one answer of thirteen.

    The pictures of the pairs that the captions leave out are among them, in training too. Their `kind` is `"yes/no"` or
    `"open"`, which are told apart since many a yes/no question can be answered without looking.

    Attributes:
        classes: The thirteen answers, in the package's order.
    """

    def __init__(self, path: str | Path = "data/easyvqa", *, split: str | None = None) -> None:
        """Read the index and cut the split's atlas.

        Args:
            path: Folder with `easyvqa.json`, `questions.json` and the two pictures.
            split: One of `QUESTION_SPLITS`; `train` if left out.

        Raises:
            ZooError: The folder or a file of it is missing or altered.
            UsageError: Unknown split.
        """
        split = choose_split(split or "train", QUESTION_SPLITS, path)
        part = _PARTS[split]
        folder = find_data(path)
        for file in ("easyvqa.json", "questions.json"):
            if not (folder / file).is_file():
                raise ZooError(f"{path} holds no {file}; easy-VQA lies in data/easyvqa of the repository.")
        index = json.loads((folder / "easyvqa.json").read_text(encoding="utf-8"))
        asked = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
        self.name = f"easyvqa:{split}"
        self.classes: tuple[str, ...] | None = tuple(asked["answers"])
        self._part = part
        self._questions: list[str] = asked["questions"]
        self._tiles: npt.NDArray[np.uint8] = cut_atlas(
            folder / f"{part}.webp",
            tile=index["tile"],
            columns=index["columns"],
            count=len(asked[part]),
            pixels=index["pixels"][part],
        )
        self._rows = [
            (picture, question, answer)
            for picture, numbers in enumerate(asked[part])
            for question, answer in zip(numbers[::2], numbers[1::2], strict=True)
        ]

    def __len__(self) -> int:
        return len(self._rows)

    def told(self, index: int) -> QuestionSample:
        """A question without its picture."""
        picture, question, answer = self._rows[index]
        assert self.classes is not None
        said = self.classes[answer]
        kind = "yes/no" if said in ("yes", "no") else "open"
        return QuestionSample(
            f"{self._part}/{picture}/{question}", b"", self._questions[question], (said,), (1,), (1.0,), index,
            f"{self._part}/{picture}", kind,
        )  # fmt: skip

    def __getitem__(self, index: int) -> QuestionSample:
        return self.told(index)._replace(image=Image.fromarray(self._tiles[self._rows[index][0]]))


def hard_captions(caption: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """The captions that are wrong by one word: another colour, or another shape.

    Args:
        caption: `"a blue circle"`.
        known: Pairs to choose from, `"blue circle"`, as in `EasyVQASource.classes`.

    Returns:
        Other colours first, each group in the order of `known`.
    """
    colour, shape = caption.removeprefix("a ").split()
    pairs = [pair.split() for pair in known]
    others = [(c, shape) for c, s in pairs if s == shape and c != colour]
    others += [(colour, s) for c, s in pairs if c == colour and s != shape]
    return tuple(f"a {c} {s}" for c, s in others)


class EasyVQAMatches:
    """Each picture twice: with its caption, and with one that is wrong by one word, by turns its colour or its shape.

    Whether a caption fits is told by its label, and by the ids as everywhere. A model that does not look gets half of
    them right. The wrong captions of `val-match` are of pairs that are trained on, so none is told by being unheard-of;
    those of `left-out-match` are of any pair, and there the right ones are the unheard-of.

    Attributes:
        classes: `("wrong", "right")`.
    """

    classes: tuple[str, ...] | None = ("wrong", "right")

    def __init__(self, path: str | Path = "data/easyvqa", *, split: str) -> None:
        """Read the pictures of a split.

        Args:
            path: Folder as for `EasyVQASource`.
            split: One of `MATCH_SPLITS`.

        Raises:
            ZooError: The folder or a file of it is missing or altered.
            UsageError: Unknown split.
        """
        of = choose_split(split, MATCH_SPLITS, path).removesuffix("-match")
        self._pictures = EasyVQASource(path, split=of)
        self.name = f"easyvqa:{split}"
        held = map(self._pictures.caption, range(len(self._pictures)))
        self._pairs = self._pictures.classes
        self._known = (
            tuple(sorted({text.removeprefix("a ") for text in held})) if of == "val" else self._pairs
        )

    def __len__(self) -> int:
        return 2 * len(self._pictures)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        sample = self._pictures[index // 2]
        (text,) = sample.texts
        right = index % 2 == 0
        if not right:
            text = self._wrong(text, index // 2)
        about = self._pairs.index(text.removeprefix("a "))
        return sample._replace(
            key=f"{sample.key}/{'right' if right else 'wrong'}",
            texts=(text,),
            text_ids=(about,),
            label=int(right),
        )

    def _wrong(self, text: str, turn: int) -> str:
        options = hard_captions(text, self._known)
        shape = text.split()[-1]
        kind = [option for option in options if (option.split()[-1] == shape) == (turn % 2 == 0)]
        return kind[turn // 2 % len(kind)]
