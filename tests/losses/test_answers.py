"""The loss over a closed list against transformers' formula, and its score."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mmzoo.errors import ZooError
from mmzoo.losses.answers import answer_loss


def test_equals_the_reference():
    """Mean over all entries times the length of the list, as in ViLT's and transformers' code."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, dtype=torch.float64, generator=draw).requires_grad_()
    targets = torch.rand(5, 7, dtype=torch.float64, generator=draw)
    ours = answer_loss(logits, targets)
    theirs = F.binary_cross_entropy_with_logits(logits, targets) * 7
    torch.testing.assert_close(ours.loss, theirs, rtol=1e-12, atol=1e-12)
    (grad,) = torch.autograd.grad(ours.loss, logits)
    (other,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(grad, other, rtol=1e-12, atol=1e-12)


def test_score_is_the_worth_of_the_best_answer():
    logits = torch.tensor([[2.0, 1.0], [0.0, 0.0], [-1.0, 3.0]])
    targets = torch.tensor([[0.3, 1.0], [1.0, 1.0], [0.0, 0.6]])
    assert answer_loss(logits, targets).score == pytest.approx((0.3 + 0 + 0.6) / 3)


def test_half_precision_is_computed_in_float32():
    logits = torch.full((2, 3), 5.0, dtype=torch.bfloat16, requires_grad=True)
    out = answer_loss(logits, torch.ones(2, 3))
    assert out.loss.dtype == torch.float32
    assert float(out.loss) == pytest.approx(3 * F.softplus(torch.tensor(-5.0)).item(), rel=1e-6)


def test_another_list_is_refused():
    with pytest.raises(ZooError, match="as many answers as the list has"):
        answer_loss(torch.zeros(2, 3), torch.zeros(2, 4))
