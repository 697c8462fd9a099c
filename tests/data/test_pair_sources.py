"""NLVR2 and SNLI-VE in the layouts in which they are published."""

from __future__ import annotations

import json
import pickle

import pytest

from mmzoo.data.open_tasks import ENTAILMENT, PAIRS, list_task_splits, open_entailment, open_pairs
from mmzoo.data.sources import entailment, pairs
from mmzoo.errors import UsageError, ZooError

SIDES = {"dev": "dev/dev-850-0-img{}.png", "train": "images/train/12/train-850-0-img{}.png"}


@pytest.fixture
def nlvr2(tmp_path, picture):
    """Official lines of one pair of pictures of `dev` and one of `train`."""
    for split, form in SIDES.items():
        for side in (0, 1):
            file = tmp_path / form.format(side)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture(side + len(split)))
    for split, more in (("dev", {}), ("train", {"directory": 12})):
        rows = [
            {"identifier": f"{split}-850-0-{s}", "sentence": f"Sentence {s}.", "label": label} | more
            for s, label in ((0, "True"), (1, "False"))
        ]
        (tmp_path / f"{split}.json").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return tmp_path


@pytest.mark.parametrize("split", SIDES)
def test_nlvr2s_official_lines(nlvr2, split, picture):
    source = open_pairs(nlvr2 / f"{split}.json")
    assert (len(source), source.classes) == (2, ("false", "true"))
    sample = source[0]
    assert (sample.first, sample.second) == (picture(len(split)), picture(1 + len(split)))
    assert (sample.key, sample.sentence, sample.label) == (f"{split}-850-0-0", "Sentence 0.", 1)
    assert source[1].label == 0
    assert source.told(0) == sample.bare()
    assert pickle.loads(pickle.dumps(source))[0] == sample


def test_a_sentences_pairs_are_one_group_whatever_the_layout(nlvr2):
    rows = [
        {"identifier": f"dev-850-{pair}-{s}", "sentence": f"Sentence {s}.", "label": "True"}
        for pair in (0, 1)
        for s in (0, 1)
    ]
    (nlvr2 / "dev.json").write_text("\n".join(map(json.dumps, rows)))
    official = open_pairs(nlvr2 / "dev.json")
    listed = [
        {
            "sentence": row["sentence"],
            "label": row["label"],
            "images": [f"dev/{row['identifier'].rpartition('-')[0]}-img{side}.png" for side in (0, 1)],
        }
        for row in rows
    ]
    (nlvr2 / "nlvr_dev.json").write_text(json.dumps(listed))
    lists = open_pairs(nlvr2 / "nlvr_dev.json")
    for source in (official, lists):
        groups = [source.told(i).group for i in range(4)]
        assert groups[0] == groups[2] != groups[1] == groups[3]
        assert len({source.told(i).key for i in range(4)}) == 4
    assert lists[0].first == official[0].first
    assert lists[0].label == 1
    with pytest.raises(UsageError, match="are both dev"):
        open_pairs(nlvr2, split="dev")
    (nlvr2 / "nlvr_dev.json").unlink()
    assert list_task_splits(nlvr2, PAIRS) == ("dev", "train")
    assert open_pairs(nlvr2, split="dev").name == "dev"


def test_one_missing_picture_is_found_when_it_is_read(nlvr2):
    (nlvr2 / SIDES["dev"].format(1)).unlink()
    source = open_pairs(nlvr2 / "dev.json")
    with pytest.raises(FileNotFoundError, match=r"dev-850-0-img1\.png"):
        source[0]


