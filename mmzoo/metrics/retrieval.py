"""Retrieval recall in tiles: no sort, no matrix of all pairs, ties said plainly.

An item's rank needs only the count of items that score above its best positive, so one comparison a score replaces the
sort. Both directions share one matrix product: a tile of images by all texts settles its images on the spot, and
counts for every text against the score of its best image, computed beforehand pair by pair. Where rounding might
decide a count (a score so near that the two ways of summing could swap them), the text gets a second, exact look.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mmzoo import dist
from mmzoo.errors import ZooError
from mmzoo.ops.pairs import Positives, widen

__all__ = [
    "Direction",
    "Recalls",
    "Retrieval",
    "Standing",
    "Ties",
    "chance",
    "chance_rank",
    "recall",
    "recalls",
    "scored_standings",
    "standings",
]

Ties = Literal["against", "for", "halfway"]
"""Where a negative goes that scores exactly as the best positive: before it, after it, or half a rank."""


class Direction(NamedTuple):
    """How well queries of one kind find items of the other."""

    recall: dict[int, float]
    """k -> share of queries whose best positive is among the first k (0 to 1)."""
    chance: dict[int, float]
    """k -> the same for a random order of the items."""
    mean_rank: float
    """Mean rank of the best positive, 1 being the top."""
    median_rank: float
    queries: int
    """Queries that have a positive; the others are left out of everything."""
    items: int
    tied: int
    """Queries whose best positive ties with a negative: how much the treatment of ties matters."""


class Recalls(NamedTuple):
    """Both directions of a retrieval."""

    i2t: Direction
    """Images ask for texts."""
    t2i: Direction
    """Texts ask for images."""

    def flat(self, prefix: str = "") -> dict[str, float]:
        """Give the numbers under one name each, as a logger wants them: `i2t_r1`, `t2i_median_rank`, ..."""
        found: dict[str, float] = {}
        for name, direction in zip(self._fields, self, strict=True):
            found |= {f"{prefix}{name}_r{k}": value for k, value in direction.recall.items()}
            found[f"{prefix}{name}_mean_rank"] = direction.mean_rank
            found[f"{prefix}{name}_median_rank"] = direction.median_rank
        return found


class Standing(NamedTuple):
    """Where the best positive of each query stands; (Q,) int64 each, meaningless where `positives` is 0."""

    higher: Tensor
    """Negatives that score higher: the rank is one more, ties aside."""
    tied: Tensor
    """Negatives that score exactly the same."""
    positives: Tensor
    """How many items are right."""


def recall(
    image: Tensor,
    text: Tensor,
    *,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    ks: Sequence[int] = (1, 5, 10),
    ties: Ties = "against",
    chunk: int = 512,
) -> Recalls:
    """Measure image-to-text and text-to-image retrieval by the any-hit protocol of the CLIP papers.

    Text j is a positive of image i iff `text_ids[j]` is among `image_ids[i]`; without ids, iff i == j. A query counts
    as found at k if any of its positives is among the first k items, so its rank is that of its best positive: 1 + the
    number of negatives that score higher. A negative with exactly the same score is ranked before ("against", the
    default: a model that scores everything alike finds nothing), after ("for"), or counts half ("halfway").

    Args:
        image: (N, E) embeddings; unit length makes the scores cosines.
        text: (M, E) embeddings.
        image_ids: (N,) or (N, m) int64, all that each image is an instance of; -1 pads.
        text_ids: (M,) int64; -1 matches nothing.
        ks: Cut-offs.
        ties: See above.
        chunk: Images whose scores are in memory at once; memory is O(chunk M).

    Returns:
        Recall, chance level and ranks, each way.

    Raises:
        ZooError: Embeddings and ids do not fit each other, or an embedding is not finite.

    Example:
        >>> found = recall(torch.eye(4), torch.eye(4).roll(1, 0), ks=(1, 4))
        >>> found.i2t.recall, found.i2t.chance
        ({1: 0.0, 4: 1.0}, {1: 0.25, 4: 1.0})
    """
    images, texts = standings(image, text, image_ids=image_ids, text_ids=text_ids, chunk=chunk)
    return recalls(images, texts, ks=ks, ties=ties)


def recalls(
    images: Standing, texts: Standing, *, ks: Sequence[int] = (1, 5, 10), ties: Ties = "against"
) -> Recalls:
    """Summarise where the best positives stand.

    Args:
        images: Of every image among the texts.
        texts: Of every text among the images.
        ks: Cut-offs.
        ties: As for `recall`.
    """
    return Recalls(
        _direction(images, len(texts.positives), ks, ties), _direction(texts, len(images.positives), ks, ties)
    )


def chance(positives: Tensor, items: int, k: int) -> float:
    """Give the recall at k of a random order of the items.

    Args:
        positives: (Q,) how many items are right for each query.
        items: M, how many there are.
        k: How many are looked at.

    Returns:
        The mean of 1 - C(M - n, k) / C(M, k) over the queries that have n > 0 positives (hypergeometric: the chance
        that k items drawn without replacement hold at least one of n); 0 if none has any.

    Example:
        >>> chance(torch.tensor([1, 2]), items=4, k=1)
        0.375
    """
    numbers, queries = torch.unique(positives[positives > 0], return_counts=True)
    k = min(k, items)
    hits: float = sum(
        count * (1 - math.comb(items - n, k) / math.comb(items, k))
        for n, count in zip(numbers.tolist(), queries.tolist(), strict=True)
    )
    return hits / max(int(queries.sum()), 1)


def chance_rank(positives: Tensor, items: int) -> float:
    """Give the mean rank of the best positive in a random order of the items.

    Args:
        positives: (Q,) how many items are right for each query.
        items: M, how many there are.

    Returns:
        The mean of (M + 1) / (n + 1) over the queries that have n > 0 positives; nan if none has any.

    Example:
        >>> chance_rank(torch.tensor([1, 4]), items=4)
        1.75
    """
    return float(((items + 1) / (positives[positives > 0].double() + 1)).mean())


def standings(
    image: Tensor,
    text: Tensor,
    *,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    chunk: int = 512,
) -> tuple[Standing, Standing]:
    """Count, for every image and every text, the negatives above its best positive.

    Args:
        image: (N, E) embeddings.
        text: (M, E) embeddings.
        image_ids: As for `recall`.
        text_ids: As for `recall`.
        chunk: Images whose scores are in memory at once.

    Returns:
        For the images among the texts, and for the texts among the images.

    Raises:
        ZooError: Embeddings and ids do not fit each other, or an embedding is not finite.
    """
    image, text, image_ids, text_ids = _checked(image, text, image_ids, text_ids)
    of_images, of_texts = Positives(image_ids, text_ids), Positives(text_ids, image_ids)
    image_higher, image_tied = torch.zeros_like(of_images.counts), torch.zeros_like(of_images.counts)
    text_higher, text_near = torch.zeros_like(of_texts.counts), torch.zeros_like(of_texts.counts)

    best = _best_scores(text, image, of_texts, chunk)
    # About twice what two ways of adding up E products differ by (it grows with the root of E, Higham and Mary 2019).
    # No proof rests on it: `seen`, the best as this product computes it, must lie within half the slack of `best`, and
    # no negative within the slack; then comparing with `best` is comparing with `seen`.
    slack = (
        2
        * math.sqrt(image.shape[1])
        * torch.finfo(image.dtype).eps
        * text.norm(dim=1)
        * image.norm(dim=1).max()
    )
    seen = torch.full_like(best, float("-inf"))
    z_buffer, work_buffer = (image.new_empty(min(chunk, len(image)), len(text)) for _ in range(2))
    for start in range(0, len(image), chunk):
        rows = slice(start, min(start + chunk, len(image)))
        z, work = (buffer[: rows.stop - start] for buffer in (z_buffer, work_buffer))
        torch.mm(image[rows], text.T, out=z)
        row, column = of_images.tile(start, rows.stop)
        score = z[row, column]
        seen.scatter_reduce_(0, column, score, "amax")
        z[row, column] = float("-inf")
        image_higher[rows], image_tied[rows] = _count(z, row, score, work)
        text_higher += torch.gt(z, best + slack, out=work).sum(0).long()
        text_near += torch.ge(z, best - slack, out=work).sum(0).long()

    unsure = (text_near != text_higher) | ~((seen - best).abs() <= slack / 2)
    unsure = (unsure & (of_texts.counts > 0)).nonzero().flatten()
    text_tied = torch.zeros_like(text_higher)
    for some in torch.split(unsure, chunk):
        z = text[some] @ image.T
        row, column = Positives(text_ids[some], image_ids).tile(0, len(some))
        score = z[row, column]
        z[row, column] = float("-inf")
        text_higher[some], text_tied[some] = _count(z, row, score, torch.empty_like(z))
    return Standing(image_higher, image_tied, of_images.counts), Standing(
        text_higher, text_tied, of_texts.counts
    )


def scored_standings(
    scores: Tensor, *, image_ids: Tensor, text_ids: Tensor, chunk: int = 512
) -> tuple[Standing, Standing]:
    """As `standings`, from scores of every pair, for models without embeddings.

    Under several processes each gives the rows of images of its own, and gets the standings of all images, those of
    rank 0 first, and of all texts. What travels is as long as the images and the texts, never as the pairs.

    Args:
        scores: (N, M) floating, finite; those of this process's images with all texts.
        image_ids: (N, m) int64 of these images; -1 pads.
        text_ids: (M,) int64, the same on every process.
        chunk: Images whose scores are copied at once.

    Raises:
        ZooError: A score is not finite.
    """
    if not bool(scores.isfinite().all()):
        raise ZooError("Scores of pairs are not finite; the model has diverged or overflowed.")
    positives = Positives(image_ids, text_ids)
    tiles = [(start, min(start + chunk, len(scores))) for start in range(0, len(scores), chunk)]
    best = scores.new_full(scores.shape[1:], float("-inf"))
    for start, stop in tiles:
        row, column = positives.tile(start, stop)
        best.scatter_reduce_(0, column, scores[start + row, column], "amax")
    dist.max_over_ranks(best)
    image_higher, image_tied = torch.zeros_like(positives.counts), torch.zeros_like(positives.counts)
    text_higher, text_tied, text_positives = text_ids.new_zeros(3, len(text_ids))
    for start, stop in tiles:
        z = scores[start:stop].clone()
        row, column = positives.tile(start, stop)
        score = z[row, column]
        z[row, column] = float("-inf")
        image_higher[start:stop], image_tied[start:stop] = _count(z, row, score, torch.empty_like(z))
        text_higher += (z > best).sum(0)
        text_tied += (z == best).sum(0)
        text_positives += column.bincount(minlength=len(text_ids))
    images = Standing(*(dist.gather_no_grad(x) for x in (image_higher, image_tied, positives.counts)))
    return images, Standing(*map(dist.sum_over_ranks, (text_higher, text_tied, text_positives)))


class Retrieval:
    """Collects embeddings over a validation loop, batch by batch, and measures their retrieval.

    Memory is that of the embeddings, kept as they come. An image that appears once per caption must be added once.

    Args:
        ks: Cut-offs.
        ties: As for `recall`.

    Example:
        >>> metric = Retrieval(ks=(1,))
        >>> for ids in torch.arange(6).split(2):
        ...     metric.add_images(torch.eye(6)[ids], ids)
        ...     metric.add_texts(torch.eye(6)[ids], ids)
        >>> metric.compute().flat()["t2i_r1"]
        1.0
    """

    def __init__(self, ks: Sequence[int] = (1, 5, 10), ties: Ties = "against") -> None:
        self.ks, self.ties = tuple(ks), ties
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._images: list[tuple[Tensor, Tensor]] = []
        self._texts: list[tuple[Tensor, Tensor]] = []

    def add_images(self, image: Tensor, image_ids: Tensor) -> None:
        """Take (B, E) embeddings and their (B,) or (B, m) ids; m may differ between batches."""
        self._images.append((image.detach(), image_ids if image_ids.ndim == 2 else image_ids[:, None]))

    def add_texts(self, text: Tensor, text_ids: Tensor) -> None:
        """Take (T, E) embeddings and their (T,) ids."""
        self._texts.append((text.detach(), text_ids))

    def collected(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give image (N, E), image_ids (N, m), text (M, E) and text_ids (M,) so far, to gather them over ranks."""
        if not self._images or not self._texts:
            raise ZooError(
                "Retrieval needs images and texts, but none were added; check that the split has captions."
            )
        width = max(ids.shape[1] for _, ids in self._images)
        return (
            torch.cat([image for image, _ in self._images]),
            torch.cat([widen(ids, width) for _, ids in self._images]),
            torch.cat([text for text, _ in self._texts]),
            torch.cat([ids for _, ids in self._texts]),
        )

    def compute(self) -> Recalls:
        """Measure what has been added."""
        image, image_ids, text, text_ids = self.collected()
        return recall(image, text, image_ids=image_ids, text_ids=text_ids, ks=self.ks, ties=self.ties)


