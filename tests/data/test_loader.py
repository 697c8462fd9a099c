"""Order, resume, workers, processes and broken samples, at the level of the loader."""

from __future__ import annotations

import io
import itertools
import logging
import re
import zlib

import pytest
import torch
from PIL import Image

from mmzoo.data.cached import CachedReader
from mmzoo.data.collate import CaptionCollate, ClassCollate, Tokens
from mmzoo.data.loader import BatchOrder, BrokenTally, MapReads, ResumableLoader
from mmzoo.data.reader import BatchReader, Broken, Prepare
from mmzoo.data.sample import Sample
from mmzoo.data.sources.jsonl import JsonlSource
from mmzoo.errors import ZooError
from mmzoo.processing.image import ImageTransform, TrainTransform, normalize_batch
from mmzoo.processing.processor import Processor
from mmzoo.seeds import mix
from mmzoo.spec import ImageSpec, TextSpec

SPEC = ImageSpec(size=16)


_OPENED: list[ResumableLoader] = []


@pytest.fixture(autouse=True)
def stop_workers():
    """Loaders that a raised error holds on to would be stopped by the garbage collector, in five seconds each."""
    yield
    while _OPENED:
        _OPENED.pop().close()


class Listed:
    """A source of given samples."""

    name = "listed"
    classes = ("even", "odd")

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


@pytest.fixture(scope="module")
def tokens():
    return Tokens(Processor(ImageSpec(16), TextSpec("clip", 77, 49408)))


@pytest.fixture
def source(make_jsonl):
    return JsonlSource(
        make_jsonl(23, lambda i: [f"number {i}", f"a picture that shows number {i}", "a thing"])
    )


def make_loader(
    source,
    tokens,
    *,
    batch_size=4,
    train=True,
    workers=0,
    max_broken=0.01,
    seed=3,
    rank=0,
    world=1,
    last=None,
):
    """A loader with random crops, a batch-wise noise and random captions; or a plain one."""
    pixels = TrainTransform(SPEC, scale=(0.3, 1.0), flip=True) if train else _Plain(ImageTransform(SPEC))
    collate = CaptionCollate(tokens, with_labels=source.classes is not None) if tokens else ClassCollate()
    prepare = Prepare(pixels, _Finish(train), collate, seed=seed, train=train)
    order = BatchOrder(
        len(source),
        batch_size,
        shuffle=train,
        last=last or ("drop" if train else "keep"),
        seed=seed,
        rank=rank,
        world=world,
    )
    reads = MapReads(BatchReader(source, prepare), order, num_workers=workers)
    _OPENED.append(ResumableLoader(order, reads, max_broken=max_broken, name=source.name))
    return _OPENED[-1]


class _Plain:
    def __init__(self, transform):
        self.transform = transform

    def __call__(self, image, generator):
        return self.transform.pixels(image)


class _Finish:
    """Normalises, and in training adds noise to the whole batch."""

    def __init__(self, train):
        self.train = train

    def __call__(self, pixels, generator):
        images = normalize_batch(pixels, SPEC)
        return images + torch.rand(images.shape, generator=generator) if self.train else images


def same(a, b):
    assert len(a) == len(b)
    for left, right in zip(a, b):
        for name in left._fields:
            x, y = getattr(left, name), getattr(right, name)
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, name


def keys(batches):
    return [key for batch in batches for key in batch.keys]


# -- order -----


