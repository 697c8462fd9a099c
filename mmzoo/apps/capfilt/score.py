"""The three scores of picture and text, with every picture encoded and projected once for all its texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from mmzoo.apps.opening import Opened, finite
from mmzoo.apps.rerank import PAIRS, TextSide, shared_pictures

__all__ = ["Seen", "clip_cosines", "look", "match_probabilities", "text_cosines"]

DIGITS = 5
"""Digits of a score: what lies behind them changes with the shapes of matrix products."""


class Seen(NamedTuple):
    """What a model made of some pictures in one pass.

    Attributes:
        shared: Keys and values of all cross-attention layers, or pixels for a model that has no such thing.
        embedded: (B, E) unit vectors, or (B, Q, E); None where nobody asked.
    """

    shared: Any
    embedded: Tensor | None


def look(opened: Opened, pictures: Sequence[Image.Image], *, embed: bool) -> Seen:
    """Encode pictures: one pass of the image tower and one projection, whatever is done with them afterwards.

    Args:
        opened: The model.
        pictures: B pictures.
        embed: Whether their vectors in the common space are wanted too.
    """
    model = opened.model
    if all(
        hasattr(model, name) for name in ("image_tokens", "project", *(("embed_image",) if embed else ()))
    ):
        tokens = model.image_tokens(opened.processor.images(pictures).to(opened.device))
        return Seen(model.project(tokens), model.embed_image(tokens) if embed else None)
    embedded = model.encode_image(opened.processor.images(pictures).to(opened.device)) if embed else None
    return Seen(shared_pictures(opened, pictures), embedded)


def match_probabilities(opened: Opened, seen: Seen, texts: Sequence[str], index: Tensor) -> list[float]:
    """ITM probability of text t with picture `index[t]`.

    Args:
        opened: A model that `ScoresPairs`.
        seen: The pictures.
        texts: T texts.
        index: (T,) int64, ascending.

    Raises:
        ZooError: The model gives numbers that are not finite.
    """
    side = TextSide(opened, list(texts))
    found = []
    for part in torch.arange(len(texts)).split(PAIRS):
        logits = finite(side.match(seen.shared, part, index[part].to(opened.device)), opened)
        found.append(logits.double().softmax(1)[:, 1].cpu())
    return _rounded(torch.cat(found))


def text_cosines(opened: Opened, seen: Seen, texts: Sequence[str], index: Tensor) -> list[float]:
    """Cosine of text t with picture `index[t]`, of a model that `EmbedsPairs`; else as `match_probabilities`."""
    assert seen.embedded is not None
    found = []
    for part in torch.arange(len(texts)).split(PAIRS):
        ids, keep = opened.processor.texts([texts[i] for i in part.tolist()])
        vectors = opened.model.encode_text(ids.to(opened.device), keep.to(opened.device))
        cosines = finite(opened.model.similarity(seen.embedded, vectors), opened)  # (B, T)
        found.append(cosines.cpu()[index[part], torch.arange(len(part))].double())
    return _rounded(torch.cat(found))


def clip_cosines(
    opened: Opened, pictures: Sequence[Image.Image], texts: Sequence[str], index: Tensor
) -> list[float]:
    """As `text_cosines`, by a model that has only that to say."""
    pixels = opened.processor.images(pictures).to(opened.device)
    return text_cosines(opened, Seen(None, opened.model.encode_image(pixels)), texts, index)


def _rounded(values: Tensor) -> list[float]:
    return [round(value, DIGITS) for value in values.tolist()]
