"""Checkpoints of every kind are read; nothing in them is run; whatever is wrong is one sentence that names it."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmzoo.errors import ZooError
from mmzoo.weights import read
from mmzoo.weights.read import open_checkpoint, side_files

pytestmark = pytest.mark.filterwarnings("ignore")

STATE = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "a.bias": torch.tensor([1.0, 2.0], dtype=torch.float16),
    "count": torch.tensor(7),
}


def same(source, expected=STATE):
    assert source.shapes() == {name: tuple(t.shape) for name, t in expected.items()}
    for name, tensor in expected.items():
        found = source.tensor(name)
        assert found.dtype == tensor.dtype, name
        assert torch.equal(found, tensor), name


# --- kinds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_torch_files(ending, zipped, tmp_path):
    torch.save(STATE, tmp_path / f"w{ending}", _use_new_zipfile_serialization=zipped)
    same(open_checkpoint(tmp_path / f"w{ending}"))


def test_safetensors_whatever_its_name(tmp_path):
    save_file(STATE, tmp_path / "w.safetensors")
    same(open_checkpoint(tmp_path / "w.safetensors"))
    (tmp_path / "w.safetensors").rename(tmp_path / "w.weights")
    same(open_checkpoint(tmp_path / "w.weights"))


def test_npz_keeps_scalars_and_order(tmp_path):
    arrays = {name: t.numpy() for name, t in STATE.items()}
    arrays["fortran"] = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.savez(tmp_path / "w.npz", **arrays)
    same(open_checkpoint(tmp_path / "w.npz"), STATE | {"fortran": torch.arange(6.0).double().reshape(2, 3)})


class Part(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(STATE["a.weight"].clone())
        self.bias = torch.nn.Parameter(STATE["a.bias"].clone())

    def forward(self, x):
        return x


class Whole(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = Part()
        self.register_buffer("count", STATE["count"].clone())

    def forward(self, x):
        return x


def test_torchscript_gives_its_tensors_and_its_code_is_not_parsed(tmp_path):
    file = tmp_path / "jit.pt"
    torch.jit.script(Whole()).save(str(file))
    same(open_checkpoint(file))
    broken = tmp_path / "broken.pt"
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(broken, "w") as new:
        for entry in old.infolist():
            code = entry.filename.endswith(".py")
            new.writestr(entry.filename, b"this is not TorchScript (" if code else old.read(entry))
    with pytest.raises(RuntimeError):
        torch.jit.load(str(broken))
    same(open_checkpoint(broken))


def test_folders_and_shards(tmp_path):
    first, second = {"a.weight": STATE["a.weight"]}, {n: t for n, t in STATE.items() if n != "a.weight"}
    index = {"weight_map": {n: f"s{1 + (n != 'a.weight')}.XX" for n in STATE}}
    for kind, name in (("safetensors", "model.safetensors"), ("bin", "pytorch_model.bin")):
        folder = tmp_path / kind
        folder.mkdir()
        save = save_file if kind == "safetensors" else torch.save
        save(first, folder / f"s1.{kind}")
        save(second, folder / f"s2.{kind}")
        (folder / f"{name}.index.json").write_text(json.dumps(index).replace("XX", kind))
        same(open_checkpoint(folder))
        same(open_checkpoint(folder / f"{name}.index.json"))
        save(first | second, folder / f"s1.{kind}")
        with pytest.raises(ZooError, match=r"both hold .*not one checkpoint"):
            open_checkpoint(folder)
    only = tmp_path / "only"
    only.mkdir()
    torch.save(STATE, only / "epoch=3.ckpt")
    same(open_checkpoint(only))
    torch.save(STATE, only / "epoch=4.ckpt")
    with pytest.raises(ZooError, match=r"found epoch=3\.ckpt, epoch=4\.ckpt\): name the file"):
        open_checkpoint(only)


# --- wrappers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "module"])
def test_training_scripts_wrap_the_state(key, tmp_path):
    rest = {
        "epoch": 3,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(4)}}},
        "config": {"lr": 1e-4, "a": ["b"]},
    }
    torch.save({key: OrderedDict(STATE)} | rest, tmp_path / "w.pth")
    same(open_checkpoint(tmp_path / "w.pth"))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module."])
@pytest.mark.parametrize("kind", ["pt", "safetensors", "sharded"])
def test_prefixes_of_wrappers(prefix, kind, tmp_path):
    state = {prefix + name: t for name, t in STATE.items()}
    if kind == "pt":
        torch.save(state, tmp_path / "w.pt")
    elif kind == "safetensors":
        save_file(state, tmp_path / "w.safetensors")
    else:  # one shard alone would look as if it had more of a prefix
        files = {name: f"{i}.bin" for i, name in enumerate(state)}
        for name, file in files.items():
            torch.save({name: state[name]}, tmp_path / file)
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    same(open_checkpoint(tmp_path))


def test_compiled_parts_inside(tmp_path):
    torch.save({"a._orig_mod.weight": STATE["a.weight"], "b": STATE["count"]}, tmp_path / "w.pt")
    same(open_checkpoint(tmp_path / "w.pt"), {"a.weight": STATE["a.weight"], "b": STATE["count"]})
    torch.save({"a._orig_mod.w": torch.ones(1), "a.w": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(ZooError, match="inside a wrapper and outside it"):
        open_checkpoint(tmp_path / "w.pt")


def test_a_prefix_that_not_all_share_stays(tmp_path):
    state = {"model.layers": torch.ones(2), "lm_head": torch.ones(3)}
    torch.save(state, tmp_path / "w.pt")
    same(open_checkpoint(tmp_path / "w.pt"), state)


def test_a_namespace_beside_the_weights(tmp_path):
    """ALBEF's era: the command line lies in the file as an argparse.Namespace."""
    args = argparse.Namespace(lr=1e-4, config="x.yaml", nested=argparse.Namespace(distributed=False))
    for zipped in (True, False):
        torch.save({"model": STATE, "args": args}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        same(open_checkpoint(tmp_path / "w.pth"))


@pytest.mark.parametrize("average", [None, 0.5])
def test_checkpoints_of_mmzoo_fit(average, tmp_path):
    """Lightning's dictionary with `model.` before each name; where the run kept an average, that is what counts."""
    from lightning.pytorch import Trainer

    from mmzoo.lit.base import LitBase, Recipe

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    module = LitBase(net, torch.optim.AdamW, Recipe(ema_decay=average, freeze=("0.bias",)))
    if average is not None:
        assert module.ema is not None
        with torch.no_grad():
            net[0].weight.mul_(3)
            net[1].running_mean.add_(1)
        module.ema.update()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        enable_model_summary=False,
    )
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    expected = dict(net.state_dict())
    if average is not None:
        with module.ema.applied():
            expected |= {name: t.clone() for name, t in net.state_dict().items() if name == "0.weight"}
        assert not torch.equal(expected["0.weight"], net[0].weight)
    same(open_checkpoint(tmp_path / "last.ckpt"), expected)


