"""What the zoo holds: one literal table of families and names, sizes and capabilities. It imports nothing."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["FAMILIES", "MODELS", "Entry", "Family"]


class Family(NamedTuple):
    """A family file and what its models can do.

    Attributes:
        module: The module that holds `VARIANTS`, the config classes and the model classes.
        models: Name of each config class to the name of the model class that it builds. The first is the family's
            main model; the others are made for one task (answers, pairs of images).
        capabilities: What the main model can do, names from `mmzoo.models.capabilities.CAPABILITIES`.
        paper: What to cite.
    """

    module: str
    models: dict[str, str]
    capabilities: tuple[str, ...]
    paper: str

    @property
    def config(self) -> str:
        """Name of the main model's config class."""
        return next(iter(self.models))


class Entry(NamedTuple):
    """A name in the zoo, all of it held to the truth by a test.

    Attributes:
        family: Its family.
        params: Its number of parameters.
        image_size: Side of its images in pixels; None if it reads none.
        only: Its capabilities where they are not all of its family's.
    """

    family: str
    params: int
    image_size: int | None
    only: tuple[str, ...] | None = None

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What the model can do, names from `mmzoo.models.capabilities.CAPABILITIES`."""
        return FAMILIES[self.family].capabilities if self.only is None else self.only


FAMILIES: dict[str, Family] = {
    "vit": Family(
        "mmzoo.models.vit",
        {"ViTConfig": "ViT"},
        ("classifies",),
        "Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, arXiv:2010.11929",
    ),
    "clip": Family(
        "mmzoo.models.clip",
        {"CLIPConfig": "CLIP"},
        ("embeds pairs",),
        "Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021, "
        "arXiv:2103.00020",
    ),
    "albef": Family(
        "mmzoo.models.albef",
        {
            "ALBEFConfig": "ALBEF",
            "ALBEFVQAConfig": "ALBEFVQA",
            "ALBEFNLVR2Config": "ALBEFNLVR2",
            "ALBEFVEConfig": "ALBEFVE",
        },
        ("embeds pairs", "scores pairs", "shares images", "explains matches"),
        "Li et al., Align before Fuse: Vision and Language Representation Learning with Momentum Distillation, NeurIPS "
        "2021, arXiv:2107.07651",
    ),
    "blip": Family(
        "mmzoo.models.blip",
        {"BLIPConfig": "BLIP", "BLIPVQAConfig": "BLIPVQA", "BLIPNLVR2Config": "BLIPNLVR2"},
        (
            "embeds pairs",
            "scores pairs",
            "shares images",
            "explains matches",
            "writes captions",
            "explains captions",
        ),
        "Li et al., BLIP: Bootstrapping Language-Image Pre-training for Unified Vision-Language Understanding and "
        "Generation, ICML 2022, arXiv:2201.12086",
    ),
    "vilt": Family(
        "mmzoo.models.vilt",
        {"ViLTConfig": "ViLT", "ViLTVQAConfig": "ViLTVQA", "ViLTNLVR2Config": "ViLTNLVR2"},
        ("scores pairs", "explains matches"),
        "Kim et al., ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision, ICML 2021, "
        "arXiv:2102.03334",
    ),
    "text": Family(
        "mmzoo.models.text",
        {"TextModelConfig": "TextModel"},
        (),
        "Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding, NAACL 2019, "
        "arXiv:1810.04805",
    ),
}

_VQA = ("shares images", "answers questions", "writes answers")  # BLIP's models for questions

MODELS: dict[str, Entry] = {
    "vit-ti16-224": Entry("vit", 5_717_416, 224),
    "vit-s16-224": Entry("vit", 22_050_664, 224),
    "vit-b16-224": Entry("vit", 86_567_656, 224),
    "vit-b32-224": Entry("vit", 88_224_232, 224),
    "vit-l16-224": Entry("vit", 304_326_632, 224),
    "vit-l32-224": Entry("vit", 306_535_400, 224),
    "vit-h14-224": Entry("vit", 632_045_800, 224),
    "vit-ti16-384": Entry("vit", 5_790_376, 384),
    "vit-s16-384": Entry("vit", 22_196_584, 384),
    "vit-b16-384": Entry("vit", 86_859_496, 384),
    "vit-b32-384": Entry("vit", 88_297_192, 384),
    "vit-l16-384": Entry("vit", 304_715_752, 384),
    "vit-l32-384": Entry("vit", 306_632_680, 384),
    "vit-s14-imgfocus": Entry("vit", 21_628_800, 224, only=()),
    "vit-tiny": Entry("vit", 358_373, 48),
    "clip-vit-b32": Entry("clip", 151_277_313, 224),
    "clip-vit-b16": Entry("clip", 149_620_737, 224),
    "clip-vit-l14": Entry("clip", 427_616_513, 224),
    "clip-vit-l14-336": Entry("clip", 427_944_193, 336),
    "clip-vit-b32-laion": Entry("clip", 151_277_313, 224),
    "clip-vit-b16-laion": Entry("clip", 149_620_737, 224),
    "clip-vit-l14-laion": Entry("clip", 427_616_513, 224),
    "clip-vit-h14-laion": Entry("clip", 986_109_441, 224),
    "clip-vit-g14-laion": Entry("clip", 1_366_678_273, 224),
    "clip-tiny": Entry("clip", 1_161_601, 24),
    "vilt-b32": Entry("vilt", 135_660_092, 384),
    "vilt-b32-vqa": Entry("vilt", 117_588_537, 384, only=("answers questions",)),
    "vilt-b32-nlvr2": Entry("vilt", 113_962_754, 384, only=("compares images",)),
    "vilt-tiny": Entry("vilt", 623_938, 64),
    "albef-b16": Entry("albef", 209_937_725, 256),
    "albef-b16-vqa": Entry("albef", 290_336_058, 384, only=("shares images", "answers questions")),
    "albef-b16-nlvr2": Entry("albef", 259_381_250, 384, only=("shares images", "compares images")),
    "albef-b16-ve": Entry("albef", 209_758_467, 384, only=("shares images", "judges entailment")),
    "albef-tiny": Entry("albef", 1_485_667, 24),
    "blip-base": Entry("blip", 252_441_919, 224),
    "blip-large": Entry("blip", 474_729_023, 224),
    "blip-base-vqa": Entry("blip", 361_478_972, 480, only=_VQA),
    "blip-large-vqa": Entry("blip", 583_880_764, 480, only=_VQA),
    "blip-base-nlvr2": Entry("blip", 259_372_034, 384, only=("shares images", "compares images")),
    "blip-large-nlvr2": Entry("blip", 486_409_474, 384, only=("shares images", "compares images")),
    "blip-tiny": Entry("blip", 1_723_523, 24),
    "bert-base": Entry("text", 108_891_648, None),
    "minilm-l6": Entry("text", 22_565_376, None),
    "smollm2-135m": Entry("text", 134_515_008, None),
}
