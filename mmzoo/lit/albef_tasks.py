"""Fine-tunes ALBEF for one task: answers, sentences about two images, entailment. The teacher goes on teaching."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import AdamW

from mmzoo.data.batch import CaptionBatch, PairBatch, QuestionBatch
from mmzoo.errors import UsageError
from mmzoo.lit.base import LitBase, Recipe, build_model
from mmzoo.lit.fusion import steps_of
from mmzoo.lit.heldout import HeldOutClasses, Split
from mmzoo.lit.heldout_tasks import HeldOutAnswers, HeldOutVerdicts
from mmzoo.lit.momentum import MomentumCopy, ramped
from mmzoo.losses.assignment import draw_assignment
from mmzoo.losses.masking import NO_LABEL
from mmzoo.losses.matching import Choice, choice_loss
from mmzoo.losses.means import share_of_each
from mmzoo.losses.words import SoftWords, word_loss
from mmzoo.models.albef import (
    ALBEFNLVR2,
    ALBEFVE,
    ALBEFVQA,
    ALBEFConfig,
    ALBEFNLVR2Config,
    ALBEFVEConfig,
    ALBEFVQAConfig,
)
from mmzoo.ops.pairs import Positives
from mmzoo.processing.text import Texts
from mmzoo.start import grown
from mmzoo.towers.reader import Reader, ReaderConfig
from mmzoo.zoo import FAMILIES, MODELS, get_config, model_class

__all__ = ["LitALBEFAssign", "LitALBEFNLVR2", "LitALBEFVE", "LitALBEFVQA", "Teaching"]

_ASSIGN_SCALE = 1 / 0.07  # images are drawn by cosine over the start of the temperature, learned or not


@dataclass(frozen=True)
class Teaching:
    """How a teacher takes part.

    Attributes:
        alpha: Its share in the targets; 0 for no teacher.
        alpha_epochs: Epochs over which that share grows from 0 (SNLI-VE: 0).
        momentum: Share of its weights that stays at each step.
        dropout: Let it drop out as the reference does.
    """

    alpha: float = 0.4
    alpha_epochs: float = 1.0
    momentum: float = 0.995
    dropout: bool = False


def _task_config(config: ALBEFConfig, kind: type[Reader]) -> ReaderConfig:
    """What a task's model with the towers of an `ALBEF` is, as the reference builds it."""
    text, first = config.text, config.text.cross_layers[0]
    towers = {f.name: getattr(config, f.name) for f in fields(ReaderConfig)}
    layers = text.depth - first
    if kind is ALBEFVQA:
        decoder = replace(
            text, depth=layers, cross_layers=tuple(range(layers)), cross_width=text.width, causal=True
        )
        return ALBEFVQAConfig(**towers, decoder=decoder)
    if kind is ALBEFNLVR2:
        depth = first + 2 * layers
        towers["text"] = replace(text, depth=depth, cross_layers=tuple(range(first, depth)))
        return ALBEFNLVR2Config(**towers, embed=config.embed)
    return ALBEFVEConfig(**towers)


def _built(kind: type[Reader], model: Any, pretrained: str | None, **changes: Any) -> Any:
    """A model of a kind, or one that grows out of an `ALBEF`; `changes` to its config.

    Raises:
        UsageError: It is of another kind.
    """
    config = get_config(model) if isinstance(model, str) and model in MODELS else model
    if isinstance(config, ALBEFConfig):
        return grown(build_model("albef", model, pretrained), replace(_task_config(config, kind), **changes))
    if changes and isinstance(config, ReaderConfig) and model_class(FAMILIES["albef"], config) is kind:
        model = replace(config, **changes)
    built = build_model("albef", model, pretrained)
    if not isinstance(built, kind):
        raise UsageError(
            f"an {kind.__name__} is trained here, not an {type(built).__name__}: give one, or the ALBEF that it grows "
            "out of."
        )
    return built


