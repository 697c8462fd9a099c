"""Streamed shards: shuffling, exact resume, broken samples and shards, and packing."""

from __future__ import annotations

import importlib.util
import itertools
import json
import logging
from pathlib import Path

import pytest
import torch

from mmzoo.data.collate import CaptionCollate, Tokens
from mmzoo.data.loader import BatchOrder, ResumableLoader
from mmzoo.data.modules import CaptionsData, Stream
from mmzoo.data.reader import Normalise, Prepare
from mmzoo.data.sources.jsonl import JsonlSource
from mmzoo.data.sources.stream import ShardStream, StreamReads
from mmzoo.data.sources.tar import TarSource
from mmzoo.errors import UsageError, ZooError
from mmzoo.processing.augment import BatchAugment
from mmzoo.processing.image import TrainTransform
from mmzoo.processing.processor import Processor
from mmzoo.spec import ImageSpec, TextSpec

PROCESSOR = Processor(ImageSpec(16), TextSpec("clip", 77, 49408))


_OPENED: list[ResumableLoader] = []


@pytest.fixture(autouse=True)
def stop_workers():
    """Loaders that a raised error holds on to would be stopped by the garbage collector, in five seconds each."""
    yield
    while _OPENED:
        _OPENED.pop().close()


@pytest.fixture(scope="module")
def tool():
    path = Path(__file__).parents[2] / "tools" / "pack_shards.py"
    spec = importlib.util.spec_from_file_location("pack_shards", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def packed(make_jsonl, tmp_path, tool):
    """48 samples in four shards."""
    source = JsonlSource(make_jsonl(48, lambda i: [f"picture {i}", f"number {i}"]))
    shards, left_out = tool.pack(source, tmp_path / "shards" / "s", samples=12)
    assert left_out == []
    return shards


def make_loader(
    pattern, *, samples=40, batch_size=4, workers=0, pool=16, seed=1, rank=0, world=1, max_broken=0.01
):
    collate = CaptionCollate(Tokens(PROCESSOR), with_labels=False)
    finish = Normalise(PROCESSOR.image_spec, BatchAugment(brightness=0.3))
    prepare = Prepare(TrainTransform(PROCESSOR.image_spec), finish, collate, seed=seed, train=True)
    order = BatchOrder(samples, batch_size, last="drop", seed=seed, rank=rank, world=world)
    reads = StreamReads(ShardStream(str(pattern), prepare, order, pool=pool), num_workers=workers)
    _OPENED.append(ResumableLoader(order, reads, name="stream", max_broken=max_broken))
    return _OPENED[-1]


def same(a, b):
    assert [x.keys for x in a] == [x.keys for x in b]
    for left, right in zip(a, b):
        assert torch.equal(left.images, right.images)
        assert torch.equal(left.ids, right.ids)
        assert torch.equal(left.image_ids, right.image_ids)


def test_an_epoch_has_its_length_and_is_shuffled(packed):
    loader = make_loader(packed[0].parent / "s-*.tar")
    epochs = [list(loader), list(loader)]
    assert [len(e) for e in epochs] == [10, 10]
    keys = [[k for b in e for k in b.keys] for e in epochs]
    assert keys[0] != keys[1]
    assert all(len(k) == 40 for k in keys)
    order = [int(k.rpartition("/")[2]) for k in keys[0]]
    assert (
        sum(abs(a - b) == 1 for a, b in itertools.pairwise(order)) < 12
    )  # in shard order it would be nearly 39
    same(epochs[0], list(make_loader(packed[0].parent / "s-*.tar")))
    sample = epochs[0][0]
    assert (sample.image_ids == sample.text_ids[:, None]).all()
    texts = [text.replace(" ", "") for text in PROCESSOR.decode(sample.ids)]
    assert all(text.endswith(str(int(key.rpartition("/")[2]))) for text, key in zip(texts, sample.keys))


@pytest.mark.parametrize(("workers", "stop"), [(0, 3), (2, 3), (2, 4)])
def test_a_stream_resumes_exactly(packed, workers, stop):
    pattern = packed[0].parent / "s-{00000..00003}.tar"
    whole_loader = make_loader(pattern, workers=workers)
    whole = [list(whole_loader), list(whole_loader)]
    loader = make_loader(pattern, workers=workers)
    passing = iter(loader)
    begun = [next(passing) for _ in range(stop)]
    resumed = make_loader(pattern, workers=workers)
    resumed.load_state_dict(loader.state_dict())
    loader.close()
    same(begun + list(resumed), whole[0])
    same(list(resumed), whole[1])


def test_processes_read_different_samples(packed):
    first, second = (
        [k for b in make_loader(packed[0].parent / "s-*.tar", samples=24, rank=r, world=2) for k in b.keys]
        for r in (0, 1)
    )
    assert len(first) == len(second) == 12
    assert first != second


def test_broken_samples_and_shards(packed, make_tar, picture, tmp_path, caplog):
    folder = packed[0].parent
    make_tar(
        folder / "s-00003.tar",
        [m for i in range(12) for m in ((f"{i}.png", picture(i) if i % 3 else b"no"), (f"{i}.txt", b"x"))],
    )
    (folder / "s-00002.tar").write_bytes((folder / "s-00002.tar").read_bytes()[:700])
    loader = make_loader(folder / "s-*.tar", samples=200, max_broken=0.5)
    with caplog.at_level(logging.WARNING):
        batches = list(loader)
    assert [len(b.keys) for b in batches] == [4] * 50
    assert "passed over s-00003/0: " in caplog.text
    assert "s-00002.tar" in caplog.text
    assert not any(k in ("s-00003/0", "s-00003/9") for b in batches for k in b.keys)
    same(batches, list(make_loader(folder / "s-*.tar", samples=200, max_broken=0.5)))
    with pytest.raises(ZooError, match=r"stream: \d+ of \d+ samples are broken, more than max_broken = 0.01"):
        list(make_loader(folder / "s-*.tar", samples=200))
    for shard in folder.glob("*.tar"):
        shard.write_bytes(b"x" * 2000)
    for workers in (0, 1):
        with pytest.raises(ZooError, match=r"10 shards in a row could not be read, the last .*s-0000\d.tar"):
            list(make_loader(folder / "s-*.tar", workers=workers))
    with pytest.raises(ZooError, match="no shards match"):
        make_loader(folder / "t-*.tar")
    with pytest.raises(ZooError, match=r"stream.pool is 0"):
        make_loader(folder / "s-*.tar", pool=0)


def test_captions_data_streams(packed, make_jsonl):
    data = CaptionsData(
        str(packed[0].parent / "s-*.tar"), stream=Stream(samples=32, pool=8), batch_size=8, seed=0
    )
    data.processor = PROCESSOR
    data.setup("fit")
    assert len(data.train_dataloader()) == 4
    assert [len(b.keys) for b in data.train_dataloader()] == [8] * 4
    assert data.val_dataloader() == []


# -- packing -----


def test_packed_equals_its_source(packed, make_jsonl, tmp_path):
    source = JsonlSource(tmp_path / "set")
    shards = TarSource(str(packed[0].parent / "s-*.tar"))
    assert [p.name for p in packed] == [f"s-0000{i}.tar" for i in range(4)]
    assert all(p.with_name(p.name + ".idx.json").is_file() for p in packed)
    assert len(shards) == len(source) == 48
    for i in range(48):
        assert shards[i].image == source[i].image
        assert shards[i].texts == source[i].texts
    assert len({shards[i].image_ids for i in range(48)}) == 48


def test_pack_on_the_command_line(make_jsonl, class_folder, tmp_path, tool, capsys):
    folder = make_jsonl(7, lambda i: [""] if i == 2 else [f"p {i}"])
    (folder / "img" / "004.png").write_bytes(b"no")
    (folder / "img" / "005.png").unlink()
    target = tmp_path / "out" / "x"
    assert tool.main([str(folder), str(target), "--samples", "3", "--shuffle", "0"]) == 0
    said = capsys.readouterr().err
    assert "4 samples in 3 shards" in said
    assert "left out 3: " in said
    assert all(
        word in said for word in ("img/002.png (no caption)", "img/004.png (", "005.png (No such file")
    )
    packed = TarSource(f"{target}-*.tar")
    texts = [packed[i].texts[0] for i in range(len(packed))]
    assert sorted(texts) == ["p 0", "p 1", "p 3", "p 6"]
    assert texts != sorted(texts)
    before = {p.name: p.read_bytes() for p in target.parent.glob("*.tar")}
    assert tool.main([str(folder), str(target)]) == 2
    assert "exists already" in capsys.readouterr().err
    tool.main([str(folder), str(tmp_path / "again" / "x"), "--samples", "3", "--shuffle", "0"])
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "again").glob("*.tar")}
    assert tool.main([str(tmp_path / "none"), str(target)]) == 1
    assert tool.main(["data/emoji", str(tmp_path / "e"), "--split", "train"]) == 2
    assert "captions about a group" in capsys.readouterr().err
    assert not list(tmp_path.glob("e-*"))
    assert tool.main([str(class_folder), str(tmp_path / "pets"), "--samples", "9"]) == 0
    classes = TarSource(str(tmp_path / "pets-00000.tar"))
    assert {classes[i].texts for i in range(5)} == {("black cat",), ("dog",)}
    assert len({classes[i].image_ids for i in range(5)}) == 2
    assert json.loads(json.dumps(sorted(before))) == ["x-00000.tar", "x-00001.tar", "x-00002.tar"]


def test_pack_refuses_nonsense(make_jsonl, tmp_path, tool):
    with pytest.raises(UsageError, match="--samples is 0"):
        tool.pack(JsonlSource(make_jsonl(2)), tmp_path / "x", samples=0)
