"""Opens questions, pairs of pictures and visual entailment by looking at what lies at a path."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

from mmzoo.data.open import EASY_VQA
from mmzoo.data.sample import (
    Annotation,
    EntailSample,
    EntailSource,
    PairSample,
    PairSource,
    QuestionSample,
    QuestionSource,
)
from mmzoo.data.sources.annotations import KINDS, expect, recognise, split_of
from mmzoo.data.sources.common import choose_split
from mmzoo.data.sources.easyvqa_tasks import QUESTION_SPLITS, EasyVQAQuestions
from mmzoo.data.sources.entailment import read_snli_ve, read_snli_ve_list
from mmzoo.data.sources.pairs import read_nlvr2, read_nlvr2_list
from mmzoo.data.sources.questions import read_official, read_question_list, read_visual_genome
from mmzoo.errors import UsageError, ZooError
from mmzoo.paths import find_data

__all__ = [
    "ENTAILMENT",
    "PAIRS",
    "QUESTIONS",
    "Task",
    "list_task_splits",
    "open_entailment",
    "open_pairs",
    "open_questions",
]

S = TypeVar("S", bound=Annotation)
C = TypeVar("C", bound=Annotation, covariant=True)

SUFFIXES = (".json", ".jsonl")


class _Told(Protocol[C]):
    """A source whose samples can be had without their pictures."""

    name: str
    classes: tuple[str, ...] | None

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> C: ...
    def told(self, index: int) -> C:
        """A sample without its pictures."""


class Task(NamedTuple):
    """What kind of annotation a task reads.

    Attributes:
        reader: What to call it in messages.
        kinds: Which of `KINDS`.
    """

    reader: str
    kinds: tuple[str, ...]


QUESTIONS = Task("QuestionsData", ("vqa", "vqa-list", "visual-genome"))
PAIRS = Task("PairsData", ("nlvr2", "nlvr2-list"))
ENTAILMENT = Task("EntailmentData", ("snli-ve", "snli-ve-list"))


def open_questions(
    path: str | Path,
    *,
    images: str | Path | None = None,
    split: str | None = None,
    single_weight: float = 0.5,
) -> QuestionSource:
    """Open questions about pictures, recognised by their content.

    | what lies there | source |
    | --- | --- |
    | VQA's questions (`v2_OpenEnded_mscoco_val2014_questions.json`), its answers beside them | `read_official` |
    | ALBEF's or LAVIS's list (`vqa_train.json`, `vg_qa.json`) | `read_question_list` |
    | Visual Genome's `question_answers.json` | `read_visual_genome` |
    | a folder of such files, one for each split | the split's |
    | a folder with `easyvqa.json`, or the name `easy-vqa` | the questions of easy-VQA |
    | several files joined by `+` | all of them as one |

    Args:
        path: A file, folder or name. Relative paths are also looked for among the data that mmzoo carries.
        images: Folder with the pictures, or several joined by `+`, all of which are looked in; left out: beside
            the file.
        split: A split's name, for easy-VQA and folders.
        single_weight: What a question counts in training that one person answered (Visual Genome: 0.5 in ALBEF,
            0.2 in LAVIS).

    Raises:
        ZooError: Nothing lies there, annotations of another kind, or none of the pictures is found.
        UsageError: Unknown split, or a split where there are none.
    """
    easy = _easy_vqa(path)
    if easy is not None:
        return EasyVQAQuestions(easy, split=split)

    def one(file: Path, folder: str | None) -> _Told[QuestionSample]:
        kind = expect(file, QUESTIONS.kinds, QUESTIONS.reader)
        if kind == "vqa":
            return read_official(file, folder)
        read = read_visual_genome if kind == "visual-genome" else read_question_list
        return read(file, folder, single_weight=single_weight)

    return _opened(path, images, split, QUESTIONS, one)


def open_pairs(path: str | Path, *, images: str | Path | None = None, split: str | None = None) -> PairSource:
    """Open sentences about pairs of pictures: NLVR2's official files (`dev.json`) or lists (`nlvr_dev.json`).

    Args:
        path: A file, several joined by `+`, or a folder of them, one for each split.
        images: As for `open_questions`.
        split: A split's name, for folders.

    Raises:
        ZooError: Nothing lies there, annotations of another kind, or none of the pictures is found.
        UsageError: Unknown split, or a split where there are none.
    """

    def one(file: Path, folder: str | None) -> _Told[PairSample]:
        kind = expect(file, PAIRS.kinds, PAIRS.reader)
        return (read_nlvr2 if kind == "nlvr2" else read_nlvr2_list)(file, folder)

    return _opened(path, images, split, PAIRS, one)


def open_entailment(
    path: str | Path, *, images: str | Path | None = None, split: str | None = None
) -> EntailSource:
    """Open sentences that pictures entail or contradict: SNLI-VE's official files (`snli_ve_dev.jsonl`) or lists.

    Args:
        path: A file, several joined by `+`, or a folder of them, one for each split.
        images: As for `open_questions`.
        split: A split's name, for folders.

    Raises:
        ZooError: Nothing lies there, annotations of another kind, or none of the pictures is found.
        UsageError: Unknown split, or a split where there are none.
    """

    def one(file: Path, folder: str | None) -> _Told[EntailSample]:
        kind = expect(file, ENTAILMENT.kinds, ENTAILMENT.reader)
        return (read_snli_ve if kind == "snli-ve" else read_snli_ve_list)(file, folder)

    return _opened(path, images, split, ENTAILMENT, one)


def list_task_splits(path: str | Path, task: Task) -> tuple[str, ...]:
    """Names of the splits that a task's data at a path has; empty where it is one undivided set.

    Args:
        path: As for the task's function above.
        task: `QUESTIONS`, `PAIRS` or `ENTAILMENT`.
    """
    if task is QUESTIONS and _easy_vqa(path) is not None:
        return QUESTION_SPLITS
    found = find_data(path)
    return tuple(_split_files(found, task)) if found.is_dir() else ()


def _easy_vqa(path: str | Path) -> Path | None:
    if str(path) in EASY_VQA and not Path(path).exists():
        return find_data("data/easyvqa")
    found = find_data(path)
    return found if (found / "easyvqa.json").is_file() else None


def _opened(
    path: str | Path,
    images: str | Path | None,
    split: str | None,
    task: Task,
    one: Callable[[Path, str | None], _Told[S]],
) -> _Told[S]:
    """Open a file, a folder's split, or several files as one."""
    found = find_data(path)
    if found.is_dir():
        return one(_of_split(path, found, split, task), None if images is None else str(images))
    if split is not None:
        raise UsageError(
            f"{path} has no splits, so {split!r} cannot be opened; leave the split out to read all of it."
        )
    files = [found] if found.exists() else [find_data(part) for part in str(path).split("+")]
    for file in files:
        if not file.is_file():
            raise ZooError(f"no annotations at {file}.")
    parts = [one(file, None if images is None else str(images)) for file in files]
    return parts[0] if len(parts) == 1 else _Joined(parts)


