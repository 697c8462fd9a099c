"""ALBEF (Li et al. 2021): align image and text first, then read the words with the image.

    image -> ViT -------------> tokens --- keys and values ----.
                                  |                             v
    text --> BERT layers 0-5 -> states -> BERT layers 6-11, each with cross-attention
                                  |         first token: do they match?   masked token: which word?
              first tokens -> linear -> unit vectors -> cosine x exp(logit_scale)

Towers and fusion are `mmzoo.towers.reader.Reader`; what BLIP does alike on top of it is in `mmzoo.models.pairing`. On
it stand `ALBEF`, the model of pre-training and retrieval, and one class per task: `ALBEFVQA` ranks answers with a
decoder that reads the question as the fusion half left it; `ALBEFNLVR2` reads a sentence with two images, its fusion
layers doubled so that even ones see the first image and odd ones the second; `ALBEFVE` says whether an image entails a
sentence.

Sizes and epsilons are those of salesforce/ALBEF.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from mmzoo.errors import ZooError
from mmzoo.layers.attention import CrossAttention
from mmzoo.layers.block import TransformerBlock
from mmzoo.layers.heads import Classifier, MaskedWords, UnitProjection
from mmzoo.layers.image_kv import ImageKV
from mmzoo.models.albef_start import GROWS
from mmzoo.models.pairing import PairComparer, PairConfig, PairReader
from mmzoo.models.ranking import AnswersByDecoder
from mmzoo.spec import BERT_VOCAB, HALF, TINY_VOCAB, ImageSpec, TextSpec
from mmzoo.towers import TextConfig, VisionConfig
from mmzoo.towers.reader import Reader, ReaderConfig
from mmzoo.towers.text import bert_text

__all__ = [
    "ALBEF",
    "ALBEFNLVR2",
    "ALBEFVE",
    "ALBEFVQA",
    "GROWS",
    "VARIANTS",
    "ALBEFConfig",
    "ALBEFNLVR2Config",
    "ALBEFVEConfig",
    "ALBEFVQAConfig",
]


@dataclass(frozen=True)
class ALBEFConfig(PairConfig):
    """Towers and heads of the model for pre-training and retrieval.

    Attributes:
        words: Whether there is a head for masked words (retrieval models have none).
    """

    words: bool = field(default=True, metadata={"free": "mlm.bias"})


@dataclass(frozen=True)
class ALBEFVQAConfig(ReaderConfig):
    """Towers and answer decoder.

    Attributes:
        decoder: A causal transformer over answers, whose every layer attends to the question's states.
    """

    decoder: TextConfig


@dataclass(frozen=True)
class ALBEFNLVR2Config(ReaderConfig):
    """Towers and head for two images and a sentence. The text transformer has an even number of `cross_layers`.

    Attributes:
        task: `"compare"`: is the sentence true of the two images? `"assign"`: which of them does it describe, the
            first, the second or neither (text assignment, which pre-trains the doubled layers)?
        embed: Width of the common space in which text assignment finds images that are alike.
    """

    task: Literal["compare", "assign"] = "compare"
    embed: int = 256


@dataclass(frozen=True)
class ALBEFVEConfig(ReaderConfig):
    """Towers of the model for visual entailment.

    Attributes:
        classes: Number of relations; SNLI-VE has entailment, neutral, contradiction.
    """

    classes: int = field(default=3, metadata={"free": "entail_head.fc2.weight"})


def _vit_b16(size: int) -> VisionConfig:
    """DeiT-B/16's shape."""
    return VisionConfig(
        image_size=size, patch=16, width=768, depth=12, heads=12, hidden=3072, norm_eps=1e-6, act="gelu",
        init="timm", resample="albef",
    )  # fmt: skip


_BERT = bert_text(cross_layers=tuple(range(6, 12)), cross_width=768)
_TWIN = replace(_BERT, depth=18, cross_layers=tuple(range(6, 18)))
_ANSWERS = bert_text(depth=6, cross_layers=tuple(range(6)), cross_width=768, causal=True)
# 25 tokens in pre-training and for questions; other sentences are cut after 30 words, which is seldom 50 tokens
_CAPTION = TextSpec("bert", context=25, vocab=BERT_VOCAB, sep=False, clean="albef")
_SENTENCE = replace(_CAPTION, context=50)

# 24 px and 16 patches suffice for drawings and shapes; from scratch the mean of patches learns faster than a token
_TINY_VISION = VisionConfig(
    image_size=24, patch=6, width=128, depth=3, heads=4, hidden=512, norm_eps=1e-6, act="gelu", init="google",
    resample="albef", pool="mean", cls_token=False,
)  # fmt: skip
_TINY_TEXT = bert_text(
    vocab=TINY_VOCAB, context=32, width=96, depth=4, heads=3, hidden=384, cross_layers=(2, 3), cross_width=128,
    dropout=0.0, attn_dropout=0.0,
)  # fmt: skip
_TINY_IMAGE = ImageSpec(24, HALF, HALF, fit="squash")
_TINY_WORDS = TextSpec("tiny", context=32, vocab=TINY_VOCAB, sep=False, clean="albef")

VARIANTS: dict[str, ReaderConfig] = {
    "albef-b16": ALBEFConfig(_vit_b16(256), _BERT, ImageSpec(256, fit="squash"), _CAPTION),
    "albef-b16-vqa": ALBEFVQAConfig(_vit_b16(384), _BERT, ImageSpec(384, fit="squash"), _CAPTION, _ANSWERS),
    "albef-b16-nlvr2": ALBEFNLVR2Config(_vit_b16(384), _TWIN, ImageSpec(384, fit="squash"), _SENTENCE),
    "albef-b16-ve": ALBEFVEConfig(_vit_b16(384), _BERT, ImageSpec(384, fit="squash"), _SENTENCE),
    "albef-tiny": ALBEFConfig(_TINY_VISION, _TINY_TEXT, _TINY_IMAGE, _TINY_WORDS, embed=128),
}


