"""Learning which images and texts belong together, by contrast and by matching: what ALBEF and BLIP train alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from mmzoo import dist
from mmzoo.data.batch import CaptionBatch
from mmzoo.errors import UsageError
from mmzoo.layers.image_kv import ImageKV
from mmzoo.lit.base import Recipe
from mmzoo.lit.fusion import HeldOutFusion, Matches
from mmzoo.lit.momentum import EmbeddingQueue
from mmzoo.lit.taught import LitTaught, Teaching
from mmzoo.losses.matching import Choice
from mmzoo.losses.negatives import Negatives, Weighting, draw_negatives
from mmzoo.losses.queued import queued_contrast
from mmzoo.losses.tiles import Contrastive
from mmzoo.losses.words import WordLoss
from mmzoo.ops.pairs import Positives

__all__ = [
    "AS_THEY_ARE",
    "LOG_SCALES",
    "Contrasting",
    "LitPairs",
    "LossWeights",
    "Losses",
    "MatchRows",
    "Taught",
    "match_rows",
]

LOG_SCALES = math.log(1 / 0.5), math.log(1 / 0.001)  # the references keep their divisor within [0.001, 0.5]


class Pairs(Matches, Protocol):
    """What contrast and matching need of a model, an `nn.Module`: `mmzoo.models.pairing.PairReader` and its like."""

    config: Any  # with `embed`, the width E of the common space
    logit_scale: nn.Parameter

    @property
    def scale(self) -> Tensor:
        """The multiplier of the cosines."""
        ...

    def embed_image(self, tokens: Tensor) -> Tensor:
        """Image tokens (B, N, D) to unit vectors (B, E)."""
        ...

    def encode_image(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to unit vectors (B, E)."""
        ...

    def encode_text(self, ids: Tensor, keep: Tensor, *, packed: bool = False) -> Tensor:
        """Texts (T, L) to unit vectors (T, E)."""
        ...


class Losses(NamedTuple):
    """The losses of a batch; `words` is None for a model without that head, and both are while it aligns."""

    contrast: Contrastive
    match: Choice | None
    words: WordLoss | None


class Taught(NamedTuple):
    """What the teacher makes of a batch.

    Attributes:
        image: (B, E) unit vectors.
        text: (B, E) unit vectors.
        hidden: (R, D) what its word decoder reads at the masked tokens, where it is asked for them.
    """

    image: Tensor
    text: Tensor
    hidden: Tensor | None = None


class MatchRows(NamedTuple):
    """Pairs to be matched.

    Attributes:
        text: (R,) int64, which text.
        image: (R,) int64, which image.
        match: (R,) bool, whether the two belong together.
        valid: (R,) bool, False where no negative was found.
    """

    text: Tensor
    image: Tensor
    match: Tensor
    valid: Tensor


def match_rows(*draws: Negatives) -> MatchRows:
    """Each of B texts with its image and, for each draw, with a negative image, and each image with a negative text."""
    own = torch.arange(len(draws[0].image), device=draws[0].image.device)
    true = torch.ones_like(draws[0].image_found)
    return MatchRows(
        torch.cat([own, *(rows for d in draws for rows in (own, d.text))]),
        torch.cat([own, *(rows for d in draws for rows in (d.image, own))]),
        torch.cat([true, *([~true] * 2 * len(draws))]),
        torch.cat([true, *(found for d in draws for found in (d.image_found, d.text_found))]),
    )


@dataclass(frozen=True)
class LossWeights:
    """What each loss counts in the sum; the papers add them up as they are.

    Attributes:
        contrast: Of images and texts.
        match: Of pairs that were read together.
        words: Of masked or next words.
    """

    contrast: float = 1.0
    match: float = 1.0
    words: float = 1.0

    def __post_init__(self) -> None:
        if min(self.contrast, self.match, self.words) < 0:
            raise UsageError(f"{self}: a loss counts 0 or more.")


AS_THEY_ARE = LossWeights()


