"""What the two contrastive losses share: gathering, positives, and whether each row's best is a positive."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from mmzoo import dist
from mmzoo.errors import ZooError
from mmzoo.ops.pairs import Diagonal, Positives, widen

__all__ = ["Contrastive", "Gather", "Sides", "Winners", "full_precision", "gather_sides", "scalar", "spans"]

Gather = Literal["auto", "none", "global", "local"]


class Contrastive(NamedTuple):
    """What a contrastive loss returns; each a scalar tensor, float32 (float64 for float64 embeddings)."""

    loss: Tensor
    image_accuracy: Tensor
    """Share of images whose best-scoring text is a positive, among the images that have one; no gradient."""
    text_accuracy: Tensor
    """The same for texts. In both, a positive that only ties with a negative has not won."""


class Sides(NamedTuple):
    """The rectangle of pairs that this process works through: its rows (images) by all columns (texts)."""

    image: Tensor
    """(R, E) float32 or float64."""
    text: Tensor
    """(C, E)."""
    positives: Positives
    """Over these rows and columns."""
    row_weight: Tensor
    """(R,) 1 / the images of all ranks that have a positive text; 0 for an image that has none."""
    column_weight: Tensor
    """(C,) 1 / the texts that have a positive image on any rank; 0 for a text that has none."""
    row_share: Tensor
    """(R,) the row's weight divided by its number of positives."""
    column_share: Tensor
    """(C,) the column's weight divided by its number of positives on all ranks."""
    images: int
    """Images of all ranks, of which R are rows here."""
    partial: bool
    """Whether other ranks hold the other rows, so that sums over rows must still be added up over ranks."""

    @property
    def gradient_share(self) -> int:
        """What a gradient is multiplied with so that its *average* over ranks, which DDP takes, is the true one.

        With all rows on every rank the gathering already adds up one full gradient a rank; with each rank's own rows
        it adds up the parts of a single one.
        """
        return dist.world() if self.partial else 1


def gather_sides(
    image: Tensor, text: Tensor, image_ids: Tensor | None, text_ids: Tensor | None, gather: Gather
) -> Sides:
    """Check a loss's inputs, bring them to full precision, and collect what other ranks must contribute.

    Args:
        image: (B, E) embeddings of this rank.
        text: (T, E) embeddings of this rank.
        image_ids: (B,) or (B, m) int64, or None for pairs in order.
        text_ids: (T,) int64, or None.
        gather: "none": this rank's pairs alone; "global": every rank holds all pairs; "local": this rank's images
            by the texts of all ranks; "auto": the same, at the least cost that there is.

    Returns:
        The rectangle to work through.

    Raises:
        ZooError: The shapes do not fit each other, one kind of id is missing, or `gather` is unknown.
    """
    if gather not in get_args(Gather):
        raise ZooError(
            f"gather={gather!r} is not known to a contrastive loss; choose auto, none, global or local."
        )
    if image.ndim != 2 or text.ndim != 2 or image.shape[1] != text.shape[1]:
        raise ZooError(
            f"A contrastive loss takes image (B, E) and text (T, E), not {tuple(image.shape)} and {tuple(text.shape)}."
        )
    dtype = torch.promote_types(torch.promote_types(image.dtype, text.dtype), torch.float32)
    image, text = image.to(dtype), text.to(dtype)
    image_rows, text_rows = len(image), len(text)
    spread = gather != "none" and dist.world() > 1
    image_sizes = dist.gather_sizes(len(image), image.device) if spread else [len(image)]
    text_sizes = dist.gather_sizes(len(text), text.device) if spread else [len(text)]

    if not sum(image_sizes) or not sum(text_sizes):
        raise ZooError(f"A contrastive loss needs pairs, but got {len(image)} images and {len(text)} texts.")
    if (image_ids is None) != (text_ids is None):
        raise ZooError("A contrastive loss takes image_ids and text_ids together, or neither.")
    partial = spread and gather != "global"
    if spread:
        text = dist.gather_with_grad(text, text_sizes)
    if spread and not partial:
        image = dist.gather_with_grad(image, image_sizes)
    first = sum(image_sizes[: dist.rank()]) if partial else 0  # which row of all ranks is the first here

    if image_ids is None or text_ids is None:
        if image_sizes != text_sizes:
            raise ZooError(
                f"A contrastive loss without ids pairs image i with text i, but got {image_rows} images and "
                f"{text_rows} texts; pass image_ids and text_ids."
            )
        weight = 1 / len(text)
        row_weight, column_weight = image.new_full((len(image),), weight), text.new_full((len(text),), weight)
        return Sides(
            image=image,
            text=text,
            positives=Diagonal(len(image), first, image.device),
            row_weight=row_weight,
            column_weight=column_weight,
            row_share=row_weight,
            column_share=column_weight,
            images=sum(image_sizes),
            partial=partial,
        )

    if len(image_ids) != image_rows or text_ids.shape != (text_rows,):
        raise ZooError(
            f"image_ids {tuple(image_ids.shape)} and text_ids {tuple(text_ids.shape)} do not fit {image_rows} "
            f"images and {text_rows} texts; they are (B,) or (B, m), and (T,)."
        )
    image_ids = image_ids if image_ids.ndim == 2 else image_ids[:, None]
    if spread:
        width = int(dist.max_over_ranks(torch.tensor(image_ids.shape[1], device=image.device)))
        image_ids = dist.gather_no_grad(widen(image_ids, width), image_sizes)
        text_ids = dist.gather_no_grad(text_ids, text_sizes)
    positives = Positives(image_ids, text_ids)
    row_weight, row_share = _weights(positives.counts, dtype)
    column_weight, column_share = _weights(Positives(text_ids, image_ids).counts, dtype)
    here = slice(first, first + len(image))
    return Sides(
        image=image,
        text=text,
        positives=Positives(image_ids[here], text_ids) if partial else positives,
        row_weight=row_weight[here],
        column_weight=column_weight,
        row_share=row_share[here],
        column_share=column_share,
        images=sum(image_sizes),
        partial=partial,
    )


