"""Trains BLIP: contrast, matching and writing; a teacher that trails behind takes part in the contrast."""

from __future__ import annotations

from typing import Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import AdamW

from mmzoo.data.batch import CaptionBatch
from mmzoo.errors import UsageError
from mmzoo.lit.base import Recipe, build_model
from mmzoo.lit.everywhere import draw_everywhere
from mmzoo.lit.fusion import HeldOutFusion
from mmzoo.lit.heldout import Split
from mmzoo.lit.pairs import AS_THEY_ARE, Contrasting, LitPairs, Losses, LossWeights, Taught
from mmzoo.lit.writing import next_words
from mmzoo.losses.masking import NO_LABEL
from mmzoo.losses.matching import match_loss
from mmzoo.losses.negatives import Weighting
from mmzoo.models.blip import BLIP, BLIPConfig, BLIPReader

__all__ = ["LitBLIP"]

_ROWS = 512  # next words in memory at once, each with a logit for every word


class LitBLIP(LitPairs):
    """Pre-trains BLIP; or fine-tunes it for retrieval, which is the same with a model that does not write.

    The image's keys and values are projected once a step: encoder and decoder share their cross-attention. One pass
    of the encoder matches each text with its image and with a hard negative image, and each image with a hard negative
    text; the decoder writes each text.

    Args:
        model: A BLIP's name, or its config in full (`writes: false` for retrieval).
        pretrained: Weights to start from: a folder that `mmzoo.save` wrote, or its file.
        start: Weights of single towers, of any family that has one: `{vision: PATH, text: PATH}`; or of a related
            BLIP: `{model: PATH}`. See `mmzoo.start.start_parts`.
        alpha: The teacher's share in the targets of the contrast.
        alpha_epochs: Epochs over which that share grows from 0 (pre-training 2, retrieval 1).
        momentum: Share of the teacher's weights that stays at each step. None trains without a teacher, as in
            `LitALBEF`; then `alpha` and `queue` are 0.
        queue: Pairs whose embeddings are kept as further columns of the contrast; 0 keeps none.
        teacher_dropout: Let the teacher drop out as the reference does.
        weighting: How negatives are weighted by their similarity; see `draw_negatives`.
        negatives: Where negatives are drawn from: this process's batch, or those of all (`ranks`, as the reference does
            on COCO). Similarity is to the teacher's embeddings; the reference's fine-tuning takes the student's own.
        label_smoothing: Share of a next word's mass that is spread over all words.
        rerank: Candidates of each held-out image and text that are matched as well; 0 for none.
        hard_negatives: Draws for each image and each text; more cost little, since an image's keys are shared.
        align_steps: Steps at the beginning that only contrast, as in `LitALBEF`.
        weights: What each loss counts.
        optimizer: Its class and settings, left out: those of salesforce/BLIP's `pretrain.yaml`; fused unless said
            otherwise.
        recipe: Schedule, freezing, averaging and the like.
    """

    model: BLIP | BLIPReader
    word_task = "lm"

    def __init__(
        self,
        model: str | BLIPConfig = "blip-tiny",
        pretrained: str | None = None,
        start: dict[str, str] | None = None,
        alpha: float = 0.4,
        alpha_epochs: float = 2.0,
        momentum: float | None = 0.995,
        queue: int = 57600,
        teacher_dropout: bool = False,
        weighting: Weighting = "blip",
        negatives: Literal["batch", "ranks"] = "batch",
        label_smoothing: float = 0.1,
        rerank: int = 0,
        hard_negatives: int = 1,
        align_steps: int = 0,
        weights: LossWeights = AS_THEY_ARE,
        # a lambda over constants is what jsonargparse can read and write to config.yaml
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=3e-4, weight_decay=0.05),
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
    ):
        settings = Contrasting(
            alpha, alpha_epochs, momentum, queue, teacher_dropout, weighting, rerank, hard_negatives, align_steps,
            weights,
        )  # fmt: skip
        if negatives == "ranks" and hard_negatives > 1:
            raise UsageError(
                "of all ranks one hard negative is drawn for each: set hard_negatives 1, or negatives batch."
            )
        check_smoothing(label_smoothing)
        built = build_model("blip", model, pretrained)
        if not isinstance(built, BLIPReader):
            raise UsageError(
                f"LitBLIP trains a BLIP that reads texts; {model} is a {type(built).__name__}. Captions, answers and "
                "pairs of images have LitBLIPCaption, LitBLIPVQA and LitBLIPNLVR2."
            )
        # a teacher embeds images and texts, and nothing else
        crosses = (
            f"text.blocks.{i}.{part}"
            for i in built.config.text.cross_layers
            for part in ("cross", "cross_norm")
        )
        writing = ("decoder", "lm") if isinstance(built, BLIP) else ()
        super().__init__(
            built, settings, optimizer, recipe, pretrained=pretrained is not None, start=start,
            left_out=("match_head", *crosses, *writing),
        )  # fmt: skip
        self.negatives, self.label_smoothing = negatives, label_smoothing

    # -- training -----------------------------------------------------------------------------------------------

    def losses(self, batch: CaptionBatch, alpha: float) -> tuple[Losses, Taught | None]:
        """The losses of a batch, and what the teacher made of it, if there is one."""
        m = self.model
        tokens = m.image_tokens(batch.images)
        image, text = m.embed_image(tokens), m.encode_text(batch.ids, batch.keep, packed=True)
        taught = self.teach(batch)
        contrast = self.contrast(image, text, taught, batch, alpha)
        if self.negatives == "ranks":
            mine = Taught(image, text)
            ids, keep, rows = draw_everywhere(
                batch, mine, taught or mine, m.scale, generator=self.generator, weighting=self.weighting
            )
        else:
            ids, keep = batch.ids, batch.keep
            rows = self.rows_to_match(image, text, taught, batch)
        kv = m.project(tokens)
        read, real = ids[rows.text], keep[rows.text]
        logits = m.match_states(m.text_states(read, real), real, kv, rows.image, packed=True)
        match = match_loss(logits, rows.match, valid=rows.valid, over_ranks=True)
        words = None
        if isinstance(m, BLIP):
            words = next_words(m, kv, batch.ids, batch.keep, label_smoothing=self.label_smoothing)
        return Losses(contrast, match, words), taught

    @torch.no_grad()
    def teach(self, batch: CaptionBatch) -> Taught | None:
        """What the teacher makes of a batch, if there is one."""
        m = self.taught()
        if m is None:
            return None
        return Taught(m.encode_image(batch.images), m.encode_text(batch.ids, batch.keep, packed=True))

    # -- evaluation ---------------------------------------------------------------------------------------------

    def heldout(self, split: Split) -> HeldOutFusion:
        """Retrieval both ways, by cosine and after re-ranking by matching and cosine; matching; next words."""
        return HeldOutFusion(self.model, self.rerank, ranks_by="itm+itc", word_task=self.word_task)

    def judge(self, batch: CaptionBatch, collector: HeldOutFusion) -> None:
        """Embed a batch of the split, match it with hard negatives, and name every next word."""
        m, ids, keep = self.model, batch.ids, batch.keep
        tokens = m.image_tokens(batch.images)
        text = m.encode_text(ids, keep)
        kv = self.judge_pairs(batch, collector, tokens, text, m.text_states(ids, keep))
        if isinstance(m, BLIP):
            labels = ids[:, 1:].masked_fill(~keep[:, 1:], NO_LABEL)
            asked = labels != NO_LABEL
            states: Tensor = m.write_states(kv, ids, keep=keep)[:, :-1][asked]
            for some, named in zip(states.split(_ROWS), labels[asked].split(_ROWS), strict=True):
                collector.words.add(m.lm.logits(some), named)


def check_smoothing(label_smoothing: float) -> None:
    """Refuse what is no share.

    Raises:
        UsageError: It is not from 0 to 1.
    """
    if not 0 <= label_smoothing <= 1:
        raise UsageError(f"label_smoothing is {label_smoothing}; it is a share, from 0 to 1.")
