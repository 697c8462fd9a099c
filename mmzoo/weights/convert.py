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

    def __init__(self, source: TensorSource, prefix: str, bare: frozenset[str]):
        self._source, self._prefix, self._bare = source, prefix, bare

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            name if name in self._bare else self._prefix + name: s
            for name, s in self._source.shapes().items()
        }

    def tensor(self, name: str) -> Tensor:
        return self._source.tensor(name if name in self._bare else name.removeprefix(self._prefix))


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

    def describe(self, known: Plain | None) -> Plain:
        """The plain data of the model's config; what the file does not tell is taken from `known`.

        Raises:
            ZooError: Something stays unknown.
        """
        return fill(self.layout.describe(self.source.shapes(), self.side), known, self.where)

    def told(self) -> Plain:
        """The layout's description, with `Unknown` where the file does not tell."""
        return self.layout.describe(self.source.shapes(), self.side)

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


def _fits(layout: Layout, source: TensorSource) -> TensorSource | None:
    """The source under the layout's names, or None where its signature is not there."""
    names = source.shapes().keys()
    if all(s in names for s in layout.signature):
        return source
    if layout.prefix:
        bare = frozenset(n for n in names if n.startswith(("classifier.", "cls.")))
        candidate = _Prefixed(source, layout.prefix, bare)
        if all(s in candidate.shapes() for s in layout.signature):
            return candidate
    return None


def recognise(path: str | Path, layout: str | None = None, family: str | None = None) -> Checkpoint:
    """Open a checkpoint and find its layout by its names.

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
    candidates = list(LAYOUTS.values()) if layout is None else [get_layout(layout)]
    fitting = [(entry, found) for entry in candidates if (found := _fits(entry, source)) is not None]
    # a layout may be another's subset: keep those that claim the most
    if len(fitting) > 1:
        left = [unmatched(entry.rules(entry.describe(found.shapes(), {})), names) for entry, found in fitting]
        fitting = [pair for pair, count in zip(fitting, left, strict=True) if count == min(left)]
    if len(fitting) > 1:
        fit = ", ".join(entry.name for entry, _ in fitting)
        raise ZooError(f"{path} fits {fit}: say which with layout=...")
    if not fitting:
        wanted = "no layout that mmzoo knows" if layout is None else f"not the layout {layout}"
        raise ZooError(
            f"{path} has {wanted} (its first names: {', '.join(names[:4])}). Layouts: mmzoo, {', '.join(LAYOUTS)}."
        )
    entry, found = fitting[0]
    if family is not None and entry.family != family:
        raise ZooError(
            f"{path} is a {entry.family} checkpoint ({entry.name}), not one of the family {family}."
        )
    return Checkpoint(str(path), found, entry, side_files(path))


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
