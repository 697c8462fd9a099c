"""The gallery of captions: each picture with what was written of it."""

from __future__ import annotations

import math
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from mmzoo.apps.doctor import versions
from mmzoo.apps.report.gallery import Card, Gallery, Guess
from mmzoo.apps.report.thumbs import thumbnail
from mmzoo.processing.image import BadImage, decode_image

if TYPE_CHECKING:
    from mmzoo.apps.caption import Captioned, Captions

__all__ = ["gallery_of"]

PICTURES, CAPTIONS = 400, 10
"""Pictures on the page, and captions of each; the whole of it is in the result."""


def gallery_of(result: Captions) -> Gallery:
    """Lay out captions as a page.

    Args:
        result: What `mmzoo.apps.caption.caption` wrote.
    """
    c, count = result.settings, len(result.captions)
    how = f"drawn by seed {c.seed}" if c.sample else f"searched for by {c.beams} beams"
    each = f"{c.per_context} captions of each" if c.per_context > 1 else "a caption of each"
    behind = f', behind "{result.prompt.strip()}"' if result.prompt.strip() else ""
    return Gallery(
        title=f"{'/'.join(Path(result.model).parts[-2:])} on pictures",  # the footer has the whole path
        lead=f"{count} picture{'' if count == 1 else 's'}, {each}, {how}{behind}.",
        cards=[_card(said) for said in result.captions[:PICTURES]],
        cards_of=count,
        cards_which="the first ones",
        cards_score="A percentage is how likely a word of the caption was on average, by the model's own account.",
        cards_guess="caption",
        broken=result.broken,
        footer={
            "Model": result.model,
            "Weights": f"{result.weights}, sha256 {result.weights_sha256[:16]}",
            "Versions": " · ".join(f"{name} {v}" for name, v in versions("torch", "torchvision").items()),
            "Written": date.today().isoformat(),
            "Command": result.command,
        },
    )


def _card(said: Captioned) -> Card:
    guesses = [
        Guess(text or "(nothing)", math.exp(score))
        for text, score in zip(said.captions[:CAPTIONS], said.scores, strict=False)
    ]
    return Card(said.image, _thumbnail(said.image), tuple(guesses))


def _thumbnail(path: str) -> str:
    try:
        return thumbnail(decode_image(path))
    except (BadImage, OSError):  # gone since it was captioned
        return ""
