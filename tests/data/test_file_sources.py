"""Class folders, captions.jsonl and Karpathy files."""

from __future__ import annotations

import json
import pickle

import pytest

from mmzoo.data.sources.common import stable_id
from mmzoo.data.sources.folder import ImageFolderSource
from mmzoo.data.sources.jsonl import JsonlSource
from mmzoo.data.sources.karpathy import KarpathySource, karpathy_splits
from mmzoo.errors import UsageError, ZooError


def test_class_folders_are_sorted_and_undecoded(class_folder, picture):
    source = pickle.loads(pickle.dumps(ImageFolderSource(class_folder)))
    assert source.classes == ("black_cat", "dog")
    keys = ["black_cat/1.jpg", "black_cat/2.jpg", "dog/a.png", "dog/b.png", "dog/deep/c.png"]
    samples = [source[i] for i in range(len(source))]
    assert [s.key for s in samples] == keys
    assert [s.label for s in samples] == [0, 0, 1, 1, 1]
    assert samples[3].image == picture(0)  # dog/b.png was written first
    assert samples[0].texts == ("black cat",)
    assert all(set(s.text_ids) <= set(s.image_ids) for s in samples)
    assert samples[0].image_ids != samples[2].image_ids


def test_class_folder_faults(class_folder, tmp_path):
    with pytest.raises(ZooError, match="no folder"):
        ImageFolderSource(tmp_path / "none")
    with pytest.raises(ZooError, match="holds no class folders"):
        ImageFolderSource(class_folder / "dog" / "deep")
    (class_folder / "zebra").mkdir()
    with pytest.raises(ZooError, match="no pictures in the class folders zebra"):
        ImageFolderSource(class_folder)


def test_links_out_of_the_folder_are_refused(class_folder, tmp_path, picture):
    (tmp_path / "secret.png").write_bytes(picture(9))
    (class_folder / "dog" / "z.png").symlink_to(tmp_path / "secret.png")
    source = ImageFolderSource(class_folder)
    with pytest.raises(ZooError, match=r"z.png is a link that leads out of the data folder"):
        source[len(source) - 1]
    (class_folder / "dog" / "inner.png").symlink_to(class_folder / "dog" / "a.png")  # stays inside: fine
    inner = ImageFolderSource(class_folder)
    assert inner[[inner[i].key for i in range(5)].index("dog/b.png") + 2].key == "dog/inner.png"


def test_a_linked_root_is_fine(class_folder, tmp_path):
    (tmp_path / "link").symlink_to(class_folder)
    assert ImageFolderSource(tmp_path / "link")[0].key == "black_cat/1.jpg"


def test_jsonl_samples_and_ids(make_jsonl, picture):
    folder = make_jsonl(3, lambda i: [f"picture {i}", f"number {i}"])
    source = pickle.loads(pickle.dumps(JsonlSource(folder)))
    assert len(source) == 3
    assert source.classes is None
    sample = source[2]
    assert (sample.key, sample.image) == ("img/002.png", picture(2))
    assert sample.texts == ("picture 2", "number 2")
    assert sample.text_ids == (2, 2)
    assert sample.image_ids == (2,)


def test_jsonl_id_joins_lines_and_never_meets_counted_ones(make_jsonl):
    folder = make_jsonl(2)
    with (folder / "captions.jsonl").open("a") as lines:
        for identity in (0, "0", "x"):
            lines.write(json.dumps({"image": "img/000.png", "captions": ["c"], "id": identity}) + "\n")
    source = JsonlSource(folder)
    ids = [source[i].image_ids[0] for i in range(5)]
    assert ids[:2] == [0, 1]
    assert ids[2] == ids[3] == stable_id("0") != ids[4]
    assert all(2**62 <= i < 2**63 for i in ids[2:])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"image": "a.png", "captions": ["x"]', "line 2: broken JSON"),
        ('{"image": "a.png"}', "line 2: expected"),
        ('{"image": "a.png", "captions": "x"}', "line 2: expected"),
        ('{"image": 3, "captions": ["x"]}', "line 2: expected"),
        ("[1]", "line 2: expected"),
        ('{"image": "../a.png", "captions": ["x"]}', "line 2: the path '../a.png' leads out"),
        ('{"image": "/etc/passwd", "captions": ["x"]}', "line 2: the path '/etc/passwd' leads out"),
        ('{"image": "a/..\\\\..\\\\b.png", "captions": ["x"]}', "line 2: the path .* leads out"),
    ],
)
def test_jsonl_faults_name_the_line(make_jsonl, line, words):
    folder = make_jsonl(1)
    with (folder / "captions.jsonl").open("a") as lines:
        lines.write(line + "\n")
    with pytest.raises(ZooError, match=words):
        JsonlSource(folder)


