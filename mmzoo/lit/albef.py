"""Trains ALBEF: contrast, matching and masked words, under a teacher that trails behind."""

from __future__ import annotations

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import AdamW

from mmzoo.data.batch import CaptionBatch
from mmzoo.errors import UsageError
from mmzoo.lit.base import Recipe, build_model
from mmzoo.lit.fusion import HeldOutFusion, mask_vocabulary
from mmzoo.lit.heldout import Split
from mmzoo.lit.pairs import AS_THEY_ARE, LOG_SCALES, Contrasting, LitPairs, Losses, LossWeights, Taught
from mmzoo.losses.masking import NO_LABEL, Masked, mask_words
from mmzoo.losses.matching import match_loss
from mmzoo.losses.negatives import Weighting
from mmzoo.losses.words import SoftWords, WordLoss, word_loss
from mmzoo.models.albef import ALBEF, ALBEFConfig

__all__ = ["LOG_SCALES", "LitALBEF", "Losses"]


class LitALBEF(LitPairs):
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
        hard_negatives: Draws for each image and each text; more cost little, since an image's keys are shared.
        align_steps: Steps at the beginning that only contrast. They cost a third, and from scratch matching learns
            little before images and texts are aligned.
        weights: What each loss counts.
        optimizer: Its class and settings, left out: those of salesforce/ALBEF's configs; fused unless said otherwise.
        recipe: Schedule, freezing, averaging and the like.
    """

    model: ALBEF
    word_task = "mlm"

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
        hard_negatives: int = 1,
        align_steps: int = 0,
        weights: LossWeights = AS_THEY_ARE,
        # a lambda over constants is what jsonargparse can read and write to config.yaml
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=1e-4, weight_decay=0.02),
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
    ):
        settings = Contrasting(
            alpha, alpha_epochs, momentum, queue, teacher_dropout, weighting, rerank, hard_negatives, align_steps,
            weights,
        )  # fmt: skip
        if not 0 <= mask <= 1:
            raise UsageError(f"mask is {mask}; it is a share, from 0 to 1.")
        built = build_model("albef", model, pretrained)
        if not isinstance(built, ALBEF):
            raise UsageError(f"LitALBEF trains an ALBEF; {model} is an {type(built).__name__}.")
        super().__init__(
            built, settings, optimizer, recipe, pretrained=pretrained is not None, start=start,
            left_out=("match_head",),
        )  # fmt: skip
        self.mask, self.whole_words = mask, whole_words

    # -- training -----------------------------------------------------------------------------------------------

    def losses(self, batch: CaptionBatch, alpha: float) -> tuple[Losses, Taught | None]:
        """The three losses of a batch, and what the teacher made of it, if there is one."""
        m, (keep, count) = self.model, (batch.keep, len(batch.ids))
        masked = self._hide(batch)
        tokens = m.image_tokens(batch.images)
        # the text half reads plain texts and those with hidden words in one pass
        states = m.text_states(_both(batch.ids, masked), keep.repeat(2, 1) if masked else keep, packed=True)
        image, text = m.embed_image(tokens), m.embed_text(states[:count])
        taught = self.teach(batch, masked)
        contrast = self.contrast(image, text, taught, batch, alpha)
        pairs = self.rows_to_match(image, text, taught, batch)
        matched = len(pairs.text)
        own = torch.arange(count, device=keep.device)
        rows = torch.cat([pairs.text, own + count]) if masked else pairs.text
        images = torch.cat([pairs.image, own]) if masked else pairs.image
        read = m.fuse(states[rows], keep[rows % count], m.project(tokens), images, packed=True)
        match = match_loss(m.match_head(read[:matched, 0]), pairs.match, valid=pairs.valid, over_ranks=True)
        words = None if masked is None else self._name(read[matched:], masked, taught, alpha)
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
    def teach(self, batch: CaptionBatch, masked: Masked | None = None) -> Taught | None:
        """What the teacher makes of a batch, and of its hidden words, if there is one."""
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
            return Taught(image, text)
        read = m.fuse(states[count:], batch.keep, m.project(tokens))
        return Taught(image, text, m.mlm(read[asked.labels != NO_LABEL]))

    def _name(self, read: Tensor, masked: Masked, taught: Taught | None, alpha: float) -> WordLoss:
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
        plain = states[:count]
        kv = self.judge_pairs(batch, collector, tokens, m.embed_text(plain), plain)
        if masked is not None and m.mlm is not None:
            where = masked.labels != NO_LABEL
            read = m.fuse(states[count:], batch.keep, kv)
            collector.words.add(m.mlm.logits(read[where]), masked.labels[where])


def _both(ids: Tensor, masked: Masked | None) -> Tensor:
    """Texts as they are, then with hidden words."""
    return ids if masked is None else torch.cat([ids, masked.ids])
