"""The sigmoid contrastive loss of SigLIP, tiled and in one pass.

Every pair is a yes/no question of its own, so the gradient of a tile, sigmoid(z) - [positive], is known as soon as its
logits are: it is turned into the gradients of the embeddings on the spot. Nothing is recomputed and no tile outlives
its turn: memory is O((B + T) E + tile T) instead of O(B T), work 6 B T E operations, the least there is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

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

__all__ = ["siglip_loss"]


def siglip_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    *,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    gather: Gather = "none",
    tile: int = 256,
) -> Contrastive:
    """Ask of every pair whether it belongs together (SigLIP, arXiv 2303.15343, algorithm 1).

    `sum over pairs of -log sigmoid(y * (scale * cosine + bias))`, y = 1 for positives and -1 for the rest, divided by
    the number of images. Which pairs are positives, what `gather` does and which gradient results is told at
    `clip_loss`; here an image without a positive stays in, its pairs being answered "no".

    Args:
        image: (B, E) unit-length embeddings of any floating type; computed in float32 whatever the autocast
            (float64 stays float64).
        text: (T, E) unit-length embeddings.
        scale: Scalar multiplier of the cosines; the paper starts at 10.
        bias: Scalar added to every logit; the paper starts at -10.
        image_ids: (B,) or (B, m) int64, all that each image is an instance of; -1 pads.
        text_ids: (T,) int64, what each text is about; -1 matches nothing.
        gather: "none"; "global": every rank computes all pairs of all ranks; "local": each rank computes its own
            images by all texts, 1/world of the work for the same result;
            "auto": all pairs of all ranks at the least cost, so "local".
        tile: Rows of logits in memory at once.

    Returns:
        Loss and accuracies.

    Raises:
        ZooError: The shapes do not fit each other, one kind of id is missing, or `gather` is unknown.

    Example:
        >>> eye = torch.eye(4)
        >>> bool(siglip_loss(eye, eye, 100.0, -50.0).loss < 1e-6)
        True
    """
    with full_precision(image.device):
        sides = gather_sides(image, text, image_ids, text_ids, gather)
        inputs = (sides.image, sides.text, scalar(scale, sides.image), scalar(bias, sides.image))
        with_grad = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
        return Contrastive(*_TiledSigmoid.apply(*inputs, sides, tile, with_grad))  # type: ignore[no-untyped-call]


class _TiledSigmoid(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor,
        sides: Sides,
        tile: int,
        with_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, columns = len(image), len(text)
        winners = Winners(image, columns)
        z_buffer, work_buffer = (image.new_empty(min(tile, rows), columns) for _ in range(2))
        image_grad = torch.empty_like(image) if with_grad else None
        text_grad = torch.zeros_like(text) if with_grad else None
        loss, bias_grad = image.new_zeros(()), image.new_zeros(())

        for start, stop in spans(rows, tile):
            z, work = z_buffer[: stop - start], work_buffer[: stop - start]
            torch.mm(image[start:stop] * scale, text.T, out=z).add_(bias)
            row, column = sides.positives.tile(start, stop)
            score, _, _ = winners.update(z, start, row, column)
            loss += F.softplus(z, threshold=40).sum() - score.sum()
            if image_grad is not None and text_grad is not None:
                torch.sigmoid(z, out=work)
                work[row, column] -= 1
                bias_grad += work.sum()
                torch.mm(work, text, out=image_grad[start:stop])
                text_grad.addmm_(work.T, image[start:stop])

        loss /= max(sides.images, 1)
        if sides.partial:
            dist.sum_over_ranks(loss)
        if image_grad is not None and text_grad is not None:
            scale_grad = (image * image_grad).sum()
            for grad in (image_grad, text_grad):
                grad *= scale
            share = sides.gradient_share / max(sides.images, 1)
            ctx.save_for_backward(*(x.mul_(share) for x in (image_grad, text_grad, scale_grad, bias_grad)))
        accuracies = winners.accuracies(sides)
        ctx.mark_non_differentiable(*accuracies)
        return loss, *accuracies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return (*(grad * grad_loss for grad in ctx.saved_tensors), None, None, None)
