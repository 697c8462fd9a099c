"""Reading checkpoints of every kind that the families were published in, without running anything they contain.

safetensors (also sharded), torch zip and legacy pickles (`weights_only`), TorchScript archives (only their tensors),
and NumPy archives. Each becomes a `TensorSource`: names and shapes at once, tensors one at a time, memory-mapped where
the format allows it.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmzoo.errors import ZooError
from mmzoo.weights.rules import TensorSource

__all__ = ["DictSource", "SafetensorsSource", "open_checkpoint", "side_files"]

# what a checkpoint's own tensors are called inside the dictionary that training scripts save
STATE_KEYS = ("state_dict", "model", "model_state_dict", "module", "params", "weights")
# what wrappers put before every name: DataParallel and DDP, torch.compile, a LightningModule's `self.model`
PREFIXES = ("module.", "_orig_mod.", "model.")
MAX_RATIO = 200  # a zip member that unpacks to more than so many times its size is a bomb, not a checkpoint


class DictSource:
    """Tensors that are in memory, or memory-mapped."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = dict(tensors)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every name with its shape."""
        return {name: tuple(t.shape) for name, t in self.tensors.items()}

    def tensor(self, name: str) -> Tensor:
        """One tensor."""
        return self.tensors[name]


class SafetensorsSource:
    """One safetensors file or the shards of one checkpoint, read tensor by tensor.

    Args:
        files: The shards.

    Raises:
        ZooError: A shard is missing, truncated or of another kind, or two shards hold the same name.
    """

    def __init__(self, files: list[Path]):
        self._where: dict[str, Any] = {}
        for file in files:
            try:
                opened = safe_open(str(file), framework="pt")
            except FileNotFoundError:
                raise ZooError(f"the shard {file} is missing: the download may be incomplete.") from None
            except (SafetensorError, OSError) as error:
                raise ZooError(
                    f"{file} cannot be read as safetensors ({error}): it may be truncated or of another kind."
                ) from None
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


def _plain_tensors(tree: Mapping[Any, Any], where: Path) -> dict[str, Tensor]:
    """The tensors of a (possibly nested) checkpoint dictionary, without wrappers' prefixes."""
    for _ in range(3):
        inner = next((tree[k] for k in STATE_KEYS if isinstance(tree.get(k), Mapping)), None)
        if inner is None or not any(isinstance(v, (Tensor, Mapping)) for v in inner.values()):
            break
        tree = inner
    tensors = {str(k): v for k, v in tree.items() if isinstance(v, Tensor)}
    if not tensors:
        kinds = ", ".join(f"{k}: {type(v).__name__}" for k, v in list(tree.items())[:6])
        raise ZooError(f"{where} holds no tensors by name (it has {kinds or 'nothing'}).")
    while prefix := next((p for p in PREFIXES if all(n.startswith(p) for n in tensors)), None):
        tensors = {name.removeprefix(prefix): t for name, t in tensors.items()}
    return tensors