def _weights(counts: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Give each item with a positive the same weight in their mean, and the weight of each of its positives."""
    weight = (counts > 0).to(dtype)
    weight /= weight.sum().clamp_min(1)
    return weight, weight / counts.clamp_min(1)


class Winners:
    """Keeps, tile by tile, the best negative and the best positive of every row and column.

    Not an arg-max: on a CPU `max` with indices along columns is slow beside the matrix product and `amax` is not; and a
    collapsed model, whose scores are all equal, must not look right.

    Args:
        like: (R, E), for the number of rows, the type and the device.
        columns: How many columns there are.
    """

    def __init__(self, like: Tensor, columns: int) -> None:
        self._row_negative, self._row_positive = like.new_full((2, len(like)), float("-inf"))
        self._column_negative, self._column_positive = like.new_full((2, columns), float("-inf"))

    def update(self, z: Tensor, start: int, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take in the scores of rows from `start` on.

        Args:
            z: (t, C) scores; changed and restored.
            start: Which row the first is.
            row: (P,) rows of the positives, counted from `start`.
            column: (P,) their columns.

        Returns:
            (P,) scores of the positives; (t,) the maximum of each row; (C,) the maximum of each column so far.
        """
        rows = slice(start, start + len(z))
        score = z[row, column]
        z[row, column] = float("-inf")
        torch.amax(z, 1, out=self._row_negative[rows])
        torch.maximum(self._column_negative, z.amax(0), out=self._column_negative)
        z[row, column] = score
        self._row_positive[rows].scatter_reduce_(0, row, score, "amax")
        self._column_positive.scatter_reduce_(0, column, score, "amax")
        return (
            score,
            torch.maximum(self._row_negative[rows], self._row_positive[rows]),
            torch.maximum(self._column_negative, self._column_positive),
        )

    def accuracies(self, sides: Sides) -> tuple[Tensor, Tensor]:
        """Give the share of images, and of texts, whose best is a positive, over all ranks."""
        image_accuracy = ((self._row_positive > self._row_negative) * sides.row_weight).sum()
        if sides.partial:
            dist.sum_over_ranks(image_accuracy)
            dist.max_over_ranks(self._column_negative)
            dist.max_over_ranks(self._column_positive)
        return image_accuracy, ((self._column_positive > self._column_negative) * sides.column_weight).sum()


def spans(rows: int, tile: int) -> Iterator[tuple[int, int]]:
    """Cut `rows` into (start, stop) of at most `tile` rows."""
    return ((start, min(start + tile, rows)) for start in range(0, rows, tile))


def scalar(x: Tensor | float, like: Tensor) -> Tensor:
    """Bring a learned or fixed number to a scalar tensor of the type and device of `like`."""
    return torch.as_tensor(x, dtype=like.dtype, device=like.device).reshape(())


def full_precision(device: torch.device) -> torch.autocast:
    """Switch autocast off: at a scale of 100 a bfloat16 logit is wrong by up to a quarter."""
    return torch.autocast(device.type, enabled=False)
