"""Rows, layers and masks of shared keys and values; the plan that folds queries together."""

from __future__ import annotations

import pytest
import torch

from mmzoo.errors import ZooError
from mmzoo.layers.attention import CrossAttention
from mmzoo.layers.image_kv import ImageKV
from mmzoo.ops import folding
from mmzoo.ops.attention import AttnMask
from mmzoo.ops.folding import fold


def _kv(rows=4, tokens=5, layers=(1, 2), keep=None):
    cross = CrossAttention(8, 6, 2, kv_heads=2, head_dim=4)
    return ImageKV({i: cross.project(torch.randn(rows, tokens, 6) + i) for i in layers}, keep)


def test_rows_are_taken_from_every_layer_and_from_the_mask():
    keep = torch.rand(4, 5) < 0.5
    kv = _kv(keep=keep)
    index = torch.tensor([3, 0, 0])
    for taken, rows in ((kv[index], index), (kv[1:3], slice(1, 3)), (kv[-1], slice(3, 4))):
        assert len(taken) == len(keep[rows])
        assert torch.equal(taken.keep, keep[rows])
        for i in (1, 2):
            assert torch.equal(taken.layers[i].k, kv.layers[i].k[rows])
            assert torch.equal(taken.layers[i].v, kv.layers[i].v[rows])
    assert kv[1:3].layers[1].k.data_ptr() == kv.layers[1].k[1].data_ptr()  # a slice copies nothing
    with pytest.raises(IndexError):
        kv[4]


def test_keys_laid_end_to_end_are_views():
    kv = _kv(rows=3)
    plan = folding.Fold(
        3, None, None, folding.Packed(torch.tensor([0, 9, 9, 9]), torch.tensor([0, 5, 10, 15]))
    )
    for one in (kv, kv[1:], kv[torch.tensor([2, 0])]):
        k = one.layers[1].k
        laid = plan.keys(k)
        assert laid.data_ptr() == k.data_ptr()
        assert torch.equal(laid.view(2, len(one), 5, 4), k.transpose(0, 1))


def test_union_joins_layers_and_refuses_what_does_not_fit():
    first, second = _kv(layers=(1,)), _kv(layers=(2,))
    both = first.union(second)
    assert both.layers == {1: first.layers[1], 2: second.layers[2]}
    with pytest.raises(ZooError, match=r"layers \[1\] are in both"):
        both.union(first)
    with pytest.raises(ZooError, match="same mask"):
        first.union(_kv(layers=(2,), keep=torch.ones(4, 5, dtype=torch.bool)))
    with pytest.raises(ZooError, match="same rows and tokens"):
        first.union(_kv(rows=3, layers=(2,)))
    with pytest.raises(ZooError, match="no layer"):
        ImageKV({})


@pytest.mark.parametrize("run_cost", [0, 10**12])
@pytest.mark.parametrize(
    "reads", [[0, 0, 1, 1], [2, 0, 2, 2, 0, 3], [1, 1, 1], [3, 2, 1, 0], [], [0, 0, 1, 1, 2, 2, 3, 3]]
)
def test_every_query_meets_its_own_keys_and_comes_back(monkeypatch, run_cost, reads):
    monkeypatch.setattr(folding, "RUN_COST", run_cost)
    plan = fold(torch.tensor(reads, dtype=torch.long), 4, keys=3, channels=8)
    x = torch.randn(1, len(reads), 8)
    assert torch.equal(plan.back(plan.queries(x), (1, len(reads))), x)
    cross = CrossAttention(8, 6, 2, kv_heads=1, head_dim=4).double()
    context, keep = torch.randn(4, 3, 6).double(), torch.rand(4, 3) < 0.7
    found = cross(x.double(), context, mask=plan.mask(keep), fold=plan)[0]
    for row, read in enumerate(reads):
        alone = cross(
            x[:, row : row + 1].double(), context[read : read + 1], mask=AttnMask(keep=keep[read : read + 1])
        )
        torch.testing.assert_close(found[row], alone[0, 0], rtol=0, atol=1e-12)


def test_equal_counts_in_order_move_nothing():
    plan = fold(torch.arange(6).repeat_interleave(4), 6, keys=577, channels=768)
    assert plan.into is None
    assert plan.packed is None
    x = torch.randn(12, 2, 3)
    assert plan.queries(x).data_ptr() == x.data_ptr()


def test_small_contexts_are_filled_up_and_large_ones_are_not():
    reads = torch.tensor([0, 0, 0, 1, 2, 2]).repeat_interleave(10)
    assert fold(reads, 3, keys=17, channels=128).room == 30
    assert fold(reads, 3, keys=577, channels=768).packed is not None
    # however small: one context with everything among many with little is never filled up
    skewed = torch.cat([torch.zeros(10_000, dtype=torch.long), torch.arange(64)])
    assert fold(skewed, 64, keys=17, channels=128).packed is not None


def test_contexts_that_are_not_there_are_refused():
    for reads in ([0, 3], [-1, 0]):
        with pytest.raises(ZooError, match=r"between 0 and 2, one of 3 contexts, got"):
            fold(torch.tensor(reads), 3, keys=5, channels=8)
    with pytest.raises(ZooError, match="no context"):
        fold(torch.tensor([0]), 0, keys=5, channels=8)
