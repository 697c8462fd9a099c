"""Two-stage recall against a full matrix that is sorted, one query at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmzoo.errors import ZooError
from mmzoo.metrics.rerank import choose, reranked


def _brute(cosines: Tensor, matches: Tensor, fits: Tensor, k: int, depth: int) -> float:
    """Recall of rows at `depth`: the k best by cosine, sorted by match, looked at in order."""
    hits, asked = 0, 0
    for cosine, match, fit in zip(cosines, matches, fits):
        if not fit.any():
            continue
        asked += 1
        first = cosine.argsort(descending=True, stable=True)[:k]
        order = first[match[first].argsort(descending=True)]
        hits += bool(fit[order[:depth]].any())
    return hits / asked


@pytest.mark.parametrize("k", [1, 4, 50])
def test_recall_equals_sorting_everything(k: int) -> None:
    g = torch.Generator().manual_seed(k)
    image, text = (normalize(torch.randn(n, 6, generator=g, dtype=torch.float64), dim=1) for n in (17, 23))
    matches = torch.randn(17, 23, generator=g, dtype=torch.float64)
    image_ids = torch.randint(-1, 9, (17, 2), generator=g)
    text_ids = torch.randint(-1, 12, (23,), generator=g)
    fits = ((image_ids[:, None] == text_ids[None, :, None]) & (image_ids[:, None] >= 0)).any(-1)
    chosen = choose(image, text, k, block=5)
    assert len(chosen.image) == len(set(zip(chosen.image.tolist(), chosen.text.tolist())))
    got = reranked(chosen, matches[chosen.image, chosen.text], image_ids, text_ids, ks=(1, 3))
    cosines = image @ text.T
    for depth in (1, 3):
        assert got[f"i2t_r{depth}"] == pytest.approx(_brute(cosines, matches, fits, k, depth))
        assert got[f"t2i_r{depth}"] == pytest.approx(_brute(cosines.T, matches.T, fits.T, k, depth))


def test_a_constant_score_finds_nothing_beside_negatives() -> None:
    eye = torch.eye(4)
    chosen = choose(eye, eye, 2)
    got = reranked(
        chosen, torch.zeros(len(chosen.image)), torch.arange(4)[:, None], torch.arange(4), ks=(1, 2)
    )
    assert got["i2t_r1"] == 0.0
    assert got["i2t_r2"] == 1.0


def test_wrong_calls_are_refused() -> None:
    eye = torch.eye(4)
    with pytest.raises(ZooError, match="k=0"):
        choose(eye, eye, 0)
    with pytest.raises(ZooError, match="some of both"):
        choose(eye, eye[:0], 1)
    with pytest.raises(ZooError, match="scores given"):
        reranked(choose(eye, eye, 2), torch.zeros(3), torch.arange(4)[:, None], torch.arange(4))
