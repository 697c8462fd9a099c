"""Drawing hard negatives: what is never drawn, what is drawn how often, and scores at the ends of the scale."""

import pytest
import torch

from mmzoo.losses.negatives import draw_negatives
from mmzoo.ops.pairs import Diagonal, Positives

DRAWS = 20_000
LOGITS = torch.tensor([9.0, 0.0, 1.0, -1.0, 0.5, 2.0])  # column 0 is the positive
CRITICAL = 23.5  # chi-square with 4 degrees of freedom exceeds it once in 10,000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def statistic(drawn, weights):
    """Pearson's chi-square of drawn columns 1 to 5 against weights."""
    counts = torch.bincount(drawn, minlength=6)[1:].double()
    expected = DRAWS * weights / weights.sum()
    return ((counts - expected) ** 2 / expected).sum().item()


def expected_weights(weighting):
    weights = LOGITS.double().softmax(0)
    return (weights + 1e-4 if weighting == "blip" else weights)[1:]


@pytest.mark.parametrize("weighting", ["log", "albef", "blip"])
@pytest.mark.parametrize("side", ["text", "image"])
def test_frequencies(weighting, side):
    scores = LOGITS.expand(DRAWS, 6)
    many, few = torch.zeros(DRAWS, dtype=torch.int64), torch.arange(6)
    if side == "text":
        drawn = draw_negatives(scores, Positives(many, few), generator=generator(), weighting=weighting).text
    else:
        drawn = draw_negatives(
            scores.T, Positives(few, many), generator=generator(), weighting=weighting
        ).image
    assert (drawn != 0).all()
    right = expected_weights(weighting)
    assert statistic(drawn, right) < CRITICAL
    # the power of the test: each of these would have been noticed
    others = {
        "a temperature 10 % off": right ** (1 / 1.1),
        "uniform": torch.ones(5, dtype=torch.float64),
        "the other constant": expected_weights("log" if weighting == "blip" else "blip"),
    }
    for name, weights in others.items():
        assert statistic(drawn, weights) > CRITICAL, name


def test_rows_are_drawn_independently():
    scores = torch.zeros(4000, 3)
    positives = Positives(torch.full((4000,), 5), torch.arange(3))
    drawn = draw_negatives(scores, positives, generator=generator()).text
    pairs = torch.bincount(drawn[::2] * 3 + drawn[1::2], minlength=9).double()
    expected = 2000 / 9
    assert ((pairs - expected) ** 2 / expected).sum() < 31.8  # 8 degrees of freedom, once in 10,000


@pytest.mark.parametrize("weighting", ["log", "albef", "blip"])
def test_never_a_positive_nor_the_same_id(weighting):
    image_ids = torch.tensor([[1, 9], [1, -1], [2, 9], [3, -1], [4, -1], [4, 2]])
    text_ids = torch.tensor([1, 9, 2, 3, 4, 4, 7])
    belong = torch.tensor([[t in set(row) - {-1} for t in text_ids.tolist()] for row in image_ids.tolist()])
    scores = torch.where(belong, 50.0, 0.0)  # by score alone nothing but positives would be drawn
    positives = Positives(image_ids, text_ids)
    source = generator()
    for _ in range(200):
        out = draw_negatives(scores, positives, generator=source, weighting=weighting)
        assert out.image_found.all()
        assert out.text_found.all()
        assert not belong[out.image, torch.arange(7)].any()
        assert not belong[torch.arange(6), out.text].any()


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("weighting", ["log", "albef", "blip"])
def test_rows_without_a_valid_negative_are_not_found(batch, weighting):
    same = Positives(torch.full((batch,), 3), torch.full((batch,), 3))
    out = draw_negatives(torch.randn(batch, batch), same, generator=generator(), weighting=weighting)
    assert not out.image_found.any()
    assert not out.text_found.any()
    assert (out.image == 0).all(), "an index that gathering takes"
    assert (out.text == 0).all()
    paired = draw_negatives(
        torch.randn(batch, batch), Diagonal(batch), generator=generator(), weighting=weighting
    )
    assert paired.image_found.all() == paired.text_found.all() == (batch > 1)


