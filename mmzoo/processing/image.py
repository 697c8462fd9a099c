"""The evaluation transform and random crops for training.

Resizing runs on uint8 tensors (torchvision v2) and only the finished crop becomes float, in one multiply-add:
less than half the cost of open_clip's transform, which works on PIL images. The two agree as far as 16-bit
weights go: of a resized photograph 0.4 % of the values are one grey level off (6e-5 on average after
normalisation). `exact=True` lets PIL resize, for results equal to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Generator, Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from mmzoo.errors import UsageError
from mmzoo.processing.decode import (
    MAX_PIXELS,
    BadImage,
    ImageSource,
    decode_bytes,
    decode_image,
    decode_pixels,
    open_header,
    read_source,
    to_image,
    to_pixels,
    to_rgb,
)
from mmzoo.spec import ImageSpec

__all__ = [
    "MAX_PIXELS",
    "BadImage",
    "ImageSource",
    "ImageTransform",
    "TrainTransform",
    "decode_image",
    "normalize",
    "normalize_batch",
]

# Where the resized long side would exceed so many times the short one, only what the crop keeps is computed:
# a strip of 10,000 x 10 pixels would else grow to 150 MB.
_EXTREME = 8

_PIL_FILTER = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_TORCH_FILTER = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}


def normalize(pixels: Tensor, spec: ImageSpec) -> Tensor:
    """Subtract the mean and divide by the standard deviation of a spec.

    Args:
        pixels: `(..., 3, H, W)`, uint8 in 0..255 or floating point in [0, 1].
        spec: Gives mean and standard deviation.

    Returns:
        The same shape in float32, in one multiply-add.
    """
    unit = 255 if pixels.dtype == torch.uint8 else 1
    factor = pixels.new_tensor([1 / (unit * s) for s in spec.std], dtype=torch.float32)
    offset = pixels.new_tensor([-m / s for m, s in zip(spec.mean, spec.std)], dtype=torch.float32)
    return torch.addcmul(offset[:, None, None], pixels.float(), factor[:, None, None])


def normalize_batch(pixels: Sequence[Tensor], spec: ImageSpec) -> Tensor:
    """Normalise pictures and stack them, padded with zeros at the bottom and at the right where sizes differ.

    Padding comes after normalising, so it is exactly 0 in all channels. A real pixel never is, as long as 255 times the
    mean is no whole number; so a model can read off the tensor what is padding (ViLT does).

    Args:
        pixels: B pictures `(3, H, W)`, uint8.
        spec: Gives mean and standard deviation.

    Returns:
        `(B, 3, H, W)` float32 of the largest height and the largest width.
    """
    if len({picture.shape for picture in pixels}) == 1:
        return normalize(torch.stack(list(pixels)), spec)
    height, width = (max(picture.shape[side] for picture in pixels) for side in (1, 2))
    out = torch.zeros(len(pixels), 3, height, width)
    for row, picture in zip(out, pixels):
        row[:, : picture.shape[1], : picture.shape[2]] = normalize(picture, spec)
    return out


class ImageTransform:
    """The evaluation transform of a model.

    Args:
        spec: Size, how a picture fits it, filter and normalisation.
        exact: Resize by PIL, bit for bit as open_clip and timm do with the same Pillow, strips longer than
            8 to 1 excepted. (Pillow 13 resizes columns before rows for some shapes; the default path keeps to
            the order of all earlier ones.)
        max_pixels: Larger pictures are refused before they are decoded.

    Example:
        >>> transform = ImageTransform(ImageSpec(size=224))
        >>> transform([Image.new("RGB", (640, 480))]).shape
        torch.Size([1, 3, 224, 224])
    """

    def __init__(self, spec: ImageSpec, *, exact: bool = False, max_pixels: int = MAX_PIXELS) -> None:
        self.spec = spec
        self.exact = exact
        self.max_pixels = max_pixels

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Transform decoded pictures.

        Args:
            images: B pictures of any size and mode.

        Returns:
            `(B, 3, size, size)` float32, normalised; pictures that keep their shape are padded with zeros to the
            largest of the call.

        Raises:
            UsageError: Not a non-empty list of PIL images.
        """
        if isinstance(images, Image.Image):
            raise UsageError("images must be a list of PIL images, not one image: [image].")
        if not isinstance(images, Sequence) or isinstance(images, (str, bytes)):
            raise UsageError(f"images must be a list of PIL images, found {type(images).__name__}.")
        for index, image in enumerate(images):
            if not isinstance(image, Image.Image):
                raise UsageError(
                    f"images[{index}] must be a PIL image, found {type(image).__name__}; "
                    "decode_image() makes one of bytes or a path."
                )
        return self.load_batch(images)

    def load_batch(self, sources: Sequence[ImageSource]) -> Tensor:
        """Decode and transform, as a call does with decoded pictures.

        Raises:
            UsageError: The list is empty.
            BadImage: One of the pictures cannot be used.
        """
        if not sources:
            raise UsageError("there are no images: the list is empty.")
        return normalize_batch([self.pixels(source) for source in sources], self.spec)

    def pixels(self, source: ImageSource) -> Tensor:
        """Decode, resize and crop one picture to `(3, size, size)` uint8, left for `normalize`.

        A picture that keeps its shape (`fit="aspect"`) becomes `(3, H, W)` of `spec.aspect_size`.

        Raises:
            BadImage: The picture cannot be used.
        """
        pixels, spec, size = decode_pixels(source, self.max_pixels), self.spec, self.spec.size
        if spec.fit == "squash":
            return _resize(pixels, (size, size), spec, self.exact)
        height, width = pixels.shape[-2:]
        if spec.fit == "aspect":
            return _resize(pixels, spec.aspect_size(height, width), spec, self.exact)
        short = math.floor(size / spec.crop_pct)
        # torchvision's rounding: the long side is cut down, a half in the crop's corner goes to the even
        # neighbour.
        new_h, new_w = (
            (short, int(short * width / height)) if height <= width else (int(short * height / width), short)
        )
        top, left = round((new_h - size) / 2), round((new_w - size) / 2)
        if max(new_h, new_w) > _EXTREME * short:
            y, x = height / new_h, width / new_w
            return _resize_box(pixels, (left * x, top * y, (left + size) * x, (top + size) * y), spec)
        resized = _resize(pixels, (new_h, new_w), spec, self.exact)
        return resized[:, top : top + size, left : left + size]


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop for training, on uint8.

    A model whose pictures keep their shape (`fit="aspect"`) is trained on whole pictures, as ViLT was: there is no crop
    then, only `flip`.

    Attributes:
        spec: Size and filter; its mean and standard deviation are left to `normalize`.
        scale: Bounds of the crop's share of the area; (1, 1) where pictures keep their shape.
        ratio: Bounds of the crop's width / height.
        flip: Mirror half of the pictures. Off by default, as captions may speak of left and right.
        fast_decode: Decode JPEG at 1/2, 1/4 or 1/8 where the crop is still as large as the input. Faster for
            large photographs, but pixels change a little: for training only.
        max_pixels: Larger pictures are refused before they are decoded.
    """

    spec: ImageSpec
    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False
    fast_decode: bool = False
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UsageError(
                f"scale must be two shares of the area with 0 < low <= high <= 1, not {self.scale}."
            )
        if self.spec.fit == "aspect" and self.scale != (1, 1):
            raise UsageError(
                f"this model reads whole pictures in their own shape, so they are not cropped at random: scale must be "
                f"(1, 1), not {self.scale}."
            )
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UsageError(f"ratio must be two numbers with 0 < low <= high, not {self.ratio}.")

    def __call__(self, source: ImageSource, generator: Generator) -> Tensor:
        """Decode, crop and resize one picture.

        Args:
            source: Bytes, a path, an open binary file or a PIL image.
            generator: The only source of randomness; always the same number of draws is taken from it.

        Returns:
            `(3, size, size)` uint8 (or `(3, H, W)`, see above), for `normalize` once a batch is complete.

        Raises:
            BadImage: The picture cannot be used.
        """
        draws = torch.rand(_DRAWS, generator=generator, dtype=torch.float64).tolist()
        pixels = self._crop(source, draws)
        return pixels.flip(-1) if self.flip and draws[-1] < 0.5 else pixels

    def _crop(self, source: ImageSource, draws: list[float]) -> Tensor:
        if isinstance(source, Image.Image):
            pixels = decode_pixels(source, self.max_pixels)
        else:
            data, name = read_source(source)
            if self.fast_decode:
                crop = self._scaled_crop(open_header(data, name, self.max_pixels), name, draws)
                if crop is not None:
                    return crop
            pixels = decode_bytes(data, name, self.max_pixels)
        top, left, h, w = self._box(pixels.shape[1], pixels.shape[2], draws)
        return _resize(pixels[:, top : top + h, left : left + w], self._size(h, w), self.spec)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that a crop is resized to."""
        spec = self.spec
        return spec.aspect_size(height, width) if spec.fit == "aspect" else (spec.size, spec.size)

    def _scaled_crop(self, image: Image.Image, name: str, draws: list[float]) -> Tensor | None:
        """The crop out of a JPEG decoded at a fraction of its size, or None where that does not apply."""
        width, height = image.size
        top, left, h, w = self._box(height, width, draws)
        new_h, new_w = self._size(h, w)
        # Pillow picks the strongest reduction that is not smaller than what is asked for.
        image.draft("RGB", (math.ceil(width * new_w / w), math.ceil(height * new_h / h)))
        if image.size == (width, height):
            return None
        # Each decoded pixel stands for exactly `factor` of the file's; the last one may reach over the edge,
        # so the ratio of the two (rounded) sizes would let the crop drift.
        factor = round(width / image.width)
        box = (left / factor, top / factor, (left + w) / factor, (top + h) / factor)
        resample = _PIL_FILTER[self.spec.interpolation]
        return to_pixels(to_rgb(image, name).resize((new_w, new_h), resample, box=box))

    def _box(self, height: int, width: int, draws: list[float]) -> tuple[int, int, int, int]:
        """Top, left, height and width of the crop: as in torchvision, the first of ten tries that fits."""
        if self.spec.fit == "aspect":
            return 0, 0, height, width
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for attempt in range(_TRIES):
            area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * draws[2 * attempt])
            aspect = math.exp(low + (high - low) * draws[2 * attempt + 1])
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top, left = int(draws[-3] * (height - h + 1)), int(draws[-2] * (width - w + 1))
                return top, left, h, w
        # The picture is longer than any allowed crop: take the largest allowed one from its centre.
        w, h = min(width, round(height * self.ratio[1])), min(height, round(width / self.ratio[0]))
        w, h = max(w, 1), max(h, 1)
        return (height - h) // 2, (width - w) // 2, h, w