# --- code is never run --------------------------------------------------------------------------------------------


class Evil:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


class Shell:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        import os

        return (os.system, (f"touch {self.mark}",))


@pytest.mark.parametrize("evil", [Evil, Shell])
@pytest.mark.parametrize("kind", ["zip", "legacy", "raw", "torchscript", "npz", "shard"])
def test_a_pickle_that_runs_code_does_not(evil, kind, tmp_path):
    mark, file = tmp_path / "ran", tmp_path / "w.pt"
    loaded = {"state_dict": STATE, "extra": evil(mark)}
    if kind == "raw":
        file.write_bytes(pickle.dumps(loaded))
    elif kind == "torchscript":
        good = tmp_path / "good.pt"
        torch.jit.script(Whole()).save(str(good))
        with zipfile.ZipFile(good) as old, zipfile.ZipFile(file, "w") as new:
            for entry in old.infolist():
                pickled = entry.filename.endswith("data.pkl")
                new.writestr(entry.filename, pickle.dumps(evil(mark), 2) if pickled else old.read(entry))
    elif kind == "npz":
        file = tmp_path / "w.npz"
        np.savez(file, a=np.array([evil(mark)], dtype=object))
    else:
        torch.save(loaded, file, _use_new_zipfile_serialization=kind != "legacy")
    if kind == "shard":
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "w.pt"}}))
        file = tmp_path
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(ZooError) as error:
            open_checkpoint(file)
    assert not seen  # a person would see these too, on stderr
    assert not mark.exists()
    assert "\n" not in str(error.value)
    if kind == "raw":
        assert "is a pickle that torch did not write, and mmzoo never runs one" in str(error.value)
    elif kind != "npz":
        assert re.search(r"getattr|posix\.system|os\.system", str(error.value)), str(error.value)
    # and the file really would have: Python's own unpickler runs it
    if kind == "raw":
        pickle.loads(file.read_bytes())
        assert mark.exists()


# --- damaged, hostile and foreign files ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "npz", "torchscript"])
@pytest.mark.parametrize("share", [0.02, 0.4, 0.7, 0.97])
def test_truncated_files(kind, share, tmp_path):
    big = {f"layer{i}": torch.randn(40, 40) for i in range(4)}
    file = tmp_path / f"w.{'npz' if kind == 'npz' else 'safetensors' if kind == 'safetensors' else 'pt'}"
    if kind == "safetensors":
        save_file(big, file)
    elif kind == "npz":
        np.savez(file, **{n: t.numpy() for n, t in big.items()})
    elif kind == "torchscript":
        torch.jit.script(Whole()).save(str(file))
    else:
        torch.save(big, file, _use_new_zipfile_serialization=kind == "zip")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ZooError, match=r"truncated|damaged|cannot be read|no kind") as error:
        open_checkpoint(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["zip", "npz", "torchscript"])