def test_one_caption_for_all_images_and_one_of_its_own():
    positives = Positives(torch.tensor([[0, 1], [0, -1], [0, -1]]), torch.tensor([0, 1]))
    out = draw_negatives(torch.zeros(3, 2), positives, generator=generator())
    assert out.image_found.tolist() == [False, True]
    assert out.text_found.tolist() == [False, True, True]
    assert out.text.tolist()[1:] == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("high", [1e4, 6e4])
def test_extreme_scores(dtype, high):
    # the positive towers over negatives whose softmax underflows; among those the best must win
    scores = torch.full((3, 3), -high, dtype=dtype)
    scores.fill_diagonal_(high)
    scores[0, 2] = -high / 2
    out = draw_negatives(scores, Diagonal(3), generator=generator())
    assert out.text_found.all()
    assert out.image_found.all()
    assert out.text[0] == 2
    assert out.image[2] == 0
    assert (out.text != torch.arange(3)).all()
    blip = draw_negatives(scores, Diagonal(3), generator=generator(), weighting="blip")
    assert blip.text_found.all()
    assert (blip.text != torch.arange(3)).all()
    # where ALBEF's multinomial fails for want of any weight
    albef = draw_negatives(scores, Diagonal(3), generator=generator(), weighting="albef")
    assert not albef.text_found.any()


def test_fine_differences_between_large_scores_still_count():
    # float32 near 1e7 holds whole numbers only: noise added there would be rounded away
    scores = (1e7 + torch.tensor([0.0, 0.0, 1.0])).expand(DRAWS, 3)
    drawn = draw_negatives(
        scores, Positives(torch.zeros(DRAWS).long(), torch.arange(3)), generator=generator()
    ).text
    share = (drawn == 2).double().mean().item()
    p = torch.sigmoid(torch.tensor(1.0)).item()
    assert abs(share - p) < 4 * (p * (1 - p) / DRAWS) ** 0.5


def test_the_same_generator_draws_the_same():
    scores = torch.randn(8, 8, generator=generator(3))
    first, again, other = (
        draw_negatives(scores, Diagonal(8), generator=generator(seed)) for seed in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.text, other.text)
    assert not torch.equal(first.text, first.image), "two draws, not one used twice"


def test_the_other_side_may_have_scores_of_its_own():
    scores, text_scores = torch.zeros(3, 3), torch.zeros(3, 3)
    scores[:, 2] = text_scores[:, 1] = 1e4
    out = draw_negatives(scores, Diagonal(3), generator=generator(), text_scores=text_scores)
    assert out.text[:2].tolist() == [2, 2]
    assert out.image[[0, 2]].tolist() == [1, 1]


def test_scores_stay_as_they_are_and_carry_no_gradient():
    scores = torch.randn(4, 4, requires_grad=True)
    before = scores.detach().clone()
    draw_negatives(scores, Diagonal(4), generator=generator(), weighting="blip")
    assert torch.equal(scores.detach(), before)


def test_the_number_of_operations_does_not_grow_with_the_batch():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    calls = []
    for batch in (4, 64):
        with Count() as count:
            draw_negatives(torch.zeros(batch, batch), Diagonal(batch), generator=generator())
        calls.append(count.calls)
    assert calls[0] == calls[1]


def test_one_random_number_for_each_image_and_text():
    states = []
    for images, texts in ((5, 5), (2, 8)):
        source = generator()
        positives = Positives(torch.arange(images), torch.arange(texts))
        draw_negatives(torch.zeros(images, texts), positives, generator=source)
        states.append(source.get_state())
    assert torch.equal(*states)
    source = generator()
    draw_negatives(torch.zeros(5, 6), Positives(torch.arange(5), torch.arange(6)), generator=source)
    assert not torch.equal(source.get_state(), states[0])


def test_a_row_of_many_struck_out_columns_never_gives_one_of_them():
    # most columns have no width at all: no ticket may fall on the edge that they share with a real one
    count = 3000
    scores = torch.full((count, count), -1e4)
    scores[:, ::7] = 0.0
    drawn = draw_negatives(scores, Diagonal(count), generator=generator()).text
    assert (drawn % 7 == 0).all()
    assert (drawn != torch.arange(count)).all()
