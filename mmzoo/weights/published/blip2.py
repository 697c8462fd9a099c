"""BLIP-2: LAVIS's checkpoints, which leave frozen parts out, and transformers' complete ones.

Origins. salesforce/LAVIS (506965b): addresses, image sizes and which parts are frozen from
`lavis/configs/models/blip2/*.yaml`, `eva_vit.py` and `clip_vit.py`. Figures: the paper, arXiv:2301.12597, tables 2, 3
and 5. Licences: LAVIS BSD-3-Clause; the two eyes MIT (timm's `eva.py`, openai/CLIP); the hub's repositories MIT.
The language models are their makers' own, under their own licences, and are in no LAVIS file. Commits as
`mmzoo.weights.catalog` says.
"""

from __future__ import annotations

from mmzoo.spec import ImageSpec
from mmzoo.weights.record import Number, Record

__all__ = ["RECORDS"]

_LAVIS = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2"
_PAPER = "arXiv:2301.12597"
_EVA, _CLIP = "blip2-vitg.eye", "blip2-vitl.eye"
_OPT = "The language model is Meta's OPT, whose own licence allows research only."
_T5 = "The language model is Google's FLAN-T5 (Apache-2.0)."


def _lavis(
    model: str, tag: str, file: str, side: int = 224, numbers: tuple[Number, ...] = (), *,
    licence: str = "BSD-3-Clause", needs: tuple[str, ...] = (), note: str = "",
) -> Record:  # fmt: skip
    return Record(
        model, tag, "blip2/lavis", file, licence, url=f"{_LAVIS}/{file}", image=ImageSpec(side, fit="squash"),
        numbers=numbers, needs=needs, note=note,
    )  # fmt: skip


def _hf(
    model: str, tag: str, hub: str, side: int = 224, *, revision: str = "main", whole: bool = False, note: str = "",
) -> Record:  # fmt: skip
    index = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
    single = ("model.safetensors", "pytorch_model.bin")
    first, *rest = (*single, *index) if whole else (*index, *single)
    return Record(
        model, f"{tag}-hf", "blip2/transformers", first, "MIT", hub=f"Salesforce/{hub}", revision=revision,
        also=tuple(rest), beside=("config.json", "preprocessor_config.json"), image=ImageSpec(side, fit="squash"),
        note=note,
    )  # fmt: skip


def _vqa(val: float, dev: float) -> tuple[Number, ...]:
    return (
        Number("VQAv2 val zero-shot accuracy", val, _PAPER),
        Number("VQAv2 test-dev zero-shot accuracy", dev, _PAPER),
    )


def _caption(coco: float, nocaps: float) -> tuple[Number, ...]:
    return (
        Number("COCO Karpathy test CIDEr", coco, _PAPER),
        Number("NoCaps val zero-shot CIDEr", nocaps, _PAPER),
    )


RECORDS: tuple[Record, ...] = (
    _lavis("blip2-vitg", "eye", "eva_vit_g.pth", licence="MIT", note="The frozen EVA-CLIP ViT-g/14 alone."),
    _lavis("blip2-vitg", "pretrain", "blip2_pretrained.pth", needs=(_EVA,)),
    _lavis(
        "blip2-vitg", "coco-retrieval", "blip2_finetune_coco.pth", 364,
        (Number("COCO 5k image-to-text R@1", 85.4, _PAPER), Number("COCO 5k text-to-image R@1", 68.3, _PAPER)),
    ),
    _hf("blip2-vitg", "pretrain", "blip2-itm-vit-g", whole=True, note="Without the Q-Former's language head."),
    _hf(
        "blip2-vitg", "coco-retrieval", "blip2-itm-vit-g-coco", 364, whole=True,
        note="Without the Q-Former's language head.",
    ),
    _lavis("blip2-vitl", "eye", "clip_vit_L.pth", licence="MIT", note="The frozen CLIP ViT-L/14 alone."),
    _lavis("blip2-vitl", "pretrain", "blip2_pretrained_vitL.pth", needs=(_CLIP,)),
    _lavis(
        "blip2-vitg-opt2.7b", "pretrain", "blip2_pretrained_opt2.7b.pth", 224,
        _vqa(53.5, 52.3), needs=(_EVA,),
        note=_OPT,
    ),
    _lavis(
        "blip2-vitg-opt2.7b", "coco-caption", "blip2_caption_opt2.7b.pth", 364, _caption(145.8, 119.7), note=_OPT,
    ),
    _hf(
        "blip2-vitg-opt2.7b", "pretrain", "blip2-opt-2.7b", revision="59a1ef6c1e5117b3f65523d1c6066825bcf315e3",
        note=_OPT,
    ),
    _hf("blip2-vitg-opt2.7b", "coco-caption", "blip2-opt-2.7b-coco", 364, note=_OPT),
    _lavis(
        "blip2-vitg-opt6.7b", "pretrain", "blip2_pretrained_opt6.7b.pth", 224, _vqa(54.3, 52.6), needs=(_EVA,),
        note=_OPT,
    ),
    _lavis(
        "blip2-vitg-opt6.7b", "coco-caption", "blip2_caption_opt6.7b.pth", 364, _caption(145.2, 121.0), note=_OPT,
    ),
    _hf("blip2-vitg-opt6.7b", "pretrain", "blip2-opt-6.7b", note=_OPT),
    _hf(
        "blip2-vitg-opt6.7b", "coco-caption", "blip2-opt-6.7b-coco", 364,
        revision="0d580de59320a25a4d2c386387bcef310d5f286e", note=_OPT,
    ),
    _lavis(
        "blip2-vitg-t5xl", "pretrain", "blip2_pretrained_flant5xl.pth", 224, _vqa(63.1, 63.0), needs=(_EVA,),
        note=_T5,
    ),
    _lavis("blip2-vitg-t5xl", "coco-caption", "blip2_caption_flant5xl.pth", 364, _caption(144.5, 121.6), note=_T5),
    _hf(
        "blip2-vitg-t5xl", "pretrain", "blip2-flan-t5-xl", revision="0eb0d3b46c14c1f8c7680bca2693baafdb90bb28",
        note=_T5,
    ),
    _hf("blip2-vitg-t5xl", "coco-caption", "blip2-flan-t5-xl-coco", 364, note=_T5),
    _lavis(
        "blip2-vitg-t5xxl", "pretrain", "blip2_pretrained_flant5xxl.pth", 224, _vqa(65.2, 65.0), needs=(_EVA,),
        note=_T5,
    ),
    _hf(
        "blip2-vitg-t5xxl", "pretrain", "blip2-flan-t5-xxl", revision="43206cbc865b9d5b3dd7d080e5d94b4143ca8e74",
        note=_T5,
    ),
    _lavis(
        "blip2-vitl-t5xl", "pretrain", "blip2_pretrained_flant5xl_vitL.pth", 224, _vqa(62.6, 62.3), needs=(_CLIP,),
        note=_T5,
    ),
)  # fmt: skip
