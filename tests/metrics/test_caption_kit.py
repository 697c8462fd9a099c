"""The COCO caption kit itself, where it and Java are: the extra `caption-java`, and default-jre-headless of Debian."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from caption_kit import GOLDEN, caption, corpus, kit_scores, kit_words

from mmzoo.metrics.caption import score_captions, tokenized
from mmzoo.metrics.caption_java import meteor, spice
from mmzoo.metrics.ptb import ptb_tokenize

java = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")


@pytest.fixture(scope="module")
def kit():
    """The package's folder."""
    return Path(pytest.importorskip("pycocoevalcap.eval", reason="needs pycocoevalcap").__file__).parent


@java
def test_the_golden_file_is_the_kits(kit):
    golden = json.loads(GOLDEN.read_text())
    assert kit_words([text for text, _ in golden["words"]]) == [words for _, words in golden["words"]]
    found = kit_scores(dict(enumerate(golden["candidates"])), dict(enumerate(golden["references"])))
    assert found == (golden["numbers"], golden["each"])


@java
@pytest.mark.parametrize(("seed", "bits"), [(11, 0.0), (12, 0.1), (13, 0.3)])
def test_words_of_thousands_of_captions(kit, seed, bits):
    draw = random.Random(seed)
    captions = [caption(draw, bits) for _ in range(3000)]
    expected, found = kit_words(captions), ptb_tokenize(captions)
    wrong = [c for c, a, b in zip(captions, expected, found, strict=True) if a != b]
    # odd signs run together with words and with each other, as nobody writes them, are cut elsewhere at times
    assert len(wrong) <= 3000 * bits / 50, wrong[:10]


@java
def test_scores_of_hundreds_of_pictures(kit):
    candidates, references = corpus(21, 600, bits=0.05)
    numbers, each = kit_scores(candidates, references)
    report = score_captions(candidates, references)
    for name in numbers:
        assert report.numbers[name] == pytest.approx(numbers[name], rel=1e-12), name
        assert report.each[name] == pytest.approx(each[name], rel=1e-12, abs=1e-14), name


@java
def test_meteor_is_the_kits(kit):
    from pycocoevalcap.meteor.meteor import Meteor

    candidates, references = corpus(22, 12)
    mine, theirs = tokenized(candidates, references)
    whole, each = meteor(mine, theirs)
    expected = Meteor().compute_score(
        {i: [" ".join(w) for w in texts] for i, texts in enumerate(theirs)},
        {i: [" ".join(w)] for i, w in enumerate(mine)},
    )
    assert (whole, each) == expected
    assert 0.2 < whole < 1
    assert len(each) == 12


@java
def test_spice_says_what_it_lacks(kit):
    if (kit / "spice" / "lib" / "stanford-corenlp-3.6.0.jar").is_file():
        whole, each = spice([["a", "red", "cat"], ["dog"]], [[["a", "red", "cat"]], [["a", "bird"]]])
        assert each[0] == pytest.approx(1.0)
        assert whole == pytest.approx(sum(each) / 2)
    else:
        with pytest.raises(
            Exception, match=r"SPICE needs stanford-corenlp-3\.6\.0\.jar .*get_stanford_models"
        ):
            spice([["a"]], [[["a"]]])