class _Taught(LitBase):
    """A model of the kind that a task needs, and its teacher."""

    teacher: MomentumCopy | None

    def __init__(
        self,
        built: Reader,
        teaching: Teaching,
        optimizer: OptimizerCallable,
        recipe: Recipe,
        *,
        pretrained: bool,
        start: dict[str, str] | None,
    ):
        if not 0 <= teaching.alpha <= 1 or teaching.alpha_epochs < 0:
            raise UsageError(
                f"teaching: alpha is {teaching.alpha} and must be a share from 0 to 1; alpha_epochs is "
                f"{teaching.alpha_epochs} and must not be negative."
            )
        super().__init__(built, optimizer, recipe, pretrained=pretrained, start=start)
        self.teaching, self.teacher = teaching, None
        if teaching.alpha:
            self.teacher = MomentumCopy(built, decay=teaching.momentum, dropout=teaching.dropout)

    def share(self) -> float:
        """The teacher's share in this step's targets."""
        steps = steps_of(self.trainer, self.teaching.alpha_epochs) if self.teacher is not None else 0
        return ramped(self.teaching.alpha, self.global_step, steps)

    def taught(self) -> Any:
        """The teacher's model, or None."""
        return None if self.teacher is None else self.teacher.model

    def after_step(self) -> None:
        """Let the teacher follow."""
        if self.teacher is not None:
            self.teacher.update()

    def choose(self, logits: Tensor, labels: Tensor, soft: Tensor | None) -> Tensor:
        """Cross-entropy over labelled rows, the teacher's opinion `soft` mixed into the targets, logged."""
        alpha = self.share() if soft is not None else 0.0
        choice: Choice = choice_loss(
            logits, labels, valid=labels >= 0, teacher=soft, alpha=alpha, over_ranks=True
        )
        return self.log_step(choice.loss, accuracy=choice.accuracy, alpha=alpha)


class LitALBEFVQA(_Taught):
    """Teaches ALBEF to spell answers, each weighted by how many annotators gave it; it answers by ranking a list.

    For data with `targets: words`.

    Args:
        model: An ALBEFVQA's name, or its config in full; or an ALBEF's, out of which one grows.
        pretrained: Weights of the model that is named.
        start: Weights of parts, see `mmzoo.start.start_parts`: `{model: PATH}` of a pre-trained ALBEF, whose fusion
            half is the start of the decoder too.
        teaching: The momentum teacher's part.
        k: Answers of the list that are spelt to their end for each held-out question.
        optimizer: Its class and settings, left out: those of salesforce/ALBEF's configs; fused unless said otherwise.
        recipe: Schedule, freezing, averaging and the like.
    """

    model: ALBEFVQA

    def __init__(
        self,
        model: str | ALBEFVQAConfig = "albef-b16-vqa",
        pretrained: str | None = None,
        start: dict[str, str] | None = None,
        teaching: Teaching = Teaching(),
        k: int = 128,
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=2e-5, weight_decay=0.02),
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
    ):
        if k < 1:
            raise UsageError(f"k is {k}; it is a number of answers, at least 1.")
        built = _built(ALBEFVQA, model, pretrained)
        super().__init__(built, teaching, optimizer, recipe, pretrained=pretrained is not None, start=start)
        self.k = k
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
            row_weight=weight[asked], over_ranks=True,
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
        return {"question_id": batch.question_ids, "answer": [words[i] for i in best.tolist()]}

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


def _spelt(model: ALBEFVQA, batch: QuestionBatch, asked: Tensor) -> Tensor:
    """What the decoder of `model` is to name the asked tokens (N, M - 1) from, (R, D)."""
    question = model.read_question(batch.images, batch.ids, batch.keep)
    return model.lm(model.answer_states(question, batch.answers, batch.answer_rows)[:, :-1][asked])


class LitALBEFNLVR2(_Taught):
    """Teaches ALBEF whether a sentence is true of two images.

    Args:
        model: An ALBEFNLVR2's name, or its config in full; or an ALBEF's, out of which one grows.
        pretrained: Weights of the model that is named.
        start: Weights of parts, see `mmzoo.start.start_parts`: `{model: PATH}` of a pre-trained ALBEF, or of what
            `LitALBEFAssign` made of it.
        teaching: The momentum teacher's part.
        optimizer: Its class and settings, left out: those of salesforce/ALBEF's configs; fused unless said otherwise.
        recipe: Schedule, freezing, averaging and the like.
    """

    model: ALBEFNLVR2

    def __init__(
        self,
        model: str | ALBEFNLVR2Config = "albef-b16-nlvr2",
        pretrained: str | None = None,
        start: dict[str, str] | None = None,
        teaching: Teaching = Teaching(),
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=2e-5, weight_decay=0.02),
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
    ):
        built = _built(ALBEFNLVR2, model, pretrained)
        super().__init__(built, teaching, optimizer, recipe, pretrained=pretrained is not None, start=start)
        if self.model.config.task != "compare":
            raise UsageError(
                'this model assigns texts: build it with task="compare", or train it by LitALBEFAssign.'
            )

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


def _compared(model: ALBEFNLVR2, batch: PairBatch) -> Tensor:
    return model.compare(batch.first, batch.second, batch.ids, batch.keep)


