"""What a model expects of its inputs, as plain data.

These two dataclasses are the only thing that models and processing share. They live below both and import
neither torch nor PIL, so a model carries its preprocessing without depending on the code that does it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmzoo.errors import ZooError

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
        size: Height and width of the square input in pixels; of `"aspect"` the short side.
        mean: Per-channel mean subtracted from values in [0, 1].
        std: Per-channel divisor.
        fit: `"crop"` resizes the short side to `size / crop_pct` and cuts the centre (CLIP);
            `"squash"` resizes both sides to `size` whatever the shape (ALBEF, BLIP, BLIP-2);
            `"aspect"` keeps the shape (ViLT), so pictures differ in size and a batch is padded with zeros at the bottom
            and at the right.
        interpolation: Resampling filter, always antialiased as PIL does it.
        crop_pct: Share of the resized short side that the centre crop keeps.
        longest: Of `"aspect"`, the most pixels of the long side; where it would be longer, both sides shrink.
        multiple: Of `"aspect"`, what both sides are rounded down to a multiple of, and never below: the patch.
    """

    size: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    fit: Literal["crop", "squash", "aspect"] = "crop"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    crop_pct: float = 1.0
    longest: int | None = None
    multiple: int | None = None

    def __post_init__(self) -> None:
        if (self.fit == "aspect") != (self.longest is not None and self.multiple is not None):
            raise ZooError('ImageSpec: fit="aspect" needs longest and multiple, and no other fit has them.')

    def aspect_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that `"aspect"` resizes a picture to.

        The short side becomes `size`, then both shrink if the long one exceeds `longest`, then both are rounded to
        whole pixels and down to `multiple`; no side falls below one `multiple`, so that any strip has a result.
        """
        assert self.longest is not None and self.multiple is not None  # noqa: PT018 - one promise of __post_init__
        scale = self.size / min(height, width)
        sides = height * scale, width * scale
        if max(sides) > self.longest:
            scale = self.longest / max(sides)
            sides = sides[0] * scale, sides[1] * scale
        rows, columns = (max(1, int(side + 0.5) // self.multiple) * self.multiple for side in sides)
        return rows, columns


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
        sep: Whether an end token follows the text. Of the WordPiece kinds only: ALBEF's own tokenizer appends no
            [SEP] (salesforce/ALBEF issues 75 and 91), and with one the features differ silently.
        clean: What is done to a text before it is cut into tokens: `"albef"` lower-cases it, deletes punctuation and
            keeps 30 words; `"blip"` and `"blip_question"` delete fewer signs and keep 50 (`mmzoo.processing.clean`).
    """

    kind: Literal["clip", "bert", "smollm", "tiny"]
    context: int
    vocab: int
    pad_to_context: bool = False
    sep: bool = True
    clean: Literal["albef", "blip", "blip_question"] | None = None
