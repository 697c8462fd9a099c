"""From a published checkpoint to mmzoo's tensors and back: recognise, describe, apply, write."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmzoo.errors import UsageError, ZooError
from mmzoo.files import atomic_path
from mmzoo.weights.io import write_json
from mmzoo.weights.layout import Layout, Plain, fill
from mmzoo.weights.maps import LAYOUTS, get_layout
from mmzoo.weights.read import open_checkpoint, side_files
from mmzoo.weights.rules import TensorSource, apply, invert, unmatched

__all__ = ["Checkpoint", "SafetensorsWriter", "recognise", "write_layout", "write_weights"]


class _Prefixed:
    """A source whose names lack the leading part that the layout's table has."""

    def __init__(self, source: TensorSource, prefix: str):
        self._source, self._prefix = source, prefix

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {self._prefix + name: shape for name, shape in self._source.shapes().items()}

    def tensor(self, name: str) -> Tensor:
        return self._source.tensor(name.removeprefix(self._prefix))


class Checkpoint(NamedTuple):
    """A published checkpoint that is recognised but not yet read.

    Attributes:
        where: Its path, for messages.
        source: Its tensors.
        layout: Its layout.
        side: The JSON files beside it.
    """

    where: str
    source: TensorSource
    layout: Layout
    side: dict[str, Plain]

    def told(self) -> Plain:
        """The plain data of the model's config, with `Unknown` where the file does not tell.

        Raises:
            ZooError: A tensor that gives a size is missing or has another number of axes.
        """
        try:
            return self.layout.describe(
                _Named(self.source.shapes(), f"{self.where} ({self.layout.name})"), self.side
            )
        except (IndexError, ZeroDivisionError) as error:
            raise ZooError(f"{self.where}: its shapes are not those of {self.layout.name}.") from error

    def describe(self, known: Plain | None) -> Plain:
        """The plain data of the model's config; what the file does not tell is taken from `known`.

        Raises:
            ZooError: Something stays unknown, or a tensor that gives a size is missing.
        """
        return fill(self.told(), known, self.where)

    def tensors(self, config: Plain, wanted: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Tensor]]:
        """Our names with their tensors, one at a time, in the file's dtype.

        Args:
            config: The plain data of the model's config.
            wanted: Names and shapes of the model to fill.

        Raises:
            ZooError: The file does not fit; both sides are listed.
        """
        rules = self.layout.rules(config)
        return apply(rules, self.source, wanted, f"{self.where} ({self.layout.name})")


class _Named(dict[str, tuple[int, ...]]):
    """Shapes by name, where asking for a missing name is an error for a person."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], where: str):
        super().__init__(shapes)
        self._where = where

    def __missing__(self, name: str) -> tuple[int, ...]:
        raise ZooError(f"{self._where} does not fit: 1 missing: {name}.")


# enough of a config to write down any table; sizes do not change which names a table claims
_PROBE: Plain = {
    "vision": {"image_size": 32, "patch": 16, "heads": 1},
    "text": {"context": 1, "vocab": 1, "heads": 1, "kv_heads": 1},
}
# a file of which a table leaves more than this share unclaimed is not of its layout
_STRANGE = 0.5


class _Fit(NamedTuple):
    unclaimed: int
    unsigned: int
    layout: Layout
    source: TensorSource


def _fit(layout: Layout, source: TensorSource) -> _Fit:
    """How well a layout's table claims the names, with its prefix put in front of them where that fits better."""
    rules = layout.rules(_PROBE)
    found = []
    for candidate in [source, *([_Prefixed(source, layout.prefix)] if layout.prefix else [])]:
        names = list(candidate.shapes())
        unsigned = sum(s not in names for s in layout.signature)
        found.append(_Fit(unmatched(rules, names), unsigned, layout, candidate))
    return min(found, key=lambda fit: fit[:2])


def recognise(path: str | Path, layout: str | None = None, family: str | None = None) -> Checkpoint:
    """Open a checkpoint and find the layout whose table claims its names best.

    Args:
        path: A file or folder.
        layout: The layout's name where the names cannot tell, or to insist.
        family: The family that is wanted; a file of another one is refused by name.

    Raises:
        ZooError: Nothing there, damaged, of no known layout, of several, or of another family.
        UsageError: No such layout.
    """
    source = open_checkpoint(path)
    names = list(source.shapes())
    fits = sorted((_fit(entry, source) for entry in LAYOUTS.values()), key=lambda fit: fit[:2])
    if layout is not None:
        asked = _fit(get_layout(layout), source)
        hint = f" Its names fit {fits[0].layout.name}." if fits[0].unclaimed <= _STRANGE * len(names) else ""
        if asked.unclaimed > _STRANGE * len(names):
            raise ZooError(
                f"{path} has not the layout {layout} (its first names: {', '.join(names[:4])}).{hint}"
            )
        fits = [asked]
    elif fits[0].unclaimed > _STRANGE * len(names):
        raise ZooError(
            f"{path} has no layout that mmzoo knows (its first names: {', '.join(names[:4])}). "
            f"Layouts: mmzoo, {', '.join(LAYOUTS)}."
        )
    best = [fit for fit in fits if fit[:2] == fits[0][:2]]
    if len(best) > 1:
        raise ZooError(f"{path} fits {', '.join(fit.layout.name for fit in best)}: say which with layout=...")
    entry = best[0].layout
    if family is not None and entry.family != family:
        raise ZooError(
            f"{path} is a {entry.family} checkpoint ({entry.name}), not one of the family {family}."
        )
    return Checkpoint(str(path), best[0].source, entry, side_files(path))


