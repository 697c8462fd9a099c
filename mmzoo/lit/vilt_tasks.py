"""Fine-tunes ViLT: retrieval, answers to questions, sentences about two images."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW

from mmzoo.data.batch import CaptionBatch, PairBatch, QuestionBatch
from mmzoo.errors import UsageError
from mmzoo.lit.base import LitBase, Recipe, build_model
from mmzoo.lit.heldout import Split
from mmzoo.lit.heldout_tasks import HeldOutAnswers, HeldOutHeads, HeldOutVerdicts
from mmzoo.losses.answers import answer_loss
from mmzoo.losses.matching import choice_loss
from mmzoo.models.vilt import (
    StackConfig,
    ViLT,
    ViLTConfig,
    ViLTNLVR2,
    ViLTNLVR2Config,
    ViLTVQA,
    ViLTVQAConfig,
)
from mmzoo.ops.pairs import Positives
from mmzoo.start import grown

__all__ = ["LitViLTNLVR2", "LitViLTRetrieval", "LitViLTVQA"]


def _for_task(kind: type[StackConfig], model: str | StackConfig, pretrained: str | None, **heads: Any) -> Any:
    """A model of a kind: as it is, with other heads, or grown out of a pre-trained one, then reading all patches."""
    built = build_model("vilt", model, pretrained)
    if isinstance(built.config, kind):
        wanted = replace(built.config, **heads)
    else:
        stack = {f.name: getattr(built.config, f.name) for f in fields(StackConfig)}
        wanted = kind(**stack | {"max_patches": None} | heads)
    return built if wanted == built.config else grown(built, wanted)


class LitViLTRetrieval(LitBase):
    """Fine-tunes ViLT for retrieval: of its own text and random others, an image must score its own highest.

    The others come from the batch (the reference reads them from the whole set, fifteen more texts a sample). Its
    held-out numbers are those of this choice; recall over a whole set is what `mmzoo evaluate` measures.

    Args:
        model: A ViLT's name, or its config in full; a pre-trained one's ranking head starts as its matching head.
        pretrained: Weights to start from: a folder that `mmzoo.save` wrote, or its file.
        start: Weights of single towers or of a pre-trained ViLT, see `mmzoo.start.start_parts`.
        others: How many other texts.
        optimizer: Its class and settings, left out: those of dandelin/ViLT's `config.py`; fused unless said otherwise.
        recipe: Schedule, freezing, averaging and the like.
    """

    model: ViLT

    def __init__(
        self,
        model: str | ViLTConfig = "vilt-tiny",
        pretrained: str | None = None,
        start: dict[str, str] | None = None,
        others: int = 15,
        optimizer: OptimizerCallable = lambda params: AdamW(
            params, lr=1e-4, betas=(0.9, 0.98), weight_decay=0.01
        ),
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
    ):
        if others < 1:
            raise UsageError(f"others is {others}; at least one other text is needed.")
        built = _for_task(
            ViLTConfig, model, pretrained, match=False, words=False, rank=True, max_patches=None
        )
        super().__init__(built, optimizer, recipe, pretrained=pretrained is not None, start=start)
        self.others = others

    def training_step(self, batch: CaptionBatch, batch_idx: int) -> Tensor:
        """Cross-entropy of the true text against the others."""
        logits, labels, valid = self.choose(batch)
        choice = choice_loss(logits, labels, valid=valid, over_ranks=True)
        return self.log_step(choice.loss, accuracy=choice.accuracy)

    def choose(self, batch: CaptionBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Score each image with its text and others.

        Returns:
            Logits (B, 1 + K), -inf where there are fewer others; labels (B,), at changing places, so that always naming
            one place is no answer; and whether there is any other, (B,) bool.
        """
        count, device = len(batch.ids), batch.ids.device
        chance = torch.rand(count, count, generator=self.generator, device=self.generator.device).to(device)
        chance[Positives(batch.image_ids, batch.text_ids[:, None]).tile(0, count)] = -1.0
        chance.fill_diagonal_(-1.0)
        drawn, text = chance.topk(min(self.others, count), dim=1)
        own = torch.arange(count, device=device)
        place = own % (1 + text.shape[1])
        text, real = (
            torch.cat([own[:, None], text], 1),
            F.pad(drawn >= 0, (1, 0), value=True),
        )
        order = torch.arange(text.shape[1], device=device).repeat(count, 1)
        order[own, place], order[:, 0] = 0, place
        text, real = text.gather(1, order), real.gather(1, order)
        image = own[:, None].expand_as(text)[real]
        scores = self.model.match(self.model.embed_images(batch.images), *_rows(batch, text[real]), image)[
            :, 1
        ]
        logits = scores.new_full(text.shape, float("-inf")).masked_scatter(real, scores)
        return logits, place, real.sum(1) > 1

    def heldout(self, split: Split) -> HeldOutHeads:
        """The choice among random texts."""
        return HeldOutHeads("choice", score="choice_top1")

    def judge(self, batch: CaptionBatch, collector: HeldOutHeads) -> None:
        """Choose for a batch of the split."""
        logits, labels, valid = self.choose(batch)
        wide = logits.new_full((len(logits), 1 + self.others), float("-inf"))
        wide[:, : logits.shape[1]] = logits
        if bool(valid.any()):
            collector.add("choice", wide[valid], labels[valid])

    def predict_step(self, batch: CaptionBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Scores (B,) of each image with its text, with the keys of the samples."""
        scores = self.model.match(batch.images, batch.ids, batch.keep)[:, 1]
        return {"keys": batch.keys, "score": scores}


def _rows(batch: CaptionBatch, text: Tensor) -> tuple[Tensor, Tensor]:
    return batch.ids[text], batch.keep[text]


class LitViLTVQA(LitBase):
    """Fine-tunes ViLT to answer questions from a closed list: each answer is right or wrong for itself.

    Args:
        model: A ViLT's name, or its config in full; a pre-trained one gets a head for answers.
        pretrained: Weights to start from: a folder that `mmzoo.save` wrote, or its file.
        start: Weights of single towers or of a pre-trained ViLT, see `mmzoo.start.start_parts`.
        answers: Length of the list; None keeps that of the model.
        optimizer: Its class and settings, left out: those of dandelin/ViLT's `config.py`; fused unless said otherwise.
        recipe: Schedule, freezing, averaging and the like.
    """

    model: ViLTVQA

    def __init__(
        self,
        model: str | ViLTVQAConfig = "vilt-b32-vqa",
        pretrained: str | None = None,
        start: dict[str, str] | None = None,
        answers: int | None = None,
        optimizer: OptimizerCallable = lambda params: AdamW(
            params, lr=1e-4, betas=(0.9, 0.98), weight_decay=0.01
        ),
        # the reference trains the head for answers ten times as fast, and no other one
        recipe: Recipe = Recipe(lr_factors={"answer_head": 10.0}),  # noqa: B008 - frozen
    ):
        if answers is not None and answers < 2:
            raise UsageError(f"answers is {answers}; a list has at least two.")
        heads = {} if answers is None else {"answers": answers}
        built = _for_task(ViLTVQAConfig, model, pretrained, **heads)
        super().__init__(built, optimizer, recipe, pretrained=pretrained is not None, start=start)

    def setup(self, stage: str) -> None:
        """Refuse data whose list is of another length than the head.

        Raises:
            UsageError: It is.
        """
        listed, head = self.processor.answers, self.model.config.answers
        if listed is not None and len(listed) != head:
            raise UsageError(
                f"the data's list has {len(listed):,} answers and the model's head {head:,}: set model.answers to "
                f"{len(listed)}, or give the data the model's list."
            )

    def training_step(self, batch: QuestionBatch, batch_idx: int) -> Tensor:
        """Binary cross-entropy over the list."""
        logits = self.model.answer_logits(batch.images, batch.ids, batch.keep)
        answered = answer_loss(logits, batch.answers, over_ranks=True)
        return self.log_step(answered.loss, score=answered.score)

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
        words = self.processor.answers
        if words is None:
            raise UsageError("nobody has named the answers: give data with a closed list.")
        best = self.model.answer_logits(batch.images, batch.ids, batch.keep).argmax(1).tolist()
        answers = [words[i] for i in best]
        return {"keys": batch.keys, "question_id": batch.question_ids, "answer": answers}


class LitViLTNLVR2(LitBase):
    """Fine-tunes ViLT to say whether a sentence is true of two images.

    Args:
        model: A ViLT's name, or its config in full; a pre-trained one gets a head, and a modality for second images.
        pretrained: Weights to start from: a folder that `mmzoo.save` wrote, or its file.
        start: Weights of single towers or of a pre-trained ViLT, see `mmzoo.start.start_parts`.
        optimizer: Its class and settings, left out: those of dandelin/ViLT's `config.py`; fused unless said otherwise.
        recipe: Schedule, freezing, averaging and the like.
    """

    model: ViLTNLVR2

    def __init__(
        self,
        model: str | ViLTNLVR2Config = "vilt-b32-nlvr2",
        pretrained: str | None = None,
        start: dict[str, str] | None = None,
        optimizer: OptimizerCallable = lambda params: AdamW(
            params, lr=1e-4, betas=(0.9, 0.98), weight_decay=0.01
        ),
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
    ):
        built = _for_task(ViLTNLVR2Config, model, pretrained)
        super().__init__(built, optimizer, recipe, pretrained=pretrained is not None, start=start)

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """Cross-entropy over the labelled pairs."""
        logits = self.model.compare(batch.first, batch.second, batch.ids, batch.keep)
        choice = choice_loss(logits, batch.labels, valid=batch.labels >= 0, over_ranks=True)
        return self.log_step(choice.loss, accuracy=choice.accuracy)

    def heldout(self, split: Split) -> HeldOutVerdicts:
        """Accuracy, and consistency over the pairs of a sentence."""
        return HeldOutVerdicts()

    def judge(self, batch: PairBatch, collector: HeldOutVerdicts) -> None:
        """Judge a batch of the split."""
        collector.add(self.model.compare(batch.first, batch.second, batch.ids, batch.keep), batch)

    def predict_step(self, batch: PairBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Logits (B, 2) of false and true, with the keys of the samples."""
        logits = self.model.compare(batch.first, batch.second, batch.ids, batch.keep)
        return {"keys": batch.keys, "logits": logits}
