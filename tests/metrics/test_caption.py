"""BLEU, ROUGE-L and CIDEr-D by hand, by brute force, and against the COCO kit's own numbers."""

from __future__ import annotations

import json
import math
import random
import time
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
import torch
from caption_kit import corpus

from mmzoo.errors import ZooError
from mmzoo.metrics.caption import Captioning, bleu, rouge_l, score_captions
from mmzoo.metrics.cider import CiderD, DocumentFrequencies

GOLDEN = Path(__file__).with_name("caption_kit.json")


def test_numbers_of_the_kit():
    """Sixty pictures with one to seven references, corner cases among them (tests/support/caption_kit.py)."""
    kit = json.loads(GOLDEN.read_text())
    report = score_captions(dict(enumerate(kit["candidates"])), dict(enumerate(kit["references"])))
    assert report.keys == tuple(range(60))
    for name, expected in kit["numbers"].items():
        assert report.numbers[name] == pytest.approx(expected, rel=1e-12, abs=1e-15), name
    for name, expected in kit["each"].items():
        assert report.each[name] == pytest.approx(expected, rel=1e-12, abs=1e-15), name


def words(*texts: str) -> list[list[str]]:
    return [text.split() for text in texts]


class TestBleu:
    def test_by_hand(self):
        # unigrams 3 of 4 ("the" clipped to 1... twice in one reference, so 2; "cat" 1), bigrams 1 of 3
        found = bleu(words("the the cat flies"), [words("the cat and the dog", "a cat")])
        # lengths: 5 is one off, 2 is two off: brevity exp(1 - 5/4)
        brevity = math.exp(1 - 5 / 4)
        assert found[0][0] == pytest.approx(3 / 4 * brevity, rel=1e-8)
        assert found[1][0] == pytest.approx(math.sqrt(3 / 4 * 1 / 3) * brevity, rel=1e-8)
        assert found[0][1] == [found[0][0]]  # one picture is the whole

    def test_ngrams_are_clipped_to_one_reference(self):
        (one, _), *_ = bleu(words("a a a a"), [words("a a b b", "a c c c")])
        assert one == pytest.approx(2 / 4, rel=1e-8)

    def test_of_equally_near_references_the_shorter_counts(self):
        (one, _), *_ = bleu(words("a b c d"), [words("a b c d e", "a b c")])
        assert one == pytest.approx(1.0, rel=1e-8)  # against 5 words it would be exp(-1/4)

    def test_the_whole_adds_up_before_dividing(self):
        (whole, each), *_ = bleu(words("a b c d", "x"), [words("a b c d"), words("y")])
        assert whole == pytest.approx(4 / 5, rel=1e-8)
        assert each == pytest.approx([1.0, 0.0], abs=1e-8)

    def test_empty_captions(self):
        for whole, each in bleu([[]], [words("a b")]):
            assert whole == 0.0
            assert each == [0.0]
        (whole, _), *_ = bleu([[], ["a"]], [words("a"), words("a")])
        assert whole == pytest.approx(math.exp(1 - 2), rel=1e-6)


class TestRouge:
    def test_by_hand(self):
        # "a dog the park" is common: precision 4/5; recall 4/6 of the first, 2/2 of the second reference
        found = rouge_l(["a", "dog", "in", "the", "park"], words("a brown dog at the park", "a dog"))
        precision, recall = 4 / 5, 1.0
        assert found == pytest.approx(2.44 * precision * recall / (recall + 1.44 * precision), rel=1e-12)

    def test_corner_cases(self):
        assert rouge_l([], words("a b")) == 0.0
        assert rouge_l(["x"], words("a b")) == 0.0
        assert rouge_l(["a"], [[]]) == 0.0
        assert rouge_l([], [[]]) == pytest.approx(1.0)  # the kit's oddity: an empty word equals an empty word
        assert rouge_l(["a", "b"], words("a b")) == pytest.approx(1.0)

    def test_common_subsequence_by_brute_force(self):
        def longest(a: list[str], b: list[str]) -> int:
            every = lambda x: {c for n in range(len(x) + 1) for c in combinations(x, n)}  # noqa: E731
            return max(map(len, every(a) & every(b)))

        draw = random.Random(0)
        for _ in range(200):
            a, b = (draw.choices("xyz", k=draw.randrange(1, 9)) for _ in "ab")
            p, r = longest(a, b) / len(a), longest(a, b) / len(b)
            assert rouge_l(a, [b]) == pytest.approx(2.44 * p * r / (r + 1.44 * p) if p else 0.0, rel=1e-12)


