"""Trains a ViT classifier: cross-entropy, with label smoothing and mixup for training from scratch."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW

from mmzoo import dist
from mmzoo.adapt import replace_head
from mmzoo.data.batch import ClassBatch
from mmzoo.errors import UsageError, ZooError
from mmzoo.lit.base import LitBase, Recipe, build_model
from mmzoo.lit.heldout import HeldOutClasses, Split, splits_of
from mmzoo.models.vit import ViT, ViTConfig

__all__ = ["LitViT"]


class LitViT(LitBase):
    """Names what is in each image.

    Args:
        model: A ViT's name, or its config in full.
        pretrained: Weights to start from: a folder that `mmzoo.save` wrote, or its file.
        start: Weights of the tower, of any family that has one: `{vision: PATH}`.
        classes: Size of the head; None keeps that of the weights or the config. Another size gives a new head.
        label_smoothing: Share of a target's mass spread over all classes.
        mixup: Images are mixed in pairs with a share drawn from Beta(mixup, mixup) (Zhang et al. 2018); 0 for none.
        optimizer: Its class and settings; fused unless said otherwise.
        recipe: Schedule, freezing, averaging and the like.
    """

    model: ViT

    def __init__(
        self,
        model: str | ViTConfig = "vit-tiny",
        pretrained: str | None = None,
        start: dict[str, str] | None = None,
        classes: int | None = None,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        # from scratch on ImageNet: Dosovitskiy et al. 2021, table 3; betas are torch's defaults
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=3e-3, weight_decay=0.3),
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
    ):
        if not 0 <= label_smoothing < 1:
            raise UsageError(f"label_smoothing is {label_smoothing}; it must lie in [0, 1).")
        if mixup < 0:
            raise UsageError(f"mixup is {mixup}; it must be 0 or more.")
        built = build_model("vit", model, pretrained)
        if classes is not None and classes != built.config.classes:
            # after loading: the file's own head goes with its classes, the new one starts at zero
            built = replace_head(built, classes)
        super().__init__(built, optimizer, recipe, pretrained=pretrained is not None, start=start)
        self.label_smoothing, self.mixup = label_smoothing, mixup

    def on_fit_start(self) -> None:
        """Refuse data whose classes are not the head's."""
        super().on_fit_start()
        head = self.model.config.classes
        for split in splits_of(self.trainer):
            if split.classes is not None and len(split.classes) != head:
                raise ZooError(
                    f"the data has {len(split.classes)} classes and the model's head {head}: set model.classes to "
                    f"{len(split.classes)}."
                )

    def training_step(self, batch: ClassBatch, batch_idx: int) -> Tensor:
        """Cross-entropy of the (mixed) images."""
        images, other, share = batch.images, batch.labels, 1.0
        if self.mixup:
            share = float(torch.distributions.Beta(self.mixup, self.mixup).sample())
            order = torch.randperm(len(images), device=images.device)
            images, other = torch.lerp(images[order], images, share), batch.labels[order]
        logits = self.model(images).float()  # (B, C); the loss is float32 whatever the autocast
        loss = share * self._entropy(logits, batch.labels) + (1 - share) * self._entropy(logits, other)
        known = batch.labels >= 0
        right = ((logits.detach().argmax(1) == batch.labels) & known).sum()
        return self.log_step(loss, accuracy=right / known.sum().clamp_min(1))

    def _entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over the labelled rows of all processes, so that the average of gradients that DDP takes is exact.

        Processes may hold different numbers of labelled rows (an uneven last batch), also none.
        """
        total = F.cross_entropy(
            logits, labels, ignore_index=-1, label_smoothing=self.label_smoothing, reduction="sum"
        )
        count = (labels >= 0).sum().float()
        if dist.world() > 1:
            count = dist.sum_over_ranks(count) / dist.world()
        return total / count.clamp_min(1e-12)

    def heldout(self, split: Split) -> HeldOutClasses:
        """Accuracy."""
        return HeldOutClasses()

    def judge(self, batch: ClassBatch, collector: HeldOutClasses) -> None:
        """Count a batch of the split."""
        collector.add(self.model(batch.images), batch.labels)

    def predict_step(self, batch: ClassBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Logits (B, C) of the batch, with the keys of its samples."""
        return {"keys": batch.keys, "logits": self.model(batch.images)}
