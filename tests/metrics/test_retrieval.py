import math
from itertools import combinations

import pytest
import torch
from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mmzoo.errors import ZooError
from mmzoo.metrics.retrieval import Retrieval, chance, chance_rank, recall, scored_standings, standings


def embed(n, width=16, seed=0, dtype=torch.float64):
    return F.normalize(
        torch.randn(n, width, dtype=dtype, generator=torch.Generator().manual_seed(seed)), dim=1
    )


def by_hand(image, text, image_ids, text_ids):
    """Higher, tied and positives of every query, by the definition, one query at a time."""
    sets = [set(ids) - {-1} for ids in image_ids.reshape(len(image), -1).tolist()]
    positive = torch.tensor([[t in ids for t in text_ids.tolist()] for ids in sets])
    z = image @ text.T
    found = []
    for scores, mask in ((z, positive), (z.T, positive.T)):
        rows = []
        for score, right in zip(scores, mask, strict=True):
            best = score[right].max() if right.any() else torch.inf
            rows.append([(score[~right] > best).sum(), (score[~right] == best).sum(), right.sum()])
        found.append(torch.tensor(rows).T)
    return found


IMAGE_IDS = torch.randint(-1, 12, (40, 3), generator=torch.Generator().manual_seed(1))
IMAGE_IDS[5] = torch.tensor([30, -1, 31])  # which no text is about
TEXT_IDS = torch.randint(-1, 14, (70,), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("chunk", [1, 7, 40, 512])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_standings_are_those_of_the_definition(chunk, dtype):
    image, text = embed(40, seed=3, dtype=dtype), embed(70, seed=4, dtype=dtype)
    ours = standings(image, text, image_ids=IMAGE_IDS, text_ids=TEXT_IDS, chunk=chunk)
    for side, expected in zip(ours, by_hand(image.double(), text.double(), IMAGE_IDS, TEXT_IDS), strict=True):
        has = expected[2] > 0
        assert 0 < has.sum() < len(has), "some queries have no positive"
        assert torch.equal(side.positives, expected[2])
        assert torch.equal(side.higher[has], expected[0][has])
        assert not side.tied[has].any()


def test_equals_clip_benchmark_with_five_captions_an_image():
    image = embed(60, 32, seed=5, dtype=torch.float32)
    text = F.normalize(
        image.repeat_interleave(5, 0) + 2.5 * embed(300, 32, seed=6, dtype=torch.float32), dim=1
    )
    whose = torch.arange(60).repeat_interleave(5)
    found = recall(image, text, image_ids=torch.arange(60), text_ids=whose, ks=(1, 5, 10), chunk=16)
    scores = text @ image.T
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(300), whose] = True
    for k in (1, 5, 10):
        for ours, (z, mask) in ((found.t2i, (scores, positive)), (found.i2t, (scores.T, positive.T))):
            theirs = (batchify(recall_at_k, z, mask, 64, "cpu", k=k) > 0).float().mean().item()
            assert ours.recall[k] == pytest.approx(theirs, abs=1e-6)
            assert 0.05 < theirs < 1
    assert (found.i2t.queries, found.i2t.items, found.t2i.queries, found.t2i.items) == (60, 300, 300, 60)


# Small integers are added exactly in any order, so that ties are ties.
TIED_IMAGE = torch.tensor([[2.0, 0], [0, 2], [2, 0], [1, 1]])
TIED_TEXT = torch.tensor([[2.0, 0], [0, 1], [1, 0], [1, 1]])


