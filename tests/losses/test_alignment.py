"""Word-patch alignment against a plain loop over pairs, its plan against what optimal transport must be."""

import itertools
import math

import numpy as np
import pytest
import torch

from mmzoo.losses.alignment import alignment_loss, transport_plan

TEXT_KEEP = torch.tensor([[0, 1, 1, 1, 0], [0, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 1, 0, 0]]).bool()
IMAGE_KEEP = torch.tensor(
    [[0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 1, 1, 1, 1, 0]]
).bool()
MATCH = torch.tensor([True, False, True, True])


def pairs(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(4, 5, 7, generator=generator, dtype=torch.float64)
    image = torch.randn(4, 6, 7, generator=generator, dtype=torch.float64)
    return text.to(dtype).requires_grad_(), image.to(dtype).requires_grad_()


def oracle_plan(cost, beta=0.5, steps=50):
    """IPOT (arXiv 1802.04307, algorithm 1, L = 1) for one unpadded cost matrix, in numpy."""
    n, m = cost.shape
    b, plan, kernel = np.full(m, 1 / m), np.ones((n, m)), np.exp(-cost / beta)
    # the algorithm carries mu = 1/n to nu = 1/m; here rows are updated last, so columns stand for its first marginal
    row = np.full(n, 1 / n)
    for _ in range(steps):
        q = kernel * plan
        column = b / (q.T @ row)
        row = (1 / n) / (q @ column)
        plan = row[:, None] * q * column[None, :]
    return plan


def oracle(text, image, text_keep, image_keep, match):
    signed, counted, by_kind = 0, 0, {True: [], False: []}
    for x, y, a, b, fits in zip(text, image, text_keep, image_keep, match.tolist(), strict=True):
        x, y = x[a], y[b]
        if not len(x) or not len(y):
            continue
        cost = torch.stack([torch.stack([1 - torch.cosine_similarity(u, v, dim=0) for v in y]) for u in x])
        distance = (cost * torch.from_numpy(oracle_plan(cost.detach().numpy()))).sum()
        signed = signed + (distance if fits else -distance)
        by_kind[fits].append(distance.detach())
        counted += 1
    return signed / max(counted, 1), *(sum(by_kind[k]) / max(len(by_kind[k]), 1) for k in (True, False))


@pytest.mark.parametrize("match", [MATCH, ~MATCH, MATCH | True, MATCH & False])
def test_equals_a_loop_over_pairs(match):
    ours, theirs = pairs(), pairs()
    out = alignment_loss(*ours, TEXT_KEEP, IMAGE_KEEP, match)
    expected = oracle(*theirs, TEXT_KEEP, IMAGE_KEEP, match)
    for a, b in zip(out, expected, strict=True):
        torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), rtol=1e-12, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(out.loss, ours), torch.autograd.grad(expected[0], theirs), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    left_out = torch.autograd.grad(alignment_loss(*ours, TEXT_KEEP, IMAGE_KEEP, match).loss, ours)
    assert not left_out[0][~TEXT_KEEP].any()
    assert not left_out[1][~IMAGE_KEEP].any()


def test_half_matching_is_half_the_difference_of_means():
    out = alignment_loss(*pairs(), TEXT_KEEP, IMAGE_KEEP, torch.tensor([True, False, True, False]))
    torch.testing.assert_close(out.loss, (out.matching - out.other) / 2)


def test_the_plan_carries_all_mass_and_nothing_to_padding():
    text, image = (x.detach() for x in pairs())
    cost = 1 - torch.nn.functional.normalize(text, dim=-1) @ torch.nn.functional.normalize(image, dim=-1).mT
    plan = transport_plan(cost, TEXT_KEEP, IMAGE_KEEP)
    both = TEXT_KEEP[:, :, None] & IMAGE_KEEP[:, None, :]
    assert (plan >= 0).all()
    assert not plan[~both].any()
    rows = TEXT_KEEP.double() / TEXT_KEEP.sum(1, keepdim=True)
    columns = IMAGE_KEEP.double() / IMAGE_KEEP.sum(1, keepdim=True)
    torch.testing.assert_close(plan.sum(2), rows, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(plan.sum(1), columns, rtol=0, atol=2e-2)


def test_the_plan_approaches_the_optimum():
    """Of equal masses on as many rows as columns the cheapest plan is a permutation (Birkhoff)."""
    n = 5
    cost = torch.rand(1, n, n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    best = min(sum(cost[0, i, p[i]].item() for i in range(n)) / n for p in itertools.permutations(range(n)))
    keep = (torch.ones(1, n, dtype=torch.bool),) * 2
    costs = [(transport_plan(cost, *keep, steps=steps) * cost).sum().item() for steps in (1, 50, 2000)]
    assert costs[2] == pytest.approx(best, rel=1e-6)
    assert abs(costs[1] - best) < 0.05 * best < abs(costs[0] - best), "50 steps are near, one is not"


def test_padding_changes_nothing():
    text, image = pairs()
    wide = (
        torch.cat([text, torch.full((4, 2, 7), 9.0)], 1),
        torch.cat([image, torch.full((4, 3, 7), -9.0)], 1),
    )
    keep = [torch.nn.functional.pad(k, (0, n)) for k, n in ((TEXT_KEEP, 2), (IMAGE_KEEP, 3))]
    torch.testing.assert_close(
        alignment_loss(*wide, *keep, MATCH), alignment_loss(text, image, TEXT_KEEP, IMAGE_KEEP, MATCH),
        rtol=1e-12, atol=1e-12,
    )  # fmt: skip


@pytest.mark.parametrize("which", ["words", "patches", "both"])
def test_rows_of_nothing_are_left_out(which):
    text_keep, image_keep = TEXT_KEEP.clone(), IMAGE_KEEP.clone()
    if which != "patches":
        text_keep[0] = False
    if which != "words":
        image_keep[0] = False
    ours = pairs()
    out = alignment_loss(*ours, text_keep, image_keep, MATCH)
    gradients = torch.autograd.grad(out.loss, ours)
    assert all(g.isfinite().all() for g in gradients)
    assert not gradients[0][0].any()
    rest = alignment_loss(*(x[1:] for x in ours), text_keep[1:], image_keep[1:], MATCH[1:])
    torch.testing.assert_close(out, rest, rtol=1e-12, atol=1e-12)
    nothing = alignment_loss(*ours, text_keep & False, image_keep, MATCH)
    assert all(x == 0 for x in nothing)
    assert not torch.autograd.grad(nothing.loss, ours)[0].any()


@pytest.mark.parametrize("vectors", ["zero", "equal", "opposite"])
def test_degenerate_vectors_give_numbers(vectors):
    text, image = (torch.ones_like(x) for x in pairs(dtype=torch.float32))
    if vectors == "zero":
        text, image = 0 * text, 0 * image
    if vectors == "opposite":
        image = -image
    text.requires_grad_()
    out = alignment_loss(text, image, TEXT_KEEP, IMAGE_KEEP, MATCH)
    expected = {"zero": 1.0, "equal": 0.0, "opposite": 2.0}[vectors]
    assert math.isclose(out.matching.item(), expected, abs_tol=1e-5)
    assert torch.autograd.grad(out.loss, [text])[0].isfinite().all()


def test_computed_in_float32_under_autocast():
    text, image = pairs(dtype=torch.float32)
    plain = alignment_loss(text, image, TEXT_KEEP, IMAGE_KEEP, MATCH)
    with torch.autocast("cpu", torch.bfloat16):
        out = alignment_loss(text, image, TEXT_KEEP, IMAGE_KEEP, MATCH)
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out, plain, rtol=0, atol=0)
