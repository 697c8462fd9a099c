"""Reading and writing tensors on disk: safetensors, written whole or not at all, read strictly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mmzoo.errors import ZooError, nearest
from mmzoo.files import atomic_path
from mmzoo.weights.write import SafetensorsWriter

__all__ = [
    "WeightsDigest",
    "load_strictly",
    "read_json",
    "read_tensors",
    "weights_hash",
    "write_json",
    "write_tensors",
]


def write_json(path: Path, data: Any) -> None:
    """Write `data` as readable JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ZooError: The file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ZooError(f"no file {path}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ZooError(f"{path} is not valid JSON ({error}): it may be damaged or half-written.") from None


def write_tensors(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write `state` as safetensors, atomically, one tensor after the other and without copying them.

    Tensors that share memory are written once per name.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    with atomic_path(path) as temporary, SafetensorsWriter(temporary, shapes, metadata or {}) as writer:
        for name, tensor in state.items():
            writer.add(name, tensor)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ZooError: The file is missing, truncated or of another kind.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError:
        raise ZooError(f"no file {path}.") from None
    except (SafetensorError, OSError) as error:
        raise ZooError(
            f"{path} cannot be read as safetensors ({error}): it may be truncated or of another kind."
        ) from None


class WeightsDigest:
    """SHA-256 over names, shapes, dtypes and bytes of tensors that come one by one, in the order of names."""

    def __init__(self) -> None:
        self._digest, self._last = hashlib.sha256(), ""

    def add(self, name: str, tensor: Tensor) -> None:
        """Take in one tensor."""
        assert name > self._last, f"{name} comes after {self._last}"
        self._last, plain = name, tensor.detach().cpu().contiguous()
        self._digest.update(f"{name} {tuple(plain.shape)} {plain.dtype}\n".encode())
        self._digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)

    def hex(self) -> str:
        """The hash of what came so far, 64 digits."""
        return self._digest.hexdigest()


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of `state`, in the order of names."""
    digest = WeightsDigest()
    for name in sorted(state):
        digest.add(name, state[name])
    return digest.hex()


def _some(names: list[str], count: int = 6) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Fill `model` from `state`, every tensor on both sides or an error that lists both sides.

    The tensors of `state` become the model's own without a copy, so a model built on the meta device is filled at no
    cost beyond reading the file. Its dtype becomes theirs.

    Args:
        model: The module to fill, on any device or on meta.
        state: Tensors by the model's own names.
        source: What to call the state in a message.

    Raises:
        ZooError: A name is unknown or missing, or a shape differs. The model is then unchanged.
    """
    own = model.state_dict()
    unknown = sorted(state.keys() - own.keys())
    missing = sorted(own.keys() - state.keys())
    wrong = sorted(
        f"{name} is {tuple(state[name].shape)}, wanted {tuple(own[name].shape)}"
        for name in state.keys() & own.keys()
        if state[name].shape != own[name].shape
    )
    if unknown or missing or wrong:
        parts = []
        if unknown:
            parts.append(
                f"{len(unknown)} unknown ({_some(unknown)}){nearest(unknown[0], missing).rstrip('?')}"
            )
        if missing:
            parts.append(f"{len(missing)} missing ({_some(missing)})")
        if wrong:
            parts.append(f"{len(wrong)} of another shape ({_some(wrong, 3)})")
        raise ZooError(f"{source} does not fit {type(model).__name__}: {'; '.join(parts)}.")
    model.load_state_dict(dict(state), strict=True, assign=True)