@pytest.mark.parametrize("chunk", [1, 3, 8])
@pytest.mark.parametrize(
    ("ties", "i2t", "t2i"),
    [
        # z = [[4 0 2 2] [0 2 0 2] [4 0 2 2] [2 1 1 2]], positives on the diagonal.
        ("for", [1, 1, 2, 1], [1, 1, 1, 1]),
        ("against", [1, 2, 3, 2], [2, 1, 2, 4]),
        ("halfway", [1, 1.5, 2.5, 1.5], [1.5, 1, 1.5, 2.5]),
    ],
)
def test_ties_go_where_they_are_told(ties, i2t, t2i, chunk):
    found = recall(TIED_IMAGE, TIED_TEXT, ks=(1, 2), ties=ties, chunk=chunk)
    for side, ranks in ((found.i2t, i2t), (found.t2i, t2i)):
        assert side.recall == {k: sum(rank <= k for rank in ranks) / 4 for k in (1, 2)}
        assert side.mean_rank == sum(ranks) / 4
        assert side.median_rank == sum(sorted(ranks)[1:3]) / 2
        assert side.tied == 3


def test_a_collapsed_model_finds_nothing_unless_ties_are_for_it():
    same = F.normalize(torch.ones(20, 8), dim=1)
    for ties, expected in (("against", 0.0), ("for", 1.0)):
        found = recall(same, same, ties=ties, ks=(1, 5))
        assert found.i2t.recall == found.t2i.recall == {1: expected, 5: expected}
        assert found.t2i.tied == 20


def test_duplicates_tie_in_both_directions_whatever_the_rounding():
    # 3.2 products of thirds: the pairwise sum and the matrix product may differ in the last bit.
    image = embed(30, 200, seed=7, dtype=torch.float32)
    image[1::2] = image[::2]
    found = standings(image, image.clone(), chunk=8)
    for side in found:
        assert side.higher.eq(0).all()
        assert side.tied.eq(1).all()


def test_a_coarse_matrix_product_is_noticed(monkeypatch):
    # As with TF32: products that disagree with the pairwise sums by far more than float32 may.
    image, text = embed(30, seed=8, dtype=torch.float32), embed(30, seed=9, dtype=torch.float32)
    exact, coarse = torch.mm, []

    def mm(a, b, *, out):
        coarse.append(1)
        return exact(a.bfloat16().float(), b.bfloat16().float(), out=out)

    monkeypatch.setattr(torch, "mm", mm)
    side = standings(image, text)[1]
    expected = by_hand(image.double(), text.double(), torch.arange(30), torch.arange(30))[1]
    assert coarse
    assert torch.equal(side.higher, expected[0])


class LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return out


def test_no_matrix_of_all_scores_is_ever_made():
    image, text = embed(300, 4, seed=10), embed(310, 4, seed=11)
    with LargestTensor() as seen:
        recall(image, text, image_ids=torch.arange(300), text_ids=torch.arange(310), chunk=10)
    assert 10 * 310 <= seen.numel <= 10 * 310 + 310


def test_chance_is_what_a_random_order_gives():
    for items, n, k in ((6, 2, 3), (5, 1, 1), (7, 3, 5), (4, 4, 1), (3, 1, 9)):
        looks = list(combinations(range(items), min(k, items)))
        expected = sum(any(i < n for i in look) for look in looks) / len(looks)
        assert chance(torch.tensor([n]), items, k) == pytest.approx(expected, abs=1e-12)
    assert chance(torch.tensor([1, 0, 2]), 4, 1) == pytest.approx((1 / 4 + 2 / 4) / 2)
    assert chance(torch.tensor([0]), 4, 1) == 0
    found = recall(embed(2000, 4, seed=12), embed(2000, 4, seed=13), ks=(200,))
    assert found.i2t.recall[200] == pytest.approx(found.i2t.chance[200], abs=0.03)