def slow_cider(candidate, references, everyone):
    """CIDEr-D of one picture as the paper writes it, with the kit's length in bigrams."""

    def grams(text, n):
        return Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))

    def idf(gram):
        pictures = sum(any(gram in grams(text, len(gram)) for text in texts) for texts in everyone)
        return math.log(len(everyone)) - math.log(max(1, pictures))

    total = 0.0
    for reference in references:
        gap = max(len(candidate) - 1, 0) - max(len(reference) - 1, 0)
        for n in range(1, 5):
            mine, theirs = (
                {g: count * idf(g) for g, count in grams(text, n).items()} for text in (candidate, reference)
            )
            norms = math.prod(math.sqrt(sum(w * w for w in side.values())) for side in (mine, theirs))
            if norms:
                dot = sum(min(w, theirs[g]) * theirs[g] for g, w in mine.items() if g in theirs)
                total += dot / norms * math.exp(-(gap**2) / 72)
    return 10 * total / 4 / len(references)


class TestCider:
    def test_by_hand(self):
        # three pictures; "red" and "cat" are in one of them each, "a" in all and so worth nothing
        cider = CiderD([words("a red cat"), words("a dog"), words("a bird")])
        # unigrams: "red cat" against "red cat" up to a zero: cosine 1; bigrams 1; trigrams 1; none of four
        assert cider.scores(words("a red cat"), [0]) == pytest.approx([10 * 3 / 4])
        # "a cat": unigrams cat . (red, cat) / sqrt 2; nothing else in common; a word shorter
        assert cider.scores(words("a cat"), [0]) == pytest.approx([10 / 4 / math.sqrt(2) * math.exp(-1 / 72)])

    def test_repeating_does_not_pay(self):
        cider = CiderD([words("red cat"), words("dog"), words("bird")])
        plain, repeated = cider.scores(words("red cat", "cat cat cat cat cat"), [0, 0])
        assert plain == pytest.approx(5.0)
        # "cat" is clipped to once: 1 / (sqrt 2 * 5), four bigrams against one
        assert repeated == pytest.approx(10 / 4 / (5 * math.sqrt(2)) * math.exp(-(3**2) / 72))

    def test_by_brute_force(self):
        draw = random.Random(0)
        text = lambda: draw.choices("abcdefg", k=draw.randrange(1, 8))  # noqa: E731
        everyone = [[text() for _ in range(draw.randrange(1, 5))] for _ in range(12)]
        candidates = [text() for _ in everyone]
        expected = [slow_cider(c, own, everyone) for c, own in zip(candidates, everyone, strict=True)]
        assert CiderD(everyone).scores(candidates) == pytest.approx(expected, rel=1e-12)
        assert max(expected) > 1

    def test_one_picture_scores_nothing(self):
        """Every n-gram is in all pictures: log(1) = 0."""
        assert CiderD([words("a red cat")]).scores(words("a red cat")) == [0.0]

    def test_candidates_without_anything_in_common(self):
        cider = CiderD([words("a red cat", "the cat"), words("a dog")])
        assert cider.scores([[], ["zebra"], ["a"]], [0, 0, 1]) == [0.0, 0.0, 0.0]

    def test_unknown_words_lengthen_a_candidate(self):
        cider = CiderD([words("red cat"), words("dog"), words("bird")])
        bare, padded, same = cider.scores(words("red cat", "red cat zebra", "red cat zebra"), [0, 0, 0])
        assert padded < bare
        assert padded == same
        # two unknown words that differ weigh sqrt(2), the same twice weighs 2
        two, twice = cider.scores(words("cat zebra yak", "cat zebra zebra"), [0, 0])
        assert two / twice == pytest.approx(math.sqrt(5 / 3))

    def test_many_candidates_of_a_picture_as_a_reward(self):
        references = [["A red cat.", "the cat"], ["a blue dog"], ["a green bird", "bird"]]
        cider = CiderD.of_texts(references)
        reward = cider.reward(["a red cat", "A Blue dog!", "a red cat", "bird"], [0, 1, 1, 2])
        assert reward.dtype == torch.float32
        alone = [cider.reward([t], [i]).item() for t, i in (("a red cat", 0), ("a blue dog", 1), ("bird", 2))]
        assert reward.tolist() == [alone[0], alone[1], 0.0, alone[2]]
        whole = score_captions(
            {0: "a red cat", 1: "a blue dog", 2: "bird"}, dict(enumerate(references))
        ).each["cider_d"]
        assert whole == pytest.approx(alone, rel=1e-6)

    def test_frequencies_of_a_larger_set(self):
        large = [words("a red cat"), words("a dog"), words("a red bird"), words("a fish")]
        frequencies = DocumentFrequencies.of(large)
        few = CiderD(large[:1], frequencies)
        assert few.scores(words("a cat red")) == CiderD(large).scores(words("a cat red"), [0])
        assert frequencies.pictures == 4

    def test_faults(self):
        for references in ([], [words("a"), []]):
            with pytest.raises(ZooError, match="no picture, or one without any"):
                CiderD(references)
        with pytest.raises(ZooError, match="2 candidates for 1 pictures"):
            CiderD([words("a")]).scores(words("a", "b"))


