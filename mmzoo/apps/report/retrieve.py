"""The page of a search: every query with the best of what it found."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from mmzoo.apps.doctor import versions
from mmzoo.apps.report.gallery import Gallery, Row, RowHit
from mmzoo.apps.report.shares import percent
from mmzoo.apps.report.thumbs import thumbnail
from mmzoo.processing.image import BadImage

if TYPE_CHECKING:
    from mmzoo.apps.retrieve import Found, Retrieved

__all__ = ["gallery_of"]

QUERIES, HITS = 100, 24
"""Queries on the page, and hits of each; the whole of it is in the result."""

Read = Callable[[int], Image.Image]


def gallery_of(result: Retrieved, items: Read | None, queries: Read | None) -> Gallery:
    """Lay out the outcome of a search as a page.

    Args:
        result: What `mmzoo.apps.retrieve.retrieve` found.
        items: Reads a picture that was found, by its place.
        queries: Reads a picture that was searched by, by its place.
    """
    kinds = {"image": ("picture", "pictures"), "text": ("caption", "captions")}
    sizes = " and ".join(f"{c.size:,} {kinds[c.kind][c.size != 1]}" for c in result.searched)
    asked = f"{len(result.found)} {'query' if len(result.found) == 1 else 'queries'}"
    again = (
        f" The best {result.reranked} of each were read again together with it." if result.reranked else ""
    )
    names = " and ".join(dict.fromkeys(c.name for c in result.searched))
    return Gallery(
        title=f"{'/'.join(Path(result.model).parts[-2:])} searching {names}",  # the footer has the whole path
        lead=f"{asked}, {sizes}, best first.{again}",
        rows=[_row(found, items, queries) for found in result.found[:QUERIES]],
        rows_of=len(result.found),
        rows_score="A percentage is the model's probability of a match; in brackets, the cosine."
        if result.reranked
        else "Numbers are cosines, from -1 to 1.",
        broken=result.broken,
        footer={
            "Model": result.model,
            "Weights": f"{result.weights}, sha256 {result.weights_sha256[:16]}",
            "Versions": " · ".join(f"{name} {v}" for name, v in versions("torch", "torchvision").items()),
            "Written": date.today().isoformat(),
            "Command": result.command,
        },
    )


def _row(found: Found, items: Read | None, queries: Read | None) -> Row:
    pictured = found.finds == "image"
    return Row(
        query=found.query,
        image=_thumbnail(queries, found.place) if found.kind == "image" else "",
        pictured=pictured,
        hits=tuple(
            RowHit(
                hit.key,
                _thumbnail(items, hit.place) if pictured else "",
                f"{hit.score:.3f}" if hit.match is None else f"{percent(hit.match)} ({hit.score:.3f})",
            )
            for hit in found.hits[:HITS]
        ),
    )


def _thumbnail(read: Read | None, place: int) -> str:
    if read is None:
        return ""
    try:
        return thumbnail(read(place))
    except (BadImage, OSError):  # gone since it was embedded
        return ""
