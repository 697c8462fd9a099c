"""CLIP: OpenAI's archives, open_clip's hub files, and both as transformers keeps them.

Origins. Addresses, repositories, activation, mean, std and resize mode: open_clip 3.3.0's `pretrained.py` (the OpenAI
hashes are part of their addresses, as in openai/CLIP d05afc4's `clip.py`); file names tried as its
`download_pretrained_from_hf` does. Accuracies: open_clip's `docs/openclip_results.csv` and
`openclip_retrieval_results.csv` (89fb801). Licences: openai/CLIP's LICENSE; the LAION repositories' model cards; timm
1.0.31's `default_cfgs` for Apple and MetaCLIP. Commits, hashes and sizes as `mmzoo.weights.catalog` says.

The activation is in no file (only transformers writes it beside), so every record names it.
"""

from __future__ import annotations

from typing import NamedTuple

from mmzoo.spec import ImageSpec
from mmzoo.weights.record import Number, Record, Setting

__all__ = ["RECORDS"]


class _Pin(NamedTuple):
    """A hub commit and one file of it."""

    revision: str = "main"
    sha256: str | None = None
    size: int | None = None
    file: str | None = None


_UNPINNED = _Pin()
_SOURCE = "open_clip docs/openclip_results.csv"
_RETRIEVAL = "open_clip docs/openclip_retrieval_results.csv"


def _numbers(imagenet: float, coco: tuple[float, float], flickr: tuple[float, float]) -> tuple[Number, ...]:
    """Zero-shot per cent; pairs are R@1 image to text, text to image."""
    return (
        Number("ImageNet-1k zero-shot top-1", imagenet, _SOURCE),
        Number("COCO 5k image-to-text R@1", coco[0], _RETRIEVAL),
        Number("COCO 5k text-to-image R@1", coco[1], _RETRIEVAL),
        Number("Flickr30k image-to-text R@1", flickr[0], _RETRIEVAL),
        Number("Flickr30k text-to-image R@1", flickr[1], _RETRIEVAL),
    )


def _act(quick: bool) -> dict[str, Setting]:
    act = "quick_gelu" if quick else "gelu"
    return {"vision.act": act, "text.act": act}


_OPENAI_NOTE = "OpenAI's model card puts any deployed use out of scope."


def _openai(
    model: str, file: str, sha256: str, size: int, timm: str, timm_pin: _Pin, hub: str, hub_pin: _Pin,
    numbers: tuple[Number, ...],
) -> tuple[Record, ...]:  # fmt: skip
    return (
        Record(
            model, "openai", "clip/openai", file, "MIT",
            url=f"https://openaipublic.azureedge.net/clip/models/{sha256}/{file}", sha256=sha256, size=size,
            settings=_act(True), numbers=numbers, note=_OPENAI_NOTE,
        ),
        Record(
            model, "openai-timm", "clip/open_clip", "open_clip_model.safetensors", "MIT",
            hub=f"timm/{timm}", revision=timm_pin.revision, also=("open_clip_pytorch_model.bin",),
            sha256=timm_pin.sha256, size=timm_pin.size, settings=_act(True), numbers=numbers,
            note=f"The same weights as safetensors. {_OPENAI_NOTE}",
        ),
        Record(
            model, "openai-hf", "clip/transformers", hub_pin.file or "model.safetensors", "MIT",
            hub=f"openai/{hub}", revision=hub_pin.revision, beside=("config.json", "preprocessor_config.json"),
            sha256=hub_pin.sha256, size=hub_pin.size, settings=_act(True), numbers=numbers,
            note=f"The hub declares no licence; MIT is openai/CLIP's. {_OPENAI_NOTE}",
        ),
    )  # fmt: skip


def _open_clip(
    model: str, tag: str, hub: str, licence: str, *, quick: bool, image: ImageSpec | None = None, pin: _Pin = _UNPINNED,
    numbers: tuple[Number, ...] = (),
) -> Record:  # fmt: skip
    file = pin.file or "open_clip_model.safetensors"
    names = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    return Record(
        model, tag, "clip/open_clip", file, licence, hub=hub, revision=pin.revision,
        also=tuple(n for n in names if n != file), sha256=pin.sha256, size=pin.size, image=image, settings=_act(quick),
        numbers=numbers,
    )  # fmt: skip


