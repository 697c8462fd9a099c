"""The softmax contrastive loss of CLIP, tiled: the matrix of all pairs never exists.

Rows (images) are worked through a tile at a time. A row's log-sum-exp is exact within its tile; a column's (text's) is
accumulated over tiles against a running maximum, for at CLIP's final scale of 100 a fixed shift underflows float32.
The backward pass makes each tile once more and turns both directions into a single coefficient a pair, so that
image-to-text and text-to-image share every matrix product. Memory is O((B + T) E + tile T) instead of O(B T).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmzoo import dist
from mmzoo.losses.tiles import (
    Contrastive,
    Gather,
    Sides,
    Winners,
    full_precision,
    gather_sides,
    scalar,
    spans,
)

__all__ = ["Contrastive", "clip_loss"]


def clip_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    *,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    gather: Gather = "none",
    tile: int = 512,
) -> Contrastive:
    """Contrast images with texts in both directions (CLIP, arXiv 2103.00020, figure 3).

    Text j is a positive of image i iff `text_ids[j]` is among `image_ids[i]`; without ids, iff i == j. The target of a
    row shares its mass equally over the row's positives, that of a column over the column's. The loss is the mean of
    the mean cross-entropy over images and the mean over texts; an image or text without any positive is left out of
    its mean, though it still serves as a negative. A batch without a single positive has loss 0.

    With `gather`, the loss and the accuracies are those of the batch of all ranks, the same on every rank, and the
    *average* over ranks of the parameter gradients, which is what DDP takes, is exactly the gradient of one process
    with the whole batch, also when ranks hold different numbers of rows. With "none" under DDP, each rank's batch is
    a loss of its own.

    Args:
        image: (B, E) unit-length embeddings of any floating type; computed in float32 whatever the autocast
            (float64 stays float64).
        text: (T, E) unit-length embeddings.
        scale: Scalar multiplier of the cosines (the exponential of a learned log-scale).
        image_ids: (B,) or (B, m) int64, all that each image is an instance of; -1 pads.
        text_ids: (T,) int64, what each text is about; -1 matches nothing.
        gather: "none"; "global": every rank computes all pairs of all ranks; "local": each rank computes its own
            images by all texts and the ranks exchange column sums, 1/world of the work for the same result;
            "auto": all pairs of all ranks at the least cost, so "local".
        tile: Rows of logits in memory at once.

    Returns:
        Loss and accuracies.

    Raises:
        ZooError: The shapes do not fit each other, one kind of id is missing, or `gather` is unknown.

    Example:
        >>> eye = torch.eye(4)
        >>> clip_loss(eye, eye, 100.0).image_accuracy
        tensor(1.)
    """
    with full_precision(image.device):
        sides = gather_sides(image, text, image_ids, text_ids, gather)
        inputs = (sides.image, sides.text, scalar(scale, sides.image))
        if len(sides.image) <= tile and not sides.partial:
            return Contrastive(*_OneTile.apply(*inputs, sides))  # type: ignore[no-untyped-call]
        return Contrastive(*_TiledSoftmax.apply(*inputs, sides, tile))  # type: ignore[no-untyped-call]


class _OneTile(torch.autograd.Function):
    """The loss where all logits fit at once, in as few operations as there are: small batches are mostly overhead."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, scale: Tensor, sides: Sides
    ) -> tuple[Tensor, Tensor, Tensor]:
        z = (image * scale) @ text.T
        row, column = sides.positives.tile(0, len(image))
        winners = Winners(z, len(text))
        winners.update(z, 0, row, column)
        log_rows, log_columns = z.log_softmax(1), z.log_softmax(0)
        row_share, column_share = sides.row_share[row], sides.column_share[column]
        loss = (log_rows[row, column] * row_share + log_columns[row, column] * column_share).sum()
        ctx.save_for_backward(
            image, text, scale, log_rows, log_columns, sides.row_weight, sides.column_weight
        )
        ctx.pairs = row, column, row_share + column_share
        accuracies = winners.accuracies(sides)
        ctx.mark_non_differentiable(*accuracies)
        return -0.5 * loss, *accuracies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        image, text, scale, log_rows, log_columns, row_weight, column_weight = ctx.saved_tensors
        row, column, share = ctx.pairs
        with full_precision(image.device):
            work = log_rows.exp().mul_(row_weight[:, None])
            work.addcmul_(log_columns.exp(), column_weight)
            work[row, column] -= share
            grads = _through_scale(image, scale, work @ text, work.T @ image, 0.5 * grad_loss)
        return *grads, None


