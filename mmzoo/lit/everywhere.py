"""Hard negatives among the pairs of all ranks, without sending an image.

A text whose negative image lies on another rank is matched *there*: token ids travel instead of image tokens, an
image's keys and values are projected once, by the rank that has it, and no gradient has to find its way back. Since the
loss is a mean over the pairs of all ranks, it does not matter which of them computes a pair. salesforce/BLIP gathers
all image tokens on every rank (`models/blip_retrieval.py`, `negative_all_rank`).

The price is that ranks have different numbers of pairs: an image that many texts are drawn to brings work to its rank.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmzoo import dist
from mmzoo.data.batch import CaptionBatch
from mmzoo.lit.pairs import MatchRows, Taught
from mmzoo.losses.negatives import Weighting, draw_negatives
from mmzoo.ops.pairs import NO_ID, Positives

__all__ = ["Everywhere", "draw_everywhere"]


class Everywhere(NamedTuple):
    """What a rank matches.

    Attributes:
        ids: (T, L) int64, the texts of all ranks.
        keep: (T, L) bool.
        rows: Pairs of these texts and this rank's images.
    """

    ids: Tensor
    keep: Tensor
    rows: MatchRows


@torch.no_grad()
def draw_everywhere(
    batch: CaptionBatch,
    mine: Taught,
    other: Taught,
    scale: Tensor,
    *,
    generator: torch.Generator,
    weighting: Weighting,
) -> Everywhere:
    """Draw a negative text for each of this rank's images, and a negative image for each of its texts.

    Every rank calls it, with any number of pairs.

    Args:
        batch: This rank's B pairs.
        mine: Their embeddings.
        other: What those are compared with: the teacher's, or the same.
        scale: Multiplier of the cosines.
        generator: Source of randomness.
        weighting: See `mmzoo.losses.negatives.draw_negatives`.

    Returns:
        The true pairs, this rank's images with texts of all ranks, and texts of all ranks with this rank's images.
    """
    count, device = len(batch.ids), batch.ids.device
    sizes = dist.gather_sizes(count, device)
    first = sum(sizes[: dist.rank()])
    draws: dict[str, Any] = {"generator": generator, "weighting": weighting}
    ids, keep = _gathered(batch.ids, sizes, 0), _gathered(batch.keep, sizes, value=False)
    texts, text_ids = dist.gather_no_grad(other.text, sizes), dist.gather_no_grad(batch.text_ids, sizes)
    images, image_ids = (
        dist.gather_no_grad(other.image, sizes),
        _gathered(batch.image_ids, sizes, NO_ID),
    )
    for_images = draw_negatives(
        scale * mine.image @ texts.to(mine.image).T, Positives(batch.image_ids, text_ids[:, None]), **draws
    )
    for_texts = draw_negatives(
        scale * images.to(mine.text) @ mine.text.T, Positives(image_ids, batch.text_ids[:, None]), **draws
    )
    drawn = dist.gather_no_grad(for_texts.image, sizes)
    found = dist.gather_no_grad(for_texts.image_found, sizes)
    (come,) = (found & (drawn >= first) & (drawn < first + count)).nonzero(as_tuple=True)
    own = torch.arange(count, device=device)
    true, false = torch.ones_like(own, dtype=torch.bool), torch.zeros_like(come, dtype=torch.bool)
    rows = MatchRows(
        text=torch.cat([first + own, come, for_images.text]),
        image=torch.cat([own, drawn[come] - first, own]),
        match=torch.cat([true, false, ~true]),
        valid=torch.cat([true, ~false, for_images.text_found]),
    )
    return Everywhere(ids, keep, rows)


def _gathered(x: Tensor, sizes: list[int], value: int | bool) -> Tensor:
    """Rows (n, L) of all ranks, whose L may differ."""
    longest = x.shape[1]
    if dist.world() > 1:
        longest = int(dist.max_over_ranks(torch.tensor(longest, device=x.device)))
    return dist.gather_no_grad(F.pad(x, (0, longest - x.shape[1]), value=value), sizes)
