"""ViLT (Kim et al. 2021): one transformer reads words and raw patches together; there is no image tower.

    words   -> BERT's embeddings -> LayerNorm ----------- + modality 0 --.
                                                                          > [text; class; patches] -> blocks -> norm
    patches -> linear map + positions of the image's grid + modality 1 --'

Images keep their shape, so those of a batch differ in size and are padded with zeros. What is padding is read off the
tensor (or told), positions are resampled to each image's own grid, and padding is masked or left out by packing: what
an image and its text give does not depend on the rest of the batch. (The reference samples patches in evaluation too;
`sample_in_eval` does so.) Joint attention leaves nothing to share between the texts of an image but its patch
embeddings, so scoring every text with every image costs a whole forward pass per pair.

On the stack stand `ViLT`, the model of pre-training and retrieval, and one class per task: `ViLTVQA` answers from a
closed list, `ViLTNLVR2` reads a sentence with two images.

Sizes and epsilons are those of dandelin/ViLT: 1e-6 in the stack, 1e-12 in the text embedding and the word head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mmzoo.config import UNKEPT
from mmzoo.errors import ZooError
from mmzoo.growth import Grows, Growth
from mmzoo.layers.heads import Classifier, MaskedWords, Pooler
from mmzoo.layers.init import init_bert
from mmzoo.models.explaining import ExplainsByJoint
from mmzoo.ops.attention import FULL, AttnMask
from mmzoo.ops.packing import pack, unpack
from mmzoo.spec import BERT_VOCAB, HALF, TINY_VOCAB, ImageSpec, TextSpec
from mmzoo.towers import TextBackbone, TextConfig, VisionConfig, VisionTower
from mmzoo.towers.text import bert_text
from mmzoo.towers.vision import PaddedTokens

__all__ = [
    "GROWS",
    "VARIANTS",
    "Joint",
    "Stack",
    "StackConfig",
    "ViLT",
    "ViLTConfig",
    "ViLTNLVR2",
    "ViLTNLVR2Config",
    "ViLTVQA",
    "ViLTVQAConfig",
]


@dataclass(frozen=True)
class StackConfig:
    """The stack and its two inputs.

    Attributes:
        vision: Patches and blocks.
        text: The word embeddings: a text transformer without blocks, as wide as the stack.
        image: What patches expect of pixels.
        text_input: What the embeddings expect of words.
        max_patches: In training, at most so many patches of an image, drawn at random (200 in pre-training).
        sample_in_eval: Draw them in evaluation too, as the reference does where it has `max_patches`: a score then
            changes from call to call. For parity only.
    """

    vision: VisionConfig
    text: TextConfig
    image: ImageSpec
    text_input: TextSpec
    max_patches: int | None = field(default=None, metadata=UNKEPT)
    sample_in_eval: bool = field(default=False, metadata=UNKEPT)

    def __post_init__(self) -> None:
        if self.text.width != self.vision.width or self.text.depth:
            raise ZooError(
                f"ViLT's text is embeddings as wide as the stack, {self.vision.width}, without blocks of their own; "
                f"found width {self.text.width} and {self.text.depth} blocks."
            )
        if self.text_input.vocab != self.text.vocab:
            raise ZooError(
                f"text_input has {self.text_input.vocab} words and the embeddings {self.text.vocab}: make them equal."
            )
        if all(float(255 * mean).is_integer() for mean in self.image.mean):
            raise ZooError(
                f"image.mean {self.image.mean} makes a pixel exactly 0, which marks padding: take another mean."
            )


@dataclass(frozen=True)
class ViLTConfig(StackConfig):
    """Stack and heads of the model for pre-training and retrieval.

    Attributes:
        match: Whether there is a head that says if image and text fit (transformers' files have none).
        words: Whether there is a head for masked words (retrieval models have none).
        rank: Whether there is a head that scores pairs for retrieval.
    """

    match: bool = field(default=True, metadata={"free": "match_head.weight"})
    words: bool = field(default=True, metadata={"free": "mlm.bias"})
    rank: bool = field(default=False, metadata={"free": "rank_head.weight"})


@dataclass(frozen=True)
class ViLTVQAConfig(StackConfig):
    """Stack and head for questions.

    Attributes:
        answers: Length of the list of answers; VQAv2's has 3,129.
    """

    answers: int = field(default=3129, metadata={"free": "answer_head.fc2.weight"})


@dataclass(frozen=True)
class ViLTNLVR2Config(StackConfig):
    """Stack and head for a sentence about two images."""


_VISION = VisionConfig(
    image_size=384, patch=32, width=768, depth=12, heads=12, hidden=3072, norm_eps=1e-6, act="gelu", init="timm",
    resample="vilt", dropout=0.1,
)  # fmt: skip
_TEXT = bert_text(depth=0, context=40, attn_dropout=0.0)
_IMAGE = ImageSpec(384, HALF, HALF, fit="aspect", longest=639, multiple=32)  # 639 = int(1333 / 800 * 384)
_WORDS = TextSpec("bert", context=40, vocab=BERT_VOCAB)

VARIANTS: dict[str, StackConfig] = {
    "vilt-b32": ViLTConfig(_VISION, _TEXT, _IMAGE, _WORDS, max_patches=200),
    "vilt-b32-vqa": ViLTVQAConfig(_VISION, _TEXT, _IMAGE, _WORDS),
    "vilt-b32-nlvr2": ViLTNLVR2Config(_VISION, _TEXT, _IMAGE, _WORDS),
    "vilt-tiny": ViLTConfig(
        VisionConfig(
            image_size=64, patch=8, width=64, depth=4, heads=4, hidden=256, norm_eps=1e-6, act="gelu", init="timm",
            resample="vilt",
        ),
        bert_text(vocab=TINY_VOCAB, context=32, width=64, depth=0, heads=4, hidden=256, dropout=0.0, attn_dropout=0.0),
        ImageSpec(64, HALF, HALF, fit="aspect", longest=106, multiple=8),
        TextSpec("tiny", context=32, vocab=TINY_VOCAB),
    ),
}  # fmt: skip


class Joint(NamedTuple):
    """What the stack makes of T texts, each with an image.

    Attributes:
        text: (T, L, D), whatever at padding.
        image: (T, 1 + N, D) class token and patches, whatever at padding.
        pooled: (T, D) what the heads for a pair read: linear map and tanh of the first text token.
        image_keep: (T, 1 + N) bool, True = class token or real patch.
    """

    text: Tensor
    image: Tensor
    pooled: Tensor
    image_keep: Tensor


class Stack(nn.Module):
    """One transformer over words and patches.

    Args:
        config: Its shape.
        images: How many images a text is read with; each has a modality of its own.

    Attributes:
        input_parts: What makes the stack's input, for a learning rate that decays with depth.
    """

    input_parts: ClassVar[dict[str, str]] = {"text": "vision", "modality": "vision"}

    def __init__(self, config: StackConfig, *, images: int = 1):
        super().__init__()
        c = self.config = config
        self.vision = VisionTower(c.vision)
        self.text = TextBackbone(c.text)
        self.modality = nn.Embedding(1 + images, c.vision.width)
        self.pooler = Pooler(c.vision.width)
        _start(self.modality)

    def set_checkpointing(self, on: bool) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them."""
        self.vision.set_checkpointing(on)

    def embed_images(self, images: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> PaddedTokens:
        """Patch embeddings with positions, to be read with any number of texts.

        Args:
            images: (B, 3, H, W), normalised, zero-padded at the bottom and at the right.
            sizes: Height and width of each in pixels, if known: they need not be read off the padding then.
        """
        c = self.config
        most = c.max_patches if self.training or c.sample_in_eval else None
        return self.vision.embed_padded(images, sizes=sizes, most=most)

    def forward(
        self,
        images: Tensor | PaddedTokens,
        ids: Tensor,
        keep: Tensor,
        image_index: Tensor | None = None,
        *,
        modality: int = 1,
        packed: bool | None = None,
    ) -> Joint:
        """Read texts with images.

        Args:
            images: (B, 3, H, W) zero-padded, or what `embed_images` made of them.
            ids: (T, L) int64.
            keep: (T, L) bool, True = real token.
            image_index: (T,) int64, the image of each text; None: text t with image t.
            modality: Which image it is, 1 or 2 (the second of NLVR2).
            packed: Lay real tokens end to end, so that padding costs nothing; the results are equal. None does so where
                images differ in size and there is a kernel for it.
        """
        patches = images if isinstance(images, PaddedTokens) else self.embed_images(images)
        image, image_keep = patches.tokens, patches.keep
        if image_index is not None:
            image, image_keep = image[image_index], image_keep[image_index]
        if len(image) != len(ids):
            raise ZooError(f"{len(ids)} texts need one image each, found {len(image)}: give image_index.")
        text = self.text(ids).tokens
        x = torch.cat([text + self.modality.weight[0], image + self.modality.weight[modality]], dim=1)
        seen = torch.cat([keep, image_keep], dim=1)
        if packed is None:
            packed = patches.ragged and _has_kernel(x)
        if packed:
            rows, segments, index = pack(x, seen)
            rows = self.vision.norm(self.vision.blocks(rows, mask=AttnMask(packed=segments)))
            x = unpack(rows, index, (x.shape[0], x.shape[1]))
        else:
            whole = not patches.ragged and seen.device.type == "cpu" and bool(keep.all())
            x = self.vision.norm(self.vision.blocks(x, mask=FULL if whole else AttnMask(keep=seen)))
        text, image = x.split([ids.shape[1], image.shape[1]], dim=1)
        return Joint(text, image, self.pooler(text), image_keep)

    def fit_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resample a checkpoint's position table to this model's image size where they differ."""
        return self.vision.fit_state(state, "vision.")


class ViLT(ExplainsByJoint, Stack):
    """Matches image and text, and completes the text. Capabilities: `ScoresPairs`, `Explains`.

    Attributes:
        match_head: Linear map to "no" and "yes", or None.
        mlm: The head for masked words, whose table is its own, or None.
        rank_head: Linear map to one score, or None.
    """

    config: ViLTConfig

    def __init__(self, config: ViLTConfig):
        super().__init__(config)
        width = config.vision.width
        self.match_head = _start(nn.Linear(width, 2)) if config.match else None
        self.mlm = MaskedWords(width, config.text.vocab, eps=1e-12) if config.words else None
        self.rank_head = _start(nn.Linear(width, 1)) if config.rank else None

    def match(
        self, images: Tensor | PaddedTokens, ids: Tensor, keep: Tensor, image_index: Tensor | None = None
    ) -> Tensor:
        """Say whether texts and images match; arguments as of `forward`.

        A model for retrieval gives its ranking score against 0: its matching head is no longer trained.

        Returns:
            Logits (T, 2), column 1 = match.

        Raises:
            ZooError: The model has neither of the two heads.
        """
        if self.match_head is None and self.rank_head is None:
            raise ZooError(
                "this ViLT has no head that matches: transformers' files drop it; the release's own file has one "
                "(mmzoo show vilt-b32)."
            )
        pooled = self(images, ids, keep, image_index).pooled
        if self.rank_head is not None:
            score = self.rank_head(pooled)
            return torch.cat([torch.zeros_like(score), score], dim=1)
        assert self.match_head is not None
        return self.match_head(pooled)

    def word_logits(self, images: Tensor | PaddedTokens, ids: Tensor, keep: Tensor) -> Tensor:
        """Guess the word at every position; arguments as of `forward`.

        Returns:
            (T, L, V). Losses take labelled rows of `forward(...).text` instead.

        Raises:
            ZooError: The model has no head for words.
        """
        if self.mlm is None:
            raise ZooError("this ViLT has no head for masked words: retrieval models are published without.")
        return self.mlm.logits(self(images, ids, keep).text)


class ViLTVQA(Stack):
    """Answers questions about images from a closed list. Capability: `AnswersFromList`.

    Attributes:
        answers: The list, in the order of the logits, where the files of the weights told it. A processor made for the
            model starts with it.
    """

    config: ViLTVQAConfig
    answers: tuple[str, ...] | None = None

    def __init__(self, config: ViLTVQAConfig):
        super().__init__(config)
        self.answer_head = _classifier(config, 1, config.answers)

    def answer_logits(self, images: Tensor | PaddedTokens, ids: Tensor, keep: Tensor) -> Tensor:
        """Answer questions about images; arguments as of `forward`.

        Returns:
            Logits (T, answers), to be read through a sigmoid: several answers may be right.
        """
        return self.answer_head(self(images, ids, keep).pooled)


class ViLTNLVR2(Stack):
    """Reads a sentence with two images, one after the other. Capability: `ComparesImages`."""

    config: ViLTNLVR2Config

    def __init__(self, config: ViLTNLVR2Config):
        super().__init__(config, images=2)
        self.compare_head = _classifier(config, 2, 2)

    def compare(
        self, first: Tensor | PaddedTokens, second: Tensor | PaddedTokens, ids: Tensor, keep: Tensor
    ) -> Tensor:
        """Say whether sentences are true of pairs of images; arguments as of `forward`.

        Returns:
            Logits (T, 2), column 1 = true.
        """
        pooled = [self(images, ids, keep, modality=i).pooled for i, images in ((1, first), (2, second))]
        return self.compare_head(torch.cat(pooled, dim=1))


def _start(module: nn.Module) -> Any:
    """Start a head or table as published: N(0, 0.02), biases zero."""
    if next(module.parameters()).device.type != "meta":
        init_bert(module)
    return module


def _classifier(config: StackConfig, images: int, classes: int) -> Classifier:
    """ViLT's head for answers and for pairs of images; its norm has torch's default epsilon."""
    width = config.vision.width
    return _start(Classifier(images * width, 2 * width, classes, act="gelu", norm_eps=1e-5))


def _has_kernel(x: Tensor) -> bool:
    """Whether packed attention is worth it: on CUDA its kernel computes in half precision only."""
    half = x.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled(x.device.type)
    return x.device.type == "cpu" or half


_HEADS = ("match_head", "mlm", "rank_head", "answer_head", "compare_head")


def _grows(source: StackConfig, config: StackConfig) -> Growth:
    """What fine-tuning starts from (dandelin/ViLT, `vilt_module.py`).

    A ranking head starts as the matching head's row for "match", the modality of a second image as that of the first;
    other new heads start at random.
    """
    rows: dict[str, tuple[int, ...]] = {}
    moves: tuple[tuple[str, str], ...] = ()
    if isinstance(config, ViLTNLVR2Config) and not isinstance(source, ViLTNLVR2Config):
        rows["modality.weight"] = (0, 1, 1)
    if isinstance(source, ViLTConfig) and not source.rank:
        moves = (("match_head", "rank_head"),)
        rows |= {"rank_head.weight": (1,), "rank_head.bias": (1,)}
    return Growth(moves, _HEADS, rows=rows)


GROWS: Grows = {
    ("ViLTConfig", "ViLTConfig"): _grows,
    ("ViLTConfig", "ViLTVQAConfig"): _grows,
    ("ViLTVQAConfig", "ViLTVQAConfig"): _grows,  # of other answers
    ("ViLTConfig", "ViLTNLVR2Config"): _grows,
}
