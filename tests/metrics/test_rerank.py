"""Two-stage recall against a full matrix that is sorted, one query at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmzoo.errors import ZooError
from mmzoo.metrics.rerank import choose, reranked, reranked_standings
from mmzoo.metrics.retrieval import recalls, standings


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


@pytest.mark.parametrize("k", [1, 4, 50])
def test_ranks_after_reranking_are_those_of_the_whole_list(k: int) -> None:
    g = torch.Generator().manual_seed(k)
    image, text = (normalize(torch.randn(n, 6, generator=g, dtype=torch.float64), dim=1) for n in (17, 23))
    matches = torch.randint(5, (17, 23), generator=g).double()  # with ties
    image_ids = torch.randint(-1, 9, (17, 2), generator=g)
    text_ids = torch.randint(-1, 12, (23,), generator=g)
    fits = ((image_ids[:, None] == text_ids[None, :, None]) & (image_ids[:, None] >= 0)).any(-1)
    chosen = choose(image, text, k, block=5)
    first = standings(image, text, image_ids=image_ids, text_ids=text_ids)
    got = recalls(
        *reranked_standings(chosen, matches[chosen.image, chosen.text], image_ids, text_ids, first), ks=(1, 3)
    )
    flat = reranked(chosen, matches[chosen.image, chosen.text], image_ids, text_ids, ks=(1,))
    cosines = image @ text.T
    for way, side, table, scores, fit in (
        ("i2t", got.i2t, cosines, matches, fits),
        ("t2i", got.t2i, cosines.T, matches.T, fits.T),
    ):
        ranks = []
        for cosine, score, right in zip(table, scores, fit):
            if right.any():
                order = cosine.argsort(descending=True, stable=True).tolist()
                # of equal scores the wrong ones first
                head = sorted(order[:k], key=lambda i: (-float(score[i]), bool(right[i])))
                ranks.append(next(r for r, i in enumerate(head + order[k:], 1) if right[i]))
        assert side.mean_rank == pytest.approx(sum(ranks) / len(ranks))
        assert side.recall == pytest.approx({d: sum(r <= d for r in ranks) / len(ranks) for d in (1, 3)})
        assert side.queries == len(ranks)
        if k > 1:
            assert flat[f"{way}_r1"] == side.recall[1]
