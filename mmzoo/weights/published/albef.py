"""ALBEF: the authors' checkpoints and LAVIS's re-trained ones.

Origins. salesforce/ALBEF (b9727e4): addresses from README.md, image sizes from `configs/`, mean, std and the squash
from `dataset/__init__.py`; its tokenizer ends a sentence without [SEP]. salesforce/LAVIS (506965b): addresses and image
sizes from `lavis/configs/models/albef_*.yaml`, numbers from `docs/benchmark.rst`; it ends sentences with [SEP]. Licence
BSD-3-Clause in both. Paper figures: ALBEF's row for 14 million images as BLIP's paper (arXiv:2201.12086, tables 5 and
8) prints it. LAVIS's benchmark prints its COCO row for Flickr30k again, so that is left out here.
"""

from __future__ import annotations

from mmzoo.spec import ImageSpec
from mmzoo.weights.record import Number, Record, Setting

__all__ = ["RECORDS"]

_AUTHORS = "https://storage.googleapis.com/sfr-pcl-data-research/ALBEF"
_LAVIS = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/ALBEF"
_BENCHMARK = "LAVIS docs/benchmark.rst"
_PAPER = "arXiv:2201.12086 tables 5 and 8, ALBEF 14M"


def _own(model: str, size: int) -> bool:
    """Whether this is the image size of the model's name: 256 in pre-training, 384 for everything fine-tuned."""
    return size == (256 if model == "albef-b16" else 384)


def _image(model: str, size: int) -> ImageSpec | None:
    return None if _own(model, size) else ImageSpec(size, fit="squash")


def _settings(model: str, size: int, *, sep: bool) -> dict[str, Setting]:
    told: dict[str, Setting] = {"text_input.sep": sep}
    return told if _own(model, size) else told | {"vision.image_size": size}


def _authors(
    model: str, tag: str, file: str, size: int, numbers: tuple[Number, ...] = (), *, note: str = ""
) -> Record:
    return Record(
        model, tag, "albef/official", file, "BSD-3-Clause", url=f"{_AUTHORS}/{file}",
        image=_image(model, size), settings=_settings(model, size, sep=False), numbers=numbers, note=note,
    )  # fmt: skip


def _lavis(model: str, tag: str, file: str, numbers: tuple[Number, ...] = ()) -> Record:
    return Record(
        model, f"{tag}-lavis", "albef/lavis", file, "BSD-3-Clause", url=f"{_LAVIS}/{file}",
        image=_image(model, 384), settings=_settings(model, 384, sep=True), numbers=numbers,
    )  # fmt: skip


RECORDS: tuple[Record, ...] = (
    _authors("albef-b16", "pretrain-4m", "ALBEF_4M.pth", 256),
    _authors("albef-b16", "pretrain-14m", "ALBEF.pth", 256),
    _authors(
        "albef-b16", "coco-retrieval", "mscoco.pth", 384,
        (Number("COCO 5k image-to-text R@1", 77.6, _PAPER), Number("COCO 5k text-to-image R@1", 60.7, _PAPER)),
    ),
    _authors(
        "albef-b16", "flickr-retrieval", "flickr30k.pth", 384,
        (Number("Flickr30k image-to-text R@1", 95.9, _PAPER), Number("Flickr30k text-to-image R@1", 85.6, _PAPER)),
    ),
    _authors("albef-b16", "refcoco", "refcoco.pth", 384, note="Weakly supervised grounding on RefCOCO+."),
    _lavis(
        "albef-b16", "coco-retrieval", "albef_coco_retrieval_lavis.pt",
        (Number("COCO 5k image-to-text R@1", 77.6, _BENCHMARK), Number("COCO 5k text-to-image R@1", 61.0, _BENCHMARK)),
    ),
    _lavis("albef-b16", "flickr-retrieval", "albef_flickr_retrieval_lavis.pt"),
    _authors(
        "albef-b16-vqa", "vqav2", "vqa.pth", 384,
        (Number("VQAv2 test-dev accuracy", 75.84, _PAPER), Number("VQAv2 test-std accuracy", 76.04, _PAPER)),
    ),
    _lavis(
        "albef-b16-vqa", "vqav2", "albef_vqav2_lavis.pt",
        (Number("VQAv2 test-dev accuracy", 76.35, _BENCHMARK), Number("VQAv2 test-std accuracy", 76.54, _BENCHMARK)),
    ),
    _authors(
        "albef-b16-nlvr2", "pretrain-ta", "pretrain_model_nlvr.pth", 256,
        note="After text assignment, to be fine-tuned; its head tells three cases apart.",
    ),
    _lavis(
        "albef-b16-nlvr2", "nlvr2", "albef_nlvr_lavis.pt",
        (Number("NLVR2 dev accuracy", 82.47, _BENCHMARK), Number("NLVR2 test-P accuracy", 82.91, _BENCHMARK)),
    ),
    _lavis(
        "albef-b16-ve", "snli-ve", "albef_snli_ve_lavis.pt",
        (Number("SNLI-VE val accuracy", 80.60, _BENCHMARK), Number("SNLI-VE test accuracy", 81.04, _BENCHMARK)),
    ),
)  # fmt: skip
