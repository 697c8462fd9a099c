"""The k best of any number: the order of a stable sort of the whole matrix, however it comes in blocks."""

from __future__ import annotations

import pytest
import torch

from mmzoo.metrics.topk import TopK


@pytest.mark.parametrize("levels", [2, 7, 10**6])
@pytest.mark.parametrize("block", [1, 3, 64, 200])
@pytest.mark.parametrize("k", [1, 5, 64, 200, 300])
def test_equals_a_stable_sort_whatever_the_blocks(k, block, levels):
    scores = torch.randint(levels, (4, 200), generator=torch.Generator().manual_seed(k)).double() / levels
    best = TopK(4, k)
    for some in scores.split(block, 1):
        best.add(some)
    ranked = scores.sort(dim=1, descending=True, stable=True)
    assert torch.equal(best.places, ranked.indices[:, :k])
    assert torch.equal(best.scores, ranked.values[:, :k])
    assert best.scores.dtype == torch.float64
    assert best.seen == 200


def test_all_alike_gives_the_first_ones():
    best = TopK(2, 3)
    for _ in range(5):
        best.add(torch.zeros(2, 1000))
    assert best.places.tolist() == [[0, 1, 2]] * 2
