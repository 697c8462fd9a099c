"""The contrastive loss with soft targets and a queue of earlier embeddings (ALBEF, arXiv 2107.07651, 3.2 and 3.3).

Each side of the queue is a block of columns beside those of the batch. A block's logits are one product; a row's
normaliser is the log-sum of the blocks' own. So the queue is read where it lies: never cloned, never concatenated, and
its rows that hold nothing yet are never touched. The gradient is made in the forward pass, tile by tile, so nothing
of a tile's size outlives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmzoo import dist
from mmzoo.errors import ZooError
from mmzoo.losses.means import add_up, at_least_float32, share_of_each
from mmzoo.losses.tiles import Contrastive, full_precision, scalar, spans
from mmzoo.ops.pairs import Diagonal, Positives, widen

__all__ = ["Queued", "queued_contrast"]


@dataclass(frozen=True)
class Queued:
    """Embeddings of earlier batches, of which the first `count` rows hold something."""

    image: Tensor
    """(Q, E) unit-length embeddings."""
    text: Tensor
    """(Q, E), row i beside image i."""
    image_ids: Tensor
    """(Q, m) int64; -1 pads."""
    text_ids: Tensor
    """(Q,) int64; -1 matches nothing."""
    count: int
    """Rows that are valid."""


def queued_contrast(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    *,
    teacher_image: Tensor | None = None,
    teacher_text: Tensor | None = None,
    queue: Queued | None = None,
    alpha: float = 0.0,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    gather: Literal["none", "local"] = "none",
    tile: int = 256,
) -> Contrastive:
    """Contrast images with the teacher's texts and the queue's, and texts with the teacher's images and the queue's.

    An image's logits are `scale * image @ [teacher texts of the batch | queued texts]`; its target is
    `alpha * softmax(scale * teacher_image @ [the same columns]) + (1 - alpha) * positives`, the positives sharing
    their mass equally over batch and queue; the loss is the cross-entropy, averaged over images. The texts' loss
    mirrors it, and the result is the mean of both. Text j is a positive of image i iff `text_ids[j]` is among
    `image_ids[i]`; without ids, iff i == j, and the queue holds negatives only. An image or text without any positive
    is left out of its mean; a batch without a single positive has loss 0.

    Without a teacher the columns are the batch's own embeddings, with gradient: with an empty queue this is
    `clip_loss`. Gradients reach `image`, `text` and `scale` only.

    Args:
        image: (B, E) unit-length embeddings of any floating type; computed in float32 whatever the autocast
            (float64 stays float64).
        text: (T, E) unit-length embeddings.
        scale: Scalar multiplier of all cosines, the teacher's too (no gradient through those).
        teacher_image: (B, E) the teacher's embeddings of the same images, or None.
        teacher_text: (T, E) the teacher's embeddings of the same texts; given together with `teacher_image`.
        queue: Earlier embeddings of the teacher, or None. It is only read, and may be written right after.
        alpha: Share of the teacher in the targets, in [0, 1].
        image_ids: (B,) or (B, m) int64, all that each image is an instance of; -1 pads.
        text_ids: (T,) int64, what each text is about.
        gather: "none": this rank's pairs; "local": this rank's rows by the columns of all ranks, with the loss and,
            averaged over ranks, the gradients of one process with the whole batch.
        tile: Rows of logits in memory at once.

    Returns:
        Loss and accuracies; the best of a row is sought in batch and queue.

    Raises:
        ZooError: The shapes do not fit each other, ids or teacher come half, or `alpha` needs a teacher.
    """
    _check(image, text, teacher_image, teacher_text, image_ids, text_ids, alpha)
    dtype, device = at_least_float32(image, text), image.device
    spread = gather == "local" and dist.world() > 1
    with full_precision(device):
        image, text = image.to(dtype), text.to(dtype)
        image_columns, text_columns = image, text
        if teacher_image is not None and teacher_text is not None:
            teacher_image = image_columns = teacher_image.detach().to(dtype)
            teacher_text = text_columns = teacher_text.detach().to(dtype)
        sizes = [len(image)], [len(text)]
        image_column_ids, text_column_ids = image_ids, text_ids
        if spread:
            sizes = dist.gather_sizes(len(image), device), dist.gather_sizes(len(text), device)
            image_columns = dist.gather_with_grad(image_columns, sizes[0])
            text_columns = dist.gather_with_grad(text_columns, sizes[1])
            if image_ids is not None and text_ids is not None:
                image_column_ids = _gather_ids(image_ids, sizes[0])
                text_column_ids = dist.gather_no_grad(text_ids, sizes[1])
        _check_sizes(*sizes, paired=image_ids is None)
        past = _filled(queue, image)
        first = sum(sizes[0][: dist.rank()]) if spread else 0  # which row of all ranks is the first here

        def side(
            rows: Tensor, columns: Tensor, queued: Tensor, teacher: Tensor | None, pairs: _Pairs
        ) -> tuple[Tensor, Tensor]:
            counted = pairs.counts > 0
            weight = counted * share_of_each(counted.sum().to(dtype), spread)
            target = _Target(pairs, weight, teacher, alpha)
            loss, right = _Rows.apply(  # type: ignore[no-untyped-call]
                rows, columns, scalar(scale, rows), queued, target, tile, torch.is_grad_enabled()
            )
            return add_up(loss, spread), add_up(right, spread)

        image_pairs = _pairs(image_ids, text_column_ids, past.text_ids, len(image), first, device)
        text_pairs = _pairs(text_ids, image_column_ids, past.image_ids, len(text), first, device)
        image_loss, image_right = side(image, text_columns, past.text, teacher_image, image_pairs)
        text_loss, text_right = side(text, image_columns, past.image, teacher_text, text_pairs)
    return Contrastive(0.5 * (image_loss + text_loss), image_right, text_right)


def _filled(queue: Queued | None, like: Tensor) -> Queued:
    """The rows that hold something, in the type of `like` (B, E); none without a queue."""
    if queue is None:
        nothing = like.new_zeros(0, like.shape[1])
        ids = torch.zeros(0, dtype=torch.int64, device=like.device)
        return Queued(nothing, nothing, ids[:, None], ids, 0)
    if queue.image.shape[1] != like.shape[1]:
        raise ZooError(
            f"the queue holds vectors of {queue.image.shape[1]} numbers, the batch of {like.shape[1]}."
        )
    n = queue.count
    image, text = (x[:n].detach().to(like.dtype) for x in (queue.image, queue.text))
    return Queued(image, text, queue.image_ids[:n], queue.text_ids[:n], n)


class _Pairs(NamedTuple):
    """Positive pairs of R rows: with columns of the batch, and with those of the queue."""

    batch: tuple[Tensor, Tensor]
    queue: tuple[Tensor, Tensor]
    counts: Tensor
    """(R,) positives of each row in both."""


def _pairs(
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    queue_ids: Tensor,
    rows: int,
    first: int,
    device: torch.device,
) -> _Pairs:
    if row_ids is None or column_ids is None:
        diagonal = Diagonal(rows, first, device)
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return _Pairs(diagonal.tile(0, rows), (none, none), diagonal.counts)
    batch = Positives(row_ids, column_ids).tile(0, rows)
    # asked the other way round: so the batch's few ids are sorted, not the queue's many
    entry, row = Positives(queue_ids, row_ids).tile(0, len(queue_ids))
    counts = torch.bincount(torch.cat([batch[0], row]), minlength=rows)
    return _Pairs(batch, (row, entry), counts)


class _Target(NamedTuple):
    pairs: _Pairs
    weight: Tensor
    """(R,) what each row counts."""
    teacher: Tensor | None
    """(R, E) the teacher's embeddings of the rows."""
    alpha: float


