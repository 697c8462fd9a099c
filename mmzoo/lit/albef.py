"""Trains ALBEF: contrast, matching and masked words, under a teacher that trails behind."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import AdamW

from mmzoo import dist
from mmzoo.data.batch import CaptionBatch
from mmzoo.errors import UsageError
from mmzoo.lit.base import LitBase, Recipe, build_model
from mmzoo.lit.fusion import HeldOutFusion, mask_vocabulary, steps_of
from mmzoo.lit.heldout import Split
from mmzoo.lit.momentum import EmbeddingQueue, MomentumCopy, ramped
from mmzoo.losses.masking import NO_LABEL, Masked, mask_words
from mmzoo.losses.matching import Choice, match_loss
from mmzoo.losses.negatives import Negatives, Weighting, draw_negatives
from mmzoo.losses.queued import queued_contrast
from mmzoo.losses.tiles import Contrastive
from mmzoo.losses.words import SoftWords, WordLoss, word_loss
from mmzoo.models.albef import ALBEF, ALBEFConfig
from mmzoo.ops.pairs import Positives

__all__ = ["LitALBEF", "Losses"]

LOG_SCALES = math.log(1 / 0.5), math.log(1 / 0.001)  # the reference keeps its divisor within [0.001, 0.5]


class Losses(NamedTuple):
    """The three losses of a batch; `words` is None for a model without that head."""

    contrast: Contrastive
    match: Choice
    words: WordLoss | None


class _Taught(NamedTuple):
    """What the teacher makes of a batch; `hidden` (R, D) is what its word decoder reads at the masked tokens."""

    image: Tensor
    text: Tensor
    hidden: Tensor | None


class LitALBEF(LitBase):
    """Pre-trains ALBEF, or fine-tunes it for retrieval (the same without masked words).

    The image's keys and values are projected once a step. One pass of the fusion half reads all that needs it: each
    text with its image, with a hard negative image, each image with a hard negative text, and the text with hidden
    words.

    Args:
        model: An ALBEF's name, or its config in full.
        pretrained: Weights to start from: a folder that `mmzoo.save` wrote, or its file.
        start: Weights of single towers, of any family that has one: `{vision: PATH, text: PATH}`, of a BERT too, whose
            lack of cross-attention leaves it as built; or of a pre-trained ALBEF, whatever its heads: `{model: PATH}`.
        alpha: The teacher's share in the targets of contrast and masked words.
        alpha_epochs: Epochs over which that share grows from 0 (ALBEF 1, BLIP 2, its fine-tuning for some tasks 0).
        momentum: Share of the teacher's weights that stays at each step. None trains without a teacher: pairs are
            contrasted within the batch, with gradient on both sides (CLIP's loss), which from scratch learns in fewer
            steps; then `alpha` and `queue` are 0.
        queue: Pairs whose embeddings are kept as further columns of the contrast; 0 keeps none.
        teacher_dropout: Let the teacher drop out as the reference does.
        weighting: How negatives are weighted by their similarity; see `draw_negatives`.
        mask: Share of tokens to hide.
        whole_words: Hide a word's pieces together.
        rerank: Candidates of each held-out image and text that are matched as well; 0 for none.
        optimizer: Its class and settings, left out: those of salesforce/ALBEF's configs; fused unless said otherwise.
        recipe: Schedule, freezing, averaging and the like.
    """

    model: ALBEF

    def __init__(
        self,
        model: str | ALBEFConfig = "albef-tiny",
        pretrained: str | None = None,
        start: dict[str, str] | None = None,
        alpha: float = 0.4,
        alpha_epochs: float = 1.0,
        momentum: float | None = 0.995,
        queue: int = 65536,
        teacher_dropout: bool = False,
        weighting: Weighting = "log",
        mask: float = 0.15,
        whole_words: bool = False,
        rerank: int = 0,
        # a lambda over constants is what jsonargparse can read and write to config.yaml
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=1e-4, weight_decay=0.02),
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
    ):
        for name, share in (("alpha", alpha), ("mask", mask)):
            if not 0 <= share <= 1:
                raise UsageError(f"{name} is {share}; it is a share, from 0 to 1.")
        if queue < 0 or rerank < 0 or alpha_epochs < 0:
            raise UsageError("queue, rerank and alpha_epochs are numbers from 0.")
        if momentum is None and (alpha or queue):
            raise UsageError(
                f"momentum null trains without a teacher, whose targets (alpha {alpha}) and embeddings (queue {queue}) "
                "there are then none of: set alpha 0 and queue 0, or a momentum."
            )
        built = build_model("albef", model, pretrained)
        if not isinstance(built, ALBEF):
            raise UsageError(f"LitALBEF trains an ALBEF; {model} is an {type(built).__name__}.")
        super().__init__(built, optimizer, recipe, pretrained=pretrained is not None, start=start)
        self.alpha, self.alpha_epochs = alpha, alpha_epochs
        self.weighting, self.mask, self.whole_words, self.rerank = weighting, mask, whole_words, rerank
        self.teacher = None
        if momentum is not None:
            self.teacher = MomentumCopy(
                built, decay=momentum, leave_out=("match_head",), dropout=teacher_dropout
            )
        self.queue = EmbeddingQueue(queue, built.config.embed) if queue else None

    # -- training -----------------------------------------------------------------------------------------------

    def training_step(self, batch: CaptionBatch, batch_idx: int) -> Tensor:
        """The sum of the three losses; then the queue takes in the teacher's embeddings."""
        alpha = ramped(self.alpha, self.global_step, steps_of(self.trainer, self.alpha_epochs))
        losses, taught = self.losses(batch, alpha)
        if self.queue is not None and taught is not None:
            self.queue.push(taught.image, taught.text, batch.image_ids, batch.text_ids)
        contrast, match, words = losses
        loss = contrast.loss + match.loss
        told: dict[str, Tensor | float] = {
            "itc": contrast.loss.detach(),
            "itc_accuracy": (contrast.image_accuracy + contrast.text_accuracy) / 2,
            "itm": match.loss.detach(),
            "itm_accuracy": match.accuracy,
        }
        if words is not None:
            loss = loss + words.loss
            told |= {"mlm": words.loss.detach(), "mlm_accuracy": words.accuracy}
        return self.log_step(loss, **told, alpha=alpha, scale=self.model.scale.detach())

    def losses(self, batch: CaptionBatch, alpha: float) -> tuple[Losses, _Taught | None]:
        """The three losses of a batch, and what the teacher made of it, if there is one."""
        m, (keep, count) = self.model, (batch.keep, len(batch.ids))
        masked = self._hide(batch)
        tokens = m.image_tokens(batch.images)
        # the text half reads plain texts and those with hidden words in one pass
        states = m.text_states(_both(batch.ids, masked), keep.repeat(2, 1) if masked else keep, packed=True)
        image, text = m.embed_image(tokens), m.embed_text(states[:count])
        taught = self._teach(batch, masked)
        ids: dict[str, Any] = {"image_ids": batch.image_ids, "text_ids": batch.text_ids}
        contrast = queued_contrast(
            image, text, m.scale, teacher_image=taught and taught.image, teacher_text=taught and taught.text,
            alpha=alpha, queue=None if self.queue is None else self.queue.view(),
            gather="local" if dist.world() > 1 else "none", **ids,
        )  # fmt: skip
        negatives = self._negatives(image, text, taught, batch)
        own = torch.arange(count, device=keep.device)
        rows = torch.cat([own, own, negatives.text, *([own + count] if masked else [])])
        images = torch.cat([own, negatives.image, own, *([own] if masked else [])])
        read = m.fuse(states[rows], keep[rows % count], m.project(tokens), images, packed=True)
        true = torch.ones_like(negatives.image_found)
        match = match_loss(
            m.match_head(read[: 3 * count, 0]),
            torch.cat([true, ~true, ~true]),
            valid=torch.cat([true, negatives.image_found, negatives.text_found]),
            over_ranks=True,
        )
        words = None if masked is None else self._name(read[3 * count :], masked, taught, alpha)
        return Losses(contrast, match, words), taught

    def _hide(self, batch: CaptionBatch) -> Masked | None:
        """Hide words, if the model has a head to name them."""
        if self.model.mlm is None:
            return None
        vocabulary = mask_vocabulary(self.processor.tokenizer)
        return mask_words(
            batch.ids, batch.keep, vocabulary=vocabulary, generator=self.generator, p=self.mask,
            whole_words=self.whole_words,
        )  # fmt: skip

    @torch.no_grad()
    def _teach(self, batch: CaptionBatch, masked: Masked | None) -> _Taught | None:
        if self.teacher is None:
            return None
        m, count = self.teacher.model, len(batch.ids)
        assert isinstance(m, ALBEF)
        tokens = m.image_tokens(batch.images)
        # the teacher's words are asked for only where they count: alpha 0 means for good
        asked = masked if self.alpha and masked is not None else None
        states = m.text_states(_both(batch.ids, asked), batch.keep.repeat(2, 1) if asked else batch.keep)
        image, text = m.embed_image(tokens), m.embed_text(states[:count])
        if asked is None or m.mlm is None:
            return _Taught(image, text, None)
        read = m.fuse(states[count:], batch.keep, m.project(tokens))
        return _Taught(image, text, m.mlm(read[asked.labels != NO_LABEL]))

    @torch.no_grad()
    def _negatives(
        self, image: Tensor, text: Tensor, taught: _Taught | None, batch: CaptionBatch
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

    def _name(self, read: Tensor, masked: Masked, taught: _Taught | None, alpha: float) -> WordLoss:
        """Name the hidden words; only their rows are looked at."""
        head, where = self.model.mlm, masked.labels != NO_LABEL
        assert head is not None
        soft = None
        if alpha and taught is not None and taught.hidden is not None:
            assert self.teacher is not None
            teacher = self.teacher.model.mlm
            soft = SoftWords(taught.hidden, teacher.weight, teacher.bias)  # type: ignore[union-attr, arg-type]
        labels = masked.labels[where]
        return word_loss(
            head(read[where]),
            head.weight,
            head.bias,
            labels,
            soft=soft,
            alpha=alpha if soft else 0.0,
            over_ranks=True,
        )

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep the temperature within the reference's bounds, and let a teacher follow."""
        self.model.logit_scale.clamp_(*LOG_SCALES)
        if self.teacher is not None:
            self.teacher.update()

    # -- evaluation ---------------------------------------------------------------------------------------------

    def heldout(self, split: Split) -> HeldOutFusion:
        """Retrieval both ways, by cosine and after re-ranking; matching; masked words."""
        return HeldOutFusion(self.model, self.rerank)

    def judge(self, batch: CaptionBatch, collector: HeldOutFusion) -> None:
        """Embed a batch of the split, match it with hard negatives, and name hidden words."""
        m, count = self.model, len(batch.ids)
        masked = self._hide(batch)
        tokens = m.image_tokens(batch.images)
        states = m.text_states(_both(batch.ids, masked), batch.keep.repeat(2, 1) if masked else batch.keep)
        image, text = m.embed_image(tokens), m.embed_text(states[:count])
        collector.add(image, text, batch)
        collector.hold(tokens, batch)
        kv = m.project(tokens)
        negatives = self._negatives(image, text, _Taught(image, text, None), batch)
        found = negatives.image_found
        plain = states[:count]
        true, false = (
            m.match_states(plain, batch.keep, kv),
            m.match_states(plain, batch.keep, kv, negatives.image),
        )
        labels = torch.cat([torch.ones_like(found[found]), torch.zeros_like(found[found])]).long()
        collector.matching.add(torch.cat([true[found], false[found]]), labels)
        if masked is not None and m.mlm is not None:
            where = masked.labels != NO_LABEL
            read = m.fuse(states[count:], batch.keep, kv)
            collector.words.add(m.mlm.logits(read[where]), masked.labels[where])

    def predict_step(self, batch: CaptionBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Unit vectors of the batch's images and texts, with the keys of its samples."""
        image, text = self.model.encode_image(batch.images), self.model.encode_text(batch.ids, batch.keep)
        return {"keys": batch.keys, "image": image, "text": text}


def _both(ids: Tensor, masked: Masked | None) -> Tensor:
    """Texts as they are, then with hidden words."""
    return ids if masked is None else torch.cat([ids, masked.ids])
