"""ViLT: the authors' release files and transformers' conversions.

Origins. dandelin/ViLT (762fd39): addresses from README.md, numbers from EVAL.md, licence Apache-2.0; preprocessing is
the family's own (short side 384, long side at most 639, multiples of 32). transformers: repositories from its ViLT
documentation; commits as `mmzoo.weights.catalog` says. Release files are pickles with the training's settings inside.
"""

from __future__ import annotations

from mmzoo.weights.record import Number, Record

__all__ = ["RECORDS"]

_RELEASE = "https://github.com/dandelin/ViLT/releases/download/200k"
_EVAL = "dandelin/ViLT EVAL.md"
# EVAL.md's two retrieval runs; its zero-shot use of the first file has no figures there
_COCO = (
    Number("COCO 5k image-to-text R@1", 61.62, _EVAL),
    Number("COCO 5k text-to-image R@1", 42.99, _EVAL),
)
_FLICKR = (
    Number("Flickr30k image-to-text R@1", 83.60, _EVAL),
    Number("Flickr30k text-to-image R@1", 64.54, _EVAL),
)
_VQA = (Number("VQAv2 test-dev accuracy", 71.32, _EVAL),)
_VQA_COMMIT = "d0a1f6ab88522427a7ae76ceb6e1e1e7b68a1d08"
_NLVR = (Number("NLVR2 dev accuracy", 75.65, _EVAL), Number("NLVR2 test-P accuracy", 76.52, _EVAL))


def _official(model: str, tag: str, file: str, numbers: tuple[Number, ...] = ()) -> Record:
    return Record(model, tag, "vilt/official", file, "Apache-2.0", url=f"{_RELEASE}/{file}", numbers=numbers)


def _hf(
    model: str, tag: str, hub: str, numbers: tuple[Number, ...] = (), *, revision: str = "main", note: str = "",
) -> Record:  # fmt: skip
    return Record(
        model, f"{tag}-hf", "vilt/transformers", "model.safetensors", "Apache-2.0", hub=f"dandelin/{hub}",
        revision=revision, also=("pytorch_model.bin",), beside=("config.json", "preprocessor_config.json"),
        numbers=numbers, note=note,
    )  # fmt: skip


RECORDS: tuple[Record, ...] = (
    _official("vilt-b32", "mlm-itm", "vilt_200k_mlm_itm.ckpt"),
    _official("vilt-b32", "coco-retrieval", "vilt_irtr_coco.ckpt", _COCO),
    _official("vilt-b32", "flickr-retrieval", "vilt_irtr_f30k.ckpt", _FLICKR),
    _official("vilt-b32-vqa", "vqav2", "vilt_vqa.ckpt", _VQA),
    _official("vilt-b32-nlvr2", "nlvr2", "vilt_nlvr2.ckpt", _NLVR),
    _hf("vilt-b32", "mlm", "vilt-b32-mlm", note="The matching head was dropped in the conversion."),
    _hf("vilt-b32", "coco-retrieval", "vilt-b32-finetuned-coco", _COCO),
    _hf("vilt-b32", "flickr-retrieval", "vilt-b32-finetuned-flickr30k", _FLICKR),
    _hf("vilt-b32-vqa", "vqav2", "vilt-b32-finetuned-vqa", _VQA, revision=_VQA_COMMIT),
    _hf("vilt-b32-nlvr2", "nlvr2", "vilt-b32-finetuned-nlvr2", _NLVR),
)
