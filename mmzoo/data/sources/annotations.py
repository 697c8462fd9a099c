"""Published annotation files: which data set a JSON file belongs to, its records, and where its pictures lie."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from mmzoo.data.sample import Annotation
from mmzoo.data.sources.common import check_relative, read_inside
from mmzoo.errors import ZooError
from mmzoo.paths import find_data

__all__ = [
    "KINDS",
    "Annotated",
    "Pictures",
    "expect",
    "load_json",
    "load_records",
    "parse_all",
    "recognise",
    "split_of",
]

T = TypeVar("T")
S = TypeVar("S", bound=Annotation)

HEAD = 2**16  # bytes of a file that are looked at to tell what it is
LOOKED_AT = 20  # records whose pictures are looked for when a file is opened: one of them may be missing
NAMED = 3
SPLIT_WORDS = ("train", "restval", "val", "valid", "validation", "dev", "test1", "test2", "test-dev", "test")

KINDS = {
    "easy-vqa": "the questions of easy-VQA",
    "vqa": "VQA's questions in the official layout",
    "vqa-answers": "VQA's answers in the official layout, which are read along with its questions",
    "vqa-list": "questions in a list, as ALBEF and LAVIS publish them",
    "visual-genome": "Visual Genome's questions and answers",
    "nlvr2": "NLVR2's pairs in the official layout",
    "nlvr2-list": "NLVR2's pairs in a list, as ALBEF and LAVIS publish them",
    "snli-ve": "SNLI-VE's sentences in the official layout",
    "snli-ve-list": "SNLI-VE's sentences in a list, as ALBEF and LAVIS publish them",
    "captions": "captions",
    "coco-captions": "captions in COCO's layout",
}
"""What can be recognised, and what to call it."""

# Tried in this order: the first whose words all stand as JSON keys at the beginning of the file.
_MARKS: tuple[tuple[str, frozenset[str]], ...] = tuple(
    (kind, frozenset(words.split()))
    for kind, words in (
        ("visual-genome", "qas"),
        ("vqa-answers", "answer_confidence"),
        ("vqa-answers", "multiple_choice_answer"),
        ("vqa", "questions question_id"),
        ("captions", "sentences"),
        ("coco-captions", "images file_name"),  # the captions themselves come after megabytes of pictures
        ("coco-captions", "images open_images_id"),
        ("coco-captions", "annotations caption"),
        ("nlvr2-list", "images sentence"),
        ("nlvr2", "identifier sentence"),
        ("snli-ve", "gold_label"),
        ("snli-ve-list", "image sentence label"),
        ("vqa-list", "image question"),
        ("captions", "caption"),
        ("captions", "captions"),
        ("captions", "image text"),
    )
)


def recognise(file: Path) -> str | None:
    """Tell which of `KINDS` a JSON file or a file of JSON lines is, by the keys at its beginning; None: none."""
    with file.open("rb") as opened:
        head = opened.read(HEAD).decode("utf-8", errors="replace")
    keys = set(re.findall(r'"([^"\\]{1,40})"\s*:', head))
    return next((kind for kind, marks in _MARKS if marks <= keys), None)


def split_of(file: Path) -> str | None:
    """The split that a file's name tells (`coco_val.json`, `v2_questions_train2014.json`), or None."""
    words = (re.sub(r"20\d\d$", "", word) for word in re.split(r"[_.]", file.stem))
    return next((word for word in words if word in SPLIT_WORDS), None)


def expect(file: Path, kinds: Sequence[str], use: str) -> str:
    """Tell which of some kinds a file is.

    Args:
        file: An annotation file.
        kinds: Those that can be read here.
        use: What reads the kinds that cannot, for the message.

    Raises:
        ZooError: It is of no known kind, or of another.
    """
    kind = recognise(file)
    if kind in kinds:
        assert kind is not None
        return kind
    wanted = "; ".join(KINDS[k] for k in kinds)
    if kind is None:
        held = "is empty" if not file.stat().st_size else "holds none of the known layouts"
        raise ZooError(f"{file} {held}. Looked for {wanted}.")
    raise ZooError(f"{file} holds {KINDS[kind]}. {use} reads {wanted}.")


