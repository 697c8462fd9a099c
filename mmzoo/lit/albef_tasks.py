"""Fine-tunes ALBEF for one task: answers, sentences about two images, entailment. The teacher goes on teaching."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import AdamW

from mmzoo.data.batch import CaptionBatch
from mmzoo.errors import UsageError
from mmzoo.lit.base import Recipe
from mmzoo.lit.heldout import HeldOutClasses, Split
from mmzoo.lit.tasks import LitAnswers, LitCompares, build_for_task, check_k, towers_of
from mmzoo.lit.taught import NO_TEACHING, LitTaught, Teaching
from mmzoo.losses.assignment import draw_assignment
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

__all__ = ["LitALBEFAssign", "LitALBEFNLVR2", "LitALBEFVE", "LitALBEFVQA", "Teaching"]

_ASSIGN_SCALE = 1 / 0.07  # images are drawn by cosine over the start of the temperature, learned or not


def _layers(config: ALBEFConfig) -> tuple[int, int]:
    """The first fusion layer, and how many there are."""
    first = config.text.cross_layers[0]
    return first, config.text.depth - first


def _vqa(config: ALBEFConfig) -> ALBEFVQAConfig:
    text, (_, layers) = config.text, _layers(config)
    decoder = replace(
        text, depth=layers, cross_layers=tuple(range(layers)), cross_width=text.width, causal=True
    )
    return ALBEFVQAConfig(**towers_of(config), decoder=decoder)


def _nlvr2(config: ALBEFConfig) -> ALBEFNLVR2Config:
    first, layers = _layers(config)
    depth = first + 2 * layers
    text = replace(config.text, depth=depth, cross_layers=tuple(range(first, depth)))
    return ALBEFNLVR2Config(**towers_of(config) | {"text": text}, embed=config.embed)


def _ve(config: ALBEFConfig) -> ALBEFVEConfig:
    return ALBEFVEConfig(**towers_of(config))


class LitALBEFVQA(LitAnswers):
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
        teaching: Teaching = Teaching(),  # noqa: B008 - frozen
        k: int = 128,
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=2e-5, weight_decay=0.02),
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
    ):
        check_k(k)
        built = build_for_task("albef", ALBEFVQA, model, pretrained, _vqa)
        super().__init__(
            built, teaching, k, optimizer, recipe, pretrained=pretrained is not None, start=start
        )


class LitALBEFNLVR2(LitCompares):
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
        teaching: Teaching = Teaching(),  # noqa: B008 - frozen
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=2e-5, weight_decay=0.02),
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
    ):
        built = build_for_task("albef", ALBEFNLVR2, model, pretrained, _nlvr2)
        super().__init__(built, teaching, optimizer, recipe, pretrained=pretrained is not None, start=start)
        if self.model.config.task != "compare":
            raise UsageError(
                'this model assigns texts: build it with task="compare", or train it by LitALBEFAssign.'
            )


class LitALBEFAssign(LitTaught):
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
        built = build_for_task("albef", ALBEFNLVR2, model, pretrained, _nlvr2, task="assign")
        super().__init__(
            built, NO_TEACHING, optimizer, recipe, pretrained=pretrained is not None, start=start
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


class LitALBEFVE(LitTaught):
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
        teaching: Teaching = Teaching(alpha_epochs=0.0),  # noqa: B008 - frozen
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=2e-5, weight_decay=0.02),
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
    ):
        built = build_for_task("albef", ALBEFVE, model, pretrained, _ve)
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