def _direction(standing: Standing, items: int, ks: Sequence[int], ties: Ties) -> Direction:
    higher, tied = (x[standing.positives > 0].double() for x in standing[:2])
    ranks = (1 + higher + {"against": 1.0, "halfway": 0.5, "for": 0.0}[ties] * tied).tolist()
    return Direction(
        recall={k: sum(rank <= k for rank in ranks) / max(len(ranks), 1) for k in ks},
        chance={k: chance(standing.positives, items, k) for k in ks},
        mean_rank=statistics.fmean(ranks) if ranks else math.nan,
        median_rank=statistics.median(ranks) if ranks else math.nan,
        queries=len(ranks),
        items=items,
        tied=int((tied > 0).sum()),
    )


def _count(z: Tensor, row: Tensor, score: Tensor, work: Tensor) -> tuple[Tensor, Tensor]:
    """Count what scores above, and what ties with, the best positive of each row; the positives lie at -inf in `z`."""
    best = z.new_full((len(z),), float("-inf")).scatter_reduce_(0, row, score, "amax")[:, None]
    # Comparing into floats, since adding up booleans is several times slower; counts below 2^24 are exact.
    higher = torch.gt(z, best, out=work).sum(1).long()
    return higher, torch.ge(z, best, out=work).sum(1).long() - higher


