"""References in COCO's, NoCaps' and Karpathy's layouts, and results files."""

from __future__ import annotations

import json
import pickle

import pytest

from mmzoo.data.captioning import open_described, read_results, write_results
from mmzoo.data.open import list_splits, open_source
from mmzoo.data.sample import Source
from mmzoo.data.sources.coco_captions import CocoCaptionsSource, read_coco_captions
from mmzoo.errors import UsageError, ZooError

COCO = {
    "info": {"year": 2014},
    "images": [
        {
            "license": 1,
            "file_name": "COCO_val2014_000000000042.jpg",
            "coco_url": "http://x",
            "height": 3,
            "id": 42,
        },
        {
            "license": 1,
            "file_name": "COCO_val2014_000000000007.jpg",
            "coco_url": "http://x",
            "height": 3,
            "id": 7,
        },
    ],
    "licenses": [],
    "annotations": [
        {"image_id": 7, "id": 1, "caption": "a red cat"},
        {"image_id": 42, "id": 2, "caption": "A dog."},
        {"image_id": 7, "id": 3, "caption": "one cat"},
    ],
}
NOCAPS = {
    "licenses": [],
    "info": {},
    "images": [
        {"open_images_id": "0013ea", "file_name": "0013ea.jpg", "id": 0, "domain": "in-domain"},
        {"open_images_id": "00a1", "id": 1, "domain": "out-domain"},
    ],
    "annotations": [
        {"image_id": 1, "id": 0, "caption": "a boat"},
        {"image_id": 0, "id": 1, "caption": "a hat"},
    ],
}
KARPATHY = {
    "images": [
        {
            "filepath": "val2014",
            "filename": "a.jpg",
            "cocoid": 9,
            "split": "test",
            "sentences": [{"raw": "a cat"}],
        },
        {"filename": "b.jpg", "imgid": 1, "split": "val", "sentences": [{"raw": "a dog"}]},
    ]
}


@pytest.fixture
def coco(tmp_path, picture):
    """COCO's folders: annotations in one, pictures in another."""
    file = tmp_path / "annotations/captions_val2014.json"
    file.parent.mkdir()
    file.write_text(json.dumps(COCO))
    (tmp_path / "images/val2014").mkdir(parents=True)
    for i, row in enumerate(COCO["images"]):
        (tmp_path / "images/val2014" / row["file_name"]).write_bytes(picture(i))
    return file


def test_captions_come_to_their_pictures(coco, picture):
    source = pickle.loads(pickle.dumps(CocoCaptionsSource(coco, coco.parent.parent / "images")))
    assert isinstance(source, Source)
    assert len(source) == 2
    assert source[1].texts == source.texts_of(1) == ("a red cat", "one cat")
    assert source[1].image == picture(1)
    assert source[0].key == "COCO_val2014_000000000042.jpg"
    assert set(source[1].text_ids) == set(source[1].image_ids) != set(source[0].image_ids)


def test_files_and_folders_are_recognised(coco, picture):
    for row in COCO["images"]:
        (coco.parent / row["file_name"]).write_bytes(picture(0))
    assert open_source(coco)[1].texts == ("a red cat", "one cat")
    assert list_splits(coco.parent) == ("val",)
    assert open_source(coco.parent, split="val").texts_of(0) == ("A dog.",)
    described = open_described(coco.parent, split="val", pictures=False)
    assert described.ids == [42, 7]
    with pytest.raises(UsageError, match="holds the splits val; say which one"):
        open_described(coco.parent)


def test_a_file_that_is_megabytes_of_pictures_first(coco):
    many = [{"file_name": f"{i}.jpg", "id": i} for i in range(5000)]
    coco.write_text(
        json.dumps(COCO | {"images": many, "annotations": [{"image_id": 3, "id": 1, "caption": "x"}]})
    )
    assert coco.stat().st_size > 2**17
    assert open_described(coco, pictures=False).references[3] == ("x",)


