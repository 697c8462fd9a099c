"""The queued contrastive loss against its definition, written out with concatenated columns and dense targets."""

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmzoo.errors import ZooError
from mmzoo.losses.contrastive import clip_loss
from mmzoo.losses.queued import Queued, queued_contrast
from mmzoo.ops.pairs import widen

# Several ids an image with padding, ids twice in a row, an image and two texts with nothing; some are in the queue.
IMAGE_IDS = torch.tensor([[5, 9], [6, -1], [6, 9], [7, 7], [40, -1], [8, 9], [2, 3]])
TEXT_IDS = torch.tensor([9, 5, 6, 7, 50, 8, -1, 3, 6])
QUEUE_IMAGE_IDS = torch.tensor([[9, 1, -1], [5, 6, 7], [-1, -1, -1], [11, 12, 13], [50, 50, -1], [8, -1, -1]])
QUEUE_TEXT_IDS = torch.tensor([9, 6, -1, 11, 40, 8])
ROOM = 4  # rows of the queue beyond those that are valid


def oracle(image, text, scale, teacher, queue, alpha, positive):
    """`positive`: images x [texts | queued texts] and texts x [images | queued images]."""
    image_m, text_m = (image, text) if teacher is None else teacher
    total, accuracies = 0, []
    for x, x_m, y_m, past, mask in (
        (image, image_m, text_m, queue.text, positive[0]),
        (text, text_m, image_m, queue.image, positive[1]),
    ):
        columns = torch.cat([y_m, past[: queue.count]])
        logits = scale * x @ columns.T
        rows = mask.any(1)
        hard = mask.double() / mask.sum(1, keepdim=True).clamp_min(1)
        with torch.no_grad():
            target = (1 - alpha) * hard + alpha * (scale * x_m @ columns.T).softmax(1)
        each = -(logits.log_softmax(1) * target).sum(1)
        if rows.any():
            total = total + each[rows].mean() / 2
        right = mask[torch.arange(len(x)), logits.argmax(1)]
        accuracies.append(right[rows].double().mean())
    return total, accuracies


def leaves(image, text, scale=7.0):
    return [x.clone().requires_grad_() for x in (image, text, torch.tensor(scale, dtype=torch.float64))]


def check(ours, theirs, tolerance=1e-12):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


FILLED = len(QUEUE_TEXT_IDS)


@pytest.fixture
def past(unit):
    def make(count=FILLED):
        size = len(QUEUE_TEXT_IDS) + ROOM
        image, text = unit(size, seed=5), unit(size, seed=6)
        image_ids, text_ids = torch.full((size, 3), 9), torch.full((size,), 9)
        image_ids[:-ROOM], text_ids[:-ROOM] = QUEUE_IMAGE_IDS, QUEUE_TEXT_IDS
        image[count:], text[count:] = float("nan"), float("nan")  # whoever reads them shows it
        return Queued(image, text, image_ids, text_ids, count)

    return make


CASES = [
    pytest.param(*case, id="-".join(map(str, case)))
    for case in itertools.product([None, 0, 3, 6], [False, True], [0.0, 0.4, 1.0], [True, False], [2, 256])
    if case[3] or not case[2]
]


@pytest.mark.parametrize(("count", "ids", "alpha", "taught", "tile"), CASES)
def test_equals_the_definition(count, ids, alpha, taught, tile, unit, dense, past):
    images, texts = len(IMAGE_IDS), len(TEXT_IDS) if ids else len(IMAGE_IDS)
    image, text = unit(images, seed=1), unit(texts, seed=2)
    teacher = (unit(images, seed=3), unit(texts, seed=4)) if taught else None
    queue = None if count is None else past(count)
    held = past(0) if queue is None else queue
    if ids:
        options = {"image_ids": IMAGE_IDS, "text_ids": TEXT_IDS}
        positive = (
            dense.positive(IMAGE_IDS, torch.cat([TEXT_IDS, held.text_ids[: held.count]])),
            dense.positive(torch.cat([widen(IMAGE_IDS, 3), held.image_ids[: held.count]]), TEXT_IDS).T,
        )
    else:
        options = {}
        positive = (torch.eye(images, images + held.count, dtype=torch.bool),) * 2
    if taught:
        options |= {"teacher_image": teacher[0], "teacher_text": teacher[1]}
    ours, theirs = leaves(image, text), leaves(image, text)
    result = queued_contrast(*ours, queue=queue, alpha=alpha, tile=tile, **options)
    loss, accuracies = oracle(*theirs, teacher, held, alpha, positive)
    check([result.loss], [loss])
    check(torch.autograd.grad(result.loss, ours), torch.autograd.grad(loss, theirs))
    check(result[1:], accuracies)
    assert not result.image_accuracy.requires_grad


