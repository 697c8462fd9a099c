"""BLIP: the authors' checkpoints, LAVIS's re-trained ones, and transformers' conversions.

Origins. salesforce/BLIP (056a169): addresses from README.md, image sizes from `configs/`, the squash from
`data/__init__.py`, where texts are cut from `models/`. salesforce/LAVIS (506965b): addresses and image sizes from
`lavis/configs/models/blip_*.yaml` and `pnp-vqa/`, numbers from `docs/benchmark.rst`, each given to the file that its
configuration loads. mmpretrain (ee7f2e88): `configs/blip/README.md`, measured by its authors on the files named in
`metafile.yml`. Paper: arXiv:2201.12086, tables 5, 7 and 8, the rows for 129 million images that README.md names the
files by. Licence BSD-3-Clause throughout. Commits, hashes and sizes as `mmzoo.weights.catalog` says.
"""

from __future__ import annotations

from mmzoo.spec import ImageSpec
from mmzoo.weights.record import Number, Record, Setting

__all__ = ["RECORDS"]

_AUTHORS = "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models"
_LAVIS = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP"
_BENCHMARK = "LAVIS docs/benchmark.rst"
_MMPRETRAIN = "mmpretrain configs/blip/README.md"
_PAPER = "arXiv:2201.12086"


def _side(model: str) -> int:
    """The image size of the model's name."""
    return 480 if model.endswith("-vqa") else 384 if model.endswith("-nlvr2") else 224


def _image(model: str, side: int) -> ImageSpec | None:
    return None if side == _side(model) else ImageSpec(side, fit="squash")


def _settings(model: str, tag: str, side: int) -> dict[str, Setting]:
    """The image size, and where texts are cut: the longest are captions to be written (40), the name's own."""
    told: dict[str, Setting] = {} if side == _side(model) else {"vision.image_size": side}
    cut = 30 if tag.startswith("pretrain") else 35 if "retrieval" in tag else None
    return told if cut is None else told | {"text_input.context": cut}


def _authors(
    model: str, tag: str, file: str, side: int, numbers: tuple[Number, ...] = (), *, sha256: str | None = None,
    size: int | None = None, note: str = "",
) -> Record:  # fmt: skip
    return Record(
        model, tag, "blip/official", file, "BSD-3-Clause", url=f"{_AUTHORS}/{file}", sha256=sha256, size=size,
        image=_image(model, side), settings=_settings(model, tag, side), numbers=numbers, note=note,
    )  # fmt: skip


def _lavis(model: str, tag: str, file: str, side: int, numbers: tuple[Number, ...] = ()) -> Record:
    return Record(
        model, f"{tag}-lavis", "blip/lavis", file, "BSD-3-Clause", url=f"{_LAVIS}/{file}",
        image=_image(model, side), settings=_settings(model, tag, side), numbers=numbers,
    )  # fmt: skip


def _hf(
    model: str, tag: str, hub: str, revision: str, *, file: str = "model.safetensors", sha256: str | None = None,
    size: int | None = None, note: str = "",
) -> Record:  # fmt: skip
    return Record(
        model, f"{tag}-hf", "blip/transformers", file, "BSD-3-Clause", hub=f"Salesforce/{hub}", revision=revision,
        also=() if file != "model.safetensors" else ("pytorch_model.bin",),
        beside=("config.json", "preprocessor_config.json"), sha256=sha256, size=size,
        image=_image(model, 384), settings=_settings(model, tag, 384), note=note,
    )  # fmt: skip


_MATCHING = "transformers' own example starts texts with [CLS] where training used [ENC]."
_TRAIN2014 = "By its name fine-tuned on COCO's train2014 alone; LAVIS asks it for zero-shot VQA on val2014."


def _recall(data: str, to_text: float, to_image: float, source: str) -> tuple[Number, ...]:
    return (
        Number(f"{data} image-to-text R@1", to_text, source),
        Number(f"{data} text-to-image R@1", to_image, source),
    )


def _captions(cider: float, bleu: float, nocaps: float, source: str) -> tuple[Number, ...]:
    return (
        Number("COCO Karpathy test CIDEr", cider, source),
        Number("COCO Karpathy test BLEU-4", bleu, source),
        Number("NoCaps val CIDEr", nocaps, source),
    )


def _vqa(dev: float, std: float, source: str) -> tuple[Number, ...]:
    return (Number("VQAv2 test-dev accuracy", dev, source), Number("VQAv2 test-std accuracy", std, source))


