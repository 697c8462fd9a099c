"""What a gallery page shows, as plain data, and the one function that writes it.

The page is a single file that asks the network for nothing: pictures are data URIs, style and script are
inline, and a content security policy forbids the rest. File names and labels come from strangers, so the
template escapes everything, and the policy admits no script but ours, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from mmzoo.apps.report.shares import percent
from mmzoo.errors import UsageError
from mmzoo.files import atomic_path

__all__ = [
    "MATRIX_MAX",
    "Card",
    "ClassRow",
    "Gallery",
    "Guess",
    "Matrix",
    "Number",
    "Pair",
    "Row",
    "RowHit",
    "page_path",
    "render",
    "write",
]

MATRIX_MAX = 30
"""Largest number of classes whose whole confusion matrix is drawn; beyond it only the top pairs are."""


class Guess(NamedTuple):
    """A label, or a whole caption, and the share (0 to 1) that the model gives it."""

    label: str
    score: float


class Number(NamedTuple):
    """A headline number.

    Attributes:
        name: What it is, `"top-1 accuracy"`.
        value: A share from 0 to 1.
        chance: What guessing would give, as a share, or None where that means nothing.
        note: A few words under it.
    """

    name: str
    value: float
    chance: float | None = None
    note: str = ""


class Card(NamedTuple):
    """One picture of the grid.

    Attributes:
        key: Its file or key, shown and searched.
        image: A `data:` URI, or an empty string where there is no thumbnail.
        guesses: Best first, at least one.
        truth: The true label, or None where it is not known.
        truth_score: The share given to the true label.
    """

    key: str
    image: str
    guesses: tuple[Guess, ...]
    truth: str | None = None
    truth_score: float = 0.0

    @property
    def wrong(self) -> bool:
        """Whether the truth is known and is not the first guess."""
        return self.truth is not None and self.truth != self.guesses[0].label

    @property
    def badness(self) -> float:
        """How far the best wrong label is ahead of the true one: above 0 for mistakes, at most 1."""
        if self.truth is None:
            return -self.guesses[0].score
        rivals = [guess.score for guess in self.guesses if guess.label != self.truth]
        return max(rivals, default=0.0) - self.truth_score


class ClassRow(NamedTuple):
    """One class of the per-class table; shares from 0 to 1, None where nothing was there to divide by."""

    name: str
    pictures: int
    recall: float | None
    precision: float | None
    confused_with: str = ""


class Pair(NamedTuple):
    """So many pictures of `truth` were called `guess`; `share` is their part of all pictures of `truth`."""

    truth: str
    guess: str
    pictures: int
    share: float


class Matrix(NamedTuple):
    """A confusion matrix: `counts[t][p]` pictures of class t were called class p."""

    names: Sequence[str]
    counts: Sequence[Sequence[int]]


class RowHit(NamedTuple):
    """One thing that a search found: its key or text, a `data:` URI or nothing, and how well it fits, in words."""

    label: str
    image: str
    score: str


class Row(NamedTuple):
    """A query and what it found.

    Attributes:
        query: Its text, or the key of its picture.
        image: A `data:` URI of its picture, or an empty string.
        pictured: Whether pictures were found, or texts.
        hits: Best first.
    """

    query: str
    image: str
    pictured: bool
    hits: tuple[RowHit, ...]


@dataclass(frozen=True)
class Gallery:
    """Everything on the page.

    Attributes:
        title: Heading.
        lead: One sentence below it.
        numbers: Headline numbers, with chance beside them.
        cards: Pictures, the most interesting first.
        cards_of: How many pictures there were before the page was bounded.
        cards_which: Which of them are shown, where not all are.
        cards_score: What the percentages on them are, a sentence.
        cards_guess: What stands on them, to complete "sort by ..., A-Z".
        rows: Queries of a search with what they found.
        rows_of: How many queries there were before the page was bounded.
        rows_score: What the numbers beside the hits are, a sentence.
        classes: Per-class table; empty to leave it out.
        matrix: Confusion matrix, where there are at most `MATRIX_MAX` classes.
        pairs: The most confused pairs, most pictures first.
        broken: Pictures that could not be read, each with the reason.
        footer: Where the page comes from: model, weights, command, versions.
    """

    title: str
    lead: str
    numbers: Sequence[Number] = ()
    cards: Sequence[Card] = ()
    cards_of: int = 0
    cards_which: str = ""
    cards_score: str = "A percentage is the model's share for that label."
    cards_guess: str = "predicted label"
    rows: Sequence[Row] = ()
    rows_of: int = 0
    rows_score: str = ""
    classes: Sequence[ClassRow] = ()
    matrix: Matrix | None = None
    pairs: Sequence[Pair] = ()
    broken: Sequence[tuple[str, str]] = ()
    footer: Mapping[str, str] | None = None


def _asset(name: str) -> str:
    return (resources.files("mmzoo.apps.report") / name).read_text(encoding="utf-8")


def render(gallery: Gallery) -> str:
    """Turn a gallery into one HTML page.

    Args:
        gallery: What to show.

    Returns:
        The page's text; it holds no address of anything outside itself.
    """
    import jinja2  # torch brings it, but only a report needs it

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = percent
    script = _asset("gallery.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    values: dict[str, Any] = {
        "page": gallery,
        "known": any(card.truth is not None for card in gallery.cards),
        "style": _asset("gallery.css"),
        "script": script,
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
    }
    return environment.from_string(_asset("gallery.html.jinja")).render(values)


def page_path(path: str | Path) -> Path:
    """The file that a page asked for at `path` will be, checked before any work is done for it.

    Args:
        path: An `.html` file, or a folder (made if missing) that shall get an `index.html`.

    Raises:
        UsageError: The name is that of another kind of file, or nothing may be written there.
    """
    target = Path(path)
    if target.is_dir() or not target.suffix:
        target = target / "index.html"
    if target.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{path}: a page is an .html file, or a folder that gets an index.html.")
    there = next(folder for folder in target.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(f"{path}: nothing may be written in {there}.")
    return target


def write(gallery: Gallery, path: str | Path) -> Path:
    """Write the page whole or not at all.

    Args:
        gallery: What to show.
        path: As for `page_path`. An older page there is replaced.

    Returns:
        The file written.
    """
    target = page_path(path)
    with atomic_path(target) as part:
        part.write_text(render(gallery), encoding="utf-8")
    return target