_TRIES = 10
_DRAWS = 2 * _TRIES + 3  # area and aspect of each try; top, left; flip


def _resize(pixels: Tensor, size: tuple[int, int], spec: ImageSpec, exact: bool = False) -> Tensor:
    """Resize to height and width, antialiased."""
    if exact:
        return to_pixels(to_image(pixels).resize(size[::-1], _PIL_FILTER[spec.interpolation]))
    return resize(pixels, list(size), _TORCH_FILTER[spec.interpolation], antialias=True)


def _resize_box(pixels: Tensor, box: tuple[float, float, float, float], spec: ImageSpec) -> Tensor:
    """Resize what lies inside `box` (left, top, right, bottom) as if the whole had been resized."""
    size, resample = spec.size, _PIL_FILTER[spec.interpolation]
    left, top, right, bottom = box
    # The filter reaches two (resized) pixels beyond the box; what lies further out only costs memory.
    x, y = (math.ceil(2 * max(1, length / size)) + 1 for length in (right - left, bottom - top))
    x0, y0 = max(0, int(left) - x), max(0, int(top) - y)
    near = to_image(pixels[:, y0 : math.ceil(bottom) + y, x0 : math.ceil(right) + x])
    # One axis at a time, or Pillow 13 may choose the other order and round otherwise.
    wide = near.resize(
        (size, near.height), resample, (left - x0, 0, min(right - x0, near.width), near.height)
    )
    return to_pixels(wide.resize((size, size), resample, (0, top - y0, size, min(bottom - y0, near.height))))