class TestReport:
    def test_exact(self):
        report = score_captions({1: "A cat!", 2: "a dogs"}, {1: ["the cat", "a cat"], 2: ["a dog"]})
        assert report.each["exact"] == [1.0, 0.0]
        assert report.numbers["exact"] == 0.5
        assert set(report.numbers) == {*(f"bleu{n}" for n in range(1, 5)), "rouge_l", "cider_d", "exact"}

    def test_order_of_candidates_does_not_matter(self):
        candidates, references = corpus(3, 20)
        turned = dict(reversed(candidates.items()))
        assert score_captions(candidates, references) == score_captions(turned, references)

    @pytest.mark.parametrize(
        ("candidates", "references", "message"),
        [
            ({}, {}, "no pictures with references"),
            ({1: "a"}, {1: ["a"], 2: ["b"], 3: ["c"]}, r"2 of 3 pictures without a caption: 2, 3\."),
            ({1: "a", "x": "b"}, {1: ["a"]}, r"1 of 1 pictures that the references do not know: x\."),
            ({1: "a"}, {1: []}, r"without any reference: 1\."),
        ],
    )
    def test_faults(self, candidates, references, message):
        with pytest.raises(ZooError, match=message):
            score_captions(candidates, references)

    def test_a_picture_met_twice_counts_once(self):
        metric = Captioning()
        metric.update(["a", "b"], ["a cat", "dog"], [["a cat"], ["a dog"]])
        metric.update(["b"], ["a dog"], [["a dog"]])
        assert metric.compute().numbers["exact"] == 1.0
        assert len(metric.compute().keys) == 2
        metric.reset()
        with pytest.raises(ZooError, match="no pictures"):
            metric.compute()


def test_hundreds_of_pictures_take_a_second():
    """COCO's 5,000 take 25 times as long. Far below the bound, which a square of the number would break."""
    candidates, references = corpus(0, 200)
    started = time.process_time()
    score_captions(candidates, references)
    assert time.process_time() - started < 3