def test_labels_that_are_not_published_or_none(nlvr2, caplog):
    rows = [
        {"identifier": "dev-850-0-0", "sentence": "s"},
        {"identifier": "dev-850-0-1", "sentence": "s", "label": 1},
    ]
    (nlvr2 / "dev.json").write_text("\n".join(map(json.dumps, rows)))
    source = open_pairs(nlvr2 / "dev.json")
    assert [source.told(i).label for i in range(2)] == [None, 1]
    assert "1 of 2 pairs have no published label" in caplog.text
    (nlvr2 / "dev.json").write_text(json.dumps(rows[1] | {"label": "perhaps"}) + "\n")
    with pytest.raises(ZooError, match="record 0: ValueError a label is True or False, not 'perhaps'"):
        open_pairs(nlvr2 / "dev.json")


def test_one_line_is_a_set_of_one(nlvr2):
    (nlvr2 / "dev.json").write_text('{"identifier": "dev-850-0-0", "sentence": "s", "label": "False"}\n')
    assert open_pairs(nlvr2 / "dev.json").told(0).label == 0


ROWS = [("neutral", 1), ("entailment", 2), ("contradiction", 0)]


@pytest.fixture
def flickr(tmp_path, picture):
    """Two of Flickr30k's pictures."""
    (tmp_path / "flickr").mkdir()
    for i in (0, 1):
        (tmp_path / "flickr" / f"10{i}.jpg").write_bytes(picture(i, kind="JPEG"))
    return tmp_path / "flickr"


@pytest.mark.parametrize("key", ["Flickr30K_ID", "Flikr30kID"])
def test_snli_ves_official_lines(flickr, tmp_path, caplog, key):
    rows = [
        {
            key: f"10{i % 2}" + (".jpg" if i else ""),
            "sentence2": f"Hypothesis {i}.",
            "gold_label": g,
            "pairID": f"p{i}",
        }
        for i, g in enumerate([label for label, _ in ROWS] + ["-"])
    ]
    file = tmp_path / "snli_ve_dev.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    source = open_entailment(file, images=flickr)
    assert source.classes == ("contradiction", "neutral", "entailment")
    assert [source[i].label for i in range(len(source))] == [number for _, number in ROWS]
    assert "left out 1 of 4 sentences, on whose label the annotators did not agree" in caplog.text
    assert source[1].image == (flickr / "101.jpg").read_bytes()
    assert source[0].image_key == source[2].image_key == "100.jpg"
    assert source.told(1) == source[1].bare()
    assert (source[1].key, source[1].sentence) == ("p1", "Hypothesis 1.")
    assert list_task_splits(tmp_path, ENTAILMENT) == ("dev",)


def test_snli_ves_list(flickr, tmp_path):
    rows = [
        {"image": f"10{i % 2}", "sentence": f"s {i}", "label": label} for i, (label, _) in enumerate(ROWS)
    ]
    file = tmp_path / "ve_train.json"
    file.write_text(json.dumps(rows))
    source = open_entailment(file, images=flickr)
    assert [source[i].label for i in range(3)] == [number for _, number in ROWS]
    file.write_text(json.dumps([rows[0] | {"label": "maybe"}]))
    with pytest.raises(
        ZooError, match="record 0: ValueError a label is contradiction, neutral, entailment, not 'maybe'"
    ):
        open_entailment(file, images=flickr)
    file.write_text(json.dumps([rows[0] | {"label": "-"}]))
    with pytest.raises(ZooError, match="not one of its 1 sentences has a label"):
        open_entailment(file, images=flickr)


def test_each_refuses_the_others_files(nlvr2, flickr, tmp_path):
    file = tmp_path / "ve.json"
    file.write_text(json.dumps([{"image": "100", "sentence": "s", "label": "neutral"}]))
    with pytest.raises(ZooError, match=r"holds SNLI-VE's sentences in a list.* PairsData reads NLVR2's"):
        open_pairs(file, images=flickr)
    with pytest.raises(ZooError, match=r"holds NLVR2's pairs .* EntailmentData reads SNLI-VE's"):
        open_entailment(nlvr2 / "dev.json")


def test_orders_of_the_labels_are_those_of_published_weights():
    assert pairs.VERDICTS == ("false", "true")
    assert entailment.VERDICTS == ("contradiction", "neutral", "entailment")
