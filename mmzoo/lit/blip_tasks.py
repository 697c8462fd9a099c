"""Fine-tunes BLIP for one task: captions, answers, sentences about two images. There is no teacher in any of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import AdamW

from mmzoo.data.batch import CaptionBatch
from mmzoo.errors import UsageError
from mmzoo.generation import GenerationConfig, generate
from mmzoo.generation.written import Generated
from mmzoo.layers.image_kv import ImageKV
from mmzoo.lit.base import LitBase, Recipe
from mmzoo.lit.blip import check_smoothing
from mmzoo.lit.heldout import Split
from mmzoo.lit.heldout_captions import HeldOutCaptions
from mmzoo.lit.rewards import Rewards, advantages, training_captions
from mmzoo.lit.tasks import LitAnswers, LitCompares, build_for_task, check_k, towers_of
from mmzoo.lit.taught import NO_TEACHING
from mmzoo.lit.writing import next_words, prompted
from mmzoo.losses.means import at_least_float32, share_of_each
from mmzoo.losses.words import WordLoss
from mmzoo.models.blip import (
    BLIPNLVR2,
    BLIPVQA,
    BLIPConfig,
    BLIPNLVR2Config,
    BLIPVQAConfig,
    BLIPWriter,
)

__all__ = ["LitBLIPCaption", "LitBLIPNLVR2", "LitBLIPVQA"]


def _caption(config: BLIPConfig) -> BLIPConfig:
    return replace(config, reads=False, writes=True)


def _vqa(config: BLIPConfig) -> BLIPVQAConfig:
    decoder = replace(config.text, cross_width=config.text.width, causal=True)
    return BLIPVQAConfig(**towers_of(config), decoder=decoder, tokens=config.tokens)


def _nlvr2(config: BLIPConfig) -> BLIPNLVR2Config:
    half = config.text.depth // 2
    return BLIPNLVR2Config(**towers_of(config), tokens=config.tokens, merge_from=half)


class LitBLIPCaption(LitBase):
    """Teaches BLIP to write captions: each word after the prompt, or whole captions that people would agree with.

    Args:
        model: A BLIP's name, or its config in full; one that reads too leaves that behind.
        pretrained: Weights of the model that is named.
        start: Weights of parts, see `mmzoo.start.start_parts`: `{model: PATH}` of a pre-trained BLIP.
        prompt: What stands before every caption and is not learnt; None is the model's own, "" none.
        objective: `words` is the likelihood of every word. `scst` is self-critical training (Rennie et al. 2017, arXiv
            1612.00563): captions are drawn, and each becomes likelier by as much CIDEr-D as it has above the baseline.
            For a model that writes already.
        label_smoothing: Share of a word's mass that is spread over all words, for `words`.
        samples: Captions drawn for each picture, for `scst`.
        baseline: What a drawn caption must beat, for `scst`: the mean of the picture's others (Luo 2020, arXiv
            2003.09971), or the caption written greedily, as in the paper.
        writing: How held-out captions are written; `scst` draws captions as long as its `max_new_tokens`.
        optimizer: Its class and settings, left out: those of salesforce/BLIP's `caption_coco.yaml`; fused unless said
            otherwise.
        recipe: Schedule, freezing, averaging and the like.
    """

    model: BLIPWriter

    def __init__(
        self,
        model: str | BLIPConfig = "blip-tiny",
        pretrained: str | None = None,
        start: dict[str, str] | None = None,
        prompt: str | None = None,
        objective: Literal["words", "scst"] = "words",
        label_smoothing: float = 0.1,
        samples: int = 5,
        baseline: Literal["mean", "greedy"] = "mean",
        writing: GenerationConfig = GenerationConfig(),  # noqa: B008 - frozen
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=1e-5, weight_decay=0.05),
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
    ):
        check_smoothing(label_smoothing)
        if samples < (2 if baseline == "mean" else 1):
            raise UsageError(
                f"samples is {samples}: draw at least 1 caption, and 2 where each is compared with the others "
                "(baseline mean)."
            )
        if writing.per_context != 1:
            raise UsageError("writing.per_context: one held-out caption is judged for each picture.")
        changes = {} if prompt is None else {"prompt": prompt}
        built = build_for_task("blip", BLIPWriter, model, pretrained, _caption, **changes)
        super().__init__(built, optimizer, recipe, pretrained=pretrained is not None, start=start)
        self.objective, self.label_smoothing = objective, label_smoothing
        self.samples, self.baseline, self.writing = samples, baseline, writing
        self._begun: Tensor | None = None
        self._rewards: Rewards | None = None

    @property
    def _config(self) -> BLIPConfig:
        config = self.model.config
        assert isinstance(config, BLIPConfig)
        return config

    @property
    def _prompt(self) -> Tensor:
        """The prompt's ids (P,) without begin and end token.

        Raises:
            UsageError: It leaves no room for a caption.
        """
        if self._begun is None:
            words, most = self._config.prompt, self._config.text_input.context
            ids = self.processor.framed([words]).ids[0, 1:-1] if words.strip() else torch.empty(0).long()
            if len(ids) > most - 3:
                raise UsageError(
                    f"the prompt has {len(ids)} tokens, and texts of this model {most}: shorten the prompt."
                )
            self._begun = ids
        return self._begun

    # -- training -----------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Count what people say of the training pictures, if captions are rewarded by it."""
        super().on_fit_start()
        if self.objective == "scst":
            self._rewards = Rewards(training_captions(self.trainer))

    def training_step(self, batch: CaptionBatch, batch_idx: int) -> Tensor:
        """The likelihood of the words, or the reward of whole captions."""
        kv = self.model.project_images(batch.images)
        if self.objective == "scst":
            return self._criticise(kv, batch)
        words = self._words(kv, batch, label_smoothing=self.label_smoothing)
        return self.log_step(words.loss, accuracy=words.accuracy)

    def _words(self, kv: ImageKV, batch: CaptionBatch, **settings: Any) -> WordLoss:
        ids, keep = self._sentences(batch)
        return next_words(self.model, kv, ids, keep, given=len(self._prompt), **settings)

    def _sentences(self, batch: CaptionBatch) -> tuple[Tensor, Tensor]:
        c = self._config
        return prompted(batch.ids, batch.keep, self._prompt, most=c.text_input.context, end=c.tokens.end)

    def _criticise(self, kv: ImageKV, batch: CaptionBatch) -> Tensor:
        """The negative log-likelihood of drawn captions, each weighted by what it has above its baseline."""
        assert self._rewards is not None
        count, device = len(batch.images), batch.ids.device
        seed = int(torch.randint(2**62, (), generator=self.generator, device=self.generator.device))
        drawn = self._write(
            kv,
            GenerationConfig(
                max_new_tokens=self.writing.max_new_tokens, sample=True, per_context=self.samples, seed=seed
            ),
        )
        said = _captions(batch)
        reward = self._rewards(self._texts(drawn), drawn.context.tolist(), said).view(count, self.samples)
        greedy = None
        if self.baseline == "greedy":
            plain = self._write(kv, GenerationConfig(max_new_tokens=self.writing.max_new_tokens))
            greedy = self._rewards(self._texts(plain), plain.context.tolist(), said)
        dtype = at_least_float32(self.model.lm.bias)
        better = advantages(reward.to(dtype), greedy).flatten().to(device)
        rows = drawn.rows.clone()  # made in inference mode, which no gradient may remember
        front = torch.cat([rows.new_tensor([self.model.tokens.begin]), self._prompt.to(rows)])
        ids = torch.cat([front.expand(len(rows), -1), rows], 1)
        keep = torch.arange(ids.shape[1], device=device) < len(front) + drawn.lengths.clone()[:, None]
        each = share_of_each(torch.tensor(len(rows), dtype=dtype, device=device), over_ranks=True)
        words = next_words(
            self.model, kv, ids, keep, image_index=drawn.context.clone(), given=len(self._prompt),
            text_weight=better * each,
        )  # fmt: skip
        return self.log_step(words.loss, reward=reward.mean(), spread=reward.std(1, correction=0).mean())

    def _write(self, kv: ImageKV, config: GenerationConfig) -> Generated:
        """Write about images without dropping anything out."""
        with _evaluating(self):
            return generate(self.model.caption_decoder(kv), self._prompt.to(self.device), config)

    def _texts(self, written: Generated) -> list[str]:
        return self.processor.decode(written.rows)

    # -- evaluation ---------------------------------------------------------------------------------------------

    def heldout(self, split: Split) -> HeldOutCaptions:
        """Loss and accuracy by token; captions written, by exact match, CIDEr-D and BLEU-4."""
        return HeldOutCaptions(self.model.decoder.config.vocab)

    def judge(self, batch: CaptionBatch, collector: HeldOutCaptions) -> None:
        """Read a batch of the split, and write about its pictures."""
        kv = self.model.project_images(batch.images)
        ids, keep = self._sentences(batch)
        asked = keep[:, 1:].clone()
        asked[:, : len(self._prompt)] = False
        collector.add_words(self._words(kv, batch, over_ranks=False), ids[:, 1:][asked])
        collector.add(batch.keys, self._texts(self._write(kv, self.writing)), _captions(batch))

    def next_command(self, export: Path) -> str:
        """Write about the user's own pictures."""
        return f"mmzoo caption --model {export} PICTURE..."

    def predict_step(self, batch: CaptionBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """A caption for each picture, with the keys of the samples."""
        kv = self.model.project_images(batch.images)
        return {"keys": batch.keys, "caption": self._texts(self._write(kv, self.writing))}


def _captions(batch: CaptionBatch) -> list[tuple[str, ...]]:
    if batch.captions is None:
        raise UsageError("these texts are no captions of their pictures: give data of the kind CaptionsData.")
    return batch.captions.each


@contextmanager
def _evaluating(module: LitBase) -> Iterator[None]:
    """Put a module into evaluation for a while."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


class LitBLIPVQA(LitAnswers):
    """Teaches BLIP to spell answers, each weighted by how many annotators gave it; it answers by ranking a list.

    For data with `targets: words`.

    Args:
        model: A BLIPVQA's name, or its config in full; or a BLIP's, out of which one grows.
        pretrained: Weights of the model that is named.
        start: Weights of parts, see `mmzoo.start.start_parts`: `{model: PATH}` of a pre-trained BLIP, whose encoder and
            decoder part.
        label_smoothing: Share of a word's mass that is spread over all words.
        k: Answers of the list that are spelt to their end for each held-out question.
        optimizer: Its class and settings, left out: those of salesforce/BLIP's `vqa.yaml`; fused unless said otherwise.
        recipe: Schedule, freezing, averaging and the like.
    """

    model: BLIPVQA

    def __init__(
        self,
        model: str | BLIPVQAConfig = "blip-base-vqa",
        pretrained: str | None = None,
        start: dict[str, str] | None = None,
        label_smoothing: float = 0.1,
        k: int = 128,
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=2e-5, weight_decay=0.05),
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
    ):
        check_k(k)
        check_smoothing(label_smoothing)
        built = build_for_task("blip", BLIPVQA, model, pretrained, _vqa)
        super().__init__(
            built, NO_TEACHING, k, optimizer, recipe, pretrained=pretrained is not None, start=start,
            label_smoothing=label_smoothing,
        )  # fmt: skip


class LitBLIPNLVR2(LitCompares):
    """Teaches BLIP whether a sentence is true of two images.

    Args:
        model: A BLIPNLVR2's name, or its config in full; or a BLIP's, out of which one grows.
        pretrained: Weights of the model that is named.
        start: Weights of parts, see `mmzoo.start.start_parts`: `{model: PATH}` of a pre-trained BLIP.
        optimizer: Its class and settings, left out: those of salesforce/BLIP's `nlvr.yaml`; fused unless said
            otherwise.
        recipe: Schedule, freezing, averaging and the like.
    """

    model: BLIPNLVR2

    def __init__(
        self,
        model: str | BLIPNLVR2Config = "blip-base-nlvr2",
        pretrained: str | None = None,
        start: dict[str, str] | None = None,
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=3e-5, weight_decay=0.05),
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
    ):
        built = build_for_task("blip", BLIPNLVR2, model, pretrained, _nlvr2)
        super().__init__(
            built, NO_TEACHING, optimizer, recipe, pretrained=pretrained is not None, start=start
        )
