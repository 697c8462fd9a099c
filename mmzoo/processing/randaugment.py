"""RandAugment (Cubuk et al. 2020) as the released code of ALBEF, BLIP and ViLT sets it: a few fixed changes a picture.

The operations are Pillow's, as in all three: they need a picture's histogram or its neighbouring pixels, so unlike
those of `mmzoo.processing.augment` they are made picture by picture, where it is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image, ImageChops, ImageEnhance, ImageOps
from torch import Generator, Tensor

from mmzoo.errors import UsageError
from mmzoo.processing.decode import to_image, to_pixels

__all__ = ["POLICIES", "Policy", "RandAugment"]


class Policy(NamedTuple):
    """What one family draws from.

    Attributes:
        operations: Names in `OPERATIONS`.
        levels: The level at which an operation is strongest.
        probability: Share of the drawn operations that are carried out.
        shift: Pixels of the strongest translation.
        fill: Grey level of what comes into view from outside.
        resample: Filter of the geometric operations.
    """

    operations: tuple[str, ...]
    levels: int
    probability: float
    shift: int
    fill: int
    resample: Image.Resampling


_GEOMETRY = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")

POLICIES: Mapping[str, Policy] = {
    # salesforce/ALBEF, dataset/randaugment.py and dataset/__init__.py: no colours are changed, captions speak of them
    "albef": Policy(
        ("identity", "autocontrast", "equalize", "brightness", "sharpness", *_GEOMETRY),
        levels=10, probability=0.5, shift=10, fill=128, resample=Image.Resampling.BILINEAR,
    ),
    # dandelin/ViLT, vilt/transforms/randaug.py: all but inverting and cutting out
    "vilt": Policy(
        (
            *("autocontrast", "equalize", "posterize", "solarize", "solarize_add"),
            *("color", "contrast", "brightness", "sharpness", *_GEOMETRY),
        ),
        levels=30, probability=1.0, shift=100, fill=0, resample=Image.Resampling.NEAREST,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class RandAugment:
    """Some operations, drawn anew for each picture, all of one strength.

    Attributes:
        policy: Whose operations: `albef` (BLIP's too) or `vilt`.
        level: Their strength, counted as that family does: up to 10 in ALBEF, up to 30 in ViLT.
        count: How many are drawn; one may be drawn twice.
    """

    policy: Literal["albef", "vilt"]
    level: float
    count: int = 2

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise UsageError(f"RandAugment: no policy {self.policy!r}; there are {', '.join(POLICIES)}.")
        if not 0 <= self.level <= POLICIES[self.policy].levels:
            raise UsageError(
                f"RandAugment: the level of {self.policy} lies in 0..{POLICIES[self.policy].levels}, not {self.level}."
            )
        if self.count < 1:
            raise UsageError(f"RandAugment: count is {self.count}; it is a number from 1.")

    def __call__(self, pixels: Tensor, generator: Generator) -> Tensor:
        """Change one picture.

        Args:
            pixels: (3, H, W) uint8.
            generator: The only source of randomness; always the same number of draws is taken from it.

        Returns:
            As many pixels.
        """
        policy = POLICIES[self.policy]
        image = to_image(pixels)
        for which, done, sign in torch.rand(self.count, 3, generator=generator).tolist():
            name = policy.operations[int(which * len(policy.operations))]
            if done < policy.probability:
                strength = self.level / policy.levels
                image = OPERATIONS[name](image, strength, 1.0 if sign < 0.5 else -1.0, policy)
        return to_pixels(image)


Operation = Callable[[Image.Image, float, float, Policy], Image.Image]
"""Changes a picture, given its strength in 0..1 and which way of two."""


def _enhanced(kind: Any) -> Operation:
    """Brightness and the like: a factor between 0.1 and 1.9, so that 1/2 changes nothing."""
    return lambda image, strength, sign, policy: kind(image).enhance(0.1 + 1.8 * strength)


def _affine(matrix: Callable[[float, Policy], tuple[float, ...]]) -> Operation:
    def operation(image: Image.Image, strength: float, sign: float, policy: Policy) -> Image.Image:
        return image.transform(
            image.size, Image.Transform.AFFINE, matrix(sign * strength, policy), policy.resample,
            fillcolor=(policy.fill,) * 3,
        )  # fmt: skip

    return operation


def _solarize_add(image: Image.Image, strength: float, sign: float, policy: Policy) -> Image.Image:
    more = Image.new("RGB", image.size, (int(110 * strength),) * 3)
    return ImageOps.solarize(ImageChops.add(image, more), 128)


OPERATIONS: Mapping[str, Operation] = {
    "identity": lambda image, strength, sign, policy: image,
    "autocontrast": lambda image, strength, sign, policy: ImageOps.autocontrast(image),
    "equalize": lambda image, strength, sign, policy: ImageOps.equalize(image),
    "posterize": lambda image, strength, sign, policy: ImageOps.posterize(image, max(1, int(4 * strength))),
    "solarize": lambda image, strength, sign, policy: ImageOps.solarize(image, int(256 * strength)),
    "solarize_add": _solarize_add,
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": _affine(lambda s, policy: (1, 0.3 * s, 0, 0, 1, 0)),
    "shear_y": _affine(lambda s, policy: (1, 0, 0, 0.3 * s, 1, 0)),
    "translate_x": _affine(lambda s, policy: (1, 0, policy.shift * s, 0, 1, 0)),
    "translate_y": _affine(lambda s, policy: (1, 0, 0, 0, 1, policy.shift * s)),
    "rotate": lambda image, strength, sign, policy: image.rotate(
        sign * 30 * strength, policy.resample, fillcolor=(policy.fill,) * 3
    ),
}