def _through_scale(
    image: Tensor, scale: Tensor, image_grad: Tensor, text_grad: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn gradients with respect to what the scale multiplies into those of image, text and scale.

    The scale's own needs no sum over pairs: it is what the images' gradient says of the images.
    """
    scale_grad = (image * image_grad).sum() * factor
    factor = factor * scale
    return image_grad.mul_(factor), text_grad.mul_(factor), scale_grad


class _TiledSoftmax(torch.autograd.Function):
    """The sum over rows i of `row_weight[i] * cross_entropy(row i)`, plus the same over columns."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, scale: Tensor, sides: Sides, tile: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, columns = len(image), len(text)
        positives, winners = sides.positives, Winners(image, columns)
        z_buffer, work_buffer = (image.new_empty(min(tile, rows), columns) for _ in range(2))
        row_lse, row_target = image.new_zeros(2, rows)
        column_sum, column_target = image.new_zeros(2, columns)
        column_max = image.new_full((columns,), float("-inf"))

        for start, stop in spans(rows, tile):
            z, work = z_buffer[: stop - start], work_buffer[: stop - start]
            torch.mm(image[start:stop] * scale, text.T, out=z)
            row, column = positives.tile(start, stop)
            score, row_max, new_max = winners.update(z, start, row, column)
            row_target[start:stop].index_add_(0, row, score)
            column_target.index_add_(0, column, score)
            torch.sub(z, row_max[:, None], out=work).exp_()
            torch.add(row_max, work.sum(1).log_(), out=row_lse[start:stop])
            torch.sub(z, new_max, out=work).exp_()
            column_sum.mul_((column_max - new_max).exp_()).add_(work.sum(0))
            column_max = new_max

        row_weight, row_share, column_weight, column_share = (
            0.5 * x for x in (sides.row_weight, sides.row_share, sides.column_weight, sides.column_share)
        )
        row_loss = (row_weight * row_lse - row_share * row_target).sum()
        if sides.partial:
            all_max = dist.max_over_ranks(column_max.clone())
            dist.sum_over_ranks(column_sum.mul_((column_max - all_max).exp_()))
            dist.sum_over_ranks(column_target)
            dist.sum_over_ranks(row_loss)
            column_max = all_max
        column_lse = column_max + column_sum.log_()
        loss = row_loss + (column_weight * column_lse - column_share * column_target).sum()

        # The weight goes into the exponent: weight * exp(z - lse) = exp(z - shift). A weight of 0 is a shift of +inf.
        ctx.save_for_backward(
            image,
            text,
            scale,
            row_lse - row_weight.log(),
            column_lse - column_weight.log(),
            row_share,
            column_share,
        )
        ctx.positives, ctx.tile, ctx.gradient_share = positives, tile, sides.gradient_share
        accuracies = winners.accuracies(sides)
        ctx.mark_non_differentiable(*accuracies)
        return loss, *accuracies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        image, text, scale, row_shift, column_shift, row_share, column_share = ctx.saved_tensors
        rows, columns = len(image), len(text)
        image_grad, text_grad = torch.empty_like(image), torch.zeros_like(text)
        z_buffer, work_buffer = (image.new_empty(min(ctx.tile, rows), columns) for _ in range(2))

        for start, stop in spans(rows, ctx.tile):  # in-place and out= products are not subject to autocast
            z, work = z_buffer[: stop - start], work_buffer[: stop - start]
            torch.mm(image[start:stop] * scale, text.T, out=z)
            torch.sub(z, row_shift[start:stop, None], out=work).exp_()
            work += z.sub_(column_shift).exp_()
            row, column = ctx.positives.tile(start, stop)
            work[row, column] -= row_share[start:stop][row] + column_share[column]
            torch.mm(work, text, out=image_grad[start:stop])
            text_grad.addmm_(work.T, image[start:stop])
        factor = grad_loss * ctx.gradient_share
        return *_through_scale(image, scale, image_grad, text_grad, factor), None, None