@dataclass(frozen=True)
class Contrasting:
    """Settings of contrast and matching, as `LitALBEF` and `LitBLIP` name and explain them.

    Raises:
        UsageError: A number is out of range, or only a teacher could give what is asked for and there is none.
    """

    alpha: float
    alpha_epochs: float
    momentum: float | None
    queue: int
    teacher_dropout: bool
    weighting: Weighting
    rerank: int
    hard_negatives: int = 1
    align_steps: int = 0
    weights: LossWeights = AS_THEY_ARE

    def __post_init__(self) -> None:
        if self.hard_negatives < 1 or self.align_steps < 0:
            raise UsageError(
                f"hard_negatives is {self.hard_negatives} and must be 1 or more; align_steps is {self.align_steps} and "
                "must be 0 or more."
            )
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"alpha is {self.alpha}; it is a share, from 0 to 1.")
        if self.queue < 0 or self.rerank < 0 or self.alpha_epochs < 0:
            raise UsageError("queue, rerank and alpha_epochs are numbers from 0.")
        if self.momentum is None and (self.alpha or self.queue):
            raise UsageError(
                f"momentum null trains without a teacher, whose targets (alpha {self.alpha}) and embeddings (queue "
                f"{self.queue}) there are then none of: set alpha 0 and queue 0, or a momentum."
            )

    def teaching(self) -> Teaching:
        """The teacher's part."""
        said = {} if self.momentum is None else {"momentum": self.momentum}
        return Teaching(self.alpha, self.alpha_epochs, dropout=self.teacher_dropout, **said)