def test_streaming_equals_the_whole():
    image, text = embed(40, seed=3), embed(70, seed=4)
    metric = Retrieval(ks=(1, 3))
    for a in (0, 13, 39):
        b = {0: 13, 13: 39, 39: 40}[a]
        ids = IMAGE_IDS[a:b]
        used = 3 - int((ids[:, 2] == -1).all())  # a batch is as wide as it must be
        metric.add_images(image[a:b].requires_grad_(), ids[:, :used])
    for rows in torch.arange(70).split(9):
        metric.add_texts(text[rows], TEXT_IDS[rows])
    expected = recall(image, text, image_ids=IMAGE_IDS, text_ids=TEXT_IDS, ks=(1, 3))
    assert metric.compute() == expected
    flat = expected.flat("val/")
    assert flat["val/i2t_r3"] == expected.i2t.recall[3]
    assert flat["val/t2i_median_rank"] == expected.t2i.median_rank
    metric.reset()
    with pytest.raises(ZooError, match="none were added"):
        metric.compute()


def test_ids_of_another_width_are_padded():
    metric = Retrieval(ks=(1,))
    eye = torch.eye(3)
    metric.add_images(eye[:1], torch.tensor([[1, 4]]))
    metric.add_images(eye[1:], torch.tensor([2, 3]))
    metric.add_texts(eye, torch.tensor([4, 2, 3]))
    assert metric.compute().i2t.recall == {1: 1.0}


def test_queries_without_positive_are_left_out():
    found = recall(
        torch.eye(3), torch.eye(3), image_ids=torch.tensor([0, 1, 9]), text_ids=torch.tensor([0, 1, 8])
    )
    assert (found.i2t.queries, found.i2t.items, found.i2t.recall[1]) == (2, 3, 1.0)
    nothing = recall(
        torch.eye(3), torch.eye(3), image_ids=torch.tensor([0, 1, 2]), text_ids=torch.tensor([7, 7, 8])
    )
    assert (nothing.t2i.queries, nothing.t2i.recall[1]) == (0, 0.0)
    assert math.isnan(nothing.t2i.mean_rank)


def test_low_precision_embeddings_are_compared_in_float32():
    image, text = embed(30, 8, seed=14).bfloat16(), embed(30, 8, seed=15).bfloat16()
    assert recall(image, text) == recall(image.float(), text.float())


def test_errors_say_what_does_not_fit():
    image = embed(4)
    for call, words in (
        (lambda: recall(image, embed(5)), "4 images and 5 texts; pass image_ids and text_ids"),
        (lambda: recall(image, image, text_ids=torch.arange(4)), "together, or neither"),
        (lambda: recall(image, image[:, :3]), r"not \(4, 16\) and \(4, 3\)"),
        (lambda: recall(image[:0], image[:0]), "at least one each"),
        (
            lambda: recall(image, image, image_ids=torch.arange(3), text_ids=torch.arange(4)),
            "do not fit 4 images",
        ),
        (lambda: recall(image * torch.nan, image), "image embeddings that are not finite"),
        (lambda: recall(image, image / 0), "text embeddings that are not finite"),
    ):
        with pytest.raises(ZooError, match=words):
            call()


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_standings_of_scores_are_those_of_the_definition(chunk):
    scores = torch.randint(6, (40, 70), generator=torch.Generator().manual_seed(3)).double()  # with ties
    ours = scored_standings(scores, image_ids=IMAGE_IDS, text_ids=TEXT_IDS, chunk=chunk)
    for standing, expected in zip(
        ours, by_hand(scores, torch.eye(70).double(), IMAGE_IDS, TEXT_IDS), strict=True
    ):
        asked = expected[2] > 0
        assert torch.equal(standing.positives, expected[2])
        assert torch.equal(torch.stack(standing)[:, asked], expected[:, asked])
    with pytest.raises(ZooError, match="not finite"):
        scored_standings(scores / 0, image_ids=IMAGE_IDS, text_ids=TEXT_IDS)


def test_the_mean_rank_of_a_random_order():
    ranks = [min(places) for n in (1, 3) for places in combinations(range(1, 8), n)]
    expected = (sum(ranks[:7]) / 7 + sum(ranks[7:]) / math.comb(7, 3)) / 2
    assert chance_rank(torch.tensor([1, 0, 3]), 7) == pytest.approx(expected)
    assert math.isnan(chance_rank(torch.tensor([0]), 7))
