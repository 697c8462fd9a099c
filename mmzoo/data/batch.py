"""Batches as NamedTuples of tensors: torch's pinning and Lightning's device transfer both understand them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["CaptionBatch", "Captions", "ClassBatch", "PairBatch", "QuestionBatch"]


class Captions:
    """All captions of each of B pictures, as written.

    It is no sequence: on its way to a device a batch is searched for tensors, and thousands of strings would take
    longer than the tensors.

    Attributes:
        each: The captions of each picture, blank ones left out.
    """

    def __init__(self, each: list[tuple[str, ...]]) -> None:
        self.each = each

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Captions) and self.each == other.each

    __hash__ = None  # type: ignore[assignment]


class CaptionBatch(NamedTuple):
    """B pictures with one text each.

    Attributes:
        images: (B, 3, H, W) float32, normalised as the model expects.
        ids: (B, L) int64 token ids; L is the longest text of this batch.
        keep: (B, L) bool, True = real token.
        image_ids: (B, m) int64, everything each picture is an instance of; -1 pads.
        text_ids: (B,) int64, what each text is about. Text j fits picture i iff `text_ids[j]` is in
            `image_ids[i]`.
        labels: (B,) int64 class indices, or None where the source has no classes. SNLI-VE's three answers are such
            classes; -1 where an answer is not published.
        keys: B readable names.
        captions: All that is said of each picture, which is what written captions are compared with; None where the
            texts are no captions.
    """

    images: Tensor
    ids: Tensor
    keep: Tensor
    image_ids: Tensor
    text_ids: Tensor
    labels: Tensor | None
    keys: list[str]
    captions: Captions | None = None


class ClassBatch(NamedTuple):
    """B pictures with one class each.

    Attributes:
        images: (B, 3, H, W) float32, normalised as the model expects.
        labels: (B,) int64 class indices.
        keys: B readable names.
    """

    images: Tensor
    labels: Tensor
    keys: list[str]


class QuestionBatch(NamedTuple):
    """B questions about a picture each.

    What `answers` is follows from what the data module was asked for. From a closed list of A answers: (B, A) float32
    soft targets, a row of zeros where no answer is on the list; the other `answer_` fields are None. As words: (N, M)
    int64 token ids of all N answers that the B questions got, from the begin to the end token, and the other fields say
    which question each belongs to and what it counts.

    Attributes:
        images: (B, 3, H, W) float32, normalised as the model expects.
        ids: (B, L) int64 token ids of the questions.
        keep: (B, L) bool, True = real token.
        answers: See above.
        answer_weights: (N,) float32, what each answer counts; those of a question add up to 1, or less where the whole
            set counts less.
        answer_keep: (N, M) bool, True = real token.
        answer_rows: (N,) int64, the question (0 to B - 1) of each answer, ascending. A question without answers has
            none.
        question_ids: (B,) int64, the published numbers.
        said: What each of a question's annotators said, as written, for the official accuracy; empty tuples where
            nothing is published.
        kinds: B published types of answer, for accuracy by type; empty strings where there are none.
        keys: B readable names.
    """

    images: Tensor
    ids: Tensor
    keep: Tensor
    answers: Tensor
    answer_weights: Tensor | None
    answer_keep: Tensor | None
    answer_rows: Tensor | None
    question_ids: Tensor
    said: list[tuple[str, ...]]
    kinds: list[str]
    keys: list[str]


class PairBatch(NamedTuple):
    """B sentences about two pictures each (NLVR2).

    Attributes:
        first: (B, 3, H, W) float32, the left pictures.
        second: (B, 3, H, W) float32, the right ones, of the same height and width.
        ids: (B, L) int64 token ids of the sentences.
        keep: (B, L) bool, True = real token.
        labels: (B,) int64, 1 true, 0 false, -1 not published.
        groups: (B,) int64, equal for the pairs of one sentence: consistency is counted over them.
        keys: B readable names.
    """

    first: Tensor
    second: Tensor
    ids: Tensor
    keep: Tensor
    labels: Tensor
    groups: Tensor
    keys: list[str]