def test_equals_albefs_formula(unit):
    """As its paper writes it: a learnt divisor, one-hot targets, the whole queue concatenated."""
    batch, size, alpha = 5, 8, 0.4
    image, text, image_m, text_m = (unit(batch, seed=seed) for seed in range(4))
    queue = Queued(
        unit(size, seed=7), unit(size, seed=8), torch.full((size, 4), -1), torch.full((size,), -1), size
    )
    outcomes = []
    for reference in (False, True):
        v, t, temperature = leaves(image, text, 0.07)
        if reference:
            loss = 0
            for x, x_m, y_all in (
                (v, image_m, torch.cat([text_m, queue.text])),
                (t, text_m, torch.cat([image_m, queue.image])),
            ):
                soft = (x_m @ y_all.T / temperature.detach()).softmax(1)
                target = alpha * soft + (1 - alpha) * torch.eye(batch, batch + size, dtype=torch.float64)
                loss = loss - ((x @ y_all.T / temperature).log_softmax(1) * target).sum(1).mean() / 2
        else:
            loss = queued_contrast(
                v, t, 1 / temperature, teacher_image=image_m, teacher_text=text_m, queue=queue, alpha=alpha
            ).loss
        outcomes.append([loss, *torch.autograd.grad(loss, (v, t, temperature))])
    check(*outcomes, tolerance=1e-11)


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("empty", [False, True])
def test_without_teacher_and_queue_it_is_clip_loss(ids, empty, unit, past):
    options = {"image_ids": IMAGE_IDS, "text_ids": TEXT_IDS} if ids else {}
    image, text = unit(7, seed=1), unit(9 if ids else 7, seed=2)
    ours, theirs = leaves(image, text), leaves(image, text)
    result = queued_contrast(*ours, queue=past(0) if empty else None, **options)
    expected = clip_loss(*theirs, **options)
    check(result, expected)
    check(torch.autograd.grad(result.loss, ours), torch.autograd.grad(expected.loss, theirs))


@pytest.mark.parametrize("taught", [False, True])
def test_gradcheck(taught, unit, past):
    image, text = unit(4, 24, seed=1)[:, :24], unit(4, seed=2)
    options = {"teacher_image": unit(4, seed=3), "teacher_text": unit(4, seed=4)} if taught else {}

    def loss(*x):
        return queued_contrast(*x, queue=past(3), tile=3, **options).loss

    assert torch.autograd.gradcheck(loss, leaves(image, text, 3.0))


@pytest.mark.parametrize("alpha", [0.0, 0.4])
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("ids", ["none", "same", "no positive"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 6])
def test_small_and_odd_batches_give_numbers(alpha, batch, ids, dtype, count, unit, past):
    image, text, *teacher = (unit(batch, seed=seed, dtype=dtype).requires_grad_() for seed in range(4))
    scale = torch.tensor(1000.0, requires_grad=True)  # ALBEF's smallest divisor
    options = {
        "none": {},
        "same": {"image_ids": torch.full((batch, 1), 9), "text_ids": torch.full((batch,), 9)},
        "no positive": {"image_ids": torch.full((batch, 1), 70), "text_ids": torch.full((batch,), 80)},
    }[ids]
    result = queued_contrast(
        image, text, scale, teacher_image=teacher[0], teacher_text=teacher[1], queue=past(count), alpha=alpha,
        **options,
    )  # fmt: skip
    result.loss.backward()
    assert result.loss.dtype == torch.float32
    for x in (*result, image.grad, text.grad, scale.grad):
        assert x.isfinite().all()
    assert teacher[0].grad is None
    assert teacher[1].grad is None
    if ids == "no positive":
        assert result.loss == 0
        assert not image.grad.any()
    if batch == 1 and count == 0:
        assert result.loss == 0, "the only column is the positive"


def test_rows_whose_only_positives_are_queued_count(unit, past):
    ids = {"image_ids": torch.tensor([[9], [70]]), "text_ids": torch.tensor([71, 72])}
    image = unit(2, seed=1).requires_grad_()
    loss = queued_contrast(image, unit(2, seed=2), 5.0, queue=past(), **ids).loss
    (gradient,) = torch.autograd.grad(loss, [image])
    assert gradient[0].any()
    # image 1 and both texts have no positive; image 1 still is a negative of nothing that counts
    assert not gradient[1].any()