def load_json(file: Path) -> Any:
    """Content of a JSON file; of one with a record a line, the list of them.

    Raises:
        ZooError: Broken JSON or not UTF-8; the message names the place.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ZooError(f"{file}: not UTF-8 text.") from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as whole:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        if len(lines) < 2 or not lines[0][1].rstrip().endswith("}"):  # not a record a line
            raise ZooError(f"{file}: broken JSON ({whole.msg} at line {whole.lineno}).") from None
    records = []
    for number, line in lines:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ZooError(f"{file}: broken JSON ({error.msg} at line {number}).") from None
    return records


def load_records(file: Path) -> Any:
    """Records of a JSON list or of a file with a record a line, be it only one.

    Raises:
        ZooError: As of `load_json`.
    """
    content = load_json(file)
    return [content] if isinstance(content, dict) else content


def parse_all(file: Path, rows: Any, parse: Callable[[Any], T], expected: str) -> list[T]:
    """Parse every record of a file.

    Args:
        file: For the message.
        rows: The records.
        parse: Makes one of them a row; its KeyError, TypeError, ValueError and the like mean a record that is not one.
        expected: A record as it should be.

    Raises:
        ZooError: No records, or one that is not as expected, named by its number.
    """
    if not isinstance(rows, list) or not rows:
        raise ZooError(f"{file} holds no records; expected a list of {expected}.")
    found = []
    for number, row in enumerate(rows):
        try:
            found.append(parse(row))
        except ZooError as error:
            raise ZooError(f"{file}, record {number}: {error}") from None
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            raise ZooError(
                f"{file}, record {number}: {type(error).__name__} {error}; expected {expected}, found "
                f"{json.dumps(row)[:80]}"
            ) from None
    return found


class Pictures:
    """Finds and reads the pictures that an annotation file names.

    A picture is looked for under its name as written, then under the last part of it alone, in each folder.

    Args:
        file: The annotation file; without `images` its folder and the folder `images` beside it are looked in.
        images: The folder with the pictures, or several joined by `+`.
        names: Those that the file names; one of the first must be there.
        folders: Further folders within the pictures' folder.

    Raises:
        ZooError: No such folder, none of the first pictures is there, or a name leads out of the folder.
    """

    def __init__(
        self, file: Path, images: str | Path | None, names: Iterable[str], folders: Sequence[str] = ()
    ) -> None:
        roots = [file.parent, file.parent / "images"]
        if images is not None:
            whole = find_data(images)
            roots = [whole] if whole.exists() else [find_data(part) for part in str(images).split("+")]
            for root in roots:
                if not root.is_dir():
                    raise ZooError(f"no folder of pictures at {root}.")
        self._roots = [root.resolve() for root in roots if root.is_dir()]
        self._folders = ("", *folders)
        first: list[str] = []
        for name in names:
            check_relative(name, str(file))
            if len(first) < LOOKED_AT and name not in first:
                first.append(name)
        if not any(self._find(name) for name in first):
            where = " or ".join(map(str, roots))
            said = ", ".join(first[:NAMED])
            raise ZooError(
                f"{file}: none of its pictures ({said}, ...) lies in {where}; set images to their folder."
            )

    def _find(self, name: str) -> tuple[Path, str] | None:
        tries = (
            (root, f"{folder}/{form}".lstrip("/"))
            for root in self._roots
            for form in (name, Path(name).name)
            for folder in self._folders
        )
        return next(((root, relative) for root, relative in tries if (root / relative).is_file()), None)

    def read(self, name: str) -> bytes:
        """Undecoded bytes of a picture.

        Raises:
            OSError: It is nowhere, or cannot be read.
        """
        found = self._find(name)
        if found is None:
            raise FileNotFoundError(2, "no such picture", str(self._roots[0] / name))
        return read_inside(*found)


class Annotated(Generic[S]):
    """What one annotation file says of pictures.

    Args:
        name: What to call it in messages.
        rows: Its samples, without their pictures.
        pictures: Where those are read from.
        classes: Names that the samples' labels index.
    """

    def __init__(
        self, name: str, rows: Sequence[S], pictures: Pictures, classes: tuple[str, ...] | None = None
    ) -> None:
        self.name = name
        self.classes = classes
        self._rows = list(rows)
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._rows)

    def told(self, index: int) -> S:
        """A sample without its pictures, which are not read."""
        return self._rows[index]

    def __getitem__(self, index: int) -> S:
        row = self._rows[index]
        return row.holding(*map(self._pictures.read, row.picture_keys))