def _laion_hf(model: str, tag: str, hub: str, revision: str, *, image: ImageSpec | None = None) -> Record:
    return Record(
        model, f"{tag}-hf", "clip/transformers", "model.safetensors", "MIT", hub=hub, revision=revision,
        also=("pytorch_model.bin",), beside=("config.json", "preprocessor_config.json"), image=image,
        settings=_act(False),
    )  # fmt: skip


_NC = "CC-BY-NC-4.0"
_APPLE = "apple-ascl"
_OPENAI_PIXELS = ImageSpec(224)  # CLIP's mean and std, where the model name's are 0.5

_B32_LAION2B = "1a25a446712ba5ee05982a381eed697ef9b435cf"
_B16_LAION2B = "7288da5a0d6f0b51c4a2b27c624837a9236d0112"
_L14_DATACOMP = "84c9828e63dc9a9351d1fe637c346d4c1c4db341"
_H14_LAION2B = "1c2b8495b28150b8a4922ee1c8edee224c284c0c"

RECORDS: tuple[Record, ...] = (
    *_openai(
        "clip-vit-b32", "ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", 353_976_522,
        "vit_base_patch32_clip_224.openai",
        _Pin(
            "a6f597a30f7b82c51704746581f9a4e41421e878",
            "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
        ),
        "clip-vit-base-patch32",
        _Pin(
            "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
            "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f", 605_247_071, "pytorch_model.bin",
        ),
        _numbers(63.32, (50.12, 30.44), (78.90, 58.78)),
    ),
    *_openai(
        "clip-vit-b16", "ViT-B-16.pt", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", 350_837_078,
        "vit_base_patch16_clip_224.openai", _UNPINNED,
        "clip-vit-base-patch16", _Pin("57c216476eefef5ab752ec549e440a49ae4ae5f3", file="pytorch_model.bin"),
        _numbers(68.34, (52.42, 33.09), (82.20, 62.16)),
    ),
    *_openai(
        "clip-vit-l14", "ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", 932_768_134,
        "vit_large_patch14_clip_224.openai",
        _Pin(
            "18d0535469bb561bf468d76c1d73aa35156c922b",
            "9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e",
        ),
        "clip-vit-large-patch14",
        _Pin(
            "32bd64288804d66eefd0ccbe215aa642df71cc41",
            "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb", 1_710_540_580,
        ),
        _numbers(75.54, (56.34, 36.51), (85.20, 64.96)),
    ),
    *_openai(
        "clip-vit-l14-336", "ViT-L-14-336px.pt",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02", 934_088_680,
        "vit_large_patch14_clip_336.openai", _UNPINNED,
        "clip-vit-large-patch14-336",
        _Pin(
            "ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
            "c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801", 1_711_974_081, "pytorch_model.bin",
        ),
        _numbers(76.56, (57.94, 37.09), (87.70, 66.90)),
    ),
    # others that were trained with QuickGELU stand under OpenAI's names
    _open_clip(
        "clip-vit-b32", "laion400m_e31", "timm/vit_base_patch32_clip_224.laion400m_e31", "MIT", quick=True,
        numbers=_numbers(62.94, (52.54, 35.35), (78.70, 61.74)),
    ),
    _open_clip(
        "clip-vit-b32", "laion400m_e32", "timm/vit_base_patch32_clip_224.laion400m_e32", "MIT", quick=True,
        numbers=_numbers(62.93, (52.58, 35.33), (78.80, 61.70)),
    ),
    _open_clip(
        "clip-vit-b32", "metaclip_400m", "timm/vit_base_patch32_clip_224.metaclip_400m", _NC, quick=True,
        numbers=_numbers(65.58, (51.82, 35.91), (77.80, 62.34)),
    ),
    _open_clip(
        "clip-vit-b32", "metaclip_fullcc", "timm/vit_base_patch32_clip_224.metaclip_2pt5b", _NC, quick=True,
        numbers=_numbers(67.66, (55.18, 38.06), (80.80, 65.10)),
    ),
    _open_clip(
        "clip-vit-b16", "dfn2b", "apple/DFN2B-CLIP-ViT-B-16", _APPLE, quick=True,
        numbers=_numbers(76.24, (60.38, 43.39), (85.40, 69.12)),
    ),
    _open_clip(
        "clip-vit-b16", "metaclip_400m", "timm/vit_base_patch16_clip_224.metaclip_400m", _NC, quick=True,
        numbers=_numbers(70.80, (56.48, 39.97), (85.70, 67.66)),
    ),
    _open_clip(
        "clip-vit-b16", "metaclip_fullcc", "timm/vit_base_patch16_clip_224.metaclip_2pt5b", _NC, quick=True,
        numbers=_numbers(72.12, (59.36, 41.34), (85.50, 70.72)),
    ),
    _open_clip(
        "clip-vit-l14", "dfn2b", "apple/DFN2B-CLIP-ViT-L-14", _APPLE, quick=True,
        numbers=_numbers(81.41, (65.60, 48.56), (89.60, 75.46)),
    ),
    _open_clip(
        "clip-vit-l14", "metaclip_400m", "timm/vit_large_patch14_clip_224.metaclip_400m", _NC, quick=True,
        numbers=_numbers(76.20, (60.00, 43.81), (86.20, 73.42)),
    ),
    _open_clip(
        "clip-vit-l14", "metaclip_fullcc", "timm/vit_large_patch14_clip_224.metaclip_2pt5b", _NC, quick=True,
        numbers=_numbers(79.17, (64.42, 47.09), (90.10, 76.42)),
    ),
    # GELU
    _open_clip(
        "clip-vit-b32-laion", "laion2b_e16", "timm/vit_base_patch32_clip_224.laion2b_e16", "MIT", quick=False,
        numbers=_numbers(65.65, (56.24, 39.13), (84.40, 66.38)),
    ),
    _open_clip(
        "clip-vit-b32-laion", "laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "MIT", quick=False,
        pin=_Pin(_B32_LAION2B, "ac4f8c4b88af6d963118cbf40ad93176d092abbedfcb752601ae1866352656e6", 605_143_316),
        numbers=_numbers(66.56, (56.32, 39.34), (84.10, 66.78)),
    ),
    _laion_hf(
        "clip-vit-b32-laion", "laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", _B32_LAION2B,
    ),
    _open_clip(
        "clip-vit-b32-laion", "datacomp_xl_s13b_b90k", "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K", "MIT", quick=False,
        pin=_Pin("f0e2ffa09cbadab3db6a261ec1ec56407ce42912"), numbers=_numbers(69.17, (53.54, 37.14), (79.00, 61.08)),
    ),
    _open_clip(
        "clip-vit-b16-laion", "laion400m_e31", "timm/vit_base_patch16_clip_224.laion400m_e31", "MIT", quick=False,
        numbers=_numbers(66.98, (55.14, 38.34), (83.30, 65.72)),
    ),
    _open_clip(
        "clip-vit-b16-laion", "laion400m_e32", "timm/vit_base_patch16_clip_224.laion400m_e32", "MIT", quick=False,
        numbers=_numbers(67.05, (55.42, 38.35), (83.50, 65.66)),
    ),
    _open_clip(
        "clip-vit-b16-laion", "laion2b_s34b_b88k", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "MIT", quick=False,
        pin=_Pin(_B16_LAION2B), numbers=_numbers(70.23, (59.44, 42.31), (86.30, 69.84)),
    ),
    _open_clip(
        "clip-vit-b16-laion", "datacomp_xl_s13b_b90k", "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K", "MIT", quick=False,
        pin=_Pin("d110532e8d4ff91c574ee60a342323f28468b287"), numbers=_numbers(73.49, (57.44, 40.16), (85.10, 67.56)),
    ),
    _open_clip(
        "clip-vit-b16-laion", "datacomp_l_s1b_b8k", "laion/CLIP-ViT-B-16-DataComp.L-s1B-b8K", "MIT", quick=False,
        numbers=_numbers(63.10, (48.72, 32.18), (73.20, 55.36)),
    ),
    _open_clip(
        "clip-vit-l14-laion", "laion400m_e31", "timm/vit_large_patch14_clip_224.laion400m_e31", "MIT", quick=False,
        image=_OPENAI_PIXELS, numbers=_numbers(72.71, (59.74, 42.84), (87.20, 70.50)),
    ),
    _open_clip(
        "clip-vit-l14-laion", "laion400m_e32", "timm/vit_large_patch14_clip_224.laion400m_e32", "MIT", quick=False,
        image=_OPENAI_PIXELS, numbers=_numbers(72.77, (59.74, 43.00), (87.60, 70.22)),
    ),
    _open_clip(
        "clip-vit-l14-laion", "laion2b_s32b_b82k", "laion/CLIP-ViT-L-14-laion2B-s32B-b82K", "MIT", quick=False,
        pin=_Pin(
            "1627032197142fbe2a7cfec626f4ced3ae60d07a",
            "7d129ed747e0ed53e82dfcc140382b51be66b56e6a9bdc3258afd2846e3bb019", 1_710_517_748,
            "open_clip_pytorch_model.safetensors",
        ),
        numbers=_numbers(75.25, (63.36, 46.51), (89.50, 75.52)),
    ),
    _open_clip(
        "clip-vit-l14-laion", "datacomp_xl_s13b_b90k", "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", "MIT", quick=False,
        image=_OPENAI_PIXELS, pin=_Pin(_L14_DATACOMP), numbers=_numbers(79.21, (63.30, 45.73), (89.00, 73.38)),
    ),
    _laion_hf(
        "clip-vit-l14-laion", "datacomp_xl_s13b_b90k", "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", _L14_DATACOMP,
        image=_OPENAI_PIXELS,
    ),
    _open_clip(
        "clip-vit-l14-laion", "dfn2b_s39b", "apple/DFN2B-CLIP-ViT-L-14-39B", _APPLE, quick=False, image=_OPENAI_PIXELS,
    ),
    _open_clip(
        "clip-vit-h14-laion", "laion2b_s32b_b79k", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "MIT", quick=False,
        pin=_Pin(_H14_LAION2B, "0084e75319a50ad85ef45377bad5bc38f2f58824459eb690048d51c9f8863be5", 3_944_517_836),
        numbers=_numbers(77.96, (65.92, 49.48), (90.70, 77.64)),
    ),
    _laion_hf("clip-vit-h14-laion", "laion2b_s32b_b79k", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", _H14_LAION2B),
    _open_clip(
        "clip-vit-h14-laion", "metaclip_altogether", "timm/vit_huge_patch14_clip_224.metaclip_altogether", _NC,
        quick=False,
    ),
    _open_clip(
        "clip-vit-h14-laion", "metaclip_fullcc", "timm/vit_huge_patch14_clip_224.metaclip_2pt5b", _NC, quick=True,
        numbers=_numbers(80.51, (66.22, 48.82), (91.80, 78.34)),
    ),
    _open_clip(
        "clip-vit-h14-laion", "dfn5b", "apple/DFN5B-CLIP-ViT-H-14", _APPLE, quick=True,
        image=ImageSpec(224, fit="squash"), numbers=_numbers(83.44, (72.30, 53.91), (92.80, 80.12)),
    ),
    _open_clip(
        "clip-vit-g14-laion", "laion2b_s12b_b42k", "laion/CLIP-ViT-g-14-laion2B-s12B-b42K", "MIT", quick=False,
        numbers=_numbers(76.63, (64.92, 48.02), (90.90, 76.42)),
    ),
    _open_clip(
        "clip-vit-g14-laion", "laion2b_s34b_b88k", "laion/CLIP-ViT-g-14-laion2B-s34B-b88K", "MIT", quick=False,
        pin=_Pin("15efd0f6ac0c40c0f9da7becca03c974d7012604"), numbers=_numbers(78.47, (66.38, 48.78), (91.40, 77.72)),
    ),
)  # fmt: skip