def test_full_precision_under_autocast(unit, past):
    image, text, image_m, text_m = (unit(6, seed=seed, dtype=torch.float32) for seed in range(4))

    def run():
        ours = [image.clone().requires_grad_(), text.clone().requires_grad_(), torch.tensor(50.0)]
        result = queued_contrast(*ours, teacher_image=image_m, teacher_text=text_m, queue=past(), alpha=0.4)
        return [result.loss, *torch.autograd.grad(result.loss, ours[:2])]

    plain = run()
    with torch.autocast("cpu", torch.bfloat16):
        check(run(), plain, tolerance=0)


class LargestTensor(TorchDispatchMode):
    """The largest tensor that any operation makes (views of what is there do not count)."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        for x in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in known:
                LargestTensor.numel = max(LargestTensor.numel, x.numel())
        return out


def test_the_queue_is_neither_copied_nor_concatenated(unit):
    size, width, batch = 4096, 64, 3
    queue = Queued(
        *(unit(size, width, seed=seed) for seed in (1, 2)),
        torch.full((size, 4), -1),
        torch.arange(size),
        size,
    )
    ours = leaves(unit(batch, width, seed=3), unit(batch, width, seed=4))
    ids = {"image_ids": torch.arange(batch)[:, None], "text_ids": torch.arange(batch)}
    teacher = {"teacher_image": unit(batch, width, seed=5), "teacher_text": unit(batch, width, seed=6)}
    LargestTensor.numel = 0
    with LargestTensor():
        queued_contrast(*ours, queue=queue, alpha=0.4, **ids, **teacher).loss.backward()
    assert batch * size <= LargestTensor.numel < size * width // 4


def test_the_queue_may_be_written_before_the_backward_pass(unit, past):
    gradients = []
    for write in (False, True):
        queue, ours = past(), leaves(unit(4, seed=1), unit(4, seed=2))
        teacher = {"teacher_image": unit(4, seed=3), "teacher_text": unit(4, seed=4)}
        loss = queued_contrast(*ours, queue=queue, alpha=0.4, **teacher).loss
        if write:
            queue.image.fill_(9), queue.text.fill_(9)
        gradients.append(torch.autograd.grad(loss, ours))
    check(*gradients, tolerance=0)


def test_without_gradient_nothing_is_prepared_for_it(unit):
    ours = leaves(unit(4, seed=1), unit(4, seed=2))
    with torch.no_grad():
        quiet = queued_contrast(*ours)
    assert not quiet.loss.requires_grad
    check(quiet, [x.detach() for x in queued_contrast(*ours)], tolerance=0)


def test_errors_say_what_does_not_fit(unit, past):
    image, text = unit(4), unit(5)
    for call, words in (
        (lambda: queued_contrast(image, text, 1.0), "4 images and 5 texts; pass image_ids and text_ids"),
        (lambda: queued_contrast(image, image, 1.0, image_ids=torch.arange(4)), "together, or neither"),
        (lambda: queued_contrast(image, image, 1.0, teacher_image=image), "together, or neither"),
        (lambda: queued_contrast(image, image, 1.0, alpha=0.4), "alpha is 0.4; .* 0 without a teacher"),
        (
            lambda: queued_contrast(image, image, 1.0, alpha=2, teacher_image=image, teacher_text=image),
            r"alpha is 2; .* in \[0, 1\]",
        ),
        (
            lambda: queued_contrast(image, image, 1.0, teacher_image=image, teacher_text=text),
            r"teacher_text \(5, 24\) must have the shape of text \(4, 24\)",
        ),
        (lambda: queued_contrast(image, text[:4, :3], 1.0), r"not \(4, 24\) and \(4, 3\)"),
        (
            lambda: queued_contrast(image, text, 1.0, image_ids=torch.arange(4), text_ids=torch.arange(4)),
            r"text_ids \(4,\) do not fit 4 images and 5 texts",
        ),
        (lambda: queued_contrast(image[:0], image[:0], 1.0), "needs pairs"),
        (
            lambda: queued_contrast(image[:, :8], image[:, :8], 1.0, queue=past()),
            "vectors of 24 numbers, the batch of 8",
        ),
    ):
        with pytest.raises(ZooError, match=words):
            call()
