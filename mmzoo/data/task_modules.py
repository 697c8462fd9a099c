"""The DataModules of tasks beyond captions and classes: questions, pairs of pictures, visual entailment."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, cast

from mmzoo.data.answers import AT_LEAST, AnswerList, frequent_answers, read_answers
from mmzoo.data.collate import Collate, Tokens
from mmzoo.data.modules import Crop, PictureData
from mmzoo.data.open_tasks import (
    ENTAILMENT,
    PAIRS,
    QUESTIONS,
    Task,
    list_task_splits,
    open_entailment,
    open_pairs,
    open_questions,
)
from mmzoo.data.sample import AnySource, EntailSample, PairSample, Pictured, QuestionSample, QuestionSource
from mmzoo.data.tasks import ClosedAnswers, EntailCollate, PairCollate, QuestionCollate, WordedAnswers
from mmzoo.errors import UsageError, ZooError
from mmzoo.processing.augment import BatchAugment
from mmzoo.processing.randaugment import RandAugment

__all__ = ["AnnotatedData", "EntailmentData", "PairsData", "QuestionsData"]

log = logging.getLogger(__name__)


class AnnotatedData(PictureData):
    """What `QuestionsData`, `PairsData` and `EntailmentData` share; use one of these.

    Args:
        source: Training data: an annotation file, a folder of them, several of them as a list or joined by `+`, or the
            name of a carried set; see `mmzoo.data.open_tasks`.
        images: Folder with the pictures, or several joined by `+`; left out: beside the annotations.
        train_split: Split of the source to train on. A source without splits is taken whole.
        val: Held-out data, if it lies elsewhere than the training data.
        val_splits: Held-out splits, each with its own numbers. Left out: the split `val`, or all of `val` if
            that has no splits. An empty list: none.
        test_splits: Splits that `test` and `predict` look at; left out: the same.
        batch_size: Samples per training batch, on each process.
        val_batch_size: Samples per evaluation batch, on each process.
        num_workers: Processes that read ahead; 0 reads in the training process.
        seed: Root of order and augmentation; left out: the run's seed (`seed_everything`).
        crop: Random crop of each training picture; left out: between 90 % and all of it, or the whole picture
            for models that read pictures in their own shape (ViLT).
        rand_augment: RandAugment of each training picture, after its crop; left out: none.
        augment: Changes to whole training batches; the default changes nothing.
        cache_images: Decode everything once and keep it at the model's size; for small sets. There is no crop
            then, only `augment`.
        drop_last: Leave out the samples that do not fill a last training batch (other ones every epoch).
        max_broken: Share of broken samples (missing or truncated pictures, no words) that is put up with. They are
            named and passed over; more of them stop the run.
    """

    task: Task

    def __init__(
        self,
        source: str | list[str],
        images: str | None = None,
        train_split: str | None = "train",
        val: str | None = None,
        val_splits: tuple[str, ...] | None = None,
        test_splits: tuple[str, ...] | None = None,
        batch_size: int = 32,
        val_batch_size: int = 64,
        num_workers: int = 0,
        seed: int | None = None,
        crop: Crop | None = None,
        rand_augment: RandAugment | None = None,
        augment: BatchAugment = BatchAugment(),  # noqa: B008 - frozen
        cache_images: bool = False,
        drop_last: bool = True,
        max_broken: float = 0.01,
    ) -> None:
        super().__init__(
            source=source,
            train_split=train_split,
            val=val,
            val_splits=val_splits,
            test_splits=test_splits,
            batch_size=batch_size,
            val_batch_size=val_batch_size,
            num_workers=num_workers,
            seed=seed,
            crop=crop,
            rand_augment=rand_augment,
            augment=augment,
            cache_images=cache_images,
            drop_last=drop_last,
            max_broken=max_broken,
        )
        self.images = images
        self._tokens: Tokens | None = None

    def list_splits(self, where: str) -> tuple[str, ...]:
        """Names of the splits of the data at a path; empty where it is one undivided set."""
        return list_task_splits(where, self.task)

    def setup(self, stage: str) -> None:
        """Open what a stage needs, and leave out of training what nothing can be learnt from.

        Raises:
            ZooError: Missing, empty or unfit data.
        """
        super().setup(stage)
        if stage == "fit":
            self.train_source = self._kept(self.train_source)
        held_out: dict[str, Any] = self.val_sources if stage in ("fit", "validate") else {}
        for name, source in held_out.items():
            if not any(self.teaches(source.told(i)) for i in range(len(source))):
                raise ZooError(
                    f"{source.name} cannot be validated on ({name}): all of its samples have {self.lacking()}; "
                    "predict works without."
                )

    def lacking(self) -> str:
        """What those samples are without that cannot be trained on."""
        return "no published label"

    @abstractmethod
    def teaches(self, sample: Any) -> bool:
        """Whether something can be learnt from a sample, which is there without its pictures."""

    def _kept(self, source: Any) -> _Kept:
        kept = [i for i in range(len(source)) if self.teaches(source.told(i))]
        if not kept:
            raise ZooError(
                f"{source.name} cannot be trained on: all of its {len(source):,} samples have {self.lacking()}."
            )
        if len(kept) < len(source):
            log.warning(
                "%s: left out of training %s of %s samples, which have %s.",
                source.name, f"{len(source) - len(kept):,}", f"{len(source):,}", self.lacking(),
            )  # fmt: skip
        return _Kept(source, kept)

    def check(self, source: Any) -> None:
        """Nothing more: what was opened is of the right kind."""

    def tokens(self) -> Tokens:
        """The model's tokeniser, which remembers."""
        if self._tokens is None:
            assert self.processor is not None
            self._tokens = Tokens(self.processor)
        return self._tokens


