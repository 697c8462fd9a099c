"""Files written tensor by tensor are what the other libraries' own readers expect, whole or not there at all."""

from __future__ import annotations

import errno
import gc
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mmzoo.errors import UsageError, ZooError
from mmzoo.weights.io import read_tensors, weights_hash, write_tensors
from mmzoo.weights.read import open_checkpoint
from mmzoo.weights.write import is_file_name, open_writer, staged

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def tensors(dtypes=(*FLOATS, *WHOLE, torch.bool)):
    torch.manual_seed(0)
    state = {f"{i}.{dtype}": (torch.randn(3, i + 1) * 9).to(dtype) for i, dtype in enumerate(dtypes)}
    return state | {"turned": torch.randn(4, 5).T, "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}


def write(path, state, metadata=None):
    shapes = {name: tuple(t.shape) for name, t in state.items()}
    with open_writer(path, shapes, metadata) as writer:
        for name, tensor in state.items():
            writer.add(name, tensor)


def equal(found, state):
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_safetensors(tmp_path):
    state = tensors((*FLOATS, *WHOLE, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2))
    write(tmp_path / "w.safetensors", state, {"family": "clip"})
    found = load_file(tmp_path / "w.safetensors")
    assert found.keys() == state.keys()
    assert weights_hash(found) == weights_hash(state)
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "family": "clip"}


def test_tensors_that_share_memory_are_whole_under_every_name(tmp_path):
    table = torch.randn(4, 6)
    state = {"tok": table, "decoder": table, "rows": table[1:3], "turned": table.T, "half": table[:, ::2]}
    state |= {"grad": torch.nn.Parameter(table), "wide": torch.zeros(1).expand(3)}
    write_tensors(tmp_path / "w.safetensors", state, {"family": "x"})
    equal(read_tensors(tmp_path / "w.safetensors"), state)
    assert (tmp_path / "w.safetensors").stat().st_size < 2000  # views bring their own numbers only


def starts(path):
    """Where the contents of a zip's entries begin, from their local headers."""
    raw = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name, extra = struct.unpack_from("<HH", raw, entry.header_offset + 26)
            yield entry.header_offset + 30 + name + extra


@pytest.mark.parametrize("mmap", [True, False])
def test_torch_file_as_torch_itself_writes_it(mmap, tmp_path):
    state = tensors()
    write(tmp_path / "w.pt", state)
    found = torch.load(tmp_path / "w.pt", weights_only=True, mmap=mmap)
    equal(found, state)
    with zipfile.ZipFile(tmp_path / "w.pt") as archive:
        assert archive.testzip() is None
    torch.save(state, tmp_path / "torch.pt")
    # torch's own entries begin at multiples of 64 too, so that they can be memory-mapped
    assert (
        {n % 64 for n in starts(tmp_path / "w.pt")} == {n % 64 for n in starts(tmp_path / "torch.pt")} == {0}
    )
    source = open_checkpoint(tmp_path / "w.pt")
    equal({name: source.tensor(name) for name in source.shapes()}, state)


def test_npz(tmp_path):
    state = tensors((torch.float64, torch.float32, torch.float16, *WHOLE, torch.bool))
    write(tmp_path / "w.npz", state)
    with np.load(tmp_path / "w.npz", allow_pickle=False) as file:
        equal({name: torch.from_numpy(file[name]) for name in file.files}, state)


@pytest.mark.parametrize(
    ("ending", "dtype"),
    [(".safetensors", torch.complex128), (".pt", torch.float8_e5m2), (".npz", torch.bfloat16)],
)
def test_a_dtype_without_a_place_is_named(ending, dtype, tmp_path):
    with (
        pytest.raises(ZooError, match=rf"odd is {dtype}, which .* cannot hold"),
        staged(tmp_path / "out") as stage,
    ):
        write(stage / f"w{ending}", {"odd": torch.zeros(2).to(dtype)})
    assert list(tmp_path.iterdir()) == []


def test_targets(tmp_path):
    assert not is_file_name(tmp_path / "folder")
    assert is_file_name(tmp_path / "w.npz")
    (tmp_path / "v1.0").mkdir()
    assert not is_file_name(tmp_path / "v1.0")
    with pytest.raises(UsageError, match=r"ending in \.safetensors, \.pt"):
        is_file_name(tmp_path / "w.onnx")


# --- whole or not at all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["nothing", "a folder"])
def test_a_failure_leaves_nothing(before, tmp_path):
    target = tmp_path / "new" / "deep" / "out"
    if before == "a folder":
        target.mkdir(parents=True)
        (target / "model.safetensors").write_text("old")

    def fail():
        with staged(target) as stage:
            (stage / "config.json").write_text("new")
            (stage / "model.safetensors").write_text("new")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    if before == "nothing":
        assert list(tmp_path.iterdir()) == []
    else:
        assert [p.name for p in target.iterdir()] == ["model.safetensors"]
        assert (target / "model.safetensors").read_text() == "old"


def test_success_replaces_files_and_leaves_others(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "out" / "config.json").write_text("old")
    for target in (tmp_path / "out", tmp_path / "fresh"):
        with staged(target) as stage:
            assert not any(stage.iterdir())
            (stage / "config.json").write_text("new")
        assert (target / "config.json").read_text() == "new"
        assert target.stat().st_mode & 0o777 == tmp_path.joinpath("out").stat().st_mode & 0o777
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        "config.json",
        "config.json",
        "fresh",
        "notes.txt",
        "out",
    ]


@pytest.mark.filterwarnings("error")  # such as what a half-written archive says when it is collected
@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".npz"])
def test_a_full_disk_is_told_as_such(ending, tmp_path):
    """Real: the kernel's own device that is always full."""
    path = tmp_path / f"w{ending}"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as error:
        write(path, {"a": torch.zeros(1 << 16), "b": torch.zeros(1 << 16)})
    assert error.value.errno == errno.ENOSPC
    gc.collect()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("ending", [".pt", ".npz"])
def test_an_archive_that_is_given_up_is_silent(ending, tmp_path):
    with pytest.raises(ZooError, match="cannot hold"):
        write(tmp_path / f"w{ending}", {"a": torch.zeros(2), "odd": torch.zeros(2).to(torch.float8_e5m2)})
    gc.collect()
