"""Reading checkpoints of every kind that the families were published in, without running anything they contain.

safetensors (also sharded), torch zip and legacy pickles (`weights_only`), TorchScript archives (only their tensors),
and NumPy archives. Each becomes a `TensorSource`: names and shapes at once, tensors one at a time, memory-mapped where
the format allows it. What wrappers put before the names (DDP, torch.compile, a LightningModule) is taken off.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmzoo.errors import ZooError
from mmzoo.weights.gguf_file import GgufSource
from mmzoo.weights.onnx_file import OnnxSource
from mmzoo.weights.rules import TensorSource
from mmzoo.weights.torch_files import bare_names, load_script, load_torch

__all__ = ["DictSource", "SafetensorsSource", "open_checkpoint", "side_files"]

# an archive that unpacks to so many times its size is a bomb: weights hardly shrink, zeros up to 1,000 times
MAX_RATIO = 20
SMALL = 1 << 26  # below which nobody is hurt


class DictSource:
    """Tensors that are in memory, or memory-mapped.

    Args:
        tensors: The tensors by name.
        left_out: Names of the model's tensors that the file says it leaves out.
    """

    def __init__(self, tensors: Mapping[str, Tensor], left_out: tuple[str, ...] = ()):
        self.tensors = dict(tensors)
        self.left_out = left_out

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every name with its shape."""
        return {name: tuple(t.shape) for name, t in self.tensors.items()}

    def tensor(self, name: str) -> Tensor:
        """One tensor."""
        return self.tensors[name]


class _Renamed:
    """A source under other names.

    Args:
        source: The source.
        names: Its names by the new ones.
    """

    def __init__(self, source: TensorSource, names: Mapping[str, str]):
        self._source, self._names = source, names
        self.left_out: tuple[str, ...] = getattr(source, "left_out", ())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = self._source.shapes()
        return {new: shapes[old] for new, old in self._names.items()}

    def tensor(self, name: str) -> Tensor:
        return self._source.tensor(self._names[name])


class SafetensorsSource:
    """One safetensors file or the shards of one checkpoint, read tensor by tensor.

    Args:
        files: The shards.

    Attributes:
        metadata: What their headers say beside the tensors.

    Raises:
        ZooError: A shard is missing, truncated or of another kind, or two shards hold the same name.
    """

    def __init__(self, files: list[Path]):
        self._where: dict[str, Any] = {}
        self.metadata: dict[str, str] = {}
        for file in files:
            try:
                opened = safe_open(str(file), framework="pt")
            except FileNotFoundError:
                raise ZooError(f"the shard {file} is missing: the download may be incomplete.") from None
            except (SafetensorError, OSError) as error:
                raise ZooError(
                    f"{file} cannot be read as safetensors ({error}): it may be truncated or of another kind."
                ) from None
            self.metadata |= opened.metadata() or {}  # type: ignore[no-untyped-call]
            for name in opened.keys():  # type: ignore[no-untyped-call]  # noqa: SIM118 - not a mapping
                if name in self._where:
                    raise ZooError(
                        f"{file} and another shard both hold {name}: these are not one checkpoint."
                    )
                self._where[name] = opened

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every name with its shape, from the headers alone."""
        return {name: tuple(file.get_slice(name).get_shape()) for name, file in self._where.items()}

    def tensor(self, name: str) -> Tensor:
        """Read one tensor."""
        tensor: Tensor = self._where[name].get_tensor(name)
        return tensor


def _unwrapped(source: TensorSource, where: Path) -> TensorSource:
    names = list(source.shapes())
    if not names:
        raise ZooError(f"{where} holds no tensors by name.")
    bare = bare_names(names)
    if len(bare) < len(names):
        raise ZooError(f"{where} holds one tensor twice, inside a wrapper and outside it.")
    return source if list(bare) == names else _Renamed(source, bare)


def _read_npz(path: Path) -> DictSource:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            return DictSource(
                {name: torch.from_numpy(np.array(file[name], order="C", copy=None)) for name in file.files}
            )
    except (ValueError, TypeError, MemoryError, zipfile.BadZipFile, EOFError) as error:
        raise ZooError(f"{path} cannot be read as a NumPy archive ({error}).") from None


def _refuse_bombs(path: Path, archive: zipfile.ZipFile) -> None:
    unpacked = sum(member.file_size for member in archive.infolist())
    size = path.stat().st_size
    if unpacked > max(MAX_RATIO * size, SMALL):
        raise ZooError(
            f"{path} is refused: its {size:,} bytes would unpack to {unpacked:,}, which no weights do."
        )


def _read_zip(path: Path) -> DictSource:
    try:
        with zipfile.ZipFile(path) as archive:
            _refuse_bombs(path, archive)
            names = archive.namelist()
            if names and all(name.endswith(".npy") for name in names):
                return _read_npz(path)
            root = next((name.split("/", 1)[0] for name in names if name.endswith("/data.pkl")), None)
            if root is not None and f"{root}/constants.pkl" in names:
                return DictSource(load_script(path, archive, root))
            if root is None:
                held = ", ".join(names[:4]) or "nothing"
                raise ZooError(f"{path} is a zip archive of something else (it holds {held}).")
    except zipfile.BadZipFile as error:
        raise ZooError(f"{path} is a damaged zip archive ({error}): it may be truncated.") from None
    return DictSource(*load_torch(path))


def _from_index(index: Path) -> SafetensorsSource | DictSource:
    """The shards that a `*.index.json` names, all of them beside it."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise ZooError(f"{index} is not a shard index: it should map tensor names to files.") from None
    if not names:
        raise ZooError(f"{index} names no shards.")
    for name in names:
        if not isinstance(name, str) or name in ("", "..") or Path(name).name != name or "\\" in name:
            raise ZooError(f"{index} names the shard {name!r}, which is not beside it: refused.")
    files = [index.parent / name for name in names]
    if all(file.suffix == ".safetensors" for file in files):
        return SafetensorsSource(files)
    merged: dict[str, Tensor] = {}
    for file in files:
        if not file.is_file():
            raise ZooError(f"the shard {file} is missing: the download may be incomplete.")
        shard = load_torch(file).tensors
        if twice := sorted(merged.keys() & shard.keys()):
            raise ZooError(f"{file} and another shard both hold {twice[0]}: these are not one checkpoint.")
        merged |= shard
    return DictSource(merged)


