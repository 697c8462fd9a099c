"""Fine-tuning for one task, whatever the family: answers that are spelt, sentences about two images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from mmzoo.data.batch import PairBatch, QuestionBatch
from mmzoo.errors import UsageError
from mmzoo.lit.base import Recipe, build_model
from mmzoo.lit.heldout import Split
from mmzoo.lit.heldout_tasks import HeldOutAnswers, HeldOutVerdicts
from mmzoo.lit.taught import LitTaught, Teaching
from mmzoo.losses.masking import NO_LABEL
from mmzoo.losses.means import share_of_each
from mmzoo.losses.words import SoftWords, word_loss
from mmzoo.models.ranking import AnswersByDecoder
from mmzoo.processing.text import Texts
from mmzoo.start import grown
from mmzoo.towers.reader import ReaderConfig
from mmzoo.zoo import FAMILIES, MODELS, get_config, model_class

__all__ = ["LitAnswers", "LitCompares", "build_for_task", "check_k", "towers_of"]

M = TypeVar("M", bound=nn.Module)


def towers_of(config: ReaderConfig) -> dict[str, Any]:
    """What a config says of its towers and their inputs, for the config of another model with the same."""
    return {f.name: getattr(config, f.name) for f in fields(ReaderConfig)}


def build_for_task(
    family: str,
    kind: type[M],
    model: Any,
    pretrained: str | None,
    task_config: Callable[[Any], ReaderConfig],
    **changes: Any,
) -> M:
    """A model of the kind that a task needs, or one that grows out of its family's main model.

    Args:
        family: Its family.
        kind: Its class.
        model: A name, or a config.
        pretrained: Weights of the model that is named.
        task_config: Makes the task's config out of the main model's.
        **changes: Fields that the task's config must have.

    Raises:
        UsageError: It is of another kind.
    """
    main = FAMILIES[family].config
    config = get_config(model) if isinstance(model, str) and model in MODELS else model
    if type(config).__name__ == main and not _builds(family, config, kind):
        built: M = grown(build_model(family, model, pretrained), replace(task_config(config), **changes))
        return built
    if changes and isinstance(config, ReaderConfig) and _builds(family, config, kind):
        model = replace(config, **changes)
    built = build_model(family, model, pretrained)
    if not isinstance(built, kind):
        raise UsageError(
            f"{_one(kind)} is trained here, not {_one(type(built))}: give one, or the {main.removesuffix('Config')} "
            "that it grows out of."
        )
    return built


def _one(kind: type) -> str:
    """A class's name with its article."""
    return f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"


def _builds(family: str, config: Any, kind: type[nn.Module]) -> bool:
    known = FAMILIES[family]
    return type(config).__name__ in known.models and model_class(known, config) is kind


