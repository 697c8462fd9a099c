"""`mmzoo answer`: answer a question about a picture, by a closed list, by ranking any answers, or freely."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mmzoo.apps.labels import read_labels
from mmzoo.apps.opening import ModelLike, Opened, finite, open_model, require
from mmzoo.apps.pictures import Files, read_batches
from mmzoo.apps.writing import BEAMS, write_texts
from mmzoo.data.answers import AnswerList, read_answers
from mmzoo.data.reader import Broken
from mmzoo.errors import UsageError
from mmzoo.generation import Decoder, GenerationConfig
from mmzoo.models.capabilities import AnswersFromList, WritesAnswers

__all__ = ["Answer", "Answered", "answer"]

Way = Literal["chosen", "ranked", "written"]

SPELT = 128
"""Of a longer list, so many answers are read to their end, those with the likeliest first tokens (BLIP's number)."""
LONGEST = 10
"""Most tokens of a written answer, as in BLIP."""


class Answer(NamedTuple):
    """An answer with what speaks for it.

    Attributes:
        answer: The answer.
        share: From 0 to 1. Chosen: how right the classifier holds it to be, each answer judged for itself. Ranked: its
            part of the probability of all answers of the list. Written: the probability of exactly these words.
        score: What answers are ordered by. Chosen: the logit. Ranked or written: the log-probability of its words.
    """

    answer: str
    share: float
    score: float


class Answered(NamedTuple):
    """What `answer` found.

    Attributes:
        model: The model's name.
        weights: Where its weights come from; `"random"` for a zoo name without `pretrained`.
        picture: The picture's path.
        question: The question.
        cut: Whether the question was longer than the model reads.
        way: `"chosen"` by a classifier over the model's list, `"ranked"` by a decoder, or `"written"`.
        choices: Length of the list; None for written answers.
        answers: Best first.
    """

    model: str
    weights: str
    picture: str
    question: str
    cut: bool
    way: Way
    choices: int | None
    answers: tuple[Answer, ...]


def answer(
    model: ModelLike,
    picture: str | Path,
    question: str,
    *,
    answers: str | Path | Sequence[str] | None = None,
    generate: bool = False,
    top_k: int = 5,
    pretrained: str | Path | None = None,
    device: str | torch.device | None = None,
) -> Answered:
    """Answer a question about a picture.

    Args:
        model: A model that `AnswersQuestions`; see `open_model`.
        picture: A picture file.
        question: The question.
        answers: What to choose from: a list, `"yes,no"`, or a file (JSON, or one answer a line). None takes the model's
            own list. Of a classifier they must be on its list, or be that list where the model has not kept it.
        generate: Let the model write the answer in words of its own.
        top_k: So many answers.
        pretrained: Weights for a model given by name.
        device: Where to run.

    Returns:
        The best answers.

    Raises:
        UsageError: No question, no list to choose from, or one that does not fit.
        ZooError: The model cannot answer, or the picture cannot be read.
    """
    if not question.strip():
        raise UsageError(f"there is no word in {question!r}: ask something about the picture.")
    if top_k < 1:
        raise UsageError(f"--top-k {top_k} is too few: at least 1.")
    if generate and answers is not None:
        raise UsageError("--generate writes freely and --answers is a list to choose from: leave one out.")
    given = None if answers is None else _read(answers)
    opened = open_model(model, pretrained=pretrained, device=device)
    if generate:
        require(opened, "writes answers", "write answers")
    else:
        require(opened, "answers questions", "answer questions")
    words = () if generate else _choices(opened, given)
    broken: list[Broken] = []
    image = next(read_batches(Files([Path(picture)]), 1, broken)).images[0]
    pixels = opened.processor.images([image]).to(opened.device)
    ids, keep = (x.to(opened.device) for x in opened.processor.texts([question]))
    way: Way
    with torch.inference_mode():
        if generate:
            way, found = "written", _written(opened, opened.model.answer_decoder(pixels, ids, keep), top_k)
        elif isinstance(opened.model, AnswersFromList):
            way, found = (
                "chosen",
                _chosen(opened, words, given, opened.model.answer_logits(pixels, ids, keep)[0]),
            )
        else:
            listed = tuple(x.to(opened.device) for x in opened.processor.framed(words))
            scores = opened.model.rank_answers(pixels, ids, keep, listed, max(SPELT, top_k))[0]
            way, found = "ranked", _ranked(opened, words, scores)
    return Answered(
        opened.name, opened.weights, str(picture), question, opened.processor.tokenizer.cuts(question), way,
        len(found) if way == "chosen" else len(words) or None, tuple(found[:top_k]),
    )  # fmt: skip


def _read(answers: str | Path | Sequence[str]) -> tuple[str, ...]:
    """The answers of a list, a file, or words between commas."""
    if isinstance(answers, (str, Path)) and Path(answers).is_file():
        return read_answers(answers).texts
    return tuple(read_labels(answers))


def _choices(opened: Opened, given: Sequence[str] | None) -> tuple[str, ...]:
    """What there is to choose from: of a classifier the words of its outputs.

    Raises:
        UsageError: There is nothing.
    """
    own: tuple[str, ...] | None = opened.processor.answers
    if isinstance(opened.model, AnswersFromList) and own is not None:
        return own
    if given is not None:
        return tuple(given)
    if own is None:
        free = ", or --generate" if isinstance(opened.model, WritesAnswers) else ""
        raise UsageError(
            f"{opened.name} chooses from a list of answers and has none of its own: give --answers yes,no or a "
            f"file{free}."
        )
    return own


def _chosen(
    opened: Opened, words: Sequence[str], given: Sequence[str] | None, logits: Tensor
) -> list[Answer]:
    """Answers of a classifier with `logits` (A,), all of them or those that are `given`."""
    if len(logits) != len(words):
        raise UsageError(
            f"{opened.name} has {len(logits):,} outputs and the list {len(words):,} answers: give --answers with the "
            "list that it was trained on, in its order."
        )
    finite(logits, opened)
    places: Sequence[int] = range(len(words))
    if given is not None and opened.processor.answers is not None:
        known = AnswerList(words)
        found = [known.find(text) for text in given]
        if None in found:
            lost = given[found.index(None)]
            raise UsageError(
                f"{lost!r} is none of the {len(words):,} answers that {opened.name} knows, and it can give no other."
            )
        places = list(dict.fromkeys(place for place in found if place is not None))
    logits = logits.double()
    made = [Answer(words[i], float(logits[i].sigmoid()), float(logits[i])) for i in places]
    return sorted(made, key=lambda one: -one.score)


def _ranked(opened: Opened, words: Sequence[str], scores: Tensor) -> list[Answer]:
    """Answers with log-probabilities `scores` (A,), those left out that were not read to their end."""
    finite(scores.max(), opened)
    shares = scores.double().softmax(0).tolist()
    made = [Answer(*row) for row in zip(words, shares, scores.tolist(), strict=True)]
    return sorted((one for one in made if one.score > -math.inf), key=lambda one: -one.score)


def _written(opened: Opened, decoder: Decoder, top_k: int) -> list[Answer]:
    """The answers that a decoder writes."""
    width = max(BEAMS, top_k)
    settings = GenerationConfig(max_new_tokens=LONGEST, min_new_tokens=1, beams=width, per_context=top_k)
    [texts] = write_texts(opened, decoder, (), settings)
    sums = [text.score * (len(text.ids) + text.finished) for text in texts]
    return [Answer(text.text, math.exp(total), total) for text, total in zip(texts, sums, strict=True)]
