import pytest
import torch

from mmzoo.ops.pairs import Diagonal, Positives, pad_ids, widen


def brute(rows, columns):
    def sets(ids):
        return [set(row) - {-1} for row in ids.reshape(len(ids), -1).tolist()]

    return [[bool(a & b) for b in sets(columns)] for a in sets(rows)]


@pytest.mark.parametrize(("m", "n"), [(1, 1), (4, 1), (1, 4)])
def test_pairs_are_those_of_a_comparison_of_everything(m, n):
    generator = torch.Generator().manual_seed(m + 10 * n)
    rows = torch.randint(-1, 9, (17, m), generator=generator)
    columns = torch.randint(-1, 9, (23, n), generator=generator)
    positives, expected = Positives(rows, columns), torch.tensor(brute(rows, columns))
    assert torch.equal(positives.counts, expected.sum(1))
    for start, stop in ((0, 17), (0, 5), (5, 6), (12, 17)):
        row, column = positives.tile(start, stop)
        found = torch.zeros(stop - start, 23, dtype=torch.int64)
        found.index_put_((row, column), torch.ones_like(row), accumulate=True)
        assert torch.equal(found, expected[start:stop].long()), "each pair once and no other"
        assert torch.equal(row, row.sort().values)


def test_one_dimension_means_one_id_each():
    row, column = Positives(torch.tensor([3, 1, -1]), torch.tensor([1, -1, 3, 3])).tile(0, 3)
    assert sorted(zip(row.tolist(), column.tolist(), strict=True)) == [(0, 2), (0, 3), (1, 0)]


def test_no_rows_and_no_pairs():
    nothing = torch.zeros(0, 2, dtype=torch.int64)
    assert Positives(nothing, torch.tensor([1])).counts.tolist() == []
    assert Positives(torch.tensor([1]), nothing[:, :1]).tile(0, 1)[0].tolist() == []


@pytest.mark.parametrize("first", [0, 3])
def test_diagonal_is_what_ids_in_order_say(first):
    diagonal, positives = Diagonal(5, first), Positives(torch.arange(first, first + 5), torch.arange(9))
    for start, stop in ((0, 5), (2, 4)):
        for a, b in zip(diagonal.tile(start, stop), positives.tile(start, stop), strict=True):
            assert torch.equal(a, b)
    assert torch.equal(diagonal.counts, positives.counts)


def test_ids_are_padded_with_what_matches_nothing():
    assert pad_ids([(0, 9), (1,), ()]).tolist() == [[0, 9], [1, -1], [-1, -1]]
    assert pad_ids([]).shape == (0, 0)
    assert pad_ids([(), ()]).dtype == torch.int64
    assert widen(torch.tensor([[3], [4]]), 3).tolist() == [[3, -1, -1], [4, -1, -1]]