def _best_scores(query: Tensor, item: Tensor, positives: Positives, chunk: int) -> Tensor:
    """Give each query's best score among its positives (-inf without any), pair by pair."""
    best = query.new_full((len(query),), float("-inf"))
    for start in range(0, len(query), chunk):
        row, column = positives.tile(start, min(start + chunk, len(query)))
        for some in torch.split(torch.arange(len(row), device=row.device), 16 * chunk):
            index = row[some] + start
            best.scatter_reduce_(0, index, (query[index] * item[column[some]]).sum(1), "amax")
    return best


def _checked(
    image: Tensor, text: Tensor, image_ids: Tensor | None, text_ids: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Check what must fit, bring embeddings to full precision, and number the pairs if there are no ids."""
    if (
        image.ndim != 2
        or text.ndim != 2
        or image.shape[1] != text.shape[1]
        or not len(image)
        or not len(text)
    ):
        raise ZooError(
            f"Recall takes image (N, E) and text (M, E), at least one each, not {tuple(image.shape)} and "
            f"{tuple(text.shape)}."
        )
    if (image_ids is None) != (text_ids is None):
        raise ZooError("Recall takes image_ids and text_ids together, or neither.")
    if image_ids is None or text_ids is None:
        if len(image) != len(text):
            raise ZooError(
                f"Recall without ids pairs image i with text i, but got {len(image)} images and {len(text)} texts; "
                "pass image_ids and text_ids."
            )
        image_ids = text_ids = torch.arange(len(text), device=text.device)
    if len(image_ids) != len(image) or text_ids.shape != text.shape[:1]:
        raise ZooError(
            f"image_ids {tuple(image_ids.shape)} and text_ids {tuple(text_ids.shape)} do not fit {len(image)} images "
            f"and {len(text)} texts; they are (N,) or (N, m), and (M,)."
        )
    dtype = torch.promote_types(torch.promote_types(image.dtype, text.dtype), torch.float32)
    image, text = image.detach().to(dtype), text.detach().to(dtype)
    for name, x in (("image", image), ("text", text)):
        if not bool(x.isfinite().all()):
            raise ZooError(
                f"Recall got {name} embeddings that are not finite; the model has diverged or overflowed."
            )
    return image, text, image_ids, text_ids