def _split_files(folder: Path, task: Task) -> dict[str, list[Path]]:
    """The folder's annotation files of a task, by the split that their names tell."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        known = file.suffix in SUFFIXES and file.is_file() and recognise(file) in task.kinds
        if known and (split := split_of(file)) is not None:
            found.setdefault(split, []).append(file)
    return found


def _of_split(path: str | Path, folder: Path, split: str | None, task: Task) -> Path:
    known = _split_files(folder, task)
    if not known:
        raise ZooError(
            f"{path}: no annotations of a split. Looked for files such as *_train.json with "
            f"{'; '.join(KINDS[kind] for kind in task.kinds)}."
        )
    if split is None:
        raise UsageError(f"{path} holds the splits {', '.join(known)}; say which one.")
    files = known[choose_split(split, tuple(known), path)]
    if len(files) > 1:
        raise UsageError(
            f"{path}: {' and '.join(f.name for f in files)} are both {split}; give the file itself."
        )
    return files[0]


class _Joined(Generic[S]):
    """The samples of several annotation files, one after the other."""

    def __init__(self, parts: Sequence[_Told[S]]) -> None:
        self.parts = tuple(parts)
        self.name = "+".join(part.name for part in parts)
        self.classes = parts[0].classes
        self._ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def _place(self, index: int) -> tuple[_Told[S], int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._ends, index)
        part = self.parts[number]
        return part, index - (self._ends[number] - len(part))

    def told(self, index: int) -> S:
        """A sample without its pictures, which are not read."""
        part, inner = self._place(index)
        return part.told(inner)

    def __getitem__(self, index: int) -> S:
        part, inner = self._place(index)
        return part[inner]