class ALBEF(PairReader):
    """A `PairReader` that completes pairs too.

    Attributes:
        mlm: The head for masked words, or None. Its table is that of the word embeddings.
    """

    config: ALBEFConfig

    def __init__(self, config: ALBEFConfig):
        super().__init__(config)
        text = config.text
        words = MaskedWords(text.width, text.vocab, eps=text.norm_eps, tied=self.text.embed.tok)
        self.mlm = words if config.words else None

    def embed_text(self, states: Tensor) -> Tensor:
        """States (T, L, D) of the text half to unit vectors (T, E)."""
        return self.text_proj(states[:, 0])

    def encode_text(self, ids: Tensor, keep: Tensor, *, packed: bool = False) -> Tensor:
        """Embed texts (T, L) as unit vectors (T, E); `packed` computes no padding."""
        return self.embed_text(self.text_states(ids, keep, packed=packed))


class ALBEFVQA(AnswersByDecoder):
    """Ranks answers to questions about images. Capabilities: `RanksAnswers`, `SharesImages`."""

    config: ALBEFVQAConfig

    def __init__(self, config: ALBEFVQAConfig):
        super().__init__(config)
        self.add_decoder(config.decoder)


class ALBEFNLVR2(PairComparer):
    """A `PairComparer` whose even fusion layers read the first image and whose odd ones the second.

    The two of a pair of layers project keys and values by one and the same map, so an image is projected once whichever
    of the two it is. The state names the map in both layers, as published files do; `fit_state` holds them equal.
    """

    config: ALBEFNLVR2Config

    def __init__(self, config: ALBEFNLVR2Config):
        super().__init__(config)
        c = config
        self.seconds = range(self.first_fusion + 1, c.text.depth, 2)
        if len(c.text.cross_layers) % 2:
            raise ZooError(f"twin layers come in pairs; found {len(c.text.cross_layers)} fusion layers.")
        for i in self.seconds:
            self._cross(i - 1).kv = self._cross(i).kv
        if c.task == "compare":
            self.compare_head = Classifier(c.text.width, c.text.width, 2, act="relu")
        else:
            self.assign_head = nn.Linear(c.text.width, 3)
            self.vision_proj = UnitProjection(c.vision.width, c.embed)

    def _cross(self, layer: int) -> CrossAttention:
        block = self.text.blocks[layer]
        assert isinstance(block, TransformerBlock)
        return block.cross

    def embed_image(self, tokens: Tensor) -> Tensor:
        """Image tokens (B, N, D) to unit vectors (B, E), by which text assignment finds images that are alike."""
        return self.vision_proj(self.pool_image(tokens))

    def project(self, tokens: Tensor) -> ImageKV:
        """Project image tokens (B, N, D), once for each pair of layers."""
        kv = self.text.project_context(tokens, self.seconds)
        return ImageKV(kv.layers | {i - 1: kv.layers[i] for i in self.seconds})

    def join(self, first: ImageKV, second: ImageKV) -> ImageKV:
        """Let even fusion layers read the first images and odd ones the second."""
        evens = ImageKV({i - 1: first.layers[i - 1] for i in self.seconds})
        return evens.union(ImageKV({i: second.layers[i] for i in self.seconds}))

    def compare(
        self,
        first: Tensor | ImageKV,
        second: Tensor | ImageKV,
        ids: Tensor,
        keep: Tensor,
        *,
        packed: bool = True,
    ) -> Tensor:
        """As of `PairComparer`.

        Raises:
            ZooError: This is the model of text assignment.
        """
        if self.config.task != "compare":
            raise ZooError("this ALBEF assigns texts to images: its head for pairs is made by fine-tuning.")
        return super().compare(first, second, ids, keep, packed=packed)

    def assign(
        self,
        first: Tensor | ImageKV,
        second: Tensor | ImageKV,
        ids: Tensor,
        keep: Tensor,
        *,
        packed: bool = True,
    ) -> Tensor:
        """Say which image a sentence describes; arguments as of `compare`.

        Returns:
            Logits (B, 3): the first, the second, neither.
        """
        return self.assign_head(self(self.pair(first, second), ids, keep, packed=packed)[:, 0])

    def fit_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resample the position table where sizes differ, and refuse twin layers that differ.

        Raises:
            ZooError: Two layers of a pair project keys and values differently.
        """
        for i in self.seconds:
            for part in ("weight", "bias"):
                one, other = (state.get(f"text.blocks.{j}.cross.kv.{part}") for j in (i - 1, i))
                if one is not None and other is not None and not torch.equal(one, other):
                    raise ZooError(
                        f"layers {i - 1} and {i} are twins, but their keys and values ({part}) differ."
                    )
        return super().fit_state(state)


class ALBEFVE(Reader):
    """Says what an image says of a sentence. Capabilities: `JudgesEntailment`, `SharesImages`."""

    config: ALBEFVEConfig

    def __init__(self, config: ALBEFVEConfig):
        super().__init__(config)
        self.entail_head = Classifier(config.text.width, config.text.width, config.classes, act="relu")

    def entail(self, images: Tensor | ImageKV, ids: Tensor, keep: Tensor, *, packed: bool = True) -> Tensor:
        """Logits (B, classes) of sentences (B, L) with their images; arguments as of `forward`."""
        return self.entail_head(self(images, ids, keep, packed=packed)[:, 0])
