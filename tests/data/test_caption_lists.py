"""Lists of captions as ALBEF, LAVIS and BLIP publish them."""

from __future__ import annotations

import json
import pickle

import pytest

from mmzoo.data.modules import CaptionsData
from mmzoo.data.open import list_splits, open_source
from mmzoo.data.sample import Source
from mmzoo.data.sources.captions import CaptionListSource
from mmzoo.data.sources.common import stable_id
from mmzoo.errors import UsageError, ZooError
from mmzoo.processing.processor import Processor
from mmzoo.spec import TINY_VOCAB, ImageSpec, TextSpec

TRAIN = [  # coco_train.json: a record per caption
    {"image": "val2014/COCO_0.png", "caption": "a red cat", "image_id": "coco_0"},
    {"image": "val2014/COCO_0.png", "caption": "a cat", "image_id": "coco_0"},
    {"image": "val2014/COCO_1.png", "caption": "für Elise \U0001f3b9", "image_id": "coco_1"},
]
VAL = [
    {"image": "val2014/COCO_2.png", "caption": ["one", "two", "three"]}
]  # coco_val.json: a record per picture


@pytest.fixture
def coco(tmp_path, picture):
    """A folder as the recipes of retrieval expect it."""
    folder = tmp_path / "coco"
    for i in range(3):
        file = folder / f"images/val2014/COCO_{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(i))
    (folder / "coco_train.json").write_text(json.dumps(TRAIN))
    (folder / "coco_val.json").write_text(json.dumps(VAL))
    return folder


def test_records_are_samples_and_an_image_id_joins_them(coco, picture):
    source = open_source(coco / "coco_train.json")
    assert type(source) is CaptionListSource
    assert isinstance(source, Source)
    assert (source.name, source.classes, len(source)) == ("coco_train", None, 3)
    first, second, third = (source[i] for i in range(3))
    assert (first.image, third.image) == (picture(0), picture(1))
    assert [s.texts for s in (first, second, third)] == [
        ("a red cat",),
        ("a cat",),
        ("für Elise \U0001f3b9",),
    ]
    assert first.text_ids == first.image_ids == second.image_ids == (stable_id("coco_0"),)
    assert third.image_ids == (stable_id("coco_1"),)
    assert len({first.key, second.key, third.key}) == 3
    (sample,) = (open_source(coco / "coco_val.json")[0],)
    assert sample.texts == ("one", "two", "three")
    assert sample.text_ids == sample.image_ids * 3 == (stable_id("val2014/COCO_2.png"),) * 3


def test_a_source_survives_the_way_to_a_worker(coco):
    source = open_source(coco / "coco_train.json")
    assert pickle.loads(pickle.dumps(source))[2] == source[2]


def test_a_folder_of_lists_has_splits(coco):
    assert list_splits(coco) == ("train", "val")
    assert open_source(coco, split="val").texts_of(0) == ("one", "two", "three")
    with pytest.raises(UsageError, match="holds the splits train, val; say which"):
        open_source(coco)
    with pytest.raises(UsageError, match=r"no split 'test'"):
        open_source(coco, split="test")
    (coco / "flickr30k_train.json").write_text(json.dumps(TRAIN))
    with pytest.raises(UsageError, match=r"coco_train\.json and flickr30k_train\.json are both train"):
        open_source(coco, split="train")


def test_several_lists_are_one_source_with_ids_of_their_own(coco):
    (coco / "vg.json").write_text(json.dumps(TRAIN[:1]))
    data = CaptionsData([str(coco / "coco_train.json"), str(coco / "vg.json")], val_splits=(), batch_size=4)
    data.processor = Processor(ImageSpec(16), TextSpec("tiny", 20, TINY_VOCAB))
    data.setup("fit")
    assert len(data.train_source) == 4
    (batch,) = data.train_dataloader()
    ids = dict(zip(batch.keys, batch.text_ids.tolist(), strict=True))
    assert len(set(ids.values())) == 3  # two captions of one picture; another list's picture is another
    assert ids["coco_train/val2014/COCO_0.png#0"] == ids["coco_train/val2014/COCO_0.png#1"]


@pytest.mark.parametrize(
    "write",
    [
        json.dumps,
        lambda r: json.dumps(r, indent=2),
        lambda r: "\ufeff" + "\n".join(map(json.dumps, r)) + "\n",
    ],
)
def test_lists_are_read_as_written(coco, write):
    file = coco / "coco_train.json"
    file.write_text(write(TRAIN), encoding="utf-8")
    source = CaptionListSource(file)
    assert [source.texts_of(i) for i in range(len(source))] == [(r["caption"],) for r in TRAIN]


def test_phrases_of_refcoco_are_captions(coco):
    rows = [{"image": "val2014/COCO_1.png", "text": "left one", "ref_id": 7}]
    (coco / "refcoco+_train.json").write_text(json.dumps(rows))
    source = open_source(coco / "refcoco+_train.json")
    assert source[0].texts == ("left one",)
    assert source[0].image_ids == (stable_id("val2014/COCO_1.png"),)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (json.dumps(TRAIN)[:-9], "broken JSON"),
        (json.dumps(TRAIN)[:-1], r"broken JSON \(its list does not end\)"),
        (
            json.dumps([*TRAIN, {"url": "https://example.org/a.jpg", "caption": "x"}]),
            "record 3: expected .*image.*url",
        ),
        (json.dumps([{"image": 3, "caption": "x"}]), "record 0: expected"),
        (json.dumps([TRAIN[0], {"image": "a.png", "caption": {"en": "x"}}]), "record 1: expected"),
        (json.dumps([{"image": "val2014/COCO_0.png", "caption": " "}]), "holds no captions"),
        (json.dumps([{"image": "/export/COCO_0.png", "caption": "x"}]), "'/export/COCO_0.png' leads out"),
        (
            json.dumps([{"image": "none.png", "caption": "x"}]),
            r"none of its pictures \(none.png, ...\) lies in",
        ),
        ("[]", "holds no captions"),
    ],
)
def test_faults_are_named(coco, content, words):
    (coco / "coco_train.json").write_text(content)
    with pytest.raises(ZooError, match=words):
        CaptionListSource(coco / "coco_train.json")


def test_no_list_at_all(coco):
    with pytest.raises(ZooError, match="no captions file"):
        CaptionListSource(coco / "none.json")
    (coco / "a.json").write_bytes('[{"image": "für.png", "caption": "x"}]'.encode("latin-1"))
    with pytest.raises(ZooError, match="not UTF-8"):
        CaptionListSource(coco / "a.json")


def test_annotations_of_another_task_are_named(coco):
    (coco / "dev.json").write_text(
        json.dumps([{"images": ["a.png", "b.png"], "sentence": "x", "label": "True"}])
    )
    with pytest.raises(ZooError, match=r"holds NLVR2's pairs in a list.*CaptionsData reads captions"):
        open_source(coco / "dev.json")


def test_a_record_without_words_is_counted_when_it_is_read(coco, caplog):
    rows = [*TRAIN, {"image": "val2014/COCO_2.png", "caption": ""}]
    (coco / "coco_train.json").write_text(json.dumps(rows))
    data = CaptionsData(str(coco), val_splits=(), batch_size=3, max_broken=0.5)
    data.processor = Processor(ImageSpec(16), TextSpec("tiny", 20, TINY_VOCAB))
    data.setup("fit")
    loader = data.train_dataloader()
    for _ in range(2):
        for batch in loader:
            assert "val2014/COCO_2.png#3" not in batch.keys
    assert "val2014/COCO_2.png#3" in caplog.text