class QuestionsData(AnnotatedData):
    """Questions about pictures: yields `QuestionBatch`.

    A question none of whose answers is on the closed list is left out of training, and counted; held out it stays, and
    can only be answered wrongly.

    Args:
        source: Training data: an annotation file, a folder of them, several of them as a list or joined by `+`, or
            `easy-vqa`; see `mmzoo.data.open_tasks.open_questions`.
        images: Folder with the pictures, or several joined by `+`; left out: beside the annotations.
        targets: What answers become. `votes`: soft targets over the closed list, min(annotators / 3, 1) (ViLT).
            `weights`: the same with each answer's share of the annotators. `words`: token ids of every answer with its
            share (ALBEF, BLIP).
        answers: File with the closed list. Left out: the model's own, else that of the source (easy-VQA), else for
            `votes` and `weights` the answers that are the most common one of `at_least` training questions.
        at_least: See there; 9 made the list of 3,129 for VQAv2.
        single_weight: What a question counts that one person answered (Visual Genome: 0.5 in ALBEF, 0.2 in LAVIS).
        train_split: Split of the source to train on. A source without splits is taken whole.
        val: Held-out data, if it lies elsewhere than the training data.
        val_splits: Held-out splits, each with its own numbers. Left out: the split `val`, or all of `val` if
            that has no splits. An empty list: none.
        test_splits: Splits that `test` and `predict` look at; left out: the same.
        batch_size: Questions per training batch, on each process.
        val_batch_size: Questions per evaluation batch, on each process.
        num_workers: Processes that read ahead; 0 reads in the training process.
        seed: Root of order and augmentation; left out: the run's seed (`seed_everything`).
        crop: Random crop of each training picture; left out: between 90 % and all of it, or the whole picture
            for models that read pictures in their own shape (ViLT).
        rand_augment: RandAugment of each training picture, after its crop; left out: none.
        augment: Changes to whole training batches; the default changes nothing.
        cache_images: Decode everything once and keep it at the model's size; for small sets. There is no crop
            then, only `augment`.
        drop_last: Leave out the questions that do not fill a last training batch (other ones every epoch).
        max_broken: Share of broken samples (missing or truncated pictures, no words) that is put up with. They are
            named and passed over; more of them stop the run.
    """

    task = QUESTIONS

    def __init__(
        self,
        source: str | list[str],
        images: str | None = None,
        targets: Literal["votes", "weights", "words"] = "votes",
        answers: str | None = None,
        at_least: int = AT_LEAST,
        single_weight: float = 0.5,
        train_split: str | None = "train",
        val: str | None = None,
        val_splits: tuple[str, ...] | None = None,
        test_splits: tuple[str, ...] | None = None,
        batch_size: int = 32,
        val_batch_size: int = 64,
        num_workers: int = 0,
        seed: int | None = None,
        crop: Crop | None = None,
        rand_augment: RandAugment | None = None,
        augment: BatchAugment = BatchAugment(),  # noqa: B008 - frozen
        cache_images: bool = False,
        drop_last: bool = True,
        max_broken: float = 0.01,
    ) -> None:
        super().__init__(
            source, images, train_split, val, val_splits, test_splits, batch_size, val_batch_size, num_workers, seed,
            crop, rand_augment, augment, cache_images, drop_last, max_broken,
        )  # fmt: skip
        self._framed: Tokens | None = None
        self.targets: Literal["votes", "weights", "words"] = targets
        self.answers_file = answers
        self.at_least = at_least
        self.single_weight = single_weight
        self.answers: AnswerList | None = None
        """The closed list, in the order of a classifier's outputs; None until `setup`, or for want of one."""

    def lacking(self) -> str:
        """What those questions are without that cannot be trained on."""
        if self.targets == "words" or self.answers is None:
            return "no published answer"
        return f"no answer that is among the {len(self.answers):,} of the list"

    def setup(self, stage: str) -> None:
        """Open what a stage needs, settle the closed list, and leave out of training what nothing can be learnt from.

        Raises:
            ZooError: Missing, empty or unfit data.
        """
        self._fits = stage == "fit"
        super().setup(stage)

    def open(self, where: str, split: str | None) -> QuestionSource:
        """Open a split of the questions at a path."""
        return open_questions(where, images=self.images, split=split, single_weight=self.single_weight)

    def check(self, source: QuestionSource) -> None:
        """Settle the closed list by the first source that is opened, which is that of training if there is one."""
        if self.answers is None:
            self.answers = self._list(source)
            if self.answers is not None and self.processor is not None and self.processor.answers is None:
                self.processor.answers = self.answers.texts  # a model is exported with what its outputs mean

    def _list(self, source: QuestionSource) -> AnswerList | None:
        own = None if self.processor is None else self.processor.answers
        if self.answers_file is not None:
            given = read_answers(self.answers_file)
            if own is not None and given.texts != own:
                raise UsageError(
                    f"{self.answers_file} lists {len(given):,} answers, and the model's outputs stand for {len(own):,} "
                    "that are not the same in the same order: leave out answers."
                )
            return given
        if own is not None:
            return AnswerList(own)
        if source.classes is not None:
            return AnswerList(source.classes)
        if self.targets == "words":
            return None
        # what is validated or tested alone still has the list of its training data
        training = source if self._fits else self.open(self.source, self._train_split())
        return frequent_answers(training, self.at_least)

    def teaches(self, sample: QuestionSample) -> bool:
        """Whether it has an answer: any, or one on the list."""
        if self.targets == "words" or self.answers is None:
            return bool(sample.answers)
        return self.answers.knows(sample)

    def collate(self, source: AnySource | None) -> QuestionCollate:
        """Tokenise questions, and make answers what `targets` asks for."""
        if self.targets == "words":
            if self._framed is None:
                assert self.processor is not None
                self._framed = Tokens(self.processor, framed=True)
            return QuestionCollate(self.tokens(), WordedAnswers(self._framed))
        assert self.answers is not None, "setup settles the list"
        return QuestionCollate(self.tokens(), ClosedAnswers(self.answers, self.targets))