_SAFE_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class SafetensorsWriter:
    """Writes a safetensors file tensor by tensor, so that only one is in memory at a time.

    The format begins with a header that gives every tensor's place; room for it is kept at the front and filled at the
    end, padded with spaces as the format allows.

    Args:
        path: The file.
        shapes: Every name with its shape, from which the room is computed.
        metadata: Strings to store in the header.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], metadata: dict[str, str]):
        self._entries: dict[str, Any] = {"__metadata__": {"format": "pt"} | metadata}
        longest = {
            n: {"dtype": "BF16", "shape": list(s), "data_offsets": [1 << 60, 1 << 60]}
            for n, s in shapes.items()
        }
        room = len(json.dumps(self._entries | longest).encode()) + 8
        self._room = (room + 7) // 8 * 8
        self._file = path.open("wb")
        self._file.seek(8 + self._room)
        self._offset = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Write one tensor; `shapes` must name it."""
        raw = tensor.detach().cpu().contiguous()
        if raw.numel():
            self._file.write(raw.reshape(-1).view(torch.uint8).numpy().data)
        end = self._offset + raw.numel() * raw.element_size()
        self._entries[name] = {
            "dtype": _SAFE_DTYPES[raw.dtype],
            "shape": list(raw.shape),
            "data_offsets": [self._offset, end],
        }
        self._offset = end

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            header = json.dumps(self._entries, separators=(",", ":")).encode()
            assert len(header) <= self._room
            self._file.seek(0)
            self._file.write(struct.pack("<Q", self._room) + header.ljust(self._room))
        self._file.close()


def write_weights(
    target: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: dict[str, str] | None = None,
) -> None:
    """Write tensors to a file of the kind that its ending names, atomically; safetensors tensor by tensor.

    Args:
        target: A file ending in `.safetensors`, `.pt`, `.pth`, `.bin` or `.npz`.
        shapes: Every name with its shape.
        tensors: The names with their tensors.
        metadata: Strings for a safetensors header.
    """
    with atomic_path(target) as temporary:
        if target.suffix == ".npz":
            import numpy as np

            with temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **{name: t.numpy() for name, t in tensors})
        elif target.suffix in (".pt", ".pth", ".bin"):
            torch.save(dict(tensors), temporary)
        else:
            with SafetensorsWriter(temporary, shapes, metadata or {}) as writer:
                for name, tensor in tensors:
                    writer.add(name, tensor)


def write_layout(
    layout: Layout,
    config: Plain,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, Tensor]],
    target: str | Path,
) -> Path:
    """Write a model's tensors in a published layout.

    Args:
        layout: The layout.
        config: The plain data of the model's config.
        shapes: Our names with their shapes.
        tensors: Our names with their tensors, read as they are written.
        target: A folder, which gets the weights under the layout's own file name and the JSON files beside them; or a
            file name ending in `.safetensors`, `.pt`, `.pth`, `.bin` or `.npz`, for the weights alone.

    Returns:
        The weights file.

    Raises:
        ZooError: The layout has no place for one of the tensors.
        UsageError: The file name has another ending.
    """
    target = Path(target)
    if target.suffix and not target.is_dir():
        if target.suffix not in (".safetensors", ".pt", ".pth", ".bin", ".npz"):
            raise UsageError(
                f"{target}: give a folder, or a file ending in .safetensors, .pt, .pth, .bin or .npz."
            )
        file, side = target, {}
    else:
        file, side = target / layout.weights, layout.side(config)
    if file.suffix == ".npz" and layout.name != "vit/google":
        raise UsageError(f"{layout.name} is not an npz layout: end {target.name} in .safetensors or .pt.")
    rules = layout.rules(config)
    # on the meta device first: whether every tensor has a place is known before anything is written
    empty = ((name, torch.empty(shape, device="meta")) for name, shape in shapes.items())
    foreign = {name: tuple(t.shape) for name, t in invert(rules, empty)}
    for name, content in side.items():
        write_json(file.parent / name, content)
    write_weights(file, foreign, invert(rules, tensors))
    return file