def test_jsonl_encoding_and_emptiness(make_jsonl):
    folder = make_jsonl(1, lambda i: ["für Elise"])
    file = folder / "captions.jsonl"
    text = '{"image": "img/000.png", "captions": ["für Elise"]}\n'
    file.write_bytes(
        b"\xef\xbb\xbf" + text.encode() + b"\n  \n"
    )  # a byte order mark and blank lines are fine
    assert JsonlSource(folder)[0].texts == ("für Elise",)
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ZooError, match="line 1: not UTF-8"):
        JsonlSource(folder)
    for content in (
        "",
        '{"image": "img/000.png", "captions": []}\n{"image": "img/000.png", "captions": [" "]}\n',
    ):
        file.write_text(content)
        with pytest.raises(ZooError, match="holds no captions"):
            JsonlSource(folder)
    with pytest.raises(ZooError, match="no captions file"):
        JsonlSource(folder / "img")


def test_jsonl_missing_picture_is_the_readers_business(make_jsonl):
    folder = make_jsonl(2)
    (folder / "img" / "001.png").unlink()
    with pytest.raises(FileNotFoundError):
        JsonlSource(folder)[1]


def karpathy(tmp_path, picture, *, where="val2014", **entry):
    images = [
        {
            "filepath": "val2014",
            "filename": f"{i}.png",
            "split": split,
            "sentences": [{"raw": f"a {i}"}, {"raw": "b"}],
        }
        for i, split in enumerate(["train", "restval", "val", "test"])
    ]
    images[0].update(entry)
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps({"images": images, "dataset": "coco"}))
    (tmp_path / where).mkdir(parents=True, exist_ok=True)
    for i in range(4):
        (tmp_path / where / f"{i}.png").write_bytes(picture(i))
    return file


@pytest.mark.parametrize("where", ["val2014", "images/val2014", "images", "."])
def test_karpathy_finds_pictures_and_splits(tmp_path, picture, where):
    file = karpathy(tmp_path, picture, where=where)
    assert karpathy_splits(file) == ("train", "val", "test")
    train = KarpathySource(file, "train")
    assert [train[i].key for i in range(len(train))] == ["val2014/0.png", "val2014/1.png"]  # restval counts
    assert len(KarpathySource(file)) == 4
    sample = KarpathySource(file, "test")[0]
    assert sample.image == picture(3)
    assert sample.texts == ("a 3", "b")
    assert sample.text_ids == (3, 3)
    assert sample.image_ids == (3,)


def test_karpathy_faults(tmp_path, picture):
    with pytest.raises(ZooError, match="no captions file"):
        KarpathySource(tmp_path / "none.json")
    file = karpathy(tmp_path, picture)
    with pytest.raises(UsageError, match=r"no split 'tests'. Did you mean test"):
        KarpathySource(file, "tests")
    (tmp_path / "val2014" / "0.png").unlink()
    with pytest.raises(ZooError, match=r"found no picture val2014/0.png in .* or .*images"):
        KarpathySource(file, "train")
    with pytest.raises(ZooError, match=r"images\[0\]: the path 'val2014/../../x.png' leads out"):
        KarpathySource(karpathy(tmp_path, picture, filename="../../x.png"))
    for content, words in [
        ("{", "broken JSON"),
        ("[]", "not a Karpathy"),
        ('{"images": [{}]}', "not a Karpathy"),
    ]:
        file.write_text(content)
        with pytest.raises(ZooError, match=words):
            KarpathySource(file)
    file.write_text('{"images": []}')
    with pytest.raises(ZooError, match="holds no captions"):
        KarpathySource(file)
