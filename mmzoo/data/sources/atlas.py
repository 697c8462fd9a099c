"""Pictures of one size laid side by side in one file, cut apart once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mmzoo.errors import ZooError

__all__ = ["cut_atlas"]


def cut_atlas(path: Path, *, tile: int, columns: int, count: int, pixels: str) -> npt.NDArray[np.uint8]:
    """Cut an atlas into its tiles.

    Args:
        path: The picture file; tiles run left to right, then top to bottom.
        tile: Height and width of a tile in pixels.
        columns: Tiles per row.
        count: Number of tiles; what follows them in the last row is padding.
        pixels: SHA-256 of the decoded RGB bytes, in hex.

    Returns:
        (count, tile, tile, 3) uint8, RGB.

    Raises:
        ZooError: The file is missing, or its pixels are not the recorded ones.
    """
    if not path.is_file():
        raise ZooError(f"{path} is missing; restore it from the repository or reinstall mmzoo.")
    with Image.open(path) as image:
        sheet = np.asarray(image.convert("RGB"))
    if hashlib.sha256(sheet.tobytes()).hexdigest() != pixels:
        raise ZooError(
            f"{path} does not hold the pixels that its index records; restore it from the repository."
        )
    rows = sheet.shape[0] // tile
    grid = sheet.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2)
    return np.ascontiguousarray(grid.reshape(rows * columns, tile, tile, 3)[:count])
