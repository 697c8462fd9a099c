"""VQA's and NLVR2's accuracies, against hand-worked examples."""

from __future__ import annotations

import math
import random

import pytest
import torch

from mmzoo.errors import ZooError
from mmzoo.metrics.vqa import PairVerdicts, VQAAccuracy, answer_accuracy, constant_accuracy
from mmzoo.processing.answers import normalise_answer, strip_punctuation


@pytest.mark.parametrize(
    ("written", "compared"),
    [
        ("Yes", "yes"),
        ("The two cats.", "2 cats"),
        ("none", "0"),
        ("an ice-cream", "ice cream"),  # a hyphen between letters is a space
        ("ice -cream", "ice cream"),  # beside a space it is nothing
        ("1,000", "1000"),  # a comma between digits takes all marks out without a space
        ("1,000 a/b", "1000 ab"),
        ("3.5", "3.5"),
        ("3.5.", "3.5"),
        ("u.s.", "us"),
        ("dont", "don't"),
        ("somebody'd", "somebodyd"),  # an oddity of the table that published numbers are counted with
        ("a", ""),
        (" new\nyork\t", "new york"),
        ("what?!", "what"),  # `?` is at the end of the text, a space that is stripped by splitting
        ("", ""),
    ],
)
def test_answers_are_compared_in_one_form(written, compared):
    assert normalise_answer(written) == compared


def test_a_mark_is_judged_by_the_whole_answer():
    # one comma beside a space anywhere makes every comma vanish
    assert strip_punctuation("a,b, c") == "ab c"
    assert strip_punctuation("a,b") == "a b"


def test_every_number_word_becomes_its_digits():
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    assert [normalise_answer(word) for word in words] == [str(i) for i in range(11)]


@pytest.mark.parametrize(
    ("agree", "accuracy"),
    # of ten annotators n agree: leaving out one of them leaves n - 1, leaving out another leaves n
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)],
)
def test_official_accuracy_of_ten_annotators(agree, accuracy):
    assert answer_accuracy("cat", ["cat"] * agree + ["dog"] * (10 - agree)) == pytest.approx(
        accuracy, abs=1e-12
    )


def test_leave_one_out_is_what_the_closed_form_says():
    draw = random.Random(0)
    for _ in range(200):
        said = [draw.choice(["a b", "b", "2", "two", "c-d"]) for _ in range(draw.randint(2, 12))]
        guess = draw.choice([*said, "else"])
        plain = len(set(said)) == 1
        form = (lambda text: text) if plain else normalise_answer
        others = [[form(s) for j, s in enumerate(said) if j != i] for i in range(len(said))]
        expected = sum(min(1, rest.count(form(guess)) / 3) for rest in others) / len(said)
        assert answer_accuracy(guess, said) == pytest.approx(expected, abs=1e-12)


def test_annotators_of_one_mind_are_compared_as_written():
    """The kit normalises only where annotators differ."""
    assert answer_accuracy("The cat", ["the cat"] * 10) == 0.0
    assert answer_accuracy("the cat", ["the cat"] * 10) == 1.0
    assert answer_accuracy("Cat", ["the cat"] * 9 + ["dog"]) == 1.0


def test_one_annotator_is_a_plain_match():
    assert answer_accuracy("The circle", ["circle"]) == 1.0
    assert answer_accuracy("square", ["circle"]) == 0.0
    with pytest.raises(ZooError, match="no published answers"):
        answer_accuracy("circle", [])


def test_accuracy_by_type_does_not_depend_on_the_order():
    rows = [
        ("yes", ("yes",) * 10, "yes/no"),
        ("no", ("yes",) * 10, "yes/no"),
        ("2", ("2", "2", "3") + ("4",) * 7, "number"),
        ("red", ("red",), "other"),
        ("red", (), "other"),
    ]
    reports = []
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        metric = VQAAccuracy()
        metric.update(*zip(*rows[:2]))
        metric.update(*zip(*rows[2:]))
        reports.append(metric.compute())
    assert reports[0] == reports[1] == reports[2]
    report = reports[0]
    assert report.by_kind == pytest.approx({"yes/no": 0.5, "number": 0.6, "other": 1.0})
    assert report.counts == {"number": 1, "other": 1, "yes/no": 2}
    assert report.accuracy == pytest.approx((1 + 0 + 0.6 + 1) / 4)
    assert (report.questions, report.unpublished) == (4, 1)
    metric.reset()
    assert math.isnan(metric.compute().accuracy)


def test_consistency_wants_every_pair_of_a_sentence():
    groups = torch.tensor([7, 7, 7, 7, 9, 9, 4])
    labels = torch.tensor([1, 0, 1, 0, 1, 1, -1])
    predicted = torch.tensor([1, 0, 1, 0, 1, 0, 1])
    whole = PairVerdicts()
    whole.update(predicted, labels, groups)
    report = whole.compute()
    assert report.accuracy == pytest.approx(5 / 6)
    assert report.consistency == 0.5
    assert (report.pairs, report.sentences, report.unpublished) == (6, 2, 1)
    assert report.majority == pytest.approx(4 / 6)
    assert report.guessed_consistency == pytest.approx((4 / 6) ** 3)
    order = torch.tensor([6, 2, 5, 0, 4, 3, 1])
    split = PairVerdicts()
    for part in order.split(3):  # a sentence's pairs come in different batches
        scores = torch.nn.functional.one_hot(predicted[part], 2).float()
        split.update(scores, labels[part], groups[part])
    assert split.compute() == report


def test_verdicts_that_make_no_sense_are_refused():
    metric = PairVerdicts()
    assert math.isnan(metric.compute().accuracy)
    with pytest.raises(ZooError, match="nan"):
        metric.update(torch.full((2, 2), math.nan), torch.zeros(2).long(), torch.zeros(2).long())
    with pytest.raises(ZooError, match="do not fit"):
        metric.update(torch.zeros(2).long(), torch.zeros(3).long(), torch.zeros(3).long())
    metric.update(torch.zeros(2).long(), torch.full((2,), -1), torch.zeros(2).long())
    report = metric.compute()
    assert math.isnan(report.consistency)
    assert report.unpublished == 2


def test_what_always_giving_one_answer_gets():
    said = [("no",) * 10, ("red",) * 7 + ("no",) * 3, (), ("yes",) * 3]
    assert constant_accuracy(said) == pytest.approx((1 + 0.9 + 0) / 3)  # "no"
    assert constant_accuracy([("b",), ("a",), ("c",)]) == pytest.approx(1 / 3)
    assert constant_accuracy([(), ()]) == 0.0
