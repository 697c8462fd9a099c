"""ViT: Google's own archives, timm's hub files, and the two that transformers is known by.

Origins. timm: repository, classes, mean and std from timm 1.0.31's `vision_transformer.default_cfgs`; accuracies from
`results/results-imagenet.csv` of huggingface/pytorch-image-models (aa4b585), measured with that preprocessing. Google:
addresses and accuracies from google-research/vision_transformer (c6de1e5), README and the listing in `vit_jax.ipynb`;
its evaluation squashes to the square bilinearly (`vit_jax/input_pipeline.py`) and flax's `gelu` is the tanh form.
Licence Apache-2.0 in both. transformers: its ViT image processor; commits as `mmzoo.weights.catalog` says.
"""

from __future__ import annotations

from mmzoo.spec import HALF, ImageSpec
from mmzoo.weights.record import Number, Record, Setting

__all__ = ["RECORDS"]

_TIMM_MODELS = {
    "vit-ti16-224": "vit_tiny_patch16_224", "vit-ti16-384": "vit_tiny_patch16_384",
    "vit-s16-224": "vit_small_patch16_224", "vit-s16-384": "vit_small_patch16_384",
    "vit-b16-224": "vit_base_patch16_224", "vit-b16-384": "vit_base_patch16_384",
    "vit-b32-224": "vit_base_patch32_224", "vit-b32-384": "vit_base_patch32_384",
    "vit-l16-224": "vit_large_patch16_224", "vit-l16-384": "vit_large_patch16_384",
    "vit-l32-224": "vit_large_patch32_224", "vit-l32-384": "vit_large_patch32_384",
    "vit-h14-224": "vit_huge_patch14_224",
}  # fmt: skip
_IMAGENET = ImageSpec(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), crop_pct=0.9)  # DINO


def _timm(
    model: str,
    tag: str,
    top1: float | None = None,
    *,
    classes: int = 1000,
    image: ImageSpec | None = None,
    revision: str = "main",
    sha256: str | None = None,
    size: int | None = None,
) -> Record:
    return Record(
        model, tag, "vit/timm", "model.safetensors", "Apache-2.0",
        hub=f"timm/{_TIMM_MODELS[model]}.{tag}", revision=revision, also=("pytorch_model.bin",), sha256=sha256,
        size=size, image=image, settings={} if classes == 1000 else {"classes": classes},
        numbers=() if top1 is None else (Number("ImageNet-1k top-1", top1, "timm results-imagenet.csv"),),
    )  # fmt: skip


_README = "google-research/vision_transformer README.md"
_BUCKET = "https://storage.googleapis.com/vit_models"


def _google(
    model: str, tag: str, path: str, top1: float | None = None, *, classes: int = 1000, representation: int = 0,
) -> Record:  # fmt: skip
    settings: dict[str, Setting] = {"vision.act": "gelu_tanh"}
    if classes != 1000:
        settings["classes"] = classes
    if representation:
        settings["representation"] = representation
    side = int(model.rsplit("-", 1)[1])
    return Record(
        model, f"{tag}-google", "vit/google", path.rsplit("/", 1)[1], "Apache-2.0", url=f"{_BUCKET}/{path}",
        image=ImageSpec(side, HALF, HALF, fit="squash", interpolation="bilinear"), settings=settings,
        numbers=() if top1 is None else (Number("ImageNet-1k top-1", top1, _README),),
    )  # fmt: skip


def _hub(
    model: str, tag: str, hub: str, revision: str, sha256: str | None, settings: dict[str, Setting]
) -> Record:
    return Record(
        model, tag, "vit/transformers", "model.safetensors", "Apache-2.0", hub=hub, revision=revision,
        also=("pytorch_model.bin",), beside=("config.json", "preprocessor_config.json"), sha256=sha256,
        image=ImageSpec(224, HALF, HALF, fit="squash", interpolation="bilinear"),
        settings={"vision.norm_eps": 1e-12, **settings},
        note="With eps 1e-12, as its config.json says and transformers computes; it was trained with 1e-6.",
    )  # fmt: skip


_IN21K = 21_843
_AUGREG = "augreg_in21k_ft_in1k"

