"""Matching and choosing: equal to torch's cross-entropy of the rows that count."""

import pytest
import torch
from torch.nn import functional as F

from mmzoo.errors import ZooError
from mmzoo.losses.matching import choice_loss, match_loss

LABELS = torch.tensor([0, 2, 1, 1, 0, 2, 2])
VALID = torch.tensor([True, False, True, True, False, True, True])


def make(classes=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(7, classes, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def check(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("valid", [None, VALID])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_equals_the_definition(valid, alpha):
    ours, theirs, teacher = make(), make(), make(seed=1)
    loss, accuracy = choice_loss(ours, LABELS, valid=valid, teacher=teacher, alpha=alpha)
    rows = torch.ones(7, dtype=torch.bool) if valid is None else valid
    hard = F.cross_entropy(theirs[rows], LABELS[rows])
    soft = F.cross_entropy(theirs[rows], teacher.detach()[rows].softmax(1))
    expected = (1 - alpha) * hard + alpha * soft
    check([loss, accuracy], [expected, (theirs.argmax(1) == LABELS)[rows].double().mean()])
    check(torch.autograd.grad(loss, [ours], retain_graph=True), torch.autograd.grad(expected, [theirs]))
    assert not accuracy.requires_grad
    loss.backward()
    assert teacher.grad is None


def test_matching_is_the_choice_between_no_and_yes():
    match = torch.tensor([True, False, True, False, False, True, True])
    ours, theirs = make(2), make(2)
    loss, accuracy = match_loss(ours, match, valid=VALID)
    expected = F.cross_entropy(theirs[VALID], match.long()[VALID])
    check([loss], [expected])
    check(torch.autograd.grad(loss, [ours]), torch.autograd.grad(expected, [theirs]))
    sure = torch.stack([~match, match], 1).double()
    assert match_loss(sure, match).accuracy == 1
    assert match_loss(-sure, match).accuracy == 0
    assert accuracy == ((theirs[:, 1] > theirs[:, 0]) == match)[VALID].double().mean()


def test_rows_left_out_get_no_gradient_whatever_they_hold():
    logits = make()
    with torch.no_grad():
        logits[1], logits[4] = float("nan"), float("inf")
    loss, accuracy = choice_loss(logits, LABELS, valid=VALID)
    (gradient,) = torch.autograd.grad(loss, [logits])
    assert loss.isfinite()
    assert accuracy.isfinite()
    assert not gradient[~VALID].any()
    assert gradient[VALID].any(1).all()


@pytest.mark.parametrize("rows", [0, 7])
def test_without_a_valid_row_the_loss_and_its_gradient_are_zero(rows):
    logits = make()
    out = match_loss(logits[:rows, :2], LABELS[:rows] > 0, valid=torch.zeros(rows, dtype=torch.bool))
    assert out.loss == out.accuracy == 0
    assert not torch.autograd.grad(out.loss, [logits])[0].any()


def test_a_tie_is_not_right():
    assert match_loss(torch.zeros(4, 2), torch.tensor([True, False, True, False])).accuracy == 0


def test_float32_at_least_under_autocast():
    logits = make(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = choice_loss(logits, LABELS).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), LABELS))


def test_errors_say_what_does_not_fit():
    with pytest.raises(ZooError, match=r"not \(7, 3\) and \(4,\)"):
        choice_loss(make(), LABELS[:4])
    with pytest.raises(ZooError, match=r"alpha is 0.4; .* 0 without a teacher"):
        choice_loss(make(), LABELS, alpha=0.4)
