import math

import pytest
import torch

from mmzoo.errors import ZooError
from mmzoo.metrics.classification import Classification, topk_accuracy

NAMES = ["ant", "bee", "cow", "dog", "eel", "fox"]


def stream(n=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (n,), generator=generator)  # nobody is a fox
    logits = torch.randn(n, 6, generator=generator)
    logits[torch.arange(n), labels] += 0.5
    return logits, labels


@pytest.mark.parametrize("size", [1, 64, 200])
def test_numbers_are_those_of_a_count_by_hand(size):
    logits, labels = stream()
    metric = Classification(NAMES, ks=(1, 3, 7))
    for some, right in zip(logits.split(size), labels.split(size), strict=True):
        metric.update(some, right)
    report = metric.compute()

    order = [sorted(range(6), key=lambda c, row=row: -row[c]) for row in logits.tolist()]
    truth = labels.tolist()
    assert report.samples == 200
    assert report.top == {k: sum(t in o[:k] for t, o in zip(truth, order, strict=True)) / 200 for k in (1, 3)}
    table = [[0] * 6 for _ in NAMES]
    for t, o in zip(truth, order, strict=True):
        table[t][o[0]] += 1
    assert report.confusion.tolist() == table
    assert report.confusion.dtype == torch.int64
    for c, row in enumerate(report.classes[:5]):
        wrong = [n if p != c else -1 for p, n in enumerate(table[c])]
        assert row.name == NAMES[c]
        assert row.samples == sum(table[c])
        assert row.accuracy == table[c][c] / sum(table[c])
        assert row.confused_with == NAMES[wrong.index(max(wrong))]
        assert row.confused_share == max(wrong) / sum(table[c])
    assert math.isnan(report.classes[5].accuracy)
    assert report.classes[5][1] == 0
    assert report.classes[5].confused_with is None
    assert report.mean_per_class == pytest.approx(sum(table[c][c] / sum(table[c]) for c in range(5)) / 5)
    assert report.majority == max(map(sum, table)) / 200


def test_indices_give_what_logits_give():
    logits, labels = stream(seed=1)
    from_logits, from_indices = Classification(6, ks=(1, 4)), Classification(6, ks=(1, 4))
    from_logits.update(logits, labels)
    from_indices.update_topk(logits.topk(5).indices, labels)
    a, b = from_logits.compute(), from_indices.compute()
    assert a.top == b.top
    assert torch.equal(a.confusion, b.confusion)
    assert a.classes[3].name == "3"


def test_rare_classes_count_alike_in_the_mean_per_class():
    metric = Classification(2, ks=(1,))
    metric.update_topk(torch.zeros(10, 1, dtype=torch.int64), torch.tensor([0] * 9 + [1]))
    report = metric.compute()
    assert report.top == {1: 0.9}
    assert report.mean_per_class == 0.5
    assert report.majority == 0.9
    assert report.classes[0].confused_with is None
    assert report.classes[1][3:] == ("0", 1.0)


def test_what_was_computed_stays_and_reset_forgets():
    metric = Classification(3, ks=(1,))
    metric.update(torch.eye(3), torch.arange(3))
    before = metric.compute()
    metric.update(torch.eye(3), torch.zeros(3, dtype=torch.int64))
    assert before.confusion.sum() == 3
    metric.reset()
    empty = metric.compute()
    assert empty.samples == 0
    assert math.isnan(empty.top[1])
    assert math.isnan(empty.mean_per_class)


def test_topk_accuracy_of_a_batch():
    logits, labels = stream(seed=2)
    metric = Classification(6, ks=(1, 2))
    metric.update(logits, labels)
    for k in (1, 2):
        value = topk_accuracy(logits.requires_grad_(), labels, k)
        assert value.item() == pytest.approx(metric.compute().top[k])
        assert not value.requires_grad


def test_errors_say_what_does_not_fit():
    metric = Classification(3, ks=(1, 2))
    labels = torch.tensor([0, 1])
    for call, words in (
        (lambda: metric.update(torch.zeros(2, 4), labels), r"\(2, 4\), but there are 3 classes"),
        (lambda: metric.update(torch.full((2, 3), torch.nan), labels), "nan"),
        (lambda: metric.update(torch.zeros(2, 3), torch.tensor([0, -1])), "label lies outside 0 to 2"),
        (lambda: metric.update(torch.zeros(2, 3), torch.tensor([0, 3])), "label lies outside 0 to 2"),
        (lambda: metric.update_topk(torch.tensor([[0, 5], [1, 2]]), labels), "predicted class lies outside"),
        (lambda: metric.update_topk(torch.tensor([[0], [1]]), labels), r"do not fit top-2 accuracy"),
        (lambda: metric.update(torch.zeros(2, 3), labels[:1]), "do not fit"),
    ):
        with pytest.raises(ZooError, match=words):
            call()
    assert metric.compute().samples == 0, "what is refused is not counted"
