"""Tensors out of torch's own files, without running anything that these contain.

Zip and legacy pickles go through torch's `weights_only` unpickler; of TorchScript archives (OpenAI's CLIP files) only
the attributes are read, their code is not even parsed.

A checkpoint of `mmzoo fit` gives the average of the weights where its run kept one: that is what validation measured
and what the run exports. It says which frozen weights it leaves out.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmzoo.errors import ZooError

__all__ = ["TorchFile", "bare_names", "load_script", "load_torch"]

# what a checkpoint's own tensors are called inside the dictionary that training scripts save
STATE_KEYS = ("state_dict", "model", "model_state_dict", "module", "params", "weights")
# what wrappers put before every name: DataParallel and DDP, torch.compile, a LightningModule's `self.model`
PREFIXES = ("module.", "_orig_mod.", "model.")


class TorchFile(NamedTuple):
    """What a torch file holds.

    Attributes:
        tensors: Its tensors by name.
        left_out: Names of the model's tensors that a checkpoint of `mmzoo fit` leaves out, because they were frozen
            and came from another file.
    """

    tensors: dict[str, Tensor]
    left_out: tuple[str, ...] = ()


def bare_names(names: Iterable[str]) -> dict[str, str]:
    """Names without what wrappers put before them, and what they were."""
    bare = {re.sub(r"(?:^|(?<=\.))_orig_mod\.", "", name): name for name in names}  # compiled parts, anywhere
    while prefix := next((p for p in PREFIXES if bare and all(n.startswith(p) for n in bare)), None):
        bare = {new.removeprefix(prefix): old for new, old in bare.items()}
    return bare


def _plain_tensors(tree: Mapping[Any, Any], where: Path) -> dict[str, Tensor]:
    """The tensors of a (possibly nested) checkpoint dictionary."""
    outer = tree
    for _ in range(3):
        inner = next((tree[k] for k in STATE_KEYS if isinstance(tree.get(k), Mapping)), None)
        if inner is None or not any(isinstance(v, (Tensor, Mapping)) for v in inner.values()):
            break
        tree = inner
    tensors = {str(k): v.detach() for k, v in tree.items() if isinstance(v, Tensor)}
    if not tensors:
        kinds = ", ".join(f"{k}: {type(v).__name__}" for k, v in list(tree.items())[:6])
        raise ZooError(f"{where} holds no tensors by name (it has {kinds or 'nothing'}).")
    for name, tensor in tensors.items():
        _check_plain(name, tensor, where)
    average = _average(outer)
    if average:
        bare = bare_names(tensors)
        tensors = {
            new: average[new].to(tensors[o].dtype) if new in average else tensors[o]
            for new, o in bare.items()
        }
    return tensors


def _average(tree: Mapping[Any, Any]) -> Mapping[str, Tensor]:
    """The averaged weights in a checkpoint of `mmzoo fit`, by the model's own names; empty if there are none."""
    average = _inside(tree, "mmzoo", "ema", "average")
    return {str(name): value for name, value in average.items() if isinstance(value, Tensor)}


def _inside(tree: Mapping[Any, Any], *keys: str) -> Mapping[Any, Any]:
    """A mapping inside mappings; empty if it is not there."""
    for key in keys:
        inner = tree.get(key)
        if not isinstance(inner, Mapping):
            return {}
        tree = inner
    return tree


def _check_plain(name: str, tensor: Tensor, where: Path) -> None:
    """Refuse tensors that are not numbers in rows, or claim more numbers than the file holds."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "quantized" if tensor.is_quantized else "without data" if tensor.is_meta else "sparse"
        raise ZooError(f"{where}: {name} is {kind}, which mmzoo does not read: save it as a plain tensor.")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ZooError(f"{where}: {name} claims {tensor.numel():,} numbers and holds fewer: refused.")


def load_torch(path: Path) -> TorchFile:
    """A torch file, by the unpickler that builds tensors and plain containers and nothing else."""
    from argparse import Namespace

    # ALBEF- and ViLT-era files carry their command line beside the weights; a Namespace only holds values
    with torch.serialization.safe_globals([Namespace, OrderedDict]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")  # what comes of it is told below
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except OSError:
            raise
        except pickle.UnpicklingError as error:
            if _is_plain_pickle(path):
                raise ZooError(
                    f"{path} is a pickle that torch did not write, and mmzoo never runs one: save it as safetensors "
                    "where you trust it."
                ) from None
            told = _WANTED.search(str(error))
            if told is None:
                raise _unreadable(path, error) from None
            wanted = next(filter(None, told.groups()))
            raise ZooError(
                f"{path} wants to run code while it is read ({wanted}), which mmzoo never allows: convert it to "
                "safetensors where you trust it."
            ) from None
        except Exception as error:  # a damaged pickle can make its reader raise anything
            raise _unreadable(path, error) from None
    if isinstance(loaded, Tensor) or not isinstance(loaded, Mapping):
        raise ZooError(f"{path} holds a {type(loaded).__name__}, not tensors by name.")
    left_out = _inside(loaded, "mmzoo").get("left_out", ())
    names = tuple(str(name) for name in left_out) if isinstance(left_out, (list, tuple)) else ()
    return TorchFile(_plain_tensors(loaded, path), names)


def _is_plain_pickle(path: Path) -> bool:
    """Whether a file is a pickle of a protocol that torch does not write by itself."""
    with path.open("rb") as file:
        head = file.read(2)
    return head[:1] == b"\x80" and head[1:] > b"\x02"


# how torch's unpickler names what it refuses
_WANTED = re.compile(r"GLOBAL ([\w.]+)|add_safe_globals\(\[([\w.]+)\]\)|instantiate class ([\w.]+)")


def _unreadable(path: Path, error: Exception) -> ZooError:
    reason = re.sub(r"(?s).*WeightsUnpickler error: ", "", str(error))
    reason = (reason.strip().splitlines() or [type(error).__name__])[0]
    return ZooError(f"{path} cannot be read as a torch checkpoint ({reason[:160]}): it may be truncated.")


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
        self._storages: dict[str, Tensor] = {}  # many tensors may view one

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
        if key not in self._storages:
            raw = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            self._storages[key] = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0).byte()
        flat = self._storages[key].view(kind.dtype)
        if flat.numel() < count:
            raise pickle.UnpicklingError(f"storage {key} is shorter than it says")
        return flat


def _rebuild(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any
) -> Tensor:
    return torch.as_strided(storage, size, stride, offset)


def _script_tensors(node: Any, prefix: str = "") -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in node.items() if isinstance(node, Mapping) else ():
        if isinstance(value, Tensor):
            found[f"{prefix}{name}"] = value
        elif isinstance(value, _Scripted):
            found |= _script_tensors(value, f"{prefix}{name}.")
    return found


def load_script(path: Path, archive: zipfile.ZipFile, root: str) -> dict[str, Tensor]:
    """The tensors of a TorchScript archive (OpenAI's CLIP files); its code is not even parsed."""
    try:
        tensors = _script_tensors(_ScriptUnpickler(archive.read(f"{root}/data.pkl"), archive, root).load())
    except Exception as error:  # a damaged pickle can make its reader raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ZooError(f"{path} is not a TorchScript archive that mmzoo can read ({reason[:160]}).") from None
    for name, tensor in tensors.items():
        _check_plain(name, tensor, path)
    return tensors