class _Rows(torch.autograd.Function):
    """The sum over rows of `weight * cross_entropy`, and the weighted share of rows whose best is a positive."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        queue: Tensor,
        target: _Target,
        tile: int,
        grad: bool,
    ) -> tuple[Tensor, Tensor]:
        pairs, weight, teacher, alpha = target
        grad = grad and any(ctx.needs_input_grad)
        blocks = (columns, queue)
        loss, right = weight.new_zeros(()), weight.new_zeros(())
        ctx.grads = None
        share = (1 - alpha) / pairs.counts.clamp_min(1).to(weight.dtype)
        if grad:
            row_grad = torch.zeros_like(rows)
            column_grad = torch.zeros_like(columns) if ctx.needs_input_grad[1] else None
        for start, stop in spans(len(rows), tile):
            here = slice(start, stop)
            x, w = rows[here] * scale, weight[here, None]
            logits = [x @ block.T for block in blocks]
            positives = [_within(pair, start, stop) for pair in (pairs.batch, pairs.queue)]
            right += (_won(logits, positives) * weight[here]).sum()
            norm = _normaliser(logits)
            likely = weight.new_zeros(stop - start)  # sum of target * log-probability
            for z, (row, column) in zip(logits, positives, strict=True):
                z.sub_(norm)
                likely.index_add_(0, row, z[row, column] * share[here][row])
            soft: list[Tensor] = []
            if teacher is not None and alpha:
                soft = [teacher[here] * scale @ block.T for block in blocks]
                norm = _normaliser(soft)
                for z, t in zip(logits, soft, strict=True):
                    likely += alpha * torch.linalg.vecdot(t.sub_(norm).exp_(), z)
            loss -= (w[:, 0] * likely).sum()
            if not grad:
                continue
            for index, (block, z, (row, column)) in enumerate(zip(blocks, logits, positives, strict=True)):
                z.exp_()
                if soft:
                    z.sub_(soft[index], alpha=alpha)
                z[row, column] -= share[here][row]
                z.mul_(w)
                row_grad[here].addmm_(z, block)
                if index == 0 and column_grad is not None:
                    column_grad.addmm_(z.T, rows[here])
        if grad:
            scale_grad = (rows * row_grad).sum()
            ctx.grads = (
                row_grad.mul_(scale),
                None if column_grad is None else column_grad.mul_(scale),
                scale_grad,
            )
        ctx.mark_non_differentiable(right)
        return loss, right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grads = tuple(None if g is None else g * grad_loss for g in ctx.grads)
        return *grads, None, None, None, None


def _within(pair: tuple[Tensor, Tensor], start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Those pairs whose row lies in the tile, rows counted from its start."""
    here = (pair[0] >= start) & (pair[0] < stop)
    return pair[0][here] - start, pair[1][here]


