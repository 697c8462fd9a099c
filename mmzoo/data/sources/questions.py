"""Questions about pictures in the layouts in which they are published: VQA's, ALBEF's, Visual Genome's."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

from mmzoo.data.sample import QuestionSample
from mmzoo.data.sources.annotations import Annotated, Pictures, load_json, parse_all
from mmzoo.data.sources.common import stable_id
from mmzoo.errors import ZooError

__all__ = ["read_official", "read_question_list", "read_visual_genome"]

log = logging.getLogger(__name__)

ANNOTATORS = 10  # of VQA: a list that gives shares instead of answers has shares of so many
VG_FOLDERS = ("VG_100K", "VG_100K_2")


def read_official(file: Path, images: str | Path | None = None) -> Annotated[QuestionSample]:
    """Open VQA's questions in the official layout (visualqa.org), with the answers that lie beside them.

    `v2_OpenEnded_mscoco_val2014_questions.json` belongs to `v2_mscoco_val2014_annotations.json`; without that file (as
    for the test splits) nothing is answered.

    Args:
        file: The questions.
        images: COCO's folder, with or without `val2014/` and the like in it.

    Raises:
        ZooError: Not that layout, answers of another set, or no pictures.
    """
    content = load_json(file)
    subset = content.get("data_subtype") or _subset(file)
    # the two test sets of questions are about the same pictures
    folder = "test2015" if subset.startswith("test") else subset
    answers = _official_answers(file)
    rows = parse_all(
        file,
        content.get("questions"),
        lambda q: _official_row(q, folder, answers),
        '{"question_id": 1, "image_id": 2, "question": "..."}',
    )
    if answers:
        unanswered = sum(not row.answers for row in rows)
        if unanswered == len(rows):
            raise ZooError(
                f"{_answers_beside(file)} answers none of the questions of {file}: they belong to other data."
            )
        if unanswered:
            log.warning("%s: %d of %d questions have no answers.", file.name, unanswered, len(rows))
    pictures = Pictures(file, images, (row.image_key for row in rows))
    return Annotated(f"vqa:{subset}", rows, pictures)


def _subset(file: Path) -> str:
    return file.stem.removesuffix("_questions").rpartition("_")[2]


def _answers_beside(file: Path) -> Path:
    name = file.name.replace("OpenEnded_", "").replace("MultipleChoice_", "")
    return file.with_name(name.replace("questions", "annotations"))


def _official_answers(file: Path) -> dict[int, tuple[tuple[str, ...], str]]:
    """Question's number to what was said and the type of answer; empty where there is no such file."""
    beside = _answers_beside(file)
    if beside == file or not beside.is_file():
        log.info("%s: no answers at %s.", file.name, beside.name)
        return {}

    def one(row: Any) -> tuple[int, tuple[tuple[str, ...], str]]:
        said = tuple(str(answer["answer"]) for answer in row["answers"])
        return int(row["question_id"]), (said, str(row.get("answer_type", "")))

    content = load_json(beside)
    rows = content.get("annotations") if isinstance(content, dict) else None
    expected = '{"question_id": 1, "answer_type": "other", "answers": [{"answer": "..."}]}'
    return dict(parse_all(beside, rows, one, expected))


def _official_row(row: Any, folder: str, answers: dict[int, tuple[tuple[str, ...], str]]) -> QuestionSample:
    number = int(row["question_id"])
    said, kind = answers.get(number, ((), ""))
    picture = f"{folder}/COCO_{folder}_{int(row['image_id']):012}.jpg"
    return _sample(f"vqa/{number}", str(row["question"]), said, number, picture, kind=kind)


def read_question_list(
    file: Path, images: str | Path | None = None, *, single_weight: float = 0.5
) -> Annotated[QuestionSample]:
    """Open a list of questions as ALBEF and LAVIS publish them (`vqa_train.json`, `vg_qa.json`).

    Records are `{"image": "train2014/x.jpg", "question": "...", "answer": ["a", "a", "b"], "question_id": 1}`, repeats
    being votes. `answer` may be one string (Visual Genome's), and a list of `weights` may say what each answer counts.

    Args:
        file: The list.
        images: Folder that the pictures' paths are relative to.
        single_weight: What a question counts that has one string for an answer.

    Raises:
        ZooError: Not that layout, or no pictures.
    """

    def one(row: Any) -> QuestionSample:
        picture, question, said = (
            str(row["image"]),
            str(row["question"]),
            row.get("answer", row.get("answers", [])),
        )
        number = row.get("question_id")
        identity = stable_id(f"{picture}: {question}") if number is None else int(number)
        key = f"{row.get('dataset', 'vqa')}/{identity}"
        single = isinstance(said, str)
        said = [said] if single else said
        if not all(isinstance(answer, str) for answer in said):
            raise TypeError("answers are strings,")
        shares = row.get("weights", row.get("weight"))
        if isinstance(shares, list):
            return _weighted(key, question, said, shares, identity, picture)
        return _sample(
            key, question, tuple(said), identity, picture,
            kind=str(row.get("answer_type", "")), weight=single_weight if single else 1.0,
        )  # fmt: skip

    rows = parse_all(file, load_json(file), one, '{"image": "x.jpg", "question": "...", "answer": ["..."]}')
    return Annotated(file.stem, rows, Pictures(file, images, (row.image_key for row in rows), VG_FOLDERS))


def read_visual_genome(
    file: Path, images: str | Path | None = None, *, single_weight: float = 0.5
) -> Annotated[QuestionSample]:
    """Open Visual Genome's `question_answers.json`.

    Args:
        file: The list of pictures with their `qas`.
        images: Folder with the pictures, or with `VG_100K` and `VG_100K_2`.
        single_weight: What a question counts: one person answered it, and in the words of a sentence.

    Raises:
        ZooError: Not that layout, or no pictures.
    """

    def one(row: Any) -> list[QuestionSample]:
        return [
            _sample(
                f"vg/{int(qa['qa_id'])}", str(qa["question"]), (str(qa["answer"]),), int(qa["qa_id"]),
                f"{int(qa.get('image_id', row.get('id', row.get('image_id'))))}.jpg", weight=single_weight,
            )
            for qa in row["qas"]
        ]  # fmt: skip

    expected = '{"id": 1, "qas": [{"qa_id": 2, "question": "...", "answer": "..."}]}'
    rows = [sample for group in parse_all(file, load_json(file), one, expected) for sample in group]
    if not rows:
        raise ZooError(f"{file} holds pictures, but not one question.")
    return Annotated(file.stem, rows, Pictures(file, images, (row.image_key for row in rows), VG_FOLDERS))


def _sample(
    key: str,
    question: str,
    said: tuple[str, ...],
    number: int,
    picture: str,
    *,
    kind: str = "",
    weight: float = 1.0,
) -> QuestionSample:
    """A question whose annotators said so, blank answers left out."""
    votes = Counter(answer for answer in said if answer.strip())
    total = sum(votes.values())
    weights = tuple(weight * count / total for count in votes.values())
    return QuestionSample(
        key, b"", question, tuple(votes), tuple(votes.values()), weights, number, picture, kind
    )


def _weighted(
    key: str, question: str, answers: list[str], shares: list[float], number: int, picture: str
) -> QuestionSample:
    """A question with shares for answers."""
    if len(shares) != len(answers) or len(set(answers)) < len(answers):
        raise ValueError("weights are one for each of different answers,")
    votes = tuple(max(1, round(ANNOTATORS * float(share))) for share in shares)
    return QuestionSample(
        key, b"", question, tuple(answers), votes, tuple(map(float, shares)), number, picture
    )
