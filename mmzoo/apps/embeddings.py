"""The files that `mmzoo embed` writes, and how they are searched without being read whole."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmzoo.errors import UsageError, ZooError
from mmzoo.files import atomic_path
from mmzoo.weights.io import write_tensors

__all__ = ["SUFFIXES", "Embeddings", "Kind", "open_embeddings", "write_embeddings"]

Kind = Literal["image", "text"]

SUFFIXES = (".safetensors", ".parquet")

HEADER = 50_000_000
"""Longest list of keys, in bytes of JSON, for a safetensors header, which may hold 100 MB; a longer one is a tensor."""
ROW_GROUP = 16_384
"""Rows of a Parquet row group, which is what a reader holds; its writer's own default is a million."""
LISTS: dict[str, str] = {"image": "image_keys", "text": "texts"}
NO_PYARROW = "Parquet needs pyarrow: pip install 'mmzoo[parquet]', or write .safetensors."


class Embeddings(Protocol):
    """Vectors in a file, opened and checked, read block by block.

    Attributes:
        path: The file.
        model: Name of the model that made it.
        weights_sha256: Hash of that model's weights.
    """

    path: Path
    model: str
    weights_sha256: str

    def count(self, kind: Kind) -> int:
        """How many vectors of that kind there are."""
        ...

    def shape(self, kind: Kind) -> tuple[int, ...]:
        """Shape of one of them, (E,); where a model gives several per picture, (queries, E)."""
        ...

    def keys(self, kind: Kind) -> list[str]:
        """Keys of the pictures, or the texts, in the order of the vectors."""
        ...

    def blocks(self, kind: Kind, rows: int) -> Iterator[Tensor]:
        """The vectors in order, at most `rows` at a time, (n, *shape) float32."""
        ...


def write_embeddings(
    path: Path, tensors: dict[str, Tensor], keys: dict[str, list[str]], *, model: str, weights_sha256: str
) -> None:
    """Write vectors, whole or not at all; `mmzoo.apps.embed.embed` describes the formats.

    Args:
        path: The file; its ending says the format.
        tensors: `image` and `text`, whichever there are, (B, ...) float32.
        keys: For both kinds one key per vector.
        model: Name of the model.
        weights_sha256: Hash of its weights.

    Raises:
        ZooError: Parquet is to hold several vectors per picture.
    """
    about = {"model": model, "weights_sha256": weights_sha256}
    if path.suffix == ".parquet":
        _write_parquet(path, tensors, keys, about)
        return
    found = dict(tensors)
    for kind, name in LISTS.items():
        text = json.dumps(keys[kind])
        if len(text) <= HEADER:
            about[name] = text
        else:
            found[name] = torch.frombuffer(bytearray(text, "ascii"), dtype=torch.uint8)
    write_tensors(path, found, about)