RECORDS: tuple[Record, ...] = (
    _authors("blip-base", "pretrain-14m", "model_base_14M.pth", 224),
    _authors("blip-base", "pretrain-129m", "model_base.pth", 224),
    _authors("blip-base", "pretrain-129m-capfilt", "model_base_capfilt_large.pth", 224),
    _authors(
        "blip-base", "coco-retrieval", "model_base_retrieval_coco.pth", 384, _recall("COCO 5k", 81.9, 64.3, _PAPER),
    ),
    _authors(
        "blip-base", "flickr-retrieval", "model_base_retrieval_flickr.pth", 384,
        _recall("Flickr30k", 97.3, 87.3, _PAPER),
    ),
    _authors(
        "blip-base", "coco-caption", "model_base_caption_capfilt_large.pth", 384,
        _captions(133.3, 39.7, 109.6, _PAPER),
        sha256="96ac8749bd0a568c274ebe302b3a3748ab9be614c737f3d8c529697139174086", size=896_081_425,
    ),
    _lavis(
        "blip-base", "coco-retrieval", "blip_coco_retrieval.pth", 384,
        (
            *_recall("COCO 5k", 82.0, 64.5, _BENCHMARK), *_recall("COCO 5k", 82.52, 64.82, _MMPRETRAIN),
        ),
    ),
    _lavis(
        "blip-base", "flickr-retrieval", "blip_flickr_retrieval.pth", 384,
        _recall("Flickr30k", 96.9, 87.5, _BENCHMARK),
    ),
    _lavis(
        "blip-base", "coco-caption", "blip_coco_caption_base.pth", 384,
        (
            *_captions(133.5, 39.9, 109.1, _BENCHMARK), *_captions(132.82, 40.12, 109.12, _MMPRETRAIN),
        ),
    ),
    _hf(
        "blip-base", "coco-caption", "blip-image-captioning-base", "82a37760796d32b1411fe092ab5d4e227313294b",
        file="pytorch_model.bin", sha256="d6638651a5526cc2ede56f2b5104d6851b0755816d220e5e046870430180c767",
        size=989_820_849,
    ),
    _hf(
        "blip-base", "coco-retrieval", "blip-itm-base-coco", "bed8ad38cb2d04a5a4bdf2d071b3c3c0a4aa724c",
        file="pytorch_model.bin", sha256="017fb3e7f4e125f13a8a4717f1402dbe0d0bb877474b4a203db13a4447b0227f",
        size=895_139_697, note=_MATCHING,
    ),
    _hf(
        "blip-base", "flickr-retrieval", "blip-itm-base-flickr", "1de29e660d91ae1786c1876212ea805a22eab251",
        note=_MATCHING,
    ),
    _authors("blip-large", "pretrain-129m", "model_large.pth", 224),
    _authors(
        "blip-large", "coco-retrieval", "model_large_retrieval_coco.pth", 384,
        _recall("COCO 5k", 82.4, 65.1, _PAPER),
    ),
    _authors(
        "blip-large", "flickr-retrieval", "model_large_retrieval_flickr.pth", 384,
        _recall("Flickr30k", 97.4, 87.6, _PAPER),
    ),
    _authors(
        "blip-large", "coco-caption", "model_large_caption.pth", 384,
        _captions(136.7, 40.4, 113.2, _PAPER),
    ),
    _authors(
        "blip-large", "coco-retrieval-train2014", "model_large_retrieval_coco_train2014.pth", 384,
        note=_TRAIN2014,
    ),
    _authors(
        "blip-large", "coco-caption-train2014", "model_large_caption_coco_train2014.pth", 384,
        note=_TRAIN2014,
    ),
    _hf(
        "blip-large", "coco-caption", "blip-image-captioning-large", "353689b859fcf0523410b1806dace5fb46ecdf41",
    ),
    _hf(
        "blip-large", "coco-retrieval", "blip-itm-large-coco", "fef05cafc05298067cbbca00b125749394a77a6f",
        note=_MATCHING,
    ),
    _hf(
        "blip-large", "flickr-retrieval", "blip-itm-large-flickr", "bda12e6506758f54261b5ab174b2c55a3ba143fb",
        note=_MATCHING,
    ),
    _authors("blip-base-vqa", "vqav2", "model_vqa.pth", 480, _vqa(78.24, 78.17, _PAPER)),
    _authors(
        "blip-base-vqa", "vqav2-capfilt", "model_base_vqa_capfilt_large.pth", 480,
        (
            *_vqa(78.25, 78.32, _PAPER), *_vqa(78.23, 78.29, _BENCHMARK),
            Number("VQAv2 test-dev accuracy", 78.20, _MMPRETRAIN),
        ),
    ),
    _lavis(
        "blip-base-vqa", "okvqa", "blip_okvqa.pth", 480, (Number("OK-VQA test accuracy", 55.4, _BENCHMARK),),
    ),
    _lavis(
        "blip-base-vqa", "aokvqa", "blip_aokvqa.pth", 480,
        (Number("A-OKVQA val accuracy", 56.2, _BENCHMARK), Number("A-OKVQA test accuracy", 50.1, _BENCHMARK)),
    ),
    _hf(
        "blip-base-vqa", "vqav2", "blip-vqa-base", "787b3d35d57e49572baabd22884b3d5a05acf072",
        sha256="33786eed34def0c95fa948128cb4386be9b9219aa2c2e25f1c9c744692121bb7",
        note="At 384 pixels, where the original works at 480.",
    ),
    _hf(
        "blip-base-vqa", "vqav2-capfilt", "blip-vqa-capfilt-large", "e53f95265aeab69013fabb5380500ab984adbbb4",
        note="At 384 pixels, where the original works at 480.",
    ),
    _authors(
        "blip-base-nlvr2", "nlvr2", "model_base_nlvr.pth", 384,
        (
            Number("NLVR2 dev accuracy", 82.48, _PAPER), Number("NLVR2 test-P accuracy", 83.08, _PAPER),
            Number("NLVR2 dev accuracy", 82.48, _BENCHMARK), Number("NLVR2 test-P accuracy", 83.25, _BENCHMARK),
            Number("NLVR2 accuracy, split not said", 82.33, _MMPRETRAIN),
        ),
    ),
)  # fmt: skip
