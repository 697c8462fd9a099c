"""ALBEF (Li et al. 2021): align image and text first, then read the words with the image.

    image -> ViT -------------> tokens --- keys and values ----.
                                  |                             v
    text --> BERT layers 0-5 -> states -> BERT layers 6-11, each with cross-attention
                                  |         first token: do they match?   masked token: which word?
              first tokens -> linear -> unit vectors -> cosine x exp(logit_scale)

Towers and fusion are `mmzoo.towers.reader.Reader`. On it stand `ALBEF`, the model of pre-training and retrieval, and
one class per task: `ALBEFVQA` ranks answers with a decoder that reads the question as the fusion half left it;
`ALBEFNLVR2` reads a sentence with two images, its fusion layers doubled so that even ones see the first image and odd
ones the second; `ALBEFVE` says whether an image entails a sentence.

Sizes and epsilons are those of salesforce/ALBEF.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from mmzoo.config import UNKEPT
from mmzoo.errors import ZooError
from mmzoo.layers.attention import CrossAttention
from mmzoo.layers.block import TransformerBlock
from mmzoo.layers.heads import Classifier, MaskedWords, UnitProjection, multiplier
from mmzoo.layers.image_kv import ImageKV
from mmzoo.models.albef_start import GROWS
from mmzoo.models.explaining import ExplainsByCross
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
class ALBEFConfig(ReaderConfig):
    """Towers and heads of the model for pre-training and retrieval.

    Attributes:
        embed: Width E of the common space.
        words: Whether there is a head for masked words (retrieval models have none).
        logit_scale: Start of the learned log-scale.
    """

    embed: int = 256
    words: bool = field(default=True, metadata={"free": "mlm.bias"})
    logit_scale: float = field(default=math.log(1 / 0.07), metadata=UNKEPT)


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


class ALBEF(ExplainsByCross, Reader):
    """Embeds, matches and completes pairs. Capabilities: `EmbedsPairs`, `ScoresPairs`, `SharesImages`, `Explains`.

    Attributes:
        logit_scale: Learned log of the multiplier of the cosines (the reference learns its inverse).
        mlm: The head for masked words, or None. Its table is that of the word embeddings.
    """

    config: ALBEFConfig

    def __init__(self, config: ALBEFConfig):
        super().__init__(config)
        c = config
        self.vision_proj = UnitProjection(c.vision.width, c.embed)
        self.text_proj = UnitProjection(c.text.width, c.embed)
        self.logit_scale = nn.Parameter(torch.tensor(c.logit_scale))
        self.match_head = nn.Linear(c.text.width, 2)
        words = MaskedWords(c.text.width, c.text.vocab, eps=c.text.norm_eps, tied=self.text.embed.tok)
        self.mlm = words if c.words else None

    @property
    def scale(self) -> Tensor:
        """The multiplier of the cosines, `exp(logit_scale)`, a float32 scalar whatever the autocast."""
        return multiplier(self.logit_scale)

    def embed_image(self, tokens: Tensor) -> Tensor:
        """Image tokens (B, N, D) to unit vectors (B, E)."""
        return self.vision_proj(self.pool_image(tokens))

    def embed_text(self, states: Tensor) -> Tensor:
        """States (T, L, D) of the text half to unit vectors (T, E)."""
        return self.text_proj(states[:, 0])

    def encode_image(self, images: Tensor) -> Tensor:
        """Embed `images` (B, 3, H, W) as unit vectors (B, E)."""
        return self.embed_image(self.image_tokens(images))

    def encode_text(self, ids: Tensor, keep: Tensor, *, packed: bool = False) -> Tensor:
        """Embed texts (T, L) as unit vectors (T, E); `packed` computes no padding."""
        return self.embed_text(self.text_states(ids, keep, packed=packed))

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        """Cosines (B, T) of unit vectors (B, E) and (T, E)."""
        return image @ text.T

    def match(
        self,
        images: Tensor | ImageKV,
        ids: Tensor,
        keep: Tensor,
        image_index: Tensor | None = None,
        *,
        packed: bool = True,
    ) -> Tensor:
        """Say whether texts and images match; arguments as of `forward`.

        Padding is computed only if `packed` is turned off, which a layer that is being watched needs.

        Returns:
            Logits (T, 2), column 1 = match.
        """
        kv = images if isinstance(images, ImageKV) else self.project_images(images)
        states = self.text_states(ids, keep, packed=packed)
        return self.match_states(states, keep, kv, image_index, packed=packed)

    def match_states(
        self,
        states: Tensor,
        keep: Tensor,
        kv: ImageKV,
        image_index: Tensor | None = None,
        *,
        packed: bool = False,
    ) -> Tensor:
        """As `match`, from what the text half has read already; arguments as of `fuse`."""
        return self.match_head(self.fuse(states, keep, kv, image_index, packed=packed)[:, 0])


class ALBEFVQA(AnswersByDecoder):
    """Ranks answers to questions about images. Capabilities: `RanksAnswers`, `SharesImages`."""

    config: ALBEFVQAConfig

    def __init__(self, config: ALBEFVQAConfig):
        super().__init__(config)
        self.add_decoder(config.decoder)


class ALBEFNLVR2(Reader):
    """Reads a sentence with two images. Capabilities: `ComparesImages`, `SharesImages`.

    Fusion layers come in pairs whose keys and values are projected by one and the same map, so an image is projected
    once whichever of the two it is.
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

    def pair(self, first: Tensor | ImageKV, second: Tensor | ImageKV) -> ImageKV:
        """Let even fusion layers read the first images and odd ones the second.

        Args:
            first: (B, 3, H, W), or what `project_images` made of them.
            second: As many.

        Raises:
            ZooError: There are not as many second images as first ones.
        """
        if len(first) != len(second):
            raise ZooError(f"{len(first)} first and {len(second)} second images: they are compared in pairs.")
        if isinstance(first, Tensor) and isinstance(second, Tensor):
            kv = self.project_images(torch.cat([first, second]))
            first, second = kv[: len(first)], kv[len(first) :]
        first, second = (x if isinstance(x, ImageKV) else self.project_images(x) for x in (first, second))
        evens = ImageKV({i - 1: first.layers[i - 1] for i in self.seconds})
        return evens.union(ImageKV({i: second.layers[i] for i in self.seconds}))

    def compare(self, first: Tensor | ImageKV, second: Tensor | ImageKV, ids: Tensor, keep: Tensor) -> Tensor:
        """Say whether sentences are true of pairs of images.

        Args:
            first: (B, 3, H, W), or their `ImageKV`.
            second: As many.
            ids: (B, L) int64.
            keep: (B, L) bool.

        Returns:
            Logits (B, 2), column 1 = true.

        Raises:
            ZooError: This is the model of text assignment.
        """
        if self.config.task != "compare":
            raise ZooError("this ALBEF assigns texts to images: its head for pairs is made by fine-tuning.")
        return self.compare_head(self(self.pair(first, second), ids, keep)[:, 0])

    def assign(self, first: Tensor | ImageKV, second: Tensor | ImageKV, ids: Tensor, keep: Tensor) -> Tensor:
        """Say which image a sentence describes; arguments as of `compare`.

        Returns:
            Logits (B, 3): the first, the second, neither.
        """
        return self.assign_head(self(self.pair(first, second), ids, keep)[:, 0])

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

    def entail(self, images: Tensor | ImageKV, ids: Tensor, keep: Tensor) -> Tensor:
        """Logits (B, classes) of sentences (B, L) with their images; arguments as of `forward`."""
        return self.entail_head(self(images, ids, keep)[:, 0])