def test_an_epoch_is_a_permutation_and_the_next_is_another():
    order = BatchOrder(10, 3, shuffle=True, seed=1)
    epochs = [[i for step in order.steps(e) for i in step.indices] for e in range(3)]
    assert all(sorted(e) == list(range(10)) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [len(s.indices) for s in order.steps(0)] == [3, 3, 3, 1]
    assert epochs[0] != [i for s in BatchOrder(10, 3, shuffle=True, seed=2).steps(0) for i in s.indices]
    assert list(BatchOrder(5, 2).steps(7))[-1].indices == [4]


def dealt(size, batch_size, world, last):
    """The steps of each process, and the same steps of one process with the whole batch."""
    settings = {"shuffle": True, "seed": 1, "last": last}
    parts = [
        list(BatchOrder(size, batch_size, **settings, rank=r, world=world).steps(0)) for r in range(world)
    ]
    return parts, list(BatchOrder(size, batch_size * world, **settings).steps(0))


@pytest.mark.parametrize("size", [24, 25, 26, 29, 31])
def test_processes_share_an_epoch_without_doubles(size):
    parts, whole = dealt(size, 4, 2, "share")
    assert len(parts[0]) == len(parts[1])
    for step, a, b in zip(whole, *parts):
        assert sorted(step.indices) == sorted(a.indices + b.indices)
        assert abs(len(a.indices) - len(b.indices)) <= 1
        assert min(len(a.indices), len(b.indices)) > 0
    left_out = size - sum(len(s.indices) for p in parts for s in p)
    assert left_out == (1 if size % 8 == 1 else 0)  # one sample cannot be shared by two processes
    assert len({s.number for p in parts for s in p}) == sum(map(len, parts))
    dropped, _ = dealt(size, 4, 2, "drop")
    assert all(len(s.indices) == 4 for p in dropped for s in p)
    assert len(dropped[0]) == len(dropped[1]) == 3


@pytest.mark.parametrize(("size", "world"), [(24, 2), (25, 2), (26, 3), (33, 4), (5, 4), (7, 7)])
def test_held_out_samples_are_all_judged_by_any_number_of_processes(size, world):
    parts, whole = dealt(size, 4, world, "keep")
    assert sorted(i for part in parts for s in part for i in s.indices) == list(range(size))
    assert all(part and all(s.indices for s in part) for part in parts)
    for number, step in enumerate(whole):
        shares = [part[number].indices for part in parts if number < len(part)]
        assert sorted(step.indices) == sorted(i for share in shares for i in share)
    for rank, part in enumerate(parts):
        order = BatchOrder(size, 4, rank=rank, world=world)
        assert (len(order), order.samples) == (len(part), sum(len(s.indices) for s in part))


def test_a_set_smaller_than_a_batch_is_said():
    with pytest.raises(
        ZooError, match=r"7 samples do not fill one batch of 8 \(4 on each of 2 processes\); lower"
    ):
        BatchOrder(7, 4, last="drop", world=2)
    for rank in range(4):  # on every process, or the others would wait
        with pytest.raises(ZooError, match="3 samples leave some of 4 processes without any; use fewer"):
            BatchOrder(3, 4, rank=rank, world=4)
    with pytest.raises(ZooError, match="batch_size is 0"):
        BatchOrder(7, 0)
    with pytest.raises(ZooError, match="no samples"):
        BatchOrder(0, 1)


def test_mix_is_a_function_of_all_numbers_in_order():
    seen = {mix(a, b, c) for a, b, c in itertools.product(range(8), repeat=3)} | {
        mix(1),
        mix(1, 0),
        mix(0, 1),
    }
    assert len(seen) == 8**3 + 3
    assert all(0 <= n < 2**63 for n in seen)


# -- resume -----


@pytest.mark.parametrize("workers", [0, 2])
def test_interrupted_is_uninterrupted(source, tokens, workers):
    plain = make_loader(source, tokens)
    whole = [list(plain) for _ in range(3)]
    assert [len(epoch) for epoch in whole] == [5, 5, 5]
    assert keys(whole[0]) != keys(whole[1])
    for stop in (0, 2, 5):
        first = make_loader(source, tokens, workers=workers)
        list(first)
        passing = iter(first)
        begun = [next(passing) for _ in range(stop)]
        state = first.state_dict()
        if stop:
            assert (state["epoch"], state["position"]) == (1, stop)
        second = make_loader(source, tokens, workers=workers)
        second.load_state_dict(state)
        if stop == 0:  # saved between epochs: a finished one is followed by the next
            same(list(second), whole[1])
        elif stop == 5:
            same(begun, whole[1])
            same(list(second), whole[2])
        else:
            same(begun + list(second), whole[1])
            same(list(second), whole[2])


def test_lightnings_calls(source, tokens):
    """Lightning 2.6 calls so: an unused iterator, the state, an iterator, the epoch, the batches."""
    whole = dict.fromkeys(range(3))
    for epoch in whole:
        loader = make_loader(source, tokens)
        loader.set_epoch(epoch)
        whole[epoch] = list(loader)
    loader = make_loader(source, tokens)
    iter(loader)
    loader.load_state_dict({**loader.state_dict(), "epoch": 1, "position": 3})
    passing = iter(loader)
    loader.batch_sampler.sampler.set_epoch(1)
    same(list(passing), whole[1][3:])
    loader.batch_sampler.sampler.set_epoch(2)
    same(list(loader), whole[2])
    # an epoch that limit_train_batches cut short does not leak into the next
    loader.batch_sampler.sampler.set_epoch(0)
    next(iter(loader))
    loader.batch_sampler.sampler.set_epoch(1)
    same(list(loader), whole[1])
    # saved at the very end of an epoch
    loader.load_state_dict({**loader.state_dict(), "epoch": 0, "position": 5})
    loader.batch_sampler.sampler.set_epoch(1)
    same(list(loader), whole[1])


def test_evaluation_cut_short_starts_at_the_front_again(source, tokens):
    loader = make_loader(source, tokens, train=False)
    whole = list(loader)
    next(iter(loader))
    same(list(loader), whole)


def test_a_state_of_another_run_restarts_the_epoch(source, tokens, caplog):
    loader = make_loader(source, tokens)
    next(iter(loader))
    other = make_loader(source, tokens, batch_size=5)
    with caplog.at_level(logging.WARNING):
        other.load_state_dict(loader.state_dict())
    assert "batch_size changed since the checkpoint was written" in caplog.text
    assert len(list(other)) == len(other) == 4
    rank1 = make_loader(source, tokens, batch_size=4, world=2, rank=1)
    rank0 = make_loader(source, tokens, batch_size=4, world=2)
    next(iter(rank0))
    caplog.clear()
    rank1.load_state_dict(rank0.state_dict())  # rank 0 writes the checkpoint of all
    assert caplog.text == ""
    assert len(list(rank1)) == 1


def test_the_trainings_own_randomness_is_left_alone(source, tokens):
    for workers in (0, 1):
        loader = make_loader(source, tokens, workers=workers)
        torch.manual_seed(0)
        before = torch.get_rng_state()
        list(loader)
        assert torch.equal(torch.get_rng_state(), before)


def test_randomness_depends_on_seed_and_epoch_only(source, tokens):
    a, b, c = (make_loader(source, tokens, seed=s) for s in (3, 3, 4))
    first = list(a)
    same(first, list(b))
    assert keys(first) != keys(list(c))
    by_key = [
        {k: batch.images[i] for batch in epoch for i, k in enumerate(batch.keys)}
        for epoch in (first, list(a))
    ]
    common = by_key[0].keys() & by_key[1].keys()
    assert common
    assert all(not torch.equal(by_key[0][k], by_key[1][k]) for k in common)


# -- batches -----


def test_texts_are_drawn_evenly_in_training_and_the_first_in_evaluation(source, tokens):
    loader = make_loader(source, tokens)
    decode = tokens._processor.decode
    drawn = [text.replace(" ", "") for _ in range(40) for b in loader for text in decode(b.ids)]
    kinds = [sum(t.startswith(start) for t in drawn) for start in ("number", "apicture", "athing")]
    assert sum(kinds) == len(drawn) == 800
    assert all(200 < kind < 340 for kind in kinds)  # 267 expected, standard deviation 13
    evaluated = [t for b in make_loader(source, tokens, train=False) for t in decode(b.ids)]
    assert [text.replace(" ", "") for text in evaluated] == [f"number{i}" for i in range(23)]


def test_tokens_equal_the_processors(tokens):
    processor = tokens._processor
    for texts in (["a"], ["a dog and a cat", "a"], ["a", "a", "seven words are in this very text"]):
        ids, keep = tokens(texts)
        expected = processor.texts(texts)
        assert torch.equal(ids, expected.ids)
        assert torch.equal(keep, expected.keep)
        assert ids.dtype == torch.int64
    ids, keep = tokens([])
    assert (ids.shape, ids.dtype, keep.shape, keep.dtype) == ((0, 0), torch.int64, (0, 0), torch.bool)
    fixed = Processor(ImageSpec(16), TextSpec("clip", 20, 49408, pad_to_context=True))
    ids, keep = Tokens(fixed)(["a dog"])
    assert ids.shape == (1, 20)
    assert torch.equal(keep, fixed.texts(["a dog"]).keep)


def test_tokens_forget_when_full(tokens, monkeypatch):
    monkeypatch.setattr("mmzoo.data.collate.MEMORY", 3)
    small = Tokens(tokens._processor)
    for texts in (["a", "b", "c"], ["c", "d", "a"], ["e", "f", "g"]):
        assert torch.equal(small(texts)[0], tokens._processor.texts(texts).ids)
        assert len(small._rows) <= 3


def test_a_model_without_text_is_told(tokens):
    with pytest.raises(ZooError, match="reads no text"):
        Tokens(Processor(ImageSpec(16)))


def test_ids_are_padded_and_labels_kept(tokens, picture):
    samples = [
        Sample("a", picture(0), ("group",), (9,), (0, 9), 1),
        Sample("b", picture(1), ("b",), (1,), (1,), None),
        Sample("c", Image.new("L", (30, 40)), ("c",), (2,), (2, 9, 8), 0),
    ]
    (batch,) = make_loader(Listed(samples), tokens, train=False)
    assert batch.image_ids.tolist() == [[0, 9, -1], [1, -1, -1], [2, 9, 8]]
    assert batch.text_ids.tolist() == [9, 1, 2]
    assert batch.labels.tolist() == [1, -1, 0]
    assert batch.keys == ["a", "b", "c"]
    assert batch.images.shape == (3, 3, 16, 16)
    assert batch.images.dtype == torch.float32
    (plain,) = make_loader(Listed(samples[::2]), None, train=False)
    assert plain._fields == ("images", "labels", "keys")
    assert plain.labels.tolist() == [1, 0]


def test_batches_survive_lightnings_transfer(source, tokens):
    from lightning.fabric.utilities import move_data_to_device

    batch = next(iter(make_loader(source, tokens, train=False)))
    moved = move_data_to_device(batch, torch.device("meta"))
    assert type(moved) is type(batch)
    assert moved.images.device.type == "meta"
    assert moved.labels is None
    assert moved.keys == batch.keys


def test_cached_equals_read(source, tokens):
    prepare = Prepare(
        _Plain(ImageTransform(SPEC)),
        _Finish(True),
        CaptionCollate(tokens, with_labels=False),
        seed=5,
        train=True,
    )
    order = BatchOrder(len(source), 4, shuffle=True, seed=5)
    read = ResumableLoader(order, MapReads(BatchReader(source, prepare), order))
    for workers in (0, 1):
        cached = CachedReader(source, prepare, 16)
        loader = ResumableLoader(order, MapReads(cached, order, num_workers=workers))
        read.set_epoch(9), loader.set_epoch(9)
        same(list(read), list(loader))


# -- broken samples -----


def truncated(picture):
    return picture(3, size=(64, 64), kind="JPEG")[:-60]


def bomb():
    """A PNG header that claims 60,000 x 60,000 pixels."""
    buffer = io.BytesIO()
    Image.new("1", (8, 8)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


@pytest.fixture
def damaged(make_jsonl, picture):
    """200 pictures, of which 7 cannot be used, in five ways."""
    folder = make_jsonl(200, lambda i: [" ", ""] if i == 50 else [] if i == 51 else [f"picture {i}"])
    (folder / "img" / "010.png").write_bytes(truncated(picture))
    (folder / "img" / "011.png").write_bytes(b"GIF89a is what it says")
    (folder / "img" / "100.png").write_bytes(bomb())
    (folder / "img" / "150.png").write_bytes(b"")
    (folder / "img" / "199.png").unlink()
    return JsonlSource(folder)


BROKEN = [10, 11, 50, 51, 100, 150, 199]


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_samples_are_replaced_named_and_counted(damaged, tokens, workers, caplog):
    loader = make_loader(damaged, tokens, batch_size=20, workers=workers, max_broken=0.1)
    with caplog.at_level(logging.WARNING):
        batches = list(loader)
    assert [len(b.keys) for b in batches] == [20] * 10
    seen = keys(batches)
    names = [f"img/{i:03}.png" for i in range(200)]
    assert set(seen) == {n for i, n in enumerate(names) if i not in BROKEN}
    doubled = {k for k in seen if seen.count(k) > 1}
    assert doubled == {
        names[i] for i in (12, 52, 101, 151, 0)
    }  # the next healthy one, from the last to the first
    assert loader.tally.count == 9  # 10 and 50 lead to 11 and 51, which are broken too
    assert loader.tally.seen == 209
    assert len(loader.tally.first) == 7
    for name, reason in [
        ("010", "image"),
        ("011", "not a picture"),
        ("050", "no caption"),
        ("100", "too large|allowed"),
        ("150", "empty"),
        ("199", "No such file"),
    ]:
        assert re.search(rf"passed over \S*{name}.png: .*({reason})", caplog.text), name
    again = make_loader(damaged, tokens, batch_size=20, max_broken=0.1)
    same(batches, list(again))
    stopped = make_loader(damaged, tokens, batch_size=20, workers=workers, max_broken=0.1)
    passing = iter(stopped)
    begun = [next(passing) for _ in range(4)]
    resumed = make_loader(damaged, tokens, batch_size=20, workers=workers, max_broken=0.1)
    resumed.load_state_dict(stopped.state_dict())
    same(begun + list(resumed), batches)
    assert (resumed.tally.seen, resumed.tally.count) == (209, 9)


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_broken_samples_stop_the_run(damaged, tokens, workers):
    loader = make_loader(damaged, tokens, batch_size=20, workers=workers, max_broken=0.04)
    words = r"set: 9 of 209 samples are broken, more than max_broken = 0.04 allows: \S+png \(.*Mend"
    with pytest.raises(ZooError, match=words):
        list(loader)


def test_evaluation_leaves_broken_samples_out(damaged, tokens):
    loader = make_loader(damaged, tokens, batch_size=10, train=False, max_broken=0.1)
    batches = list(loader)
    assert keys(batches) == [f"img/{i:03}.png" for i in range(200) if i not in BROKEN]
    assert len(batches[1].keys) == 8
    assert (loader.tally.seen, loader.tally.count) == (200, 7)
    hollow = Listed([Sample("x", b"", ("x",), (0,), (0,)), damaged[0]])
    alone = make_loader(hollow, tokens, batch_size=1, train=False, max_broken=1.0)
    assert keys(list(alone)) == [damaged[0].key]  # a batch of nothing is skipped


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_broken_samples(picture, tokens, workers):
    samples = [Sample(f"k{i}", b"no", ("x",), (i,), (i,)) for i in range(300)]
    loader = make_loader(Listed(samples), tokens, workers=workers, max_broken=1.0)
    with pytest.raises(
        ZooError, match=r"^listed: 100 broken samples in a row, from k\d+ on \(.*right folder"
    ):
        list(loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_one_pass_over_a_small_held_out_set_judges_it(picture, tokens, workers):
    samples = [Sample(f"k{i}", b"no" if i < 6 else picture(i), ("x",), (i,), (i,)) for i in range(10)]
    loader = make_loader(Listed(samples), tokens, batch_size=8, train=False, workers=workers)
    with pytest.raises(ZooError, match=r"^listed: 6 of 10 samples are broken, more than max_broken = 0.01"):
        list(loader)
    second = make_loader(Listed(samples), tokens, batch_size=4, train=False, rank=1, world=2)
    with pytest.raises(ZooError, match=r"^listed: 3 of 5 samples are broken"):
        list(second)


def test_a_held_out_set_that_yields_nothing_is_said(tokens):
    samples = [Sample(f"k{i}", b"no", ("x",), (i,), (i,)) for i in range(10)]
    loader = make_loader(Listed(samples), tokens, train=False, max_broken=1.0)
    with pytest.raises(ZooError, match=r"^listed: none of its 10 samples can be used, k0 for example \("):
        list(loader)


def test_classification_does_not_ask_for_captions(damaged):
    class Labelled(Listed):
        def __getitem__(self, index):
            return damaged[index]._replace(label=0)

    loader = make_loader(Labelled(range(60)), None, batch_size=10, train=False, max_broken=0.1)
    seen = keys(loader)
    # 50 and 51 are broken only for who needs a caption
    assert seen == [f"img/{i:03}.png" for i in range(60) if i not in (10, 11)]
    assert [b.reason for b in loader.tally.first if b.reason == "no caption"] == []
    assert len(loader.tally.first) == 2


def test_cached_leaves_broken_samples_out(damaged, tokens):
    prepare = Prepare(
        _Plain(ImageTransform(SPEC)),
        _Finish(False),
        CaptionCollate(tokens, with_labels=False),
        seed=5,
        train=True,
    )
    cached = CachedReader(damaged, prepare, 16)
    assert (cached.seen, len(cached.broken), len(cached)) == (200, 7, 193)
    with pytest.raises(ZooError, match="none of its 2 samples can be used, k for example"):
        CachedReader(Listed([Sample("k", b"", ("x",), (0,), (0,))] * 2), prepare, 16)
    with pytest.raises(
        ZooError, match=r"set: 200 pictures of 20000 px take 223.5 GiB.*cache_images to false"
    ):
        CachedReader(damaged, prepare, 20_000)


def test_the_tally_waits_for_enough_and_checks_its_share():
    tally = BrokenTally("t", 0.1, 100)
    tally.add(50, [Broken(f"k{i}", "why") for i in range(40)])
    tally.add(49, [])
    with pytest.raises(
        ZooError, match=r"t: 40 of 100 samples are broken.*k0 \(why\); k1 \(why\); k2 \(why\); ..."
    ):
        tally.add(1, [])
    with pytest.raises(ZooError, match=r"max_broken is 1.5"):
        BrokenTally("t", 1.5, 100)