class LitPairs(LitTaught):
    """Contrasts and matches the pairs of each batch; a family says how it reads them, and trains its words beside.

    Args:
        built: The model, a `Pairs`.
        settings: Of contrast and matching.
        optimizer: Makes the optimizer from parameter groups.
        recipe: Everything else about training.
        pretrained: Whether the weights came from a file.
        start: Files that parts of the model start from.
        left_out: Modules that the teacher does not need.
    """

    model: Pairs  # type: ignore[assignment]
    word_task: str
    """What the family's loss of words is called in metrics."""

    def __init__(
        self,
        built: nn.Module,
        settings: Contrasting,
        optimizer: OptimizerCallable,
        recipe: Recipe,
        *,
        pretrained: bool,
        start: dict[str, str] | None,
        left_out: tuple[str, ...],
    ):
        super().__init__(
            built, settings.teaching(), optimizer, recipe, pretrained=pretrained, start=start,
            teacher=settings.momentum is not None, left_out=left_out,
        )  # fmt: skip
        self.settings = settings
        self.alpha, self.weighting, self.rerank = settings.alpha, settings.weighting, settings.rerank
        self.queue = EmbeddingQueue(settings.queue, self.model.config.embed) if settings.queue else None

    # -- training -----------------------------------------------------------------------------------------------

    def losses(self, batch: CaptionBatch, alpha: float) -> tuple[Losses, Taught | None]:
        """The losses of a batch, and what the teacher made of it, if there is one; a family says."""
        raise NotImplementedError

    def teach(self, batch: CaptionBatch) -> Taught | None:
        """What the teacher makes of a batch's images and texts, if there is one; a family says."""
        raise NotImplementedError

    def training_step(self, batch: CaptionBatch, batch_idx: int) -> Tensor:
        """The sum of the losses; then the queue takes in the teacher's embeddings."""
        alpha, weights = self.share(), self.settings.weights
        aligning = self.global_step < self.settings.align_steps
        losses, taught = (self.aligned if aligning else self.losses)(batch, alpha)
        if self.queue is not None and taught is not None:
            self.queue.push(taught.image, taught.text, batch.image_ids, batch.text_ids)
        contrast, match, words = losses
        loss = weights.contrast * contrast.loss
        told: dict[str, Tensor | float] = {
            "itc": contrast.loss.detach(),
            "itc_accuracy": (contrast.image_accuracy + contrast.text_accuracy) / 2,
        }
        if match is None:
            # DDP waits for every parameter's gradient, and weight decay must not depend on the number of processes
            loss = loss + 0 * sum(p.sum() for p in self.parameters() if p.requires_grad)
        else:
            loss = loss + weights.match * match.loss
            told |= {"itm": match.loss.detach(), "itm_accuracy": match.accuracy}
        if words is not None:
            loss = loss + weights.words * words.loss
            told |= {self.word_task: words.loss.detach(), f"{self.word_task}_accuracy": words.accuracy}
        return self.log_step(loss, **told, alpha=alpha, scale=self.model.scale.detach())

    def aligned(self, batch: CaptionBatch, alpha: float) -> tuple[Losses, Taught | None]:
        """The contrast alone: fusing is most of a step, and learns little before images and texts are aligned."""
        m, taught = self.model, self.teach(batch)
        text = m.encode_text(batch.ids, batch.keep, packed=True)
        contrast = self.contrast(m.encode_image(batch.images), text, taught, batch, alpha)
        return Losses(contrast, None, None), taught

    def rows_to_match(
        self, image: Tensor, text: Tensor, taught: Taught | None, batch: CaptionBatch
    ) -> MatchRows:
        """The batch's pairs and hard negatives of both kinds, as many of each as the settings say."""
        times = range(self.settings.hard_negatives)
        return match_rows(*(self._negatives(image, text, taught, batch) for _ in times))

    def contrast(
        self, image: Tensor, text: Tensor, taught: Taught | None, batch: CaptionBatch, alpha: float
    ) -> Contrastive:
        """Contrast unit vectors (B, E) of images and of texts with the teacher's, or with each other without one."""
        return queued_contrast(
            image, text, self.model.scale, teacher_image=taught and taught.image,
            teacher_text=taught and taught.text, alpha=alpha,
            queue=None if self.queue is None else self.queue.view(),
            image_ids=batch.image_ids, text_ids=batch.text_ids, gather="local" if dist.world() > 1 else "none",
        )  # fmt: skip

    @torch.no_grad()
    def _negatives(
        self, image: Tensor, text: Tensor, taught: Taught | None, batch: CaptionBatch
    ) -> Negatives:
        """Draw among this process's batch, each side by its similarity to the other, the teacher's if there is one."""
        positives, scale = Positives(batch.image_ids, batch.text_ids[:, None]), self.model.scale
        other_image, other_text = (image, text) if taught is None else (taught.image, taught.text)
        return draw_negatives(
            scale * image @ other_text.to(image).T,
            positives,
            text_scores=scale * text @ other_image.to(text).T,
            generator=self.generator,
            weighting=self.weighting,
        )

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep the temperature within the references' bounds, and let a teacher follow."""
        self.model.logit_scale.clamp_(*LOG_SCALES)
        super().after_step()

    # -- evaluation ---------------------------------------------------------------------------------------------

    def judge_pairs(
        self, batch: CaptionBatch, collector: HeldOutFusion, tokens: Tensor, text: Tensor, states: Tensor
    ) -> ImageKV:
        """Take a batch's pairs for retrieval, and match them and hard negatives.

        Args:
            batch: B pairs.
            collector: Of their split.
            tokens: (B, N, D) of the images.
            text: (B, E) unit vectors of the texts.
            states: (B, L, D) of the texts, for matching.

        Returns:
            The images' keys and values.
        """
        m, image = self.model, self.model.embed_image(tokens)
        collector.add(image, text, batch)
        collector.hold(tokens, batch)
        kv = m.project(tokens)
        negatives = self._negatives(image, text, None, batch)
        found = negatives.image_found
        true = m.match_states(states, batch.keep, kv)
        false = m.match_states(states, batch.keep, kv, negatives.image)
        labels = torch.cat([torch.ones_like(found[found]), torch.zeros_like(found[found])]).long()
        collector.matching.add(torch.cat([true[found], false[found]]), labels)
        return kv

    def predict_step(self, batch: CaptionBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Unit vectors of the batch's images and texts, with the keys of its samples."""
        image, text = self.model.encode_image(batch.images), self.model.encode_text(batch.ids, batch.keep)
        return {"keys": batch.keys, "image": image, "text": text}
