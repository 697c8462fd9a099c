"""The gallery of a zero-shot run: the worst mistakes first, the rest in a fair sample."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from mmzoo.apps.doctor import versions
from mmzoo.apps.report.gallery import MATRIX_MAX, Card, Gallery, Matrix
from mmzoo.apps.report.thumbs import thumbnail
from mmzoo.data.sample import Source
from mmzoo.processing.image import BadImage, decode_image

if TYPE_CHECKING:
    from mmzoo.apps.zeroshot import Prediction, ZeroShot

__all__ = ["gallery_of"]

WORST, REST, GUESSES, PAIRS = 180, 60, 3, 30
"""Pictures on the page: the worst, and so many of the rest; labels on each; rows of confused pairs."""


def gallery_of(result: ZeroShot, source: Source) -> Gallery:
    """Lay out the outcome of a zero-shot run as a page.

    Args:
        result: What `mmzoo.apps.zeroshot.zeroshot` found.
        source: Where its pictures come from, for the thumbnails.
    """
    known = [p for p in result.predictions if p.truth is not None]
    counted = "1 picture" if len(result.predictions) == 1 else f"{len(result.predictions)} pictures"
    matrix = None
    if known and len(result.labels) <= MATRIX_MAX:
        place = {label: i for i, label in enumerate(result.labels)}
        counts = [[0] * len(place) for _ in place]
        for p in known:
            counts[place[p.truth or ""]][place[p.guesses[0].label]] += 1
        matrix = Matrix(result.labels, counts)
    return Gallery(
        title=f"{'/'.join(Path(result.model).parts[-2:])} on {result.source}",  # the footer has the whole path
        lead=f"Zero-shot: {counted}, {len(result.labels)} labels, {len(result.templates)} prompts for each.",
        numbers=result.numbers,
        cards=_cards(result.predictions, source),
        cards_of=len(result.predictions),
        cards_which=f"the {WORST} that went worst and {REST} of the others, from less to more sure"
        if known
        else "the first ones",
        classes=result.classes,
        matrix=matrix,
        pairs=() if matrix else [pair for pair in result.confused[:PAIRS] if pair.pictures > 1],
        broken=result.broken,
        footer={
            "Model": result.model,
            "Weights": f"{result.weights}, sha256 {result.weights_sha256[:16]}",
            "Prompts": " · ".join(result.templates[:3]) + (" · ..." if len(result.templates) > 3 else ""),
            "Versions": " · ".join(f"{name} {v}" for name, v in versions("torch", "torchvision").items()),
            "Written": date.today().isoformat(),
            "Command": result.command,
        },
    )


def _cards(predictions: Sequence[Prediction], source: Source) -> list[Card]:
    """A card for each picture; of many, the `WORST` and then `REST` evenly out of the others."""
    cards = [
        (p.place, Card(p.key, "", p.guesses[:GUESSES], p.truth, p.truth_score or 0.0)) for p in predictions
    ]
    if any(card.truth is not None for _, card in cards):
        cards.sort(key=lambda item: -item[1].badness)
    others = cards[WORST:]
    step = max(1, len(others) / REST)
    sample = [others[int(i * step)] for i in range(min(REST, len(others)))]
    return [card._replace(image=_thumbnail(source, place)) for place, card in cards[:WORST] + sample]


def _thumbnail(source: Source, place: int) -> str:
    try:
        return thumbnail(decode_image(source[place].image))
    except (BadImage, OSError):  # gone since it was classified
        return ""
