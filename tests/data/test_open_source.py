"""Which source lies at a path, and what is said when none does."""

from __future__ import annotations

import json
import shutil

import pytest

from mmzoo.data.open import list_splits, open_source
from mmzoo.data.sample import Source
from mmzoo.data.sources.folder import ImageFolderSource
from mmzoo.data.sources.jsonl import JsonlSource
from mmzoo.data.sources.karpathy import KarpathySource
from mmzoo.data.sources.tar import TarSource
from mmzoo.errors import UsageError, ZooError


def test_each_kind_is_recognised(class_folder, make_jsonl, make_tar, picture, tmp_path):
    jsonl = make_jsonl(2)
    shard = make_tar(tmp_path / "s-0.tar", [("a.png", picture(1)), ("a.txt", b"one")])
    (tmp_path / "shards").mkdir()
    shutil.copy(shard, tmp_path / "shards")
    karpathy = {"images": [{"filename": "001.png", "split": "val", "sentences": [{"raw": "one"}]}]}
    (jsonl / "img" / "dataset.json").write_text(json.dumps(karpathy))
    for path, kind in [
        (class_folder, ImageFolderSource),
        (jsonl, JsonlSource),
        (jsonl / "captions.jsonl", JsonlSource),
        (jsonl / "img" / "dataset.json", KarpathySource),
        (jsonl / "img", KarpathySource),
        (shard, TarSource),
        (tmp_path / "s-*.tar", TarSource),
        (f"{tmp_path}/s-{{0..0}}.tar", TarSource),
        (tmp_path / "shards", TarSource),
    ]:
        source = open_source(path)
        assert type(source) is kind, path
        assert isinstance(source, Source)


def test_carried_sets_are_found_by_relative_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "train" in list_splits("data/emoji")
    assert len(open_source("data/emoji", split="train", by="group").classes) == 5
    assert "val" in list_splits("easy-vqa")
    assert len(open_source("easy-vqa", split="val").classes) == 24


def test_split_folders(class_folder, tmp_path):
    (tmp_path / "all").mkdir()
    shutil.copytree(class_folder, tmp_path / "all" / "train")
    shutil.copytree(class_folder, tmp_path / "all" / "val")
    assert list_splits(tmp_path / "all") == ("train", "val")
    assert open_source(tmp_path / "all", split="val").classes == ("black_cat", "dog")
    with pytest.raises(UsageError, match="holds the splits train, val; say which"):
        open_source(tmp_path / "all")
    with pytest.raises(UsageError, match=r"no split 'vall'. Did you mean val"):
        open_source(tmp_path / "all", split="vall")


def test_what_cannot_be_opened_is_said(class_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "a.jpg").write_bytes(b"x")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "settings.json").write_text("{}")
    (tmp_path / "a.zip").write_bytes(b"x")
    for path, words in [
        (tmp_path / "nowhere", "no data at .*nowhere"),
        ("no/such/folder", "looked in .* and in the data that mmzoo carries"),
        (tmp_path / "empty", "is empty"),
        (tmp_path / "loose", "1 pictures without captions"),
        (tmp_path / "notes", "Looked for captions.jsonl, class folders.*found settings.json"),
        (tmp_path / "a.zip", "is a .zip file; expected .jsonl"),
        (tmp_path / "*.jpg", "patterns name tar shards"),
        (tmp_path / "*.tar", "no shards match"),
        ("https://example.org/{0..3}.tar", "is not local: stream it"),
    ]:
        with pytest.raises(ZooError, match=words):
            open_source(path)
    with pytest.raises(UsageError, match="has no splits, so 'train' cannot"):
        open_source(class_folder, split="train")
    with pytest.raises(UsageError, match=r"'by' .* has no meaning"):
        open_source(class_folder, by="group")