RECORDS: tuple[Record, ...] = (
    _timm("vit-ti16-224", _AUGREG, 75.452, sha256="fecf81b492bd13ee7a5297cb74d1d417aac8bf7e1b7d96aed89c4691984587ed"),
    _timm("vit-ti16-224", "augreg_in21k", classes=_IN21K),
    _timm(
        "vit-s16-224", _AUGREG, 81.402, revision="7e2c55630205e1266030f18370f4c6ed1a514b52",
        sha256="79c03c635cdfd798a364a9d8c4e5c0b7255b975ea2c9616046d4f77ab01435aa", size=88_216_496,
    ),
    _timm("vit-s16-224", "augreg_in1k", 78.842),
    _timm("vit-s16-224", "augreg_in21k", classes=_IN21K),
    _timm("vit-s16-224", "dino", classes=0, image=_IMAGENET),
    _timm(
        "vit-b16-224", "augreg2_in21k_ft_in1k", 85.108,
        sha256="32aa17d6e17b43500f531d5f6dc9bc93e56ed8841b8a75682e1bb295d722405b", size=346_284_714,
    ),
    _timm("vit-b16-224", _AUGREG, 84.534),
    _timm("vit-b16-224", "orig_in21k_ft_in1k", 81.782),
    _timm("vit-b16-224", "augreg_in1k", 79.154),
    _timm("vit-b16-224", "sam_in1k", 80.246),
    _timm("vit-b16-224", "augreg_in21k", classes=_IN21K),
    _timm("vit-b16-224", "orig_in21k", classes=0),
    _timm("vit-b16-224", "dino", classes=0, image=_IMAGENET),
    _timm("vit-b32-224", _AUGREG, 80.732),
    _timm("vit-b32-224", "augreg_in1k", 74.908),
    _timm("vit-b32-224", "sam_in1k", 73.704),
    _timm("vit-b32-224", "augreg_in21k", classes=_IN21K),
    _timm("vit-b32-224", "orig_in21k", classes=0),
    _timm("vit-l16-224", _AUGREG, 85.856),
    _timm("vit-l16-224", "augreg_in21k", classes=_IN21K),
    _timm("vit-l16-224", "orig_in21k", classes=0),
    _timm("vit-l32-224", "orig_in21k", classes=0),
    _timm("vit-h14-224", "orig_in21k", classes=0),
    _timm("vit-ti16-384", _AUGREG, 78.438),
    _timm("vit-s16-384", _AUGREG, 83.814),
    _timm("vit-s16-384", "augreg_in1k", 81.130),
    _timm("vit-b16-384", _AUGREG, 86.010),
    _timm("vit-b16-384", "orig_in21k_ft_in1k", 84.212),
    _timm("vit-b16-384", "augreg_in1k", 81.102),
    _timm("vit-b32-384", _AUGREG, 83.358),
    _timm("vit-b32-384", "augreg_in1k", 78.750),
    _timm("vit-l16-384", _AUGREG, 87.096),
    _timm("vit-l32-384", "orig_in21k_ft_in1k", 81.508),
    # the README's recommended AugReg checkpoints
    _google("vit-ti16-384", "augreg", "augreg/Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_384.npz", 78.22),  # noqa: E501
    _google("vit-s16-384", "augreg", "augreg/S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_384.npz", 83.73),  # noqa: E501
    _google("vit-b32-384", "augreg", "augreg/B_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.01-res_384.npz", 83.59),  # noqa: E501
    _google("vit-b16-384", "augreg", "augreg/B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_384.npz", 85.49),  # noqa: E501
    _google("vit-l16-384", "augreg", "augreg/L_16-i21k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.01-res_384.npz", 85.59),  # noqa: E501
    _google("vit-ti16-224", "augreg_in21k", "augreg/Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0.npz", classes=_IN21K),  # noqa: E501
    _google("vit-s16-224", "augreg_in21k", "augreg/S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0.npz", classes=_IN21K),  # noqa: E501
    _google("vit-b32-224", "augreg_in21k", "augreg/B_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0.npz", classes=_IN21K),  # noqa: E501
    _google("vit-b16-224", "augreg_in21k", "augreg/B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz", classes=_IN21K),  # noqa: E501
    _google("vit-l16-224", "augreg_in21k", "augreg/L_16-i21k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0.npz", classes=_IN21K),  # noqa: E501
    # the first paper's; only these have the tanh layer before the head
    _google("vit-b16-224", "in21k", "imagenet21k/ViT-B_16.npz", classes=_IN21K, representation=768),
    _google("vit-b32-224", "in21k", "imagenet21k/ViT-B_32.npz", classes=_IN21K, representation=768),
    _google("vit-l16-224", "in21k", "imagenet21k/ViT-L_16.npz", classes=_IN21K, representation=1024),
    _google("vit-l32-224", "in21k", "imagenet21k/ViT-L_32.npz", classes=_IN21K, representation=1024),
    _google("vit-h14-224", "in21k", "imagenet21k/ViT-H_14.npz", classes=_IN21K, representation=1280),
    _google("vit-b16-224", "in21k_ft_in1k", "imagenet21k+imagenet2012/ViT-B_16-224.npz"),
    _google("vit-l16-224", "in21k_ft_in1k", "imagenet21k+imagenet2012/ViT-L_16-224.npz"),
    _google("vit-b16-384", "in21k_ft_in1k", "imagenet21k+imagenet2012/ViT-B_16.npz"),
    _google("vit-b32-384", "in21k_ft_in1k", "imagenet21k+imagenet2012/ViT-B_32.npz"),
    _google("vit-l16-384", "in21k_ft_in1k", "imagenet21k+imagenet2012/ViT-L_16.npz"),
    _google("vit-l32-384", "in21k_ft_in1k", "imagenet21k+imagenet2012/ViT-L_32.npz"),
    _google("vit-b16-224", "sam", "sam/ViT-B_16.npz"),
    _google("vit-b32-224", "sam", "sam/ViT-B_32.npz"),
    _hub(
        "vit-b16-224", "in21k_ft_in1k-hf", "google/vit-base-patch16-224", "3f49326eb077187dfe1c2a2bb15fbd74e6ab91e3",
        None, {},
    ),
    _hub(
        "vit-b16-224", "in21k-hf", "google/vit-base-patch16-224-in21k", "b4569560a39a0f1af58e3ddaf17facf20ab919b0",
        "fd4e1169c7aa6c2dbfa8a6448be13b35abc0ee256190857c90009d12c094619b", {"classes": 0, "representation": 768},
    ),
)  # fmt: skip
