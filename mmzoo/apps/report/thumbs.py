"""Thumbnails as data URIs, small enough that a page of hundreds opens at once."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["SIDE", "thumbnail"]

SIDE = 160
"""Longest side in pixels."""


def thumbnail(image: Image.Image, side: int = SIDE) -> str:
    """Shrink a picture into a data URI.

    Args:
        image: Any RGB picture; it is left as it is.
        side: Longest side in pixels of the result; smaller pictures keep their size.

    Returns:
        `data:image/...;base64,...`: JPEG of about 5 kB, or PNG for pictures that were small already (icons,
        whose sharp edges JPEG would smear).
    """
    small = max(image.size) <= side // 2
    picture = image.convert("RGB")
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    kind = "png" if small else "jpeg"
    picture.save(buffer, kind, optimize=True, **({} if small else {"quality": 80}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
