"""Closed lists of answers: how they are read, made and looked up, and what answers are worth on them."""

from __future__ import annotations

import json

import pytest

from mmzoo.data.answers import AnswerList, frequent_answers, read_answers
from mmzoo.data.sample import QuestionSample
from mmzoo.errors import ZooError


def question(*said: str, number: int = 0, weight: float = 1.0) -> QuestionSample:
    kinds = tuple(dict.fromkeys(said))
    votes = tuple(said.count(kind) for kind in kinds)
    weights = tuple(weight * vote / len(said) for vote in votes)
    return QuestionSample(f"q/{number}", b"", "what?", kinds, votes, weights, number, "a.jpg")


class Asked:
    name, classes = "asked", None

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def told(self, index):
        return self.samples[index]

    __getitem__ = told


def test_answers_are_found_as_written_then_normalised():
    answers = AnswerList(["2", "cat", "the cat", "ice cream"])
    assert [answers.find(a) for a in ("2", "two", "Cat", "the cat", "A cat.", "ice-cream", "dog")] == [
        0, 0, 1, 2, 1, 3, None,
    ]  # fmt: skip
    assert len(answers) == 4


def test_votes_are_the_official_score_and_join_spellings():
    answers = AnswerList(["2", "3", "many"])
    sample = question(*["2"] * 2, "two", *["3"] * 2, *["lots"] * 5)
    # "two" is normalised to "2": three agree; "lots" is not on the list and counts for nothing
    assert answers.worth(sample, "votes") == pytest.approx({0: 1.0, 1: 2 / 3})
    assert answers.worth(sample, "weights") == pytest.approx({0: 0.3, 1: 0.2})
    assert answers.worth(question("3"), "votes") == {1: 1.0}  # one annotator, who is fully right
    assert answers.worth(question("3", weight=0.5), "weights") == {1: 0.5}
    assert answers.worth(question("lots"), "votes") == {}
    assert answers.knows(sample)
    assert not answers.knows(question("lots", "few"))
    assert not answers.knows(question())


def test_a_list_of_frequent_answers():
    samples = [question("Red", "Red", "blue", number=i) for i in range(5)]
    samples += [question("blue", number=10 + i) for i in range(3)]
    samples += [question("green", number=20), question(number=21)]
    assert frequent_answers(Asked(samples), 3).texts == ("red", "blue")
    assert frequent_answers(Asked(samples), 1).texts == ("red", "blue", "green")
    with pytest.raises(ZooError, match="asked: no answer is the most common one of 9 questions"):
        frequent_answers(Asked(samples))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("answer_list.json", json.dumps(["yes", "no", "2"])),
        ("ans2label.json", json.dumps({"no": 1, "2": 2, "yes": 0})),
        ("config.json", json.dumps({"id2label": {"1": "no", "0": "yes", "2": "2"}, "label2id": {"yes": 0}})),
        ("label2ans.json", json.dumps({"0": "yes", "1": "no", "2": "2"})),
        ("answers.txt", "yes\nno\n\n2\n"),
    ],
)
def test_published_lists_are_read_in_their_order(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert read_answers(tmp_path / name).texts == ("yes", "no", "2")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[1, 2]", "is not a list of answers; expected"),
        ('{"yes": 0, "no": 2}', "is not a list of answers; expected"),
        ("[", "is not a list of answers: "),
        ("[]", "the list of answers is empty"),
        ('["yes", "no", "yes"]', "names 'yes' twice"),
    ],
)
def test_what_is_no_list_is_said(tmp_path, content, says):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ZooError, match=says):
        read_answers(tmp_path / "a.json")
    with pytest.raises(ZooError, match="no list of answers at"):
        read_answers(tmp_path / "b.json")
