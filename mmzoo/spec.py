"""What a model expects of its inputs, as plain data.

These two dataclasses are the only thing that models and processing share. They live below both and import
neither torch nor PIL, so a model carries its preprocessing without depending on the code that does it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "BERT_VOCAB",
    "CLIP_MEAN",
    "CLIP_STD",
    "CLIP_VOCAB",
    "HALF",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "TINY_VOCAB",
    "ImageSpec",
    "TextSpec",
]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI CLIP; shared by ALBEF, BLIP and BLIP-2
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # torchvision's; DINOv2
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)  # Google ViT and ViLT

CLIP_VOCAB = 49_408
BERT_VOCAB = 30_522  # bert-base-uncased; BLIP adds [DEC] and [ENC], BLIP-2 only [DEC]
TINY_VOCAB = 3_072  # processing/assets/tiny_vocab.txt, [DEC] and [ENC] included


@dataclass(frozen=True)
class ImageSpec:
    """How pixels become a model's input.

    Attributes:
        size: Height and width of the square input in pixels.
        mean: Per-channel mean subtracted from values in [0, 1].
        std: Per-channel divisor.
        fit: `"crop"` resizes the short side to `size / crop_pct` and cuts the centre (CLIP);
            `"squash"` resizes both sides to `size` whatever the shape (ALBEF, BLIP, BLIP-2).
        interpolation: Resampling filter, always antialiased as PIL does it.
        crop_pct: Share of the resized short side that the centre crop keeps.
    """

    size: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    fit: Literal["crop", "squash"] = "crop"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    crop_pct: float = 1.0


@dataclass(frozen=True)
class TextSpec:
    """How words become a model's input.

    Attributes:
        kind: `"clip"` (byte-pair encoding of 49,408 entries), `"bert"` (WordPiece of 30,522 entries, needs a
            vocabulary file), `"smollm"` (SmolLM's byte-pair encoding of 49,152 entries without begin and end tokens,
            needs a vocabulary file) or `"tiny"` (the WordPiece vocabulary that mmzoo carries for its tiny models).
        context: Longest sequence in tokens, special tokens included; longer texts are cut and keep their end token.
        vocab: Number of rows of the embedding table; a tokenizer with another size is refused.
        pad_to_context: True where padding is part of the function (a tower pooled at its last slot), so that
            texts must not be trimmed.
    """

    kind: Literal["clip", "bert", "smollm", "tiny"]
    context: int
    vocab: int
    pad_to_context: bool = False
