"""Closed lists of answers, which a classifier's outputs stand for, and what a question's answers are worth on them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from mmzoo.data.sample import QuestionSample, QuestionSource
from mmzoo.errors import ZooError
from mmzoo.paths import find_data
from mmzoo.processing.answers import normalise_answer

__all__ = ["AT_LEAST", "AnswerList", "frequent_answers", "read_answers"]

AT_LEAST = 9  # annotated so often, an answer is on ViLT's list of 3,129 for VQAv2
AGREE = 3  # so many votes make an answer fully right, by the official accuracy


class AnswerList:
    """Answers in the order of a classifier's outputs.

    An annotated answer is looked up as written, then normalised as the official accuracy does it, since published lists
    hold normalised answers.

    Args:
        texts: A different answer each.

    Raises:
        ZooError: The list is empty or names an answer twice.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = tuple(texts)
        if not self.texts:
            raise ZooError("the list of answers is empty.")
        twice = [text for text, count in Counter(self.texts).items() if count > 1]
        if twice:
            raise ZooError(f"the list of answers names {twice[0]!r} twice; each stands for one output.")
        self._written = {text: i for i, text in enumerate(self.texts)}
        self._normalised: dict[str, int] = {}
        for i, text in enumerate(self.texts):
            self._normalised.setdefault(normalise_answer(text), i)

    def __len__(self) -> int:
        return len(self.texts)

    def find(self, answer: str) -> int | None:
        """Which output an answer is, or None."""
        found = self._written.get(answer)
        return self._normalised.get(normalise_answer(answer)) if found is None else found

    def worth(self, sample: QuestionSample, measure: Literal["votes", "weights"]) -> dict[int, float]:
        """What each output is worth for a question, those worth nothing left out.

        Args:
            sample: With its annotators' answers.
            measure: `"votes"`: min(votes / 3, 1), the official accuracy of giving this answer (of fewer than three
                annotators, their share). `"weights"`: the answer's weight.
        """
        votes: Counter[int] = Counter()
        weights: dict[int, float] = {}
        for answer, count, weight in zip(sample.answers, sample.votes, sample.weights, strict=True):
            place = self.find(answer)
            if place is not None:
                votes[place] += count
                weights[place] = weights.get(place, 0.0) + weight
        if measure == "weights":
            return weights
        enough = min(AGREE, sum(sample.votes))
        return {place: min(count / enough, 1.0) for place, count in votes.items()}

    def knows(self, sample: QuestionSample) -> bool:
        """Whether any of a question's answers is on the list."""
        return any(self.find(answer) is not None for answer in sample.answers)


def frequent_answers(source: QuestionSource, at_least: int = AT_LEAST) -> AnswerList:
    """Collect the answers that are the most common one of at least so many questions, the most frequent first.

    Args:
        source: Usually the training data.
        at_least: Fewer questions leave an answer out. 9 is what VQAv2's lists of about 3,129 answers were made with
            (from training and validation together).

    Raises:
        ZooError: No answer is that frequent.
    """
    counts: Counter[str] = Counter()
    for index in range(len(source)):
        sample = source.told(index)
        if sample.answers:
            most = max(range(len(sample.answers)), key=sample.votes.__getitem__)
            counts[normalise_answer(sample.answers[most])] += 1
    kept = sorted((text for text in counts if counts[text] >= at_least), key=lambda t: (-counts[t], t))
    if not kept:
        raise ZooError(
            f"{source.name}: no answer is the most common one of {at_least} questions, so there is no list to choose "
            "from; give answers, a file with the list."
        )
    return AnswerList(kept)


def read_answers(path: str | Path) -> AnswerList:
    """Read a closed list in any of the forms in which they are published.

    A JSON list (ALBEF's `answer_list.json`), a JSON object from answer to number (`trainval_ans2label.json`) or from
    number to answer, either of them maybe under `label2id` or `id2label` (a transformers `config.json`), or one answer
    a line.

    Args:
        path: The file.

    Raises:
        ZooError: No such file, or none of these forms.
    """
    file = find_data(path)
    if not file.is_file():
        raise ZooError(f"no list of answers at {path}.")
    try:
        text = file.read_text(encoding="utf-8-sig")
        content: Any = json.loads(text) if file.suffix == ".json" else text.splitlines()
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ZooError(f"{path} is not a list of answers: {error}.") from None
    if isinstance(content, dict):
        content = _by_number(content.get("id2label") or content.get("label2id") or content)
    if not isinstance(content, list) or not all(isinstance(answer, str) for answer in content):
        raise ZooError(
            f'{path} is not a list of answers; expected ["yes", ...], {{"yes": 0, ...}} or one answer a line.'
        )
    return AnswerList([answer for answer in content if answer.strip()])


def _by_number(table: dict[str, Any]) -> list[str] | None:
    """Answers in the order of their numbers, which must be 0 to N - 1; None for any other table."""
    pairs: Iterable[tuple[Any, Any]] = table.items()
    if all(isinstance(value, str) and key.isdecimal() for key, value in table.items()):
        pairs = [(value, int(key)) for key, value in table.items()]
    found = {number: answer for answer, number in pairs if isinstance(number, int)}
    return [found[i] for i in range(len(found))] if found.keys() == set(range(len(table))) else None