def _normaliser(logits: list[Tensor]) -> Tensor:
    """(t, 1) log-sum-exp over the columns of all blocks; an empty block adds nothing."""
    parts = [z.logsumexp(1, keepdim=True) for z in logits]
    return torch.logaddexp(*parts)


def _won(logits: list[Tensor], positives: list[tuple[Tensor, Tensor]]) -> Tensor:
    """(t,) whether the best positive is above every negative; the logits are changed and restored."""
    best = logits[0].new_full((2, len(logits[0])), float("-inf"))
    for z, (row, column) in zip(logits, positives, strict=True):
        if not z.shape[1]:
            continue
        score = z[row, column]
        z[row, column] = float("-inf")
        torch.maximum(best[0], z.amax(1), out=best[0])
        z[row, column] = score
        best[1].scatter_reduce_(0, row, score, "amax")
    return best[1] > best[0]


def _check_sizes(images: list[int], texts: list[int], *, paired: bool) -> None:
    if not sum(images) or not sum(texts):
        raise ZooError(
            f"A contrastive loss needs pairs, but got {sum(images)} images and {sum(texts)} texts."
        )
    if paired and images != texts:
        raise ZooError(
            f"queued_contrast without ids pairs image i with text i, but got {sum(images)} images and "
            f"{sum(texts)} texts; pass image_ids and text_ids."
        )


def _gather_ids(ids: Tensor, sizes: list[int]) -> Tensor:
    ids = ids if ids.ndim == 2 else ids[:, None]
    width = int(dist.max_over_ranks(torch.tensor(ids.shape[1], device=ids.device)))
    return dist.gather_no_grad(widen(ids, width), sizes)


def _check(
    image: Tensor,
    text: Tensor,
    teacher_image: Tensor | None,
    teacher_text: Tensor | None,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    alpha: float,
) -> None:
    if image.ndim != 2 or text.ndim != 2 or image.shape[1] != text.shape[1]:
        raise ZooError(
            f"queued_contrast takes image (B, E) and text (T, E), not {tuple(image.shape)} and {tuple(text.shape)}."
        )
    if (teacher_image is None) != (teacher_text is None):
        raise ZooError("queued_contrast takes teacher_image and teacher_text together, or neither.")
    for name, teacher, own in (("image", teacher_image, image), ("text", teacher_text, text)):
        if teacher is not None and teacher.shape != own.shape:
            raise ZooError(
                f"teacher_{name} {tuple(teacher.shape)} must have the shape of {name} {tuple(own.shape)}."
            )
    if not 0 <= alpha <= 1 or (alpha and teacher_image is None):
        raise ZooError(
            f"alpha is {alpha}; it is the teacher's share of the targets, in [0, 1], and 0 without a teacher."
        )
    if (image_ids is None) != (text_ids is None):
        raise ZooError("queued_contrast takes image_ids and text_ids together, or neither.")
    if (
        image_ids is not None
        and text_ids is not None
        and (len(image_ids) != len(image) or text_ids.shape != (len(text),))
    ):
        raise ZooError(
            f"image_ids {tuple(image_ids.shape)} and text_ids {tuple(text_ids.shape)} do not fit {len(image)} "
            f"images and {len(text)} texts; they are (B,) or (B, m), and (T,)."
        )
