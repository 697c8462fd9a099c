"""When two pictures, or two texts, count as the same: a perceptual hash and a normal form."""

from __future__ import annotations

import hashlib
import unicodedata
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["normal_text", "perceptual_hash", "text_hash"]

SIDE, LOW = 32, 8
"""Pixels of a side that the transform sees, and frequencies of each direction that are kept."""
FLAT = 1.0
"""Standard deviation, in levels of grey, below which a picture has no structure to compare."""


@cache
def _cosines() -> np.ndarray:
    """The first rows of the discrete cosine transform, without the constant one: (LOW, SIDE)."""
    k, n = np.arange(1, LOW + 1)[:, None], np.arange(SIDE)[None]
    return np.cos(np.pi * k * (2 * n + 1) / (2 * SIDE))


def perceptual_hash(image: Image.Image, digest: bytes) -> int:
    """64 bits that stay nearly the same when a picture is scaled, recompressed or a little changed.

    Which of the lowest frequencies of the grey picture are above their median (Zauner 2010, pHash).

    Args:
        image: RGB.
        digest: A hash of its file, which stands in where the picture is flat and all such ones would be alike.
    """
    from PIL import Image as Pillow

    small = np.asarray(image.convert("L").resize((SIDE, SIDE), Pillow.Resampling.BOX), dtype=np.float64)
    if small.std() < FLAT:
        return int.from_bytes(digest[:8], "big")
    waves = _cosines() @ small @ _cosines().T  # (LOW, LOW)
    bits = (waves > np.median(waves)).flatten()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def normal_text(text: str) -> str:
    """A text as it is compared: one form of each letter, no case, no punctuation, no invisible characters.

    Words of any script stay, and so do symbols, or a text of emoji would be empty.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    letters = []
    for letter in folded:
        kind = unicodedata.category(letter)
        if kind[0] in "LMNS":
            letters.append(letter)
        elif kind != "Cf":  # joiners and marks of direction stand inside words
            letters.append(" ")
    return " ".join("".join(letters).split())


def text_hash(normal: str) -> int:
    """64 bits of a text in its normal form."""
    return int.from_bytes(hashlib.blake2b(normal.encode(), digest_size=8).digest(), "big")
