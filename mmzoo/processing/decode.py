"""Picture files to RGB: sizes are checked before pixels are decoded, and each failure says what is wrong."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmzoo.errors import UsageError, ZooError

__all__ = [
    "MAX_PIXELS",
    "BadImage",
    "ImageSource",
    "decode_bytes",
    "decode_image",
    "decode_pixels",
    "open_header",
    "read_source",
    "to_image",
    "to_pixels",
    "to_rgb",
]

ImageSource = bytes | str | Path | IO[bytes] | Image.Image
"""An encoded picture (its bytes, a path, an open binary file) or one that is decoded already."""

MAX_PIXELS = 64_000_000
"""Largest picture that is decoded unless a caller says otherwise: 8,000 x 8,000, or 192 MB as RGB."""

# Only formats that Pillow reads by itself: some others hand the file to programs such as Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "PPM", "TIFF", "AVIF", "JPEG2000", "ICO", "TGA")


class BadImage(ZooError):  # noqa: N818 (said of the picture, as `raise BadImage` reads)
    """A picture that cannot be used: missing, empty, truncated, too large or no picture at all."""


def decode_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture to RGB.

    As in open_clip, timm and transformers, transparency is dropped rather than laid over a colour, EXIF
    orientation is not applied (`PIL.ImageOps.exif_transpose` does it), and an animation gives its first
    frame. Unlike there, 16-bit grey is scaled to 8 bits instead of being cut off at white.

    Args:
        source: Bytes, a path, an open binary file or a PIL image.
        max_pixels: A larger picture is refused by its header, before memory is spent on it.

    Returns:
        A loaded image of mode RGB.

    Raises:
        BadImage: Missing, empty, truncated, too large or not a picture; the text says which.
    """
    if isinstance(source, Image.Image):
        image, name = source, "the image"
        _check_size(image, name, max_pixels)
    else:
        data, name = read_source(source)
        image = open_header(data, name, max_pixels)
    return to_rgb(image, name)


def read_source(source: bytes | str | Path | IO[bytes]) -> tuple[bytes, str]:
    """Fetch the bytes of a source and what to call it in messages."""
    if isinstance(source, (str, Path)):
        try:
            data, name = Path(source).read_bytes(), str(source)
        except OSError as error:
            raise BadImage(f"{source} cannot be read: {error.strerror or error}.") from error
    elif isinstance(source, (bytes, bytearray, memoryview)):
        data, name = bytes(source), "the image"
    elif hasattr(source, "read"):
        data, name = source.read(), str(getattr(source, "name", "the image"))
    else:
        raise UsageError(
            f"an image is bytes, a path, an open file or a PIL image, not {type(source).__name__}."
        )
    if not data:
        raise BadImage(f"{name} is empty (0 bytes).")
    return data, name


@cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(f for f in _FORMATS if f in Image.OPEN)  # a lean Pillow may lack some


def open_header(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """Read a picture's header and check its size; pixels stay undecoded."""
    try:
        image = Image.open(io.BytesIO(data), formats=_known_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(f"{name} is too large: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise BadImage(
            f"{name} is not a picture in a known format ({', '.join(_known_formats())})."
        ) from error
    except Exception as error:  # a damaged file trips each format's parser in its own way
        raise BadImage(f"{name} has a damaged header: {error or type(error).__name__}.") from error
    _check_size(image, name, max_pixels)
    return image


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise BadImage(f"{name} has no pixels ({width} x {height}).")
    if width * height > max_pixels:
        raise BadImage(
            f"{name} has {width} x {height} pixels, more than the {max_pixels:,} allowed; "
            "shrink it or raise max_pixels."
        )


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Decode and convert an opened picture; `name` is for the message of a `BadImage`."""
    try:
        if image.mode == "RGB":
            image.load()
            return image
        if image.mode.startswith("I;16"):
            return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # the same colours; without it Pillow warns
        return image.convert("RGB")
    except Exception as error:
        raise BadImage(f"{name} cannot be decoded: {error or type(error).__name__}.") from error


def to_pixels(image: Image.Image) -> Tensor:
    """`(3, H, W)` uint8 over interleaved memory, which torch resizes fastest."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


_AS_RGB = 3  # torchvision's ImageReadMode.RGB


@cache
def _jpeg_operator() -> Callable[[Tensor, int], Tensor]:
    """torchvision's JPEG decoder: Pillow's pixels in less time.

    Its Python wrapper warns on each call since 0.29 that decoders will move to torchcodec; the operator does
    not. Once it is gone, Pillow takes over.
    """
    import torchvision.io  # noqa: F401 (registers the operator)

    return torch.ops.image.decode_jpeg  # type: ignore[no-any-return]


def decode_pixels(source: ImageSource, max_pixels: int) -> Tensor:
    """`(3, H, W)` uint8: the pixels of `decode_image`, from torchvision's JPEG decoder where it applies."""
    if isinstance(source, Image.Image):
        return to_pixels(decode_image(source, max_pixels=max_pixels))
    return decode_bytes(*read_source(source), max_pixels)


def decode_bytes(data: bytes, name: str, max_pixels: int) -> Tensor:
    """As `decode_pixels`, of bytes that have been read already."""
    image = open_header(data, name, max_pixels)
    if image.format == "JPEG" and image.mode in ("RGB", "L"):  # CMYK differs between the two
        try:
            return _jpeg_operator()(torch.frombuffer(bytearray(data), dtype=torch.uint8), _AS_RGB)
        except (RuntimeError, AttributeError, ImportError):
            pass  # the file is damaged (Pillow says how) or torchvision has no decoder
    return to_pixels(to_rgb(image, name))


def to_image(pixels: Tensor) -> Image.Image:
    """The inverse of `to_pixels`."""
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