def _read_torch(path: Path) -> DictSource:
    """A torch file, by the unpickler that builds tensors and plain containers and nothing else."""
    from argparse import Namespace

    # ALBEF- and ViLT-era files carry their command line beside the weights; a Namespace only holds values
    with torch.serialization.safe_globals([Namespace, OrderedDict]):
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except pickle.UnpicklingError as error:
            reason = str(error).splitlines()[0]
            if "Weights only load failed" in reason:
                reason = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), reason)
            raise ZooError(
                f"{path} wants to run code while it is read ({reason[:160]}), which mmzoo never allows: convert it to "
                "safetensors where you trust it."
            ) from None
        except (RuntimeError, EOFError, ValueError, OSError, KeyError, AttributeError, IndexError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ZooError(
                f"{path} cannot be read as a torch checkpoint ({reason[:160]}): it may be truncated."
            ) from None
    if isinstance(loaded, Tensor) or not isinstance(loaded, Mapping):
        raise ZooError(f"{path} holds a {type(loaded).__name__}, not tensors by name.")
    return DictSource(_plain_tensors(loaded, path))


class _Scripted(dict[str, Any]):
    """Stands for any object of a TorchScript archive: its attributes, none of its code."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, Mapping):
            self.update(state)


_STORAGE_DTYPES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "DoubleStorage": torch.float64,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


class _StorageKind:
    """Stands for a storage class inside a pickle."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype


class _ScriptUnpickler(pickle.Unpickler):
    """Rebuilds tensors and attribute dictionaries; every other global is refused by name."""

    def __init__(self, data: bytes, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(data))
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Scripted
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return _rebuild
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda data, *rest: data
        if module == "torch" and name in _STORAGE_DTYPES:
            return _StorageKind(_STORAGE_DTYPES[name])
        if module == "torch.jit._pickle":
            return lambda values, *rest: values
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        _, kind, key, _, count = pid
        raw = self._archive.read(f"{self._root}/data/{key}")
        flat = torch.frombuffer(bytearray(raw), dtype=kind.dtype) if raw else torch.empty(0, dtype=kind.dtype)
        if flat.numel() < count:
            raise pickle.UnpicklingError(f"storage {key} is shorter than it says")
        return flat


def _rebuild(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any
) -> Tensor:
    return storage.as_strided(size, stride, offset)  # type: ignore[no-any-return, no-untyped-call, unused-ignore]


def _script_tensors(node: Any, prefix: str = "") -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in node.items() if isinstance(node, Mapping) else ():
        if isinstance(value, Tensor):
            found[f"{prefix}{name}"] = value
        elif isinstance(value, _Scripted):
            found |= _script_tensors(value, f"{prefix}{name}.")
    return found


def _read_script(path: Path, archive: zipfile.ZipFile, root: str) -> DictSource:
    """The tensors of a TorchScript archive (OpenAI's CLIP files); its code is not even parsed."""
    try:
        module = _ScriptUnpickler(archive.read(f"{root}/data.pkl"), archive, root).load()
    except (pickle.UnpicklingError, KeyError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ZooError(f"{path} is not a TorchScript archive that mmzoo can read ({error}).") from None
    tensors = _script_tensors(module)
    if not tensors:
        raise ZooError(f"{path} holds no tensors by name.")
    return DictSource(tensors)


def _read_npz(path: Path) -> DictSource:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            return DictSource(
                {name: torch.from_numpy(np.ascontiguousarray(file[name])) for name in file.files}
            )
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise ZooError(f"{path} cannot be read as a NumPy archive ({error}).") from None


def _refuse_bombs(path: Path, archive: zipfile.ZipFile) -> None:
    for member in archive.infolist():
        if member.file_size > MAX_RATIO * max(member.compress_size, 1) and member.file_size > 1 << 20:
            raise ZooError(
                f"{path} is refused: {member.filename} would unpack to {member.file_size:,} bytes, "
                f"{member.file_size // max(member.compress_size, 1):,} times its size."
            )


def _read_zip(path: Path) -> DictSource:
    try:
        with zipfile.ZipFile(path) as archive:
            _refuse_bombs(path, archive)
            names = archive.namelist()
            if all(name.endswith(".npy") for name in names):
                return _read_npz(path)
            root = next((name.split("/", 1)[0] for name in names if name.endswith("/data.pkl")), None)
            if root is not None and f"{root}/constants.pkl" in names:
                return _read_script(path, archive, root)
    except zipfile.BadZipFile as error:
        raise ZooError(f"{path} is a damaged zip archive ({error}): it may be truncated.") from None
    return _read_torch(path)


def _from_index(index: Path) -> SafetensorsSource | DictSource:
    """The shards that a `*.index.json` names, all of them beside it."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError, UnicodeDecodeError):
        raise ZooError(f"{index} is not a shard index: it should map tensor names to files.") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ZooError(f"{index} names the shard {name!r}, which is not beside it: refused.")
    files = [index.parent / name for name in names]
    if all(file.suffix == ".safetensors" for file in files):
        return SafetensorsSource(files)
    merged: dict[str, Tensor] = {}
    for file in files:
        if not file.is_file():
            raise ZooError(f"the shard {file} is missing: the download may be incomplete.")
        merged |= _read_torch(file).tensors
    return DictSource(merged)


# in a folder, the first of these that exists is the checkpoint
_FOLDER: list[tuple[str, Callable[[Path], TensorSource]]] = [
    ("model.safetensors", lambda p: SafetensorsSource([p])),
    ("model.safetensors.index.json", _from_index),
    ("open_clip_model.safetensors", lambda p: SafetensorsSource([p])),
    ("pytorch_model.bin.index.json", _from_index),
    ("pytorch_model.bin", _read_torch),
    ("open_clip_pytorch_model.bin", _read_torch),
]


def open_checkpoint(path: str | Path) -> TensorSource:
    """Open a checkpoint of any kind.

    Args:
        path: A file (safetensors, torch, TorchScript, npz, a shard index), or a folder that holds one.

    Raises:
        ZooError: Nothing there, damaged, of an unknown kind, or wanting to run code.
    """
    path = Path(path)
    if path.is_dir():
        for name, reader in _FOLDER:
            if (path / name).is_file():
                return reader(path / name)
        single = [
            p
            for p in sorted(path.iterdir())
            if p.suffix in (".safetensors", ".pt", ".pth", ".ckpt", ".npz", ".bin")
        ]
        if len(single) == 1:
            return open_checkpoint(single[0])
        found = ", ".join(p.name for p in sorted(path.iterdir())[:8]) or "nothing"
        raise ZooError(
            f"{path} holds no checkpoint that mmzoo recognises (found {found}): name the file itself."
        )
    if not path.is_file():
        raise ZooError(f"no file or folder {path}.")
    if path.stat().st_size == 0:
        raise ZooError(f"{path} is empty.")
    if path.name.endswith(".index.json"):
        return _from_index(path)
    with path.open("rb") as file:
        head = file.read(16)
    if head[:4] == b"PK\x03\x04":
        return _read_zip(path)
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return SafetensorsSource([path])
    if head[:1] == b"\x80":  # a pickle, as torch wrote before 1.6
        return _read_torch(path)
    raise ZooError(f"{path} is of no kind that mmzoo reads: safetensors, torch, TorchScript or npz.")


def side_files(path: str | Path) -> dict[str, dict[str, Any]]:
    """The JSON files beside a checkpoint that describe it, by name; those that are not there are left out.

    Raises:
        ZooError: One is there and is not a JSON object.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    found = {}
    for name in ("config.json", "open_clip_config.json", "preprocessor_config.json"):
        file = folder / name
        if not file.is_file():
            continue
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ZooError(f"{file} is not valid JSON ({error}).") from None
        if not isinstance(data, dict):
            raise ZooError(f"{file} should hold a JSON object.")
        found[name] = data
    return found
