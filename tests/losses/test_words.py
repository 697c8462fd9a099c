"""The chunked word loss against torch's cross-entropy of all logits at once."""

import itertools

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mmzoo.errors import ZooError
from mmzoo.losses.words import SoftWords, word_loss

ROWS, WIDTH, WORDS, TEACHER_WIDTH = 11, 6, 17, 4
LABELS = torch.tensor([3, -100, 0, 16, -100, -100, 3, 9, -100, 1, 2])


def make(dtype=torch.float64, *shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def student(dtype=torch.float64, seed=0):
    return [x.requires_grad_() for x in make(dtype, (ROWS, WIDTH), (WORDS, WIDTH), (WORDS,), seed=seed)]


def teacher(dtype=torch.float64):
    return SoftWords(*make(dtype, (ROWS, TEACHER_WIDTH), (WORDS, TEACHER_WIDTH), (WORDS,), seed=9))


def probabilities(soft):
    return F.linear(soft.hidden, soft.weight, soft.bias).softmax(1)


def check(ours, theirs, tolerance=1e-12):
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("chunk", [1, 3, 7, 256])
def test_equals_cross_entropy(bias, smoothing, chunk):
    ours, theirs = student(), student()
    b = slice(None) if bias else slice(2)
    loss, accuracy = word_loss(
        ours[0], ours[1], ours[2] if bias else None, LABELS, label_smoothing=smoothing, chunk=chunk
    )
    logits = F.linear(theirs[0], theirs[1], theirs[2] if bias else None)
    expected = F.cross_entropy(logits, LABELS, label_smoothing=smoothing)
    check([loss], [expected])
    check(torch.autograd.grad(loss, ours[b]), torch.autograd.grad(expected, theirs[b]))
    kept = LABELS >= 0
    check([accuracy], [(logits.argmax(1) == LABELS)[kept].double().mean()])
    assert not accuracy.requires_grad


@pytest.mark.parametrize("kind", ["hidden", "hidden without bias", "probabilities"])
@pytest.mark.parametrize(
    ("alpha", "smoothing", "chunk"), [*itertools.product([0.0, 0.4, 1.0], [0.0, 0.1], [2, 256])]
)
def test_soft_targets(kind, alpha, smoothing, chunk):
    given = teacher()
    if kind == "hidden without bias":
        given = given._replace(bias=None)
    p = probabilities(given)
    for x in given:
        if x is not None:
            x.requires_grad_()
    ours, theirs = student(), student()
    soft = p.detach().requires_grad_() if kind == "probabilities" else given
    loss, _ = word_loss(*ours, LABELS, soft=soft, alpha=alpha, label_smoothing=smoothing, chunk=chunk)
    logits, kept = F.linear(*theirs), LABELS >= 0
    hard = F.cross_entropy(logits, LABELS, label_smoothing=smoothing)
    distilled = -(logits.log_softmax(1) * p.detach()).sum(1)[kept].mean()
    expected = (1 - alpha) * hard + alpha * distilled
    check([loss], [expected])
    check(torch.autograd.grad(loss, ours, retain_graph=True), torch.autograd.grad(expected, theirs))
    loss.backward()
    assert (soft.grad if kind == "probabilities" else given.hidden.grad) is None


def test_gradcheck():
    inputs = student()
    assert torch.autograd.gradcheck(lambda *x: word_loss(*x, LABELS, chunk=3).loss, inputs)
    soft = teacher()

    def distilled(*x):
        return word_loss(*x, LABELS, soft=soft, alpha=0.4, label_smoothing=0.1, chunk=3).loss

    assert torch.autograd.gradcheck(distilled, inputs)
    weights = torch.rand(ROWS, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *x: word_loss(*x, LABELS, row_weight=weights).loss, inputs)


def test_weights_of_rows_make_a_sum():
    weights = torch.linspace(-1, 2, ROWS, dtype=torch.float64)
    ours, theirs = student(), student()
    loss, accuracy = word_loss(*ours, LABELS, row_weight=weights, chunk=4)
    expected = (F.cross_entropy(F.linear(*theirs), LABELS, reduction="none") * weights).sum()
    check([loss], [expected])
    check(torch.autograd.grad(loss, ours), torch.autograd.grad(expected, theirs))
    check([accuracy], [word_loss(*ours, LABELS).accuracy])


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_without_labels_the_loss_and_its_gradients_are_zero(rows):
    ours = student()
    hidden = ours[0][:rows]
    labels = torch.full((rows,), -100)
    loss, accuracy = word_loss(hidden, *ours[1:], labels, soft=SoftWords(hidden, ours[1]), alpha=0.4)
    assert loss == accuracy == 0
    for gradient, x in zip(torch.autograd.grad(loss, ours), ours, strict=True):
        assert gradient.shape == x.shape
        assert not gradient.any()


def test_a_decoder_tied_to_what_made_the_states():
    (table,) = make(torch.float64, (WORDS, WIDTH))
    ids = torch.arange(ROWS)
    gradients = []
    for reference in (False, True):
        tied = table.clone().requires_grad_()
        hidden = tied[ids].tanh()
        loss = (
            F.cross_entropy(F.linear(hidden, tied), LABELS)
            if reference
            else word_loss(hidden, tied, None, LABELS, chunk=2).loss
        )
        gradients += torch.autograd.grad(loss, [tied])
    check(gradients[:1], gradients[1:])


def test_only_what_is_asked_for_gets_a_gradient():
    hidden, weight, bias = student()
    frozen = word_loss(hidden, weight.detach(), bias.detach(), LABELS).loss
    check(
        torch.autograd.grad(frozen, [hidden]),
        torch.autograd.grad(word_loss(hidden, weight, bias, LABELS).loss, [hidden]),
    )
    with torch.no_grad():
        assert not word_loss(hidden, weight, bias, LABELS).loss.requires_grad


def test_backward_twice_and_scaled():
    ours = student()
    loss = word_loss(*ours, LABELS).loss
    first, second = (torch.autograd.grad(loss, ours, retain_graph=True) for _ in range(2))
    check(first, second, tolerance=0)
    check(torch.autograd.grad(3 * loss, ours), [3 * g for g in first])


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_logits_of_any_size_give_numbers(size):
    hidden, weight, bias = (x.detach().mul(size).requires_grad_() for x in student(torch.float32))
    out = word_loss(hidden, weight, bias, LABELS, soft=SoftWords(hidden, weight, bias), alpha=0.4)
    out.loss.backward()
    assert all(x.isfinite().all() for x in (out.loss, hidden.grad, weight.grad, bias.grad))


def test_computed_in_float32_under_autocast_and_from_bfloat16():
    ours = student(torch.bfloat16)
    plain = [x.detach().float().requires_grad_() for x in ours]
    with torch.autocast("cpu", torch.bfloat16):
        loss = word_loss(*ours, LABELS).loss
    expected = word_loss(*plain, LABELS).loss
    check([loss], [expected], tolerance=0)
    for a, b in zip(torch.autograd.grad(loss, ours), torch.autograd.grad(expected, plain), strict=True):
        assert a.dtype == torch.bfloat16
        assert torch.equal(a, b.bfloat16())


def test_a_label_that_only_ties_is_not_right():
    hidden = torch.zeros(4, WIDTH, dtype=torch.float64)
    weight = torch.randn(WORDS, WIDTH, dtype=torch.float64)
    assert word_loss(hidden, weight, None, torch.tensor([0, 1, 2, 16])).accuracy == 0


class LargestTensor(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return out


@pytest.mark.parametrize("soft", [False, True])
def test_nothing_as_wide_as_the_vocabulary_outgrows_a_chunk(soft):
    words, width, rows, chunk = 3000, 4, 200, 10
    hidden, weight = make(torch.float32, (rows, width), (words, width))
    labels = torch.arange(rows)
    options = {"soft": SoftWords(hidden, weight), "alpha": 0.4} if soft else {}
    hidden.requires_grad_(), weight.requires_grad_()
    with LargestTensor() as largest:
        word_loss(hidden, weight, None, labels, chunk=chunk, **options).loss.backward()
    assert largest.numel == words * chunk


class Products(TorchDispatchMode):
    """Counts matrix products, and the rows of those with a bias."""

    def __init__(self):
        super().__init__()
        self.calls = self.rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += "mm" in func.__name__
        if func is torch.ops.aten.addmm.default:
            self.rows += len(args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_a_gradient_that_nobody_asks_for_is_not_made(wanted):
    inputs = [x if i < wanted else x.detach() for i, x in enumerate(student())]
    with Products() as counted:
        word_loss(*inputs, LABELS)
    assert counted.calls == 1 + wanted
    with torch.no_grad(), Products() as counted:
        word_loss(*student(), LABELS)
    assert counted.calls == 1


def test_rows_without_label_cost_nothing():
    with Products() as counted:
        word_loss(*student(), LABELS, chunk=4)
    assert counted.rows == (LABELS >= 0).sum()


def test_errors_say_what_does_not_fit():
    hidden, weight, bias = student()
    for call, words in (
        (lambda: word_loss(hidden[:, :3], weight, bias, LABELS), r"not \(11, 3\) and \(17, 6\)"),
        (lambda: word_loss(hidden, weight, bias, LABELS[:4]), r"label for each of 11 rows, not \(4,\)"),
        (lambda: word_loss(hidden, weight, bias[:4], LABELS), r"bias for each of 17 words, not \(4,\)"),
        (lambda: word_loss(hidden, weight, bias, LABELS, alpha=0.4), "alpha is 0.4; .* 0 without `soft`"),
        (
            lambda: word_loss(hidden, weight, bias, LABELS, alpha=0.4, soft=torch.ones(11, 5)),
            r"11 rows and 17 words, not \(11, 5\)",
        ),
        (
            lambda: word_loss(hidden, weight, bias, LABELS, row_weight=torch.ones(3)),
            r"weight for each of 11 rows, not \(3,\)",
        ),
    ):
        with pytest.raises(ZooError, match=words):
            call()