class LitALBEFAssign(_Taught):
    """Teaches the twin layers of ALBEF for NLVR2 which of two images a caption describes, or neither.

    The step between pre-training and `LitALBEFNLVR2`, on captions; an epoch of it in the paper. There is no teacher.

    Args:
        model: An ALBEFNLVR2's name or config, whose task is changed; or an ALBEF's, out of which one grows.
        pretrained: Weights of the model that is named.
        start: `{model: PATH}` of a pre-trained ALBEF.
        optimizer: Its class and settings, left out: those of salesforce/ALBEF's configs; fused unless said otherwise.
        recipe: Schedule, freezing, averaging and the like.
    """

    model: ALBEFNLVR2

    def __init__(
        self,
        model: str | ALBEFNLVR2Config = "albef-b16-nlvr2",
        pretrained: str | None = None,
        start: dict[str, str] | None = None,
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=2e-5, weight_decay=0.02),
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
    ):
        built = _built(ALBEFNLVR2, model, pretrained, task="assign")
        super().__init__(
            built, Teaching(alpha=0.0), optimizer, recipe, pretrained=pretrained is not None, start=start
        )

    def training_step(self, batch: CaptionBatch, batch_idx: int) -> Tensor:
        """Three-way cross-entropy."""
        return self.choose(*self.assign(batch), None)

    def assign(self, batch: CaptionBatch) -> tuple[Tensor, Tensor]:
        """Draw two images for every caption and say which it describes: logits (B, 3) and labels (B,), -1 for none."""
        m = self.model
        tokens = m.image_tokens(batch.images)
        with torch.no_grad():
            image = m.embed_image(tokens)
        positives = Positives(batch.image_ids, batch.text_ids[:, None])
        drawn = draw_assignment(_ASSIGN_SCALE * image @ image.T, positives, generator=self.generator)
        kv = m.project(tokens)
        logits = m.assign(kv[drawn.first], kv[drawn.second], batch.ids, batch.keep)
        return logits, drawn.label.masked_fill(~drawn.found, -1)

    def heldout(self, split: Split) -> HeldOutClasses:
        """The share of captions assigned rightly."""
        return HeldOutClasses()

    def judge(self, batch: CaptionBatch, collector: HeldOutClasses) -> None:
        """Assign a batch of the split."""
        collector.add(*self.assign(batch))


class LitALBEFVE(_Taught):
    """Teaches ALBEF whether an image entails a sentence, contradicts it or leaves it open.

    Args:
        model: An ALBEFVE's name, or its config in full; or an ALBEF's, out of which one grows.
        pretrained: Weights of the model that is named.
        start: `{model: PATH}` of a pre-trained ALBEF, see `mmzoo.start.start_parts`.
        teaching: The momentum teacher's part, whole from the first step on as in the reference.
        optimizer: Its class and settings, left out: those of salesforce/ALBEF's configs; fused unless said otherwise.
        recipe: Schedule, freezing, averaging and the like.
    """

    model: ALBEFVE

    def __init__(
        self,
        model: str | ALBEFVEConfig = "albef-b16-ve",
        pretrained: str | None = None,
        start: dict[str, str] | None = None,
        teaching: Teaching = Teaching(alpha_epochs=0.0),
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=2e-5, weight_decay=0.02),
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
    ):
        built = _built(ALBEFVE, model, pretrained)
        super().__init__(built, teaching, optimizer, recipe, pretrained=pretrained is not None, start=start)

    def training_step(self, batch: CaptionBatch, batch_idx: int) -> Tensor:
        """Cross-entropy over the labelled sentences."""
        with torch.no_grad():
            soft = None if self.teacher is None else self.taught().entail(batch.images, batch.ids, batch.keep)
        return self.choose(self._entailed(batch), self._labels(batch), soft)

    def heldout(self, split: Split) -> HeldOutClasses:
        """Accuracy; chance is the most frequent relation."""
        return HeldOutClasses()

    def judge(self, batch: CaptionBatch, collector: HeldOutClasses) -> None:
        """Judge a batch of the split."""
        collector.add(self._entailed(batch), self._labels(batch))

    def predict_step(self, batch: CaptionBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Logits (B, classes), with the keys of the samples."""
        return {"keys": batch.keys, "logits": self._entailed(batch)}

    def _entailed(self, batch: CaptionBatch) -> Tensor:
        return self.model.entail(batch.images, batch.ids, batch.keep)

    def _labels(self, batch: CaptionBatch) -> Tensor:
        if batch.labels is None:
            raise UsageError("these captions have no labels: give data of the kind EntailmentData.")
        return batch.labels
