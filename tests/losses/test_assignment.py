"""Two images for each text, drawn by resemblance, one of them its own or neither."""

import pytest
import torch

from mmzoo.losses.assignment import FIRST, NEITHER, SECOND, draw_assignment
from mmzoo.ops.pairs import Diagonal, Positives


def draws(scores, positives, count=4000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [draw_assignment(scores, positives, generator=generator) for _ in range(count)]


def test_every_label_means_what_it_says():
    ids = torch.tensor([0, 1, 2, 2, 3])
    fits = ids[:, None] == ids
    own = torch.arange(5)
    for drawn in draws(torch.randn(5, 5), Positives(ids[:, None], ids), 300):
        assert bool(drawn.found.all())
        first, second = drawn.first == own, drawn.second == own
        assert torch.equal(first, drawn.label == FIRST)
        assert torch.equal(second, drawn.label == SECOND)
        assert bool((drawn.first != drawn.second).all())
        # the other image is never one that the text describes too
        for chosen, mine in ((drawn.first, first), (drawn.second, second)):
            assert not bool((fits[own, chosen] & ~mine).any())


def test_frequencies_are_those_of_draws_without_replacement():
    """Labels a third each; the others by softmax of the scores, the second among what the first left."""
    torch.manual_seed(0)
    scores = torch.randn(4, 4)
    found = draws(scores, Diagonal(4), 6000)
    labels = torch.stack([d.label for d in found])
    for label in (FIRST, SECOND, NEITHER):
        assert float((labels == label).double().mean()) == pytest.approx(1 / 3, abs=0.01)
    p = scores[0].clone()
    p[0] = -torch.inf
    p = p.softmax(0)
    pairs = [(int(d.first[0]), int(d.second[0])) for d in found if int(d.label[0]) == NEITHER]
    for one in (1, 2, 3):
        for two in {1, 2, 3} - {one}:
            wanted = float(p[one] * p[two] / (1 - p[one]))
            share = sum(pair == (one, two) for pair in pairs) / len(pairs)
            assert share == pytest.approx(wanted, abs=0.04)
    others = [int(d.second[0]) for d in found if int(d.label[0]) == FIRST]
    others += [int(d.first[0]) for d in found if int(d.label[0]) == SECOND]
    for one in (1, 2, 3):
        assert others.count(one) / len(others) == pytest.approx(float(p[one]), abs=0.03)


def test_too_few_other_images():
    alone = draws(torch.zeros(1, 1), Diagonal(1), 20)
    assert not any(bool(d.found.any()) for d in alone)
    assert all(int(d.first) == int(d.second) == 0 for d in alone)
    for drawn in draws(torch.zeros(2, 2), Diagonal(2), 60):
        # with one other image only, a pair of two others is not to be had
        assert torch.equal(drawn.found, drawn.label != NEITHER)
    one_caption = torch.zeros(3, dtype=torch.int64)
    drawn = draw_assignment(torch.zeros(3, 3), Positives(one_caption[:, None], one_caption))
    assert not bool(drawn.found.any())


def test_extreme_scores_still_find_one():
    scores = torch.tensor([[0.0, -1e5, -2e5], [3e4, 0.0, -1e5], [0.0, 0.0, 0.0]])
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for drawn in draws(scores.to(dtype), Diagonal(3), 50):
            assert bool(drawn.found.all())
            assert bool((drawn.first != drawn.second).all())