def open_embeddings(path: str | Path) -> Embeddings:
    """Open a file of `mmzoo embed` and check that it is one and is whole.

    Args:
        path: A `.safetensors` or `.parquet` file.

    Raises:
        UsageError: There is no such file, or no pyarrow to read Parquet with.
        ZooError: It is truncated, or was made by something else.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"no file {file}; mmzoo embed --out {file} writes one.")
    if file.suffix == ".parquet":
        if importlib.util.find_spec("pyarrow") is None:
            raise UsageError(NO_PYARROW)
        return _Parquet(file)
    return _Safetensors(file)


def _foreign(path: Path, why: str) -> ZooError:
    return ZooError(f"{path} holds no embeddings of mmzoo embed ({why}).")


def _damaged(path: Path, error: object) -> ZooError:
    first = str(error).strip().splitlines()[0].rstrip(".")
    return ZooError(f"{path} cannot be read ({first}): it may be truncated or of another kind; embed again.")


class _Safetensors:
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: Any = safe_open(str(path), framework="pt").__enter__()
            about = self._file.metadata() or {}
            names = set(self._file.keys())
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from None
        if not names & set(LISTS) or "weights_sha256" not in about:
            raise _foreign(path, "it does not name the model that made them")
        self.model: str = about.get("model", "a model without a name")
        self.weights_sha256: str = about["weights_sha256"]
        self._keys: dict[str, list[str]] = {}
        for kind, name in LISTS.items():
            text = bytes(self._file.get_tensor(name).numpy()) if name in names else about.get(name, "[]")
            try:
                self._keys[kind] = json.loads(text)
            except ValueError:
                raise _damaged(path, f"its list {name} is not JSON") from None
        self._shapes = {
            kind: tuple(self._file.get_slice(kind).get_shape()) if kind in names else (0, 0) for kind in LISTS
        }
        for kind, keys in self._keys.items():
            if len(keys) != self._shapes[kind][0]:
                raise _damaged(path, f"{self._shapes[kind][0]} vectors of {kind}s but {len(keys)} keys")

    def count(self, kind: Kind) -> int:
        return int(self._shapes[kind][0])

    def shape(self, kind: Kind) -> tuple[int, ...]:
        return self._shapes[kind][1:]

    def keys(self, kind: Kind) -> list[str]:
        return self._keys[kind]

    def blocks(self, kind: Kind, rows: int) -> Iterator[Tensor]:
        part = self._file.get_slice(kind)
        for start in range(0, self.count(kind), rows):
            yield part[start : start + rows].float()


class _Parquet:
    COLUMNS = ("kind", "key", "embedding")

    def __init__(self, path: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        self.path = path
        try:
            self._file = parquet.ParquetFile(path, memory_map=True)
        except (pyarrow.ArrowException, OSError) as error:
            raise _damaged(path, error) from None
        schema = self._file.schema_arrow
        about = schema.metadata or {}
        if any(name not in schema.names for name in self.COLUMNS) or b"weights_sha256" not in about:
            raise _foreign(path, "it lacks their columns, or the name of the model that made them")
        kind = schema.field("embedding").type
        if not pyarrow.types.is_fixed_size_list(kind):
            raise _foreign(path, f"its column embedding is of type {kind}")
        self._width = int(kind.list_size)
        self.model = about.get(b"model", b"a model without a name").decode()
        self.weights_sha256 = about[b"weights_sha256"].decode()
        self._counts = {kind: sum(len(part) for part in self._parts(kind, "kind", 2**16)) for kind in LISTS}

    def _parts(self, kind: str, column: str, rows: int) -> Iterator[Any]:
        """A column of the rows of one kind, in parts."""
        import pyarrow
        import pyarrow.compute

        try:
            columns = list(dict.fromkeys(("kind", column)))
            for batch in self._file.iter_batches(batch_size=rows, columns=columns):
                part = batch.filter(pyarrow.compute.equal(batch.column("kind"), kind))
                if len(part):
                    yield part.column(column)
        except (pyarrow.ArrowException, OSError) as error:
            raise _damaged(self.path, error) from None

    def count(self, kind: Kind) -> int:
        return self._counts[kind]

    def shape(self, kind: Kind) -> tuple[int, ...]:
        return (self._width,)

    def keys(self, kind: Kind) -> list[str]:
        return [key for part in self._parts(kind, "key", 2**16) for key in part.to_pylist()]

    def blocks(self, kind: Kind, rows: int) -> Iterator[Tensor]:
        for part in self._parts(kind, "embedding", rows):
            flat = part.flatten().to_numpy(zero_copy_only=False)
            if len(flat) != len(part) * self._width:
                raise _damaged(self.path, "a vector is missing")
            yield torch.tensor(flat, dtype=torch.float32).reshape(len(part), self._width)


def _write_parquet(
    path: Path, tensors: dict[str, Tensor], keys: dict[str, list[str]], about: dict[str, str]
) -> None:
    import pyarrow
    from pyarrow import parquet

    for vectors in tensors.values():
        if vectors.dim() != 2:
            raise ZooError(
                "Parquet holds one vector per picture; this model gives several: write .safetensors."
            )
    parts: list[Any] = []
    for kind, vectors in tensors.items():
        flat = pyarrow.array(vectors.reshape(-1).numpy())
        columns = {
            "kind": pyarrow.array([kind] * len(vectors)),
            "key": pyarrow.array(keys[kind]),
            "embedding": pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        }
        parts.append(pyarrow.table(columns))
    table = pyarrow.concat_tables(parts).replace_schema_metadata(about)
    with atomic_path(path) as part:
        parquet.write_table(table, part, row_group_size=ROW_GROUP)
