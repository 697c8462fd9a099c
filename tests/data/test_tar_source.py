"""Indexed tar shards."""

from __future__ import annotations

import json
import os
import pickle

import pytest

from mmzoo.data.sources import tar as tar_module
from mmzoo.data.sources.shards import expand_braces, expand_shards, split_key
from mmzoo.data.sources.tar import TarSource
from mmzoo.errors import ZooError


@pytest.fixture
def shards(tmp_path, make_tar, picture):
    """Two shards: captions as text, as JSON, both, and a picture without any."""
    make_tar(
        tmp_path / "s-0.tar",
        [
            ("d/a.png", picture(0)),
            ("d/a.txt", "ein Bär\n".encode()),
            ("b.jpg", picture(1, kind="JPEG")),
            ("b.txt", b"b"),
        ],
    )
    record = json.dumps({"captions": ["one", "two"], "id": 7}).encode()
    make_tar(
        tmp_path / "s-1.tar",
        [
            ("a.txt", b"plain"),  # before its picture, and beaten by the JSON
            ("a.png", picture(2)),
            ("a.json", record),
            ("c.png", picture(3)),
            ("e.json", b'{"caption": "single"}'),
            ("e.png", picture(4)),
            ("readme.md", b"ignored"),
        ],
    )
    return tmp_path / "s-{0..1}.tar"


def test_samples_across_shards(shards, picture):
    source = pickle.loads(pickle.dumps(TarSource(str(shards))))
    samples = [source[i] for i in range(len(source))]
    assert [s.key for s in samples] == ["s-0/d/a", "s-0/b", "s-1/a", "s-1/c", "s-1/e"]
    assert [s.image for s in samples][2:] == [picture(2), picture(3), picture(4)]
    assert [s.texts for s in samples] == [("ein Bär",), ("b",), ("one", "two"), (), ("single",)]
    assert samples[1].image_ids == (1,)
    assert samples[2].text_ids == samples[2].image_ids * 2
    assert samples[2].image_ids[0] >= 2**62  # from "id"
    with pytest.raises(IndexError):
        source[5]


def test_index_is_used_and_rebuilt_when_the_shard_changes(shards, tmp_path, make_tar, picture, monkeypatch):
    TarSource(str(shards))
    index = tmp_path / "s-0.tar.idx.json"
    assert index.is_file()
    assert (index.stat().st_mode & 0o777) == 0o644
    built = []
    original = tar_module.build_index
    monkeypatch.setattr(tar_module, "build_index", lambda shard: built.append(shard.name) or original(shard))
    TarSource(str(shards))
    assert built == []
    make_tar(tmp_path / "s-0.tar", [("x.png", picture(5)), ("x.txt", b"new")])
    assert TarSource(str(shards))[0].texts == ("new",)
    assert built == ["s-0.tar"]
    os.utime(tmp_path / "s-1.tar", ns=(1, 1))
    index.write_text('{"stamp": {"ver')  # torn
    TarSource(str(shards))
    assert built == ["s-0.tar", "s-0.tar", "s-1.tar"]
    assert not list(tmp_path.glob("*.part"))


def test_index_of_a_read_only_folder_goes_to_the_cache(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    original = tar_module.atomic_path

    def refuse(path):  # permissions do not bind the superuser, so the refusal is made here
        if path.parent == tmp_path:
            raise PermissionError(path)
        return original(path)

    monkeypatch.setattr(tar_module, "atomic_path", refuse)
    first = [TarSource(str(shards))[i] for i in range(5)]
    assert not list(tmp_path.glob("*.idx.json"))
    assert len(list((tmp_path / "cache" / "mmzoo" / "tar-index").glob("*.idx.json"))) == 2
    monkeypatch.setattr(tar_module, "build_index", None)  # must not be needed again
    assert [TarSource(str(shards))[i] for i in range(5)] == first


def test_damaged_shards(tmp_path, make_tar, picture):
    shard = make_tar(
        tmp_path / "t.tar", [("a.png", picture(0)), ("a.txt", b"a"), ("b.png", picture(1)), ("b.txt", b"b")]
    )
    whole = shard.read_bytes()
    shard.write_bytes(whole[: 512 + len(picture(0)) // 2])
    with pytest.raises(ZooError, match=r"shard .*t.tar is damaged"):
        TarSource(str(shard))
    shard.write_bytes(b"not a tar" * 200)
    with pytest.raises(ZooError, match="damaged or not a plain tar"):
        TarSource(str(shard))
    assert not list(tmp_path.glob("*.idx.json"))
    make_tar(shard, [("a.png", picture(0)), ("a.png", picture(1))])
    with pytest.raises(ZooError, match="two pictures under the key 'a'"):
        TarSource(str(shard))
    make_tar(shard, [("a.png", picture(0))])
    with pytest.raises(ZooError, match="no captions in 1 shard"):
        TarSource(str(shard))
    make_tar(shard, [("a.txt", b"a")])
    with pytest.raises(ZooError, match="no pictures in 1 shard"):
        TarSource(str(shard))


def test_a_text_without_picture_is_a_broken_sample_not_a_crash(tmp_path, make_tar, picture):
    shard = make_tar(tmp_path / "t.tar", [("a.txt", b"a"), ("b.png", picture(0)), ("b.json", b"{")])
    source = TarSource(str(shard))
    assert source[0].image == b""
    assert source[1].texts == ()


def test_names_expand_as_in_a_shell(tmp_path):
    assert expand_braces("x{8..10}{a,b}") == ["x8a", "x8b", "x9a", "x9b", "x10a", "x10b"]
    assert expand_braces("x{08..10}") == ["x08", "x09", "x10"]
    assert split_key("a.b/c.seg.PNG") == ("a.b/c", "seg.png")
    with pytest.raises(ZooError, match=r"no shard .*s-1.tar \(from"):
        expand_shards(str(tmp_path / "s-{1..2}.tar"))
