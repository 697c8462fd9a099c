"""Pre-trains ViLT: matching, masked words and word-patch alignment."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import AdamW

from mmzoo.data.batch import CaptionBatch
from mmzoo.errors import UsageError
from mmzoo.lit.base import LitBase, Recipe, build_model
from mmzoo.lit.fusion import mask_vocabulary
from mmzoo.lit.heldout import Split
from mmzoo.lit.heldout_tasks import HeldOutHeads
from mmzoo.losses.alignment import alignment_loss
from mmzoo.losses.masking import NO_LABEL, Masked, MaskVocabulary, mask_words
from mmzoo.losses.matching import match_loss
from mmzoo.losses.negatives import draw_negatives
from mmzoo.losses.words import word_loss
from mmzoo.models.vilt import Joint, ViLT, ViLTConfig
from mmzoo.ops.pairs import Positives

__all__ = ["LitViLT"]


class _Read(NamedTuple):
    """A batch read once: B texts with their own image or another, then B texts with hidden words and their own."""

    joint: Joint
    match: Tensor  # (B,) bool, whether the first B are with their own
    valid: Tensor  # (B,) bool, False where no other image was found
    words: Tensor  # (B, L) bool, what is a word in the first B
    masked: Masked | None


class LitViLT(LitBase):
    """Pre-trains ViLT. The loss is the weighted sum of three.

    Half of the batch's texts are matched with their own image, half with a random other one of the batch that they are
    not about (the reference draws it from the whole set, of which the batch is a random part). Alignment pulls words
    and patches together in the first half and apart in the second. Words are hidden from texts beside their own image.

    Args:
        model: A ViLT's name, or its config in full.
        pretrained: Weights to start from: a folder that `mmzoo.save` wrote, or its file.
        start: Weights of single towers or of a pre-trained ViLT, see `mmzoo.start.start_parts`.
        itm: Weight of matching.
        mlm: Weight of masked words; 0 leaves them out.
        alignment: Weight of word-patch alignment; 0 leaves it out.
        mask: Share of words to hide.
        whole_words: Hide a word's pieces together, as for the published weights.
        optimizer: Its class and settings, left out: those of dandelin/ViLT's `config.py`; fused unless said otherwise.
        recipe: Schedule, freezing, averaging and the like.
    """

    model: ViLT

    def __init__(
        self,
        model: str | ViLTConfig = "vilt-tiny",
        pretrained: str | None = None,
        start: dict[str, str] | None = None,
        itm: float = 1.0,
        mlm: float = 1.0,
        alignment: float = 0.1,
        mask: float = 0.15,
        whole_words: bool = True,
        # a lambda over constants is what jsonargparse can read and write to config.yaml
        optimizer: OptimizerCallable = lambda params: AdamW(
            params, lr=1e-4, betas=(0.9, 0.98), weight_decay=0.01
        ),
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
    ):
        if min(itm, mlm, alignment) < 0 or itm + mlm + alignment == 0:
            raise UsageError("itm, mlm and alignment are weights from 0, and one of them must be above.")
        if not 0 <= mask <= 1:
            raise UsageError(f"mask is {mask}; it is a share, from 0 to 1.")
        built = build_model("vilt", model, pretrained)
        lacking = [
            head
            for head, weight, there in (("match", itm, "match_head"), ("words", mlm, "mlm"))
            if weight and getattr(built, there, None) is None
        ]
        if lacking:
            raise UsageError(
                f"the model has no head for {' and '.join(lacking)}: set that loss's weight (itm, mlm) to 0, or take a "
                "model for pre-training."
            )
        super().__init__(built, optimizer, recipe, pretrained=pretrained is not None, start=start)
        self.itm, self.mlm, self.alignment = itm, mlm, alignment
        self.mask, self.whole_words = mask, whole_words

    def training_step(self, batch: CaptionBatch, batch_idx: int) -> Tensor:
        """The weighted sum of the three losses."""
        read, count = self.read(batch), len(batch.ids)
        loss = torch.zeros((), device=self.device)
        told: dict[str, Tensor | float] = {}
        if self.itm:
            assert self.model.match_head is not None
            logits = self.model.match_head(read.joint.pooled[:count])
            match = match_loss(logits, read.match, valid=read.valid, over_ranks=True)
            loss = loss + self.itm * match.loss
            told |= {"itm": match.loss.detach(), "itm_accuracy": match.accuracy}
        if read.masked is not None:
            head, labels = self.model.mlm, read.masked.labels
            assert head is not None
            hidden = head(read.joint.text[count:][labels != NO_LABEL])
            words = word_loss(hidden, head.weight, head.bias, labels[labels != NO_LABEL], over_ranks=True)
            loss = loss + self.mlm * words.loss
            told |= {"mlm": words.loss.detach(), "mlm_accuracy": words.accuracy}
        if self.alignment:
            joint, patches = read.joint, slice(1, None)  # without the class token
            aligned = alignment_loss(
                joint.text[:count], joint.image[:count, patches], read.words & read.valid[:, None],
                joint.image_keep[:count, patches], read.match, over_ranks=True,
            )  # fmt: skip
            loss = loss + self.alignment * aligned.loss
            told |= {"matching_distance": aligned.matching.detach(), "other_distance": aligned.other.detach()}
        return self.log_step(loss, **told)

    def read(self, batch: CaptionBatch) -> _Read:
        """Draw partners and hidden words, and read all in one pass."""
        m, count = self.model, len(batch.ids)
        own = torch.arange(count, device=batch.ids.device)
        even = torch.zeros(count, count, device=batch.ids.device)
        positives = Positives(batch.image_ids, batch.text_ids[:, None])
        other = draw_negatives(even, positives, generator=self.generator)
        match = torch.zeros_like(other.image_found)
        match[torch.randperm(count, generator=self.generator, device=self.generator.device)[: count // 2]] = (
            True
        )
        partner = torch.where(match, own, other.image)
        vocabulary = mask_vocabulary(self.processor.tokenizer)
        masked = self._hide(batch, vocabulary)
        ids, keep, index = batch.ids, batch.keep, partner
        if masked is not None:
            ids, keep = torch.cat([ids, masked.ids]), keep.repeat(2, 1)
            index = torch.cat([partner, own])
        joint = m(m.embed_images(batch.images), ids, keep, index)
        words = batch.keep & ~torch.isin(batch.ids, ids.new_tensor(vocabulary.special_ids))
        return _Read(joint, match, match | other.image_found, words, masked)

    def _hide(self, batch: CaptionBatch, vocabulary: MaskVocabulary) -> Masked | None:
        if not self.mlm:
            return None
        return mask_words(
            batch.ids, batch.keep, vocabulary=vocabulary, generator=self.generator, p=self.mask,
            whole_words=self.whole_words,
        )  # fmt: skip

    def heldout(self, split: Split) -> HeldOutHeads:
        """Matching, half with own images and half with random others; masked words."""
        return HeldOutHeads("itm", "mlm", score="itm_top1" if self.itm else "mlm_top1")

    def judge(self, batch: CaptionBatch, collector: HeldOutHeads) -> None:
        """Match a batch of the split, and name hidden words."""
        read, count = self.read(batch), len(batch.ids)
        if self.model.match_head is not None and bool(read.valid.any()):
            logits = self.model.match_head(read.joint.pooled[:count][read.valid])
            collector.add("itm", logits, read.match[read.valid].long())
        if self.model.mlm is not None and read.masked is not None:
            where = read.masked.labels != NO_LABEL
            collector.add(
                "mlm", self.model.mlm.logits(read.joint.text[count:][where]), read.masked.labels[where]
            )

    def predict_step(self, batch: CaptionBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Logits (B, 2) of whether each image and its text match, with the keys of the samples."""
        return {"keys": batch.keys, "match": self.model.match(batch.images, batch.ids, batch.keep)}