class LitAnswers(LitTaught):
    """Teaches a decoder to spell answers, each weighted by how many annotators gave it; it answers by ranking a list.

    For data with `targets: words`. A family says by which model.

    Args:
        built: The model.
        teaching: The momentum teacher's part.
        k: Answers of the list that are spelt to their end for each held-out question.
        optimizer: Makes the optimizer from parameter groups.
        recipe: Everything else about training.
        pretrained: Whether the weights came from a file.
        start: Files that parts of the model start from.
        label_smoothing: Share of an answer's mass that is spread over all words.
    """

    model: AnswersByDecoder

    def __init__(
        self,
        built: AnswersByDecoder,
        teaching: Teaching,
        k: int,
        optimizer: OptimizerCallable,
        recipe: Recipe,
        *,
        pretrained: bool,
        start: dict[str, str] | None,
        label_smoothing: float = 0.0,
    ):
        super().__init__(built, teaching, optimizer, recipe, pretrained=pretrained, start=start)
        self.k, self.label_smoothing = k, label_smoothing
        self._list: tuple[tuple[str, ...], Texts] | None = None

    def training_step(self, batch: QuestionBatch, batch_idx: int) -> Tensor:
        """Cross-entropy of every token of every answer, summed over answers by weight, averaged over questions."""
        if batch.answer_keep is None or batch.answer_weights is None:
            raise UsageError(
                "this model spells answers, and the data gives votes over a list: set data.targets to words."
            )
        alpha, head = self.share(), self.model.lm
        labels = batch.answers[:, 1:].masked_fill(~batch.answer_keep[:, 1:], NO_LABEL)
        asked = labels != NO_LABEL
        questions = share_of_each(torch.tensor(float(len(batch.ids)), device=self.device), over_ranks=True)
        weight = (batch.answer_weights[:, None] * questions).expand_as(labels)
        soft = None
        if alpha:
            with torch.no_grad():
                teacher = self.taught()
                soft = SoftWords(_spelt(teacher, batch, asked), teacher.lm.weight, teacher.lm.bias)
        words = word_loss(
            _spelt(self.model, batch, asked), head.weight, head.bias, labels[asked], soft=soft, alpha=alpha,
            label_smoothing=self.label_smoothing, row_weight=weight[asked], over_ranks=True,
        )  # fmt: skip
        return self.log_step(words.loss, accuracy=words.accuracy, alpha=alpha)

    def heldout(self, split: Split) -> HeldOutAnswers:
        """The official accuracy, in all and by type of answer."""
        return HeldOutAnswers()

    def judge(self, batch: QuestionBatch, collector: HeldOutAnswers) -> None:
        """Answer a batch of the split."""
        collector.add(self._answers(batch)["answer"], batch)

    def predict_step(self, batch: QuestionBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """The answers of the batch in words, with the numbers of its questions, as the evaluation server takes them."""
        return self._answers(batch)

    def _answers(self, batch: QuestionBatch) -> dict[str, Any]:
        words, texts = self._listed()
        ids, keep = texts.ids.to(self.device), texts.keep.to(self.device)
        best = self.model.rank_answers(batch.images, batch.ids, batch.keep, (ids, keep), self.k).argmax(1)
        answers = [words[i] for i in best.tolist()]
        return {"keys": batch.keys, "question_id": batch.question_ids, "answer": answers}

    def _listed(self) -> tuple[tuple[str, ...], Texts]:
        """The list and its tokens, made once."""
        words = self.processor.answers
        if words is None:
            raise UsageError(
                "answers are ranked out of a list, and there is none: give data.answers a file with it."
            )
        if self._list is None or self._list[0] != words:
            self._list = words, self.processor.framed(words)
        return self._list


def check_k(k: int) -> None:
    """Refuse to spell no answer.

    Raises:
        UsageError: `k` is below 1.
    """
    if k < 1:
        raise UsageError(f"k is {k}; it is a number of answers, at least 1.")


def _spelt(model: AnswersByDecoder, batch: QuestionBatch, asked: Tensor) -> Tensor:
    """What the decoder of `model` is to name the asked tokens (N, M - 1) from, (R, D)."""
    question = model.read_question(batch.images, batch.ids, batch.keep)
    hidden: Tensor = model.lm(model.answer_states(question, batch.answers, batch.answer_rows)[:, :-1][asked])
    return hidden


class LitCompares(LitTaught):
    """Teaches a model whether a sentence is true of two images; a family says which."""

    model: Any

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """Cross-entropy over the labelled pairs."""
        with torch.no_grad():
            soft = None if self.teacher is None else _compared(self.taught(), batch)
        return self.choose(_compared(self.model, batch), batch.labels, soft)

    def heldout(self, split: Split) -> HeldOutVerdicts:
        """Accuracy, and consistency over the pairs of a sentence."""
        return HeldOutVerdicts()

    def judge(self, batch: PairBatch, collector: HeldOutVerdicts) -> None:
        """Judge a batch of the split."""
        collector.add(_compared(self.model, batch), batch)

    def predict_step(self, batch: PairBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Logits (B, 2) of false and true, with the keys of the samples."""
        return {"keys": batch.keys, "logits": _compared(self.model, batch)}


def _compared(model: Any, batch: PairBatch) -> Tensor:
    logits: Tensor = model.compare(batch.first, batch.second, batch.ids, batch.keep)
    return logits
