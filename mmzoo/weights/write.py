"""Writing weights tensor by tensor, so that only one is in memory at a time: safetensors, torch's zip format, npz.

Nothing half-written is ever left: files are made in a folder of their own beside their place and moved there when all
of them are whole (`staged`).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import struct
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mmzoo.errors import UsageError, ZooError

__all__ = [
    "ENDINGS",
    "NpzWriter",
    "SafetensorsWriter",
    "TensorWriter",
    "TorchWriter",
    "is_file_name",
    "open_writer",
    "staged",
]

ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".npz")

_SAFE_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip

_STORAGES = {
    torch.float64: torch.DoubleStorage, torch.float32: torch.FloatStorage, torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage, torch.int64: torch.LongStorage, torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage, torch.int8: torch.CharStorage, torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}  # fmt: skip


class TensorWriter(Protocol):
    """A file that takes tensors one by one; leaving its context without an error completes it."""

    metadata: dict[str, str]

    def add(self, name: str, tensor: Tensor) -> None:
        """Write one tensor."""
        ...

    def __enter__(self) -> TensorWriter: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def _raw(tensor: Tensor, dtypes: Mapping[torch.dtype, Any], name: str, kind: str) -> tuple[Tensor, Any]:
    """The tensor's bytes, uint8 without a copy where it is contiguous already, and what `kind` calls its dtype."""
    if tensor.dtype not in dtypes:
        raise ZooError(f"{name} is {tensor.dtype}, which {kind} cannot hold: convert it to another dtype.")
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8), dtypes[tensor.dtype]


class SafetensorsWriter:
    """Writes a safetensors file.

    The format begins with a header that gives every tensor's place; room for it is kept at the front and filled at the
    end, padded with spaces as the format allows.

    Args:
        path: The file.
        shapes: Every name with its shape, from which the room is computed.
        metadata: Strings to store in the header; their values may change until the end, not grow.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], metadata: dict[str, str]):
        self.metadata = {"format": "pt"} | metadata
        self._entries: dict[str, Any] = {}
        longest = {
            n: {"dtype": "F8_E4M3", "shape": list(s), "data_offsets": [1 << 60, 1 << 60]}
            for n, s in shapes.items()
        }
        self._room = (len(json.dumps({"__metadata__": self.metadata} | longest).encode()) + 15) // 8 * 8
        self._file = path.open("wb")
        self._file.seek(8 + self._room)
        self._offset = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Write one tensor; `shapes` must name it."""
        raw, dtype = _raw(tensor, _SAFE_DTYPES, name, "safetensors")
        self._file.write(raw.numpy().data)
        end = self._offset + raw.numel()
        self._entries[name] = {
            "dtype": dtype,
            "shape": list(tensor.shape),
            "data_offsets": [self._offset, end],
        }
        self._offset = end

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                whole = {"__metadata__": self.metadata} | self._entries
                header = json.dumps(whole, separators=(",", ":")).encode()
                assert len(header) <= self._room
                self._file.seek(0)
                self._file.write(struct.pack("<Q", self._room) + header.ljust(self._room))


class _Stored(NamedTuple):
    """A tensor whose bytes lie in the archive already."""

    kind: Any
    key: str
    numbers: int
    shape: tuple[int, ...]


class _Storage(NamedTuple):
    kind: Any
    key: str
    numbers: int


class _Pickler(pickle.Pickler):
    """Writes `_Stored` the way torch writes tensors: a call that views a storage, which stands elsewhere."""

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, _Stored):
            return NotImplemented
        strides = torch.empty(obj.shape, device="meta").stride()
        storage = _Storage(obj.kind, obj.key, obj.numbers)
        return torch._utils._rebuild_tensor_v2, (storage, 0, obj.shape, strides, False, OrderedDict())

    def persistent_id(self, obj: Any) -> Any:
        return ("storage", obj.kind, obj.key, "cpu", obj.numbers) if isinstance(obj, _Storage) else None


class TorchWriter:
    """Writes what `torch.save` writes for a dictionary of tensors, which needs all of them at once.

    Args:
        path: The file.
    """

    def __init__(self, path: Path):
        self.metadata: dict[str, str] = {}
        self._stored: OrderedDict[str, _Stored] = OrderedDict()
        self._file = path.open("wb")
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)

    def add(self, name: str, tensor: Tensor) -> None:
        """Write one tensor."""
        raw, kind = _raw(tensor, _STORAGES, name, "a torch file")
        key = str(len(self._stored))
        self._entry(f"data/{key}", raw.numpy().data, raw.numel())
        self._stored[name] = _Stored(kind, key, tensor.numel(), tuple(tensor.shape))

    def _entry(self, name: str, content: Any, size: int) -> None:
        info = zipfile.ZipInfo(f"archive/{name}")
        big = size > 1 << 30  # then a zip has larger fields, 20 bytes more
        # torch's own files begin each entry at a multiple of 64, so that it can be memory-mapped
        start = self._file.tell() + 30 + len(info.filename) + (20 if big else 0) + 4
        info.extra = struct.pack("<HH", 0x4246, -start % 64) + b"Z" * (-start % 64)
        with self._zip.open(info, "w", force_zip64=big) as file:
            file.write(content)

    def __enter__(self) -> TorchWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            _abandon(self._zip, self._file)
            return
        with self._file:
            buffer = io.BytesIO()
            _Pickler(buffer, protocol=2).dump(self._stored)
            entries = {"data.pkl": buffer.getvalue(), "byteorder": b"little", "version": b"3\n"}
            for name, content in entries.items():
                self._entry(name, content, len(content))
            self._zip.close()


