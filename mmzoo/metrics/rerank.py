"""Two-stage retrieval: cosines choose the candidates, a matching score orders them (ALBEF section 4, BLIP, BLIP-2).

A pair that is a candidate of its image and of its text is scored once, and nothing of the size of all pairs is ever
there: candidates are (queries, k), scores a list as long as the pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mmzoo.errors import ZooError
from mmzoo.metrics.retrieval import Standing
from mmzoo.metrics.topk import TopK

__all__ = ["Candidates", "choose", "reranked", "reranked_standings"]


class Candidates(NamedTuple):
    """What the first stage left of B images by T texts.

    Attributes:
        texts: (B, k) int64, the texts nearest to each image, nearest first.
        images: (T, k') int64, the images nearest to each text.
        image: (P,) int64, the image of each pair that is a candidate either way, ascending, each pair once.
        text: (P,) int64, its text.
    """

    texts: Tensor
    images: Tensor
    image: Tensor
    text: Tensor


def choose(image: Tensor, text: Tensor, k: int, *, block: int = 1024) -> Candidates:
    """Find the k nearest texts of every image and the k nearest images of every text.

    Args:
        image: (B, E) unit vectors.
        text: (T, E) unit vectors.
        k: How many; all where there are fewer.
        block: Rows of cosines in memory at once.

    Returns:
        The candidates. Of equal cosines the earlier item comes first.

    Raises:
        ZooError: k is below 1, or one side is empty.
    """
    if k < 1 or not len(image) or not len(text):
        raise ZooError(
            f"re-ranking takes k of 1 or more and some of both; got k={k}, {len(image)} and {len(text)}."
        )
    texts, images = _nearest(image, text, k, block), _nearest(text, image, k, block)
    rows = torch.arange(len(image), device=image.device)[:, None].expand_as(texts)
    columns = torch.arange(len(text), device=text.device)[:, None].expand_as(images)
    both = torch.cat([(rows * len(text) + texts).flatten(), (images * len(text) + columns).flatten()])
    pairs = torch.unique(both)
    return Candidates(texts, images, pairs // len(text), pairs % len(text))


def _nearest(queries: Tensor, items: Tensor, k: int, block: int) -> Tensor:
    best = TopK(len(queries), min(k, len(items)))
    for some in torch.split(items, block):
        best.add(queries @ some.T)
    return best.places


def reranked(
    candidates: Candidates,
    scores: Tensor,
    image_ids: Tensor,
    text_ids: Tensor,
    ks: tuple[int, ...] = (1, 5, 10),
) -> dict[str, float]:
    """Recall after the candidates of each query are ordered by their scores.

    A query whose positives are no candidates is a miss at every k. A negative that scores exactly as the best positive
    goes before it. Queries without any positive in the whole set are left out.

    Args:
        candidates: What `choose` gave.
        scores: (P,) floating, the score of each of its pairs; larger is better.
        image_ids: (B, m) int64; -1 pads.
        text_ids: (T,) int64. Text j fits image i iff `text_ids[j]` is among `image_ids[i]`.
        ks: Depths, none above the number of candidates of a query if there are that many items.

    Returns:
        `i2t_r1`, ..., `t2i_r10`.

    Raises:
        ZooError: There are not as many scores as pairs.
    """
    found: dict[str, float] = {}
    for way, (hit, higher, tied) in zip(
        ("i2t", "t2i"), _ordered(candidates, scores, image_ids, text_ids), strict=True
    ):
        counts = _asked(way, image_ids, text_ids)
        for k in ks:
            right = hit & (higher + tied < k)
            found[f"{way}_r{k}"] = float(right[counts].double().mean()) if bool(counts.any()) else 0.0
    return found


def reranked_standings(
    candidates: Candidates,
    scores: Tensor,
    image_ids: Tensor,
    text_ids: Tensor,
    first: tuple[Standing, Standing],
) -> tuple[Standing, Standing]:
    """Where the best positive of each query stands after re-ranking: candidates by score, then the others as before.

    So a query none of whose positives is a candidate keeps the rank of the first stage, and ranks are defined however
    few candidates there are.

    Args:
        candidates: What `choose` gave.
        scores: As for `reranked`.
        image_ids: As for `reranked`.
        text_ids: As for `reranked`.
        first: `mmzoo.metrics.retrieval.standings` of the embeddings that the candidates were chosen by.

    Returns:
        Standings of the images and of the texts, for `mmzoo.metrics.retrieval.recalls`.

    Raises:
        ZooError: There are not as many scores as pairs.
    """
    images, texts = (
        Standing(
            torch.where(hit, higher, before.higher), torch.where(hit, tied, before.tied), before.positives
        )
        for before, (hit, higher, tied) in zip(
            first, _ordered(candidates, scores, image_ids, text_ids), strict=True
        )
    )
    return images, texts


def _ordered(
    candidates: Candidates, scores: Tensor, image_ids: Tensor, text_ids: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For images, then for texts: is a positive among the candidates, how many negatives score more, how many as much.

    Raises:
        ZooError: There are not as many scores as pairs.
    """
    if scores.shape != candidates.image.shape:
        raise ZooError(f"{len(candidates.image)} pairs were chosen and {tuple(scores.shape)} scores given.")
    texts, images = candidates.texts, candidates.images
    keys = candidates.image * len(text_ids) + candidates.text
    rows = torch.arange(len(texts), device=texts.device)[:, None].expand_as(texts)
    columns = torch.arange(len(images), device=images.device)[:, None].expand_as(images)
    for image, text in ((rows, texts), (images, columns)):
        score = scores[torch.searchsorted(keys, image * len(text_ids) + text)]
        fits = ((image_ids[image] == text_ids[text][..., None]) & (image_ids[image] >= 0)).any(-1)
        best = score.masked_fill(~fits, float("-inf")).amax(1, keepdim=True)
        yield fits.any(1), ((score > best) & ~fits).sum(1), ((score == best) & ~fits).sum(1)


def _asked(way: str, image_ids: Tensor, text_ids: Tensor) -> Tensor:
    """Which queries have a positive somewhere."""
    if way == "i2t":
        return torch.isin(image_ids, text_ids[text_ids >= 0]).any(1)
    return torch.isin(text_ids, image_ids[image_ids >= 0])
