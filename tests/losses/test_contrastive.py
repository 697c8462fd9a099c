import math

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch.utils._python_dispatch import TorchDispatchMode

from mmzoo.errors import ZooError
from mmzoo.losses.contrastive import clip_loss
from mmzoo.losses.sigmoid import siglip_loss

# Several ids an image with padding, ids twice in a row, a text of three images, one image and two texts with nothing.
IMAGE_IDS = torch.tensor([[5, 9], [6, -1], [6, 9], [7, 7], [40, -1], [8, 9], [2, 3], [3, 2]])
TEXT_IDS = torch.tensor([9, 5, 6, 7, 7, 50, 8, 2, 3, -1, 6])


def softmax_loss(image, text, scale, bias, **options):
    return clip_loss(image, text, scale, **options)


def leaves(image, text, scale=20.0, bias=-3.0):
    numbers = (torch.tensor(x, dtype=torch.float64) for x in (scale, bias))
    return [x.clone().requires_grad_() for x in (image, text, *numbers)]


def gradients(loss, inputs):
    return torch.autograd.grad(loss, inputs, allow_unused=True)


def check_equal(ours, theirs, tolerance=1e-12):
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
@pytest.mark.parametrize("tile", [1, 3, 4, 8, 512])
@pytest.mark.parametrize("ids", [True, False])
def test_equals_the_dense_formula(name, tile, ids, unit, dense):
    image, text = unit(8, seed=1), unit(11 if ids else 8, seed=2)
    if ids:
        options, positive = (
            {"image_ids": IMAGE_IDS, "text_ids": TEXT_IDS},
            dense.positive(IMAGE_IDS, TEXT_IDS),
        )
    else:
        options, positive = {}, torch.eye(8, dtype=torch.bool)
    ours, theirs = leaves(image, text), leaves(image, text)
    result = {"softmax": softmax_loss, "sigmoid": siglip_loss}[name](*ours, **options, tile=tile)
    oracle = dense.softmax(*theirs[:3], positive) if name == "softmax" else dense.sigmoid(*theirs, positive)
    check_equal([result.loss], [oracle])
    check_equal(gradients(result.loss, ours), gradients(oracle, theirs))
    check_equal(result[1:], dense.accuracies(image, text, positive))


def test_equals_open_clip(unit):
    image, text = unit(20, seed=3), unit(20, seed=4)
    for ours, theirs in (
        (lambda *x: clip_loss(*x[:3], tile=7).loss, lambda *x: ClipLoss()(*x[:3])),
        (lambda *x: siglip_loss(*x, tile=7).loss, SigLipLoss()),
    ):
        mine, peer = leaves(image, text), leaves(image, text)
        a, b = ours(*mine), theirs(*peer)
        check_equal([a], [b])
        check_equal(gradients(a, mine), gradients(b, peer))


@pytest.mark.parametrize("tile", [2, 8])
def test_gradcheck(tile, unit):
    image, text = unit(5, 4, seed=5), unit(6, 4, seed=6)
    ids = {"image_ids": torch.tensor([0, 1, 1, 2, 3]), "text_ids": torch.tensor([0, 1, 2, 2, 3, 9])}
    inputs = leaves(image, text, 4.0, -1.0)
    assert torch.autograd.gradcheck(lambda *x: clip_loss(*x, **ids, tile=tile).loss, inputs[:3])
    assert torch.autograd.gradcheck(lambda *x: siglip_loss(*x, **ids, tile=tile).loss, inputs)