# in a folder, the first of these that exists is the checkpoint
_FOLDER: list[tuple[str, Callable[[Path], TensorSource]]] = [
    ("model.safetensors", lambda p: SafetensorsSource([p])),
    ("model.safetensors.index.json", _from_index),
    ("open_clip_model.safetensors", lambda p: SafetensorsSource([p])),
    ("pytorch_model.bin.index.json", _from_index),
    ("pytorch_model.bin", lambda p: DictSource(*load_torch(p))),
    ("open_clip_pytorch_model.bin", lambda p: DictSource(*load_torch(p))),
]


def open_checkpoint(path: str | Path) -> TensorSource:
    """Open a checkpoint of any kind.

    Args:
        path: A file (safetensors, torch, TorchScript, npz, ONNX, GGUF, a shard index), or a folder that holds one.

    Raises:
        ZooError: Nothing there, damaged, of an unknown kind, or wanting to run code.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise ZooError(f"no file or folder {path}.")
    return _unwrapped(_open_file(path), path)


def _open_folder(path: Path) -> TensorSource:
    for name, reader in _FOLDER:
        if (path / name).is_file():
            return _unwrapped(reader(path / name), path / name)
    single = [
        p
        for p in sorted(path.iterdir())
        if p.suffix in (".safetensors", ".pt", ".pth", ".ckpt", ".npz", ".bin", ".onnx", ".gguf")
        and p.is_file()
    ]
    if len(single) == 1:
        return open_checkpoint(single[0])
    found = ", ".join(p.name for p in sorted(path.iterdir())[:8]) or "nothing"
    raise ZooError(f"{path} holds no checkpoint that mmzoo recognises (found {found}): name the file itself.")


# what stands at the beginning of files that are often taken for weights
_IMPOSTORS = {
    b"version https://git-lfs": "is a Git LFS pointer and not the weights: fetch them by `git lfs pull`",
    b"<": "is a web page and not weights: the download was answered by a page, perhaps one that asks to log in",
}


def _open_file(path: Path) -> TensorSource:
    with path.open("rb") as file:
        head = file.read(32)
    if not head:
        raise ZooError(f"{path} is empty.")
    for beginning, what in _IMPOSTORS.items():
        if head.lstrip().startswith(beginning) and head[8:9] != b"{":
            raise ZooError(f"{path} {what}.")
    if path.name.endswith(".index.json"):
        return _from_index(path)
    if head[:4] == b"PK\x03\x04":
        return _read_zip(path)
    if head[:4] == b"GGUF":
        return GgufSource(path)
    if path.suffix == ".onnx":  # protobuf has no mark of its own
        return OnnxSource(path)
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return SafetensorsSource([path])
    if head[:1] == b"\x80":  # a pickle, as torch wrote before 1.6
        return DictSource(*load_torch(path))
    raise ZooError(
        f"{path} is of no kind that mmzoo reads: safetensors, torch, TorchScript, npz, ONNX or GGUF."
    )


# the files that may stand beside a checkpoint, and what each holds
_SIDE: dict[str, type] = {
    "config.json": dict,
    "open_clip_config.json": dict,
    "preprocessor_config.json": dict,
    "modules.json": list,
    "1_Pooling/config.json": dict,
    "sentence_bert_config.json": dict,
}


def side_files(path: str | Path) -> dict[str, Any]:
    """The JSON files beside a checkpoint that describe it, by name; those that are not there are left out.

    Raises:
        ZooError: One is there and is not JSON, or a list where an object should be.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    found = {}
    for name, kind in _SIDE.items():
        file = folder / name
        if not file.is_file():
            continue
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ZooError(f"{file} is not valid JSON ({error}).") from None
        if not isinstance(data, kind):
            raise ZooError(f"{file} should hold a JSON {'object' if kind is dict else 'list'}.")
        found[name] = data
    return found