def test_a_zip_bomb_is_refused_before_it_unpacks(kind, tmp_path, monkeypatch):
    file = tmp_path / "bomb.zip"
    names = {
        "zip": ["w/data.pkl", "w/data/0"],
        "npz": ["a.npy"],
        "torchscript": ["w/constants.pkl", "w/data.pkl"],
    }[kind]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in names:
            archive.writestr(name, bytes(80 << 20))
    assert file.stat().st_size < 2 << 20

    def never(*args, **kwargs):
        raise AssertionError("unpacked")

    monkeypatch.setattr(zipfile.ZipFile, "read", never)
    monkeypatch.setattr(torch, "load", never)
    monkeypatch.setattr(np, "load", never)
    with pytest.raises(ZooError, match=r"is refused: its [\d,]+ bytes would unpack to [\d,]+,"):
        open_checkpoint(file)


def test_overlapping_members_are_counted_together(tmp_path, monkeypatch):
    """Many small members of one bomb: no single one is large."""
    monkeypatch.setattr(read, "SMALL", 1 << 20)
    with zipfile.ZipFile(tmp_path / "w.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(200):
            archive.writestr(f"{i}.npy", bytes(20_000))
    with pytest.raises(ZooError, match="is refused"):
        open_checkpoint(tmp_path / "w.npz")


def test_compressed_weights_are_no_bomb(tmp_path):
    state = {
        "head": np.zeros((100, 1000), np.float32),
        "body": np.random.default_rng(0).standard_normal((300, 300)),
    }
    np.savez_compressed(tmp_path / "w.npz", **state)
    same(open_checkpoint(tmp_path / "w.npz"), {n: torch.from_numpy(a) for n, a in state.items()})


def test_more_numbers_claimed_than_held(tmp_path):
    torch.save({"a": torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / "w.pt")
    with pytest.raises(ZooError, match=r"a claims 1,099,511,627,776 numbers and holds fewer"):
        open_checkpoint(tmp_path / "w.pt")
    header = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118)
    told = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117) + "\n"
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("a.npy", header + told.encode())
    with pytest.raises(ZooError, match="cannot be read as a NumPy archive"):
        open_checkpoint(tmp_path / "w.npz")


def test_tensors_that_are_not_plain(tmp_path):
    for tensor, kind in (
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantized"),
    ):
        torch.save({"a": torch.ones(1), "odd": tensor}, tmp_path / "w.pt")
        with pytest.raises(ZooError, match=rf"odd is {kind}|wants to run code"):
            open_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello, world, this is no checkpoint", "of no kind that mmzoo reads"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html><body>403</body></html>", "is a web page"),
        (b"\x80\x02garbage", "cannot be read as a torch checkpoint"),
        (struct.pack("<Q", 1 << 40) + b"{" + b"x" * 50, "cannot be read as safetensors"),
        (b"PK\x03\x04" + b"x" * 50, "damaged zip"),
    ],
)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_other_files_in_a_sentence(content, message, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    if name == "w.safetensors" and b"PK" not in content[:2]:
        message += "|cannot be read as safetensors"
    with pytest.raises(ZooError, match=message):
        open_checkpoint(tmp_path / name)


def test_archives_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("photo.jpg", b"x")
    with pytest.raises(ZooError, match=r"zip archive of something else \(it holds photo\.jpg\)"):
        open_checkpoint(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("notes/data.pkl", b"x")
    with pytest.raises(ZooError, match="cannot be read as a torch checkpoint"):
        open_checkpoint(tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(ZooError, match="of no kind"):
        open_checkpoint(tmp_path / "empty.zip")


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        (torch.ones(2), "holds a Tensor, not tensors by name"),
        ([torch.ones(2)], "holds a list, not tensors by name"),
        ({"epoch": 3, "name": "x"}, r"no tensors by name \(it has epoch: int, name: str\)"),
        ({}, r"no tensors by name \(it has nothing\)"),
    ],
)
def test_torch_files_without_weights(loaded, message, tmp_path):
    torch.save(loaded, tmp_path / "w.pt")
    with pytest.raises(ZooError, match=message):
        open_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize(
    "shard", ["../w.safetensors", "/etc/passwd", "..", "sub/w.safetensors", "a\\..\\w", "", 3, None]
)
def test_a_shard_index_cannot_lead_out_of_its_folder(shard, tmp_path):
    save_file(STATE, tmp_path / "w.safetensors")
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ZooError, match=r"which is not beside it: refused|is not a shard index"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"weight_map": []}', '{"weight_map": {}}', "{", "\xff", "[" * 9000]
)
def test_damaged_indexes(text, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text, encoding="latin-1")
    with pytest.raises(ZooError, match=r"not a shard index|names no shards|is empty"):
        open_checkpoint(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(ZooError, match="no file or folder"):
        open_checkpoint(tmp_path / "nothing.pt")
    with pytest.raises(ZooError, match="found nothing"):
        open_checkpoint(tmp_path)


def test_side_files(tmp_path):
    (tmp_path / "config.json").write_text('{"a": 1}')
    (tmp_path / "other.json").write_text("[")
    assert side_files(tmp_path) == side_files(tmp_path / "w.pt") == {"config.json": {"a": 1}}
    for text in ("[1]", "{", "\xff"):
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(ZooError, match=r"config\.json"):
            side_files(tmp_path)