@pytest.mark.parametrize("tile", [16, 1024])
def test_columns_do_not_underflow_at_scale_100(tile, unit, dense):
    # Near-orthogonal pairs, and texts a little on the far side of every image: no cosine of theirs is above -0.05.
    image, text = unit(96, 512, seed=7), unit(96, 512, seed=8)
    common = unit(1, 512, seed=9)
    image = torch.nn.functional.normalize(image + common, dim=1)
    text[:48] = torch.nn.functional.normalize(text[:48] - 0.3 * common, dim=1)
    single = [x.float() for x in (image, text)]
    fixed_shift = (100 * single[0] @ single[1].T - 100).exp().sum(0).log()
    assert (fixed_shift == -torch.inf).sum() > 5, "the bound |z| <= scale must not be enough"
    ours = [x.requires_grad_() for x in (*single, torch.tensor(100.0))]
    theirs = [x.clone().requires_grad_() for x in (image, text, torch.tensor(100.0, dtype=torch.float64))]
    result = clip_loss(*ours, tile=tile).loss
    oracle = dense.softmax(*theirs, torch.eye(96, dtype=torch.bool))
    assert math.isfinite(result.item())
    torch.testing.assert_close(result.double(), oracle, rtol=1e-6, atol=0)
    for a, b in zip(gradients(result, ours), gradients(oracle, theirs), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", [1, -1])
def test_running_maximum_takes_a_column_that_grows_or_falls(order, dense):
    # Row k scores 1200 k against every text: exp overflows and underflows unless the maximum moves with the tiles.
    image = torch.linspace(-1, 1, 9, dtype=torch.float64)[::1, None] * order
    text = torch.ones(9, 1, dtype=torch.float64)
    result = clip_loss(image, text, 1200.0, tile=2).loss
    torch.testing.assert_close(result, dense.softmax(image, text, 1200.0, torch.eye(9, dtype=torch.bool)))


@pytest.mark.parametrize("loss", [softmax_loss, siglip_loss])
def test_two_captions_of_one_image_attract_its_copies(loss, unit):
    ids = torch.tensor([3, 3, 5, 6])
    pull = {}
    for name, options in (("ids", {"image_ids": ids, "text_ids": ids}), ("order", {})):
        text = torch.full((4, 4), 0.1, dtype=torch.float64, requires_grad=True)
        # The images being unit vectors, the texts' gradient is the gradient of each pair's cosine.
        result = loss(torch.eye(4, dtype=torch.float64), text, 1.0, 0.0, **options)
        (pull[name],) = gradients(result.loss, [text])
    assert pull["order"][1, 0] > 0, "paired by order, caption 1 is pushed from image 0"
    assert pull["ids"][1, 0] < 0
    assert pull["ids"][2, 0] > 0


def test_rows_without_positive_leave_the_mean_but_stay_negatives(unit, dense):
    image, text = unit(3, seed=13), unit(3, seed=14)
    ids = {"image_ids": torch.tensor([0, 1, 7]), "text_ids": torch.tensor([0, 1, 8])}
    positive = torch.diag(torch.tensor([True, True, False]))
    result = clip_loss(image, text, 5.0, **ids)
    check_equal([result.loss], [dense.softmax(image, text, 5.0, positive)])
    assert result.loss > clip_loss(image[:2], text[:2], 5.0).loss, "the third pair adds negatives"
    nothing = clip_loss(
        image, text.requires_grad_(), 5.0, image_ids=torch.tensor([1, 2, 3]), text_ids=torch.full((3,), 9)
    )
    assert nothing.loss == 0
    assert not gradients(nothing.loss, [text])[0].any()
    assert nothing.image_accuracy == nothing.text_accuracy == 0


class LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return out


@pytest.mark.parametrize("with_ids", [True, False])
@pytest.mark.parametrize("loss", [softmax_loss, siglip_loss])
def test_no_matrix_of_all_pairs_is_ever_made(loss, with_ids, unit):
    inputs = leaves(unit(400, 8, seed=15), unit(400, 8, seed=16))
    ids = {"image_ids": torch.arange(400)[:, None] // torch.tensor([1, 4]), "text_ids": torch.arange(400)}
    with LargestTensor() as seen:
        loss(*inputs, **(ids if with_ids else {}), tile=20).loss.backward()
    assert inputs[0].grad is not None
    assert 20 * 400 <= seen.numel <= 20 * 400 + 400


@pytest.mark.parametrize("tile", [4, 512])
@pytest.mark.parametrize("loss", [softmax_loss, siglip_loss])
def test_autocast_changes_nothing(loss, tile, unit):
    image, text = unit(6, seed=17, dtype=torch.float32), unit(6, seed=18, dtype=torch.float32)
    outcomes = []
    for enabled in (False, True):
        inputs = [x.clone().requires_grad_() for x in (image, text, torch.tensor(90.0), torch.tensor(-10.0))]
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            result = loss(*inputs, tile=tile)
            result.loss.backward()
        assert result.loss.dtype == torch.float32
        outcomes.append([result.loss, *(x.grad for x in inputs)])
    check_equal(outcomes[0], outcomes[1], tolerance=0)


@pytest.mark.parametrize("loss", [softmax_loss, siglip_loss])
def test_low_precision_embeddings_are_computed_in_float32(loss, unit):
    image, text = unit(6, seed=19).bfloat16().requires_grad_(), unit(6, seed=20).bfloat16()
    result = loss(image, text, 90.0, -10.0)
    torch.testing.assert_close(
        result.loss, loss(image.float(), text.float(), 90.0, -10.0).loss, rtol=0, atol=0
    )
    assert gradients(result.loss, [image])[0].dtype == torch.bfloat16


@pytest.mark.parametrize("loss", [softmax_loss, siglip_loss])
def test_a_collapsed_model_is_not_accurate(loss):
    same = torch.nn.functional.normalize(torch.ones(6, 4), dim=1)
    result = loss(same, same, 10.0, 0.0, tile=4)
    assert result.image_accuracy == result.text_accuracy == 0


@pytest.mark.parametrize("loss", [softmax_loss, siglip_loss])
@pytest.mark.parametrize("tile", [2, 8])
def test_backward_twice_gives_the_same_and_no_grad_gives_none(loss, tile, unit):
    inputs = leaves(unit(6, seed=21), unit(6, seed=22))
    result = loss(*inputs, tile=tile)
    first, second = (torch.autograd.grad(result.loss, inputs[:3], retain_graph=True) for _ in range(2))
    check_equal(first, second, tolerance=0)
    assert not result.image_accuracy.requires_grad
    with torch.no_grad():
        quiet = loss(*inputs, tile=tile)
    assert not quiet.loss.requires_grad
    check_equal(quiet, [x.detach() for x in result], tolerance=0)


@pytest.mark.parametrize("loss", [softmax_loss, siglip_loss])
def test_scalars_may_be_numbers_or_one_element_tensors(loss, unit):
    image, text = unit(4), unit(4, seed=1)
    expected = loss(image, text, 3.0, -1.0).loss
    scale = torch.tensor([3.0]).requires_grad_()
    result = loss(image, text, scale, torch.tensor(-1.0)).loss
    torch.testing.assert_close(result, expected, rtol=0, atol=0)
    assert gradients(result, [scale])[0].shape == (1,)


@pytest.mark.parametrize("loss", [softmax_loss, siglip_loss])
def test_errors_say_what_does_not_fit(loss, unit):
    image, text = unit(4), unit(5)
    for call, words in (
        (lambda: loss(image, text, 1.0, 0.0), "4 images and 5 texts; pass image_ids and text_ids"),
        (lambda: loss(image, text, 1.0, 0.0, image_ids=torch.arange(4)), "together, or neither"),
        (lambda: loss(image, text[:4, :3], 1.0, 0.0), r"not \(4, 24\) and \(4, 3\)"),
        (
            lambda: loss(image, text, 1.0, 0.0, image_ids=torch.arange(4), text_ids=torch.arange(4)),
            r"text_ids \(4,\) do not fit 4 images and 5 texts",
        ),
        (lambda: loss(image, image, 1.0, 0.0, gather="ring"), "gather='ring' .* none, global or local"),
        (lambda: loss(image[:0], text[:0], 1.0, 0.0), "needs pairs"),
    ):
        with pytest.raises(ZooError, match=words):
            call()


@pytest.mark.parametrize("gather", ["auto", "global", "local"])
@pytest.mark.parametrize("loss", [softmax_loss, siglip_loss])
def test_gathering_alone_changes_nothing(loss, gather, unit):
    image, text = unit(5), unit(5, seed=1)
    check_equal(loss(image, text, 3.0, -1.0, gather=gather), loss(image, text, 3.0, -1.0), tolerance=0)