def _abandon(archive: zipfile.ZipFile, file: IO[bytes]) -> None:
    """Close a file that is not whole; the error that is under way is the one to tell."""
    archive.fp = None  # or it would try to end the file when it is collected, and complain on stderr
    with contextlib.suppress(OSError):
        file.close()


class NpzWriter:
    """Writes an uncompressed NumPy archive.

    Args:
        path: The file.
    """

    def __init__(self, path: Path):
        self.metadata: dict[str, str] = {}
        self._file = path.open("wb")
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)

    def add(self, name: str, tensor: Tensor) -> None:
        """Write one tensor."""
        import numpy as np

        if tensor.dtype not in _STORAGES or tensor.dtype == torch.bfloat16:
            raise ZooError(f"{name} is {tensor.dtype}, which NumPy cannot hold: convert it to another dtype.")
        array = tensor.detach().cpu().contiguous().numpy()
        with self._zip.open(f"{name}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, array, allow_pickle=False)

    def __enter__(self) -> NpzWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            _abandon(self._zip, self._file)
            return
        with self._file:
            self._zip.close()


def is_file_name(target: Path) -> bool:
    """Whether a target is meant as a file rather than a folder.

    Raises:
        UsageError: It looks like a file of a kind that is not written.
    """
    if not target.suffix or target.is_dir():
        return False
    if target.suffix not in ENDINGS:
        raise UsageError(f"{target}: give a folder, or a file ending in {', '.join(ENDINGS)}.")
    return True


def open_writer(
    path: Path, shapes: Mapping[str, tuple[int, ...]], metadata: dict[str, str] | None = None
) -> TensorWriter:
    """A writer for the kind of file that the ending names.

    Args:
        path: A file ending in one of `ENDINGS`.
        shapes: Every name with its shape.
        metadata: Strings for a safetensors header.
    """
    if path.suffix == ".npz":
        return NpzWriter(path)
    if path.suffix in (".pt", ".pth", ".bin"):
        return TorchWriter(path)
    return SafetensorsWriter(path, shapes, metadata or {})


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Give an empty folder; on success its files take their places in `folder`, on failure nothing is left of them.

    A folder that did not exist appears with all its files at once; in one that did, other files stay as they are.

    Args:
        folder: Where the files shall be in the end; made if missing, and its parents.
    """
    new = not folder.exists()
    parent = folder.parent if new else folder
    made = _make(parent)
    done = False
    try:
        stage = _stage(folder, parent)
        try:
            yield stage
            _finish(stage)
            if new and not folder.exists():
                stage.replace(folder)
            else:
                folder.mkdir(exist_ok=True)
                for file in _files(stage):
                    place = folder / file.relative_to(stage)
                    place.parent.mkdir(exist_ok=True)
                    file.replace(place)
            done = True
        finally:
            if stage.exists():
                shutil.rmtree(stage, ignore_errors=True)
    finally:
        if not done:
            for path in reversed(made):
                with contextlib.suppress(OSError):  # somebody else put something there meanwhile
                    path.rmdir()


def _stage(folder: Path, parent: Path) -> Path:
    """A new folder in `parent` for what is to become `folder`."""
    try:
        return Path(tempfile.mkdtemp(dir=parent, prefix=f".{folder.name}.", suffix=".part"))
    except OSError as error:  # a person asked for the folder and knows no other name
        raise OSError(error.errno, error.strerror, str(folder)) from None


def _make(folder: Path) -> list[Path]:
    """Make a folder and its parents; the ones that were missing, outermost first."""
    missing: list[Path] = []
    while not folder.exists():
        missing.insert(0, folder)
        folder = folder.parent
    for path in missing:
        path.mkdir(exist_ok=True)
    return missing


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _finish(stage: Path) -> None:
    """Bring the files to the disk, with the rights of ordinary ones: mkdtemp makes private folders."""
    mask = os.umask(0)
    os.umask(mask)
    for file in _files(stage):
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())
    stage.chmod(0o777 & ~mask)