class PairsData(AnnotatedData):
    """Sentences about pairs of pictures (NLVR2): yields `PairBatch`."""

    task = PAIRS

    def open(self, where: str, split: str | None) -> AnySource:
        """Open a split of the pairs at a path."""
        return open_pairs(where, images=self.images, split=split)

    def teaches(self, sample: PairSample) -> bool:
        """Whether its label is published."""
        return sample.label is not None

    def collate(self, source: AnySource | None) -> Collate:
        """Tokenise sentences, and keep left and right apart."""
        return PairCollate(self.tokens())


class EntailmentData(AnnotatedData):
    """Sentences that a picture entails, contradicts or leaves open (SNLI-VE): yields `CaptionBatch` with labels."""

    task = ENTAILMENT

    def open(self, where: str, split: str | None) -> AnySource:
        """Open a split of the sentences at a path."""
        return open_entailment(where, images=self.images, split=split)

    def teaches(self, sample: EntailSample) -> bool:
        """Whether its label is published."""
        return sample.label is not None

    def collate(self, source: AnySource | None) -> Collate:
        """Tokenise sentences, and take verdicts for labels."""
        return EntailCollate(self.tokens())


class _Kept:
    """Some of the samples of a source."""

    def __init__(self, source: Any, indices: Sequence[int]) -> None:
        self.name: str = source.name
        self.classes: tuple[str, ...] | None = source.classes
        self._source = source
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def told(self, index: int) -> Any:
        return self._source.told(self._indices[index])

    def __getitem__(self, index: int) -> Pictured:
        return cast(Pictured, self._source[self._indices[index]])
