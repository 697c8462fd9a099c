"""easy-VQA's questions are the package's, and its wrong captions are wrong by one word."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from mmzoo.data.open import open_source
from mmzoo.data.open_tasks import QUESTIONS, list_task_splits, open_questions
from mmzoo.data.sample import QuestionSource, Source
from mmzoo.data.sources.easyvqa import EasyVQASource
from mmzoo.data.sources.easyvqa_tasks import MATCH_SPLITS, EasyVQAMatches, EasyVQAQuestions, hard_captions
from mmzoo.errors import UsageError, ZooError

COUNTS = {"train": 38_575, "val": 9_673}


@pytest.fixture(scope="module")
def questions():
    return {split: EasyVQAQuestions(split=split) for split in COUNTS}


@pytest.mark.parametrize(("split", "part"), [("train", "train"), ("val", "test")])
def test_questions_are_the_packages(questions, split, part):
    easy_vqa = pytest.importorskip("easy_vqa", reason="needs the extra 'easyvqa'")
    source = questions[split]
    asked, answered, pictures = getattr(easy_vqa, f"get_{part}_questions")()
    assert len(source) == len(asked) == COUNTS[split]
    told = [source.told(i) for i in range(len(source))]
    assert [t.question for t in told] == list(asked)
    assert [t.answers for t in told] == [(answer,) for answer in answered]
    assert [t.image_key for t in told] == [f"{part}/{picture}" for picture in pictures]
    assert source.classes == tuple(easy_vqa.get_answers())


def test_pictures_are_the_captions_pictures(questions):
    captions = EasyVQASource(split="all")
    by_key = {captions._rows[i][0]: i for i in range(len(captions))}
    source = questions["train"]
    for index in range(0, len(source), 4000):
        sample = source[index]
        assert sample.bare() == source.told(index)
        if sample.image_key in by_key:
            assert np.array_equal(np.asarray(sample.image), captions.tiles[by_key[sample.image_key]])


def test_samples_are_named_and_sorted_by_kind(questions):
    for split, source in questions.items():
        told = [source.told(i) for i in range(len(source))]
        assert len({t.key for t in told}) == len({t.question_id for t in told}) == COUNTS[split]
        kinds = {"yes/no": {a for t in told if t.kind == "yes/no" for a in t.answers}}
        assert kinds["yes/no"] == {"yes", "no"}
        assert {t.kind for t in told} == {"yes/no", "open"}
        assert told[0].votes == (1,)
        assert told[0].said == told[0].answers


def test_found_by_folder_and_by_name(questions, tmp_path):
    for path in ("easy-vqa", "data/easyvqa"):
        source = open_questions(path, split="val")
        assert isinstance(source, QuestionSource)
        assert len(source) == COUNTS["val"]
        assert list_task_splits(path, QUESTIONS) == ("train", "val")
    with pytest.raises(UsageError, match="no split 'test'"):
        open_questions("easy-vqa", split="test")
    with pytest.raises(ZooError, match=r"questions\.json|easyvqa\.json"):
        EasyVQAQuestions(tmp_path)
    again = pickle.loads(pickle.dumps(questions["val"]))
    assert again.told(77) == questions["val"].told(77)


def test_hard_captions_differ_in_one_word():
    known = EasyVQASource().classes
    wrong = hard_captions("a blue circle", known)
    assert len(wrong) == len(set(wrong)) == 7 + 2
    assert wrong[-2:] == ("a blue rectangle", "a blue triangle")
    assert all(sum(a != b for a, b in zip(w.split(), ["a", "blue", "circle"])) == 1 for w in wrong)
    assert hard_captions("a blue circle", ("blue circle", "red circle", "red triangle")) == ("a red circle",)


@pytest.mark.parametrize("split", MATCH_SPLITS)
def test_matches_are_half_right_and_told_by_labels_and_ids(split):
    source = open_source("easy-vqa", split=split)
    assert isinstance(source, Source)
    pictures = EasyVQASource(split=split.removesuffix("-match"))
    assert len(source) == 2 * len(pictures)
    samples = [source[i] for i in range(len(source))]
    assert len({s.key for s in samples}) == len(samples)
    for i, sample in enumerate(samples):
        (truth,) = pictures[i // 2].texts
        assert np.array_equal(np.asarray(sample.image), pictures.tiles[i // 2])
        assert (sample.texts[0] == truth) == (sample.label == 1) == (i % 2 == 0)
        assert (sample.text_ids[0] in sample.image_ids) == (sample.label == 1)
        if sample.label == 0:
            assert sample.texts[0] in hard_captions(truth, pictures.classes)
    wrong = [s.texts[0].split() for s in samples[1::2]]
    truth = [s.texts[0].split() for s in samples[::2]]
    colours = np.mean([w[1] != t[1] for w, t in zip(wrong, truth)])
    assert colours == pytest.approx(0.5, abs=0.01)
    assert len({tuple(w) for w in wrong}) > 12  # not always the same few


def test_wrong_captions_of_known_pairs_are_known_ones():
    train = EasyVQASource(split="train")
    trained = {train.caption(i) for i in range(len(train))}
    samples = EasyVQAMatches(split="val-match")
    assert {samples[i].texts[0] for i in range(len(samples))} == trained
    with pytest.raises(UsageError, match="val-match, left-out-match"):
        EasyVQAMatches(split="val")
    with pytest.raises(IndexError):
        samples[len(samples)]