def test_described_from_every_layout(coco, tmp_path, make_jsonl):
    found = open_described(coco, images=coco.parent.parent / "images")
    assert (found.ids, found.references, found.domains) == (
        [42, 7],
        [("A dog.",), ("a red cat", "one cat")],
        [None, None],
    )
    assert found.source[1].texts == ("a red cat", "one cat")
    file = tmp_path / "nocaps_val_4500_captions.json"
    file.write_text(json.dumps(NOCAPS))
    nocaps = open_described(file, pictures=False)
    assert (nocaps.ids, nocaps.domains) == ([0, 1], ["in-domain", "out-domain"])
    assert nocaps.references == [("a hat",), ("a boat",)]
    assert [row.file for row in read_coco_captions(file)] == ["0013ea.jpg", "00a1.jpg"]
    file = tmp_path / "dataset_coco.json"
    file.write_text(json.dumps(KARPATHY))
    assert open_described(file, split="test", pictures=False).ids == [9]
    assert open_described(file, pictures=False).ids == [9, 1]
    file = tmp_path / "coco_karpathy_test.json"
    file.write_text(
        json.dumps([{"image": "val2014/COCO_val2014_000000391895.jpg", "caption": ["a", " ", "b"]}])
    )
    listed = open_described(file, pictures=False)
    assert (listed.ids, listed.references) == ([391895], [("a", "b")])
    jsonl = open_described(make_jsonl(2))
    assert jsonl.ids == ["img/000.png", "img/001.png"]
    assert len(open_described("data/emoji", split="unseen-style").ids) == 765


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": []}, "holds no records"),
        ({"images": COCO["images"] * 2}, "two pictures have the id 42"),
        ({"images": [{"file_name": "x.jpg"}]}, "record 0: KeyError 'id'"),
        ({"annotations": [{"image_id": 5, "caption": "x"}]}, "about picture 5, which the file does not list"),
        ({"annotations": [{"image_id": 7}]}, "record 0: KeyError 'caption'"),
        ({"annotations": [{"image_id": 7, "caption": " "}]}, "holds no captions"),
    ],
)
def test_faults_of_annotations(coco, change, message):
    coco.write_text(json.dumps(COCO | change))
    with pytest.raises(ZooError, match=message):
        open_described(coco, pictures=False)


def test_faults_of_use(coco, tmp_path, make_jsonl):
    with pytest.raises(ZooError, match=r"none of its pictures .* set images to their folder"):
        open_described(coco)
    with pytest.raises(UsageError, match="'images' belongs to COCO's"):
        open_described(make_jsonl(2), images=tmp_path)
    lists = tmp_path / "coco_train.json"
    lists.write_text(json.dumps([{"image": "a.jpg", "caption": "x"}, {"image": "a.jpg", "caption": "y"}]))
    with pytest.raises(ZooError, match="names 1 pictures more than once"):
        open_described(lists, pictures=False)


def test_results_there_and_back(tmp_path):
    file = tmp_path / "captions.json"
    captions = {42: "für Elise", 7: "", "img/a.jpg": 'a "cat"'}
    write_results(captions, file)
    assert read_results(file) == captions
    assert json.loads(file.read_text())[0] == {"image_id": 42, "caption": "für Elise"}
    file.write_text('{"image_id": 1, "caption": "a"}\n{"image_id": 2, "caption": "b"}\n')
    assert read_results(file) == {1: "a", 2: "b"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}]', "two captions of picture 1"),
        ('[{"image_id": 1}]', "record 0: KeyError 'caption'"),
        ('[{"image_id": 1.5, "caption": "a"}]', "image_id is a number or a name"),
        ("[]", "holds no records"),
        ("[{", "broken JSON"),
    ],
)
def test_faults_of_results(tmp_path, content, message):
    file = tmp_path / "captions.json"
    file.write_text(content)
    with pytest.raises(ZooError, match=message):
        read_results(file)
    with pytest.raises(ZooError, match="no results file"):
        read_results(tmp_path / "none.json")
