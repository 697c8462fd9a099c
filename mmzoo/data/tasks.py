"""From samples of questions, pairs and entailment to their batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor

from mmzoo.data.answers import AnswerList
from mmzoo.data.batch import CaptionBatch, PairBatch, QuestionBatch
from mmzoo.data.collate import Tokens
from mmzoo.data.sample import Broken, EntailSample, PairSample, QuestionSample
from mmzoo.data.sources.common import stable_id
from mmzoo.ops.pairs import NO_ID

__all__ = ["ClosedAnswers", "EntailCollate", "PairCollate", "QuestionCollate", "WordedAnswers"]

T = TypeVar("T", PairSample, EntailSample)


class ClosedAnswers:
    """Answers as soft targets over a closed list.

    Args:
        answers: The list.
        measure: What an answer is worth, see `AnswerList.worth`.
    """

    def __init__(self, answers: AnswerList, measure: Literal["votes", "weights"]) -> None:
        self.answers = answers
        self.measure = measure

    def __call__(self, samples: Sequence[QuestionSample]) -> tuple[Tensor, None, None, None]:
        """Give (B, A) float32 targets of B questions, and None for what only words need."""
        targets = torch.zeros(len(samples), len(self.answers))
        for row, sample in zip(targets, samples):
            for place, worth in self.answers.worth(sample, self.measure).items():
                row[place] = worth
        return targets, None, None, None


class WordedAnswers:
    """Answers as token ids, for models that write or rank them.

    Args:
        tokens: Tokeniser of what the model writes, `Tokens(processor, framed=True)`: a decoder must learn to stop,
            whether its model reads texts with an end token or not.
    """

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens

    def __call__(self, samples: Sequence[QuestionSample]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give ids (N, M), weights (N,), keep (N, M) and question (N,) of all answers of B questions."""
        ids, keep = self.tokens([answer for sample in samples for answer in sample.answers])
        weights = torch.tensor([weight for sample in samples for weight in sample.weights])
        rows = torch.repeat_interleave(torch.tensor([len(sample.answers) for sample in samples]))
        return ids, weights, keep, rows


class QuestionCollate:
    """Makes a `QuestionBatch`.

    Args:
        tokens: Tokeniser of the model.
        answers: Makes a batch's answers tensors.
    """

    def __init__(self, tokens: Tokens, answers: ClosedAnswers | WordedAnswers) -> None:
        self.tokens = tokens
        self.answers = answers

    def draw(self, sample: QuestionSample, seed: int | None) -> QuestionSample | Broken:
        """Take everything but the picture; a question needs words."""
        if not any(map(str.isalnum, sample.question)):
            return Broken(sample.key, "a question without words")
        return sample.bare()

    def __call__(self, drawn: Sequence[QuestionSample], images: Tensor) -> QuestionBatch:
        """Make a batch of B questions and (B, 3, H, W) images."""
        ids, keep = self.tokens([sample.question for sample in drawn])
        answers, weights, answer_keep, rows = self.answers(drawn)
        return QuestionBatch(
            images=images,
            ids=ids,
            keep=keep,
            answers=answers,
            answer_weights=weights,
            answer_keep=answer_keep,
            answer_rows=rows,
            question_ids=torch.tensor([sample.question_id for sample in drawn]),
            said=[sample.said for sample in drawn],
            kinds=[sample.kind for sample in drawn],
            keys=[sample.key for sample in drawn],
        )


class PairCollate:
    """Makes a `PairBatch`.

    Args:
        tokens: Tokeniser of the model.
    """

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens

    def draw(self, sample: PairSample, seed: int | None) -> PairSample | Broken:
        """Take everything but the pictures; a sentence needs words."""
        return _worded(sample)

    def __call__(self, drawn: Sequence[PairSample], images: Tensor) -> PairBatch:
        """Make a batch of B sentences and (2 B, 3, H, W) images, left and right by turns."""
        ids, keep = self.tokens([sample.sentence for sample in drawn])
        return PairBatch(
            first=images[0::2].contiguous(),
            second=images[1::2].contiguous(),
            ids=ids,
            keep=keep,
            labels=_labels(drawn),
            groups=torch.tensor([stable_id(sample.group) for sample in drawn]),
            keys=[sample.key for sample in drawn],
        )


class EntailCollate:
    """Makes a `CaptionBatch` whose labels are verdicts.

    Nothing there says that a sentence fits its picture, as most don't: `text_ids` are all -1.

    Args:
        tokens: Tokeniser of the model.
    """

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens

    def draw(self, sample: EntailSample, seed: int | None) -> EntailSample | Broken:
        """Take everything but the picture; a sentence needs words."""
        return _worded(sample)

    def __call__(self, drawn: Sequence[EntailSample], images: Tensor) -> CaptionBatch:
        """Make a batch of B sentences and (B, 3, H, W) images."""
        ids, keep = self.tokens([sample.sentence for sample in drawn])
        return CaptionBatch(
            images=images,
            ids=ids,
            keep=keep,
            image_ids=torch.tensor([[stable_id(sample.image_key)] for sample in drawn]),
            text_ids=torch.full((len(drawn),), NO_ID),
            labels=_labels(drawn),
            keys=[sample.key for sample in drawn],
        )


def _worded(sample: T) -> T | Broken:
    if not any(map(str.isalnum, sample.sentence)):
        return Broken(sample.key, "a sentence without words")
    return sample.bare()


def _labels(drawn: Sequence[PairSample] | Sequence[EntailSample]) -> Tensor:
    return torch.tensor([NO_ID if sample.label is None else sample.label for sample in drawn])
