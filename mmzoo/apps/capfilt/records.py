"""One Parquet row per candidate: the only file of this verb that knows pyarrow (extra `capfilt`)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmzoo.errors import ZooError
from mmzoo.files import atomic_path

__all__ = [
    "SOURCES",
    "URL_LIST",
    "Record",
    "State",
    "need_pyarrow",
    "parquet_groups",
    "parquet_rows",
    "read_columns",
    "read_records",
    "read_state",
    "record_file",
    "write_decisions",
    "write_records",
]

SOURCES = ("web", "synthetic", "human")
"""Where a text comes from."""
URL_LIST = {
    "image": ("image", "path", "file", "filename", "image_path"),
    "text": ("caption", "text", "TEXT", "captions"),
    "url": ("url", "URL"),
    "key": ("key", "id"),
}
"""Columns that a Parquet list may have, by what they hold: the first that is there counts."""
KEY = b"mmzoo.capfilt"
ROW_GROUP = 2**16


class Record(NamedTuple):
    """A text that may become a picture's caption; None is a null in the file.

    Attributes:
        key: The picture's name.
        sample: Its place in the shard.
        sha256: Of the picture's file (of its pixels where it has none).
        phash: Perceptual hash of the picture, 64 bits.
        width: Of the picture in pixels.
        height: Of the picture in pixels.
        url: Where it comes from.
        text: The text as it came or was written.
        source: One of `SOURCES`.
        model: What wrote a synthetic text.
        weights: SHA-256 of its weights.
        seed: Of the drawing.
        sampling: Every number of it, as JSON.
        log_prob: Mean log-probability of a token.
        finished: False where it was cut at the most tokens.
        itm_prob: The filter's probability that text and picture match.
        itc_cos: The filter's cosine of the two.
        filter: What judged.
        filter_weights: SHA-256 of its weights.
        clip_cos: A CLIP model's cosine.
        clip: Its name.
        clip_weights: SHA-256 of its weights.
        kept: Whether the selection took it.
        reason: Why not, one of `rules.REASONS`.
    """

    key: str
    sample: int
    sha256: str
    phash: int
    width: int
    height: int
    url: str | None
    text: str
    source: str
    model: str | None = None
    weights: str | None = None
    seed: int | None = None
    sampling: str | None = None
    log_prob: float | None = None
    finished: bool | None = None
    itm_prob: float | None = None
    itc_cos: float | None = None
    filter: str | None = None
    filter_weights: str | None = None
    clip_cos: float | None = None
    clip: str | None = None
    clip_weights: str | None = None
    kept: bool | None = None
    reason: str | None = None


class State(NamedTuple):
    """What a file of records says of itself.

    Attributes:
        caption: Digest of how its captions were written; None where none were.
        score: Digest of how it was scored; None where it was not.
        select: Digest of the rules that `kept` follows.
        images: Pictures that could be read.
        faults: `[kind, key, reason]` of the first ones.
        fault_counts: How many of each kind there are.
    """

    caption: str | None = None
    score: str | None = None
    select: str | None = None
    images: int = 0
    faults: tuple[tuple[str, str, str], ...] = ()
    fault_counts: tuple[tuple[str, int], ...] = ()


def need_pyarrow() -> None:
    """Check that pyarrow is there.

    Raises:
        ZooError: It is not; the text says how to get it.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise ZooError("capfilt keeps its records in Parquet: pip install 'mmzoo[capfilt]'.") from None


def record_file(out: Path, number: int) -> Path:
    """Where the records of a shard are."""
    return out / "records" / f"{number:05}.parquet"


def _schema(state: State) -> Any:
    import pyarrow as pa

    text, name = pa.string(), pa.string()
    types = {
        "key": text, "sample": pa.int32(), "sha256": text, "phash": pa.uint64(), "width": pa.int32(),
        "height": pa.int32(), "url": text, "text": text, "source": name, "model": name, "weights": name,
        "seed": pa.int64(), "sampling": name, "log_prob": pa.float32(), "finished": pa.bool_(),
        "itm_prob": pa.float32(), "itc_cos": pa.float32(), "filter": name, "filter_weights": name,
        "clip_cos": pa.float32(), "clip": name, "clip_weights": name, "kept": pa.bool_(), "reason": name,
    }  # fmt: skip
    told = json.dumps(state._asdict(), sort_keys=True, ensure_ascii=False)
    return pa.schema([(field, types[field]) for field in Record._fields], metadata={KEY: told.encode()})


def _write(table: Any, path: Path) -> None:
    from pyarrow import parquet

    with atomic_path(path) as part:
        parquet.write_table(table, part, row_group_size=ROW_GROUP, compression="zstd")


def write_records(path: Path, records: Sequence[Record], state: State) -> None:
    """Write a shard's records whole or not at all.

    Raises:
        OSError: The disk is full or gone; nothing is left of the try.
    """
    import pyarrow as pa

    schema = _schema(state)
    columns = [pa.array([getattr(row, field.name) for row in records], field.type) for field in schema]
    _write(pa.Table.from_arrays(columns, schema=schema), path)


def write_decisions(path: Path, kept: Sequence[bool], reasons: Sequence[str | None], rules: str) -> bool:
    """Write which records are kept into their file.

    Returns:
        Whether anything changed.
    """
    import pyarrow as pa
    from pyarrow import parquet

    state = read_state(path)
    assert state is not None, "only what was scored is selected from"
    table = parquet.read_table(path)
    told = {"kept": pa.array(kept, pa.bool_()), "reason": pa.array(reasons, pa.string())}
    if state.select == rules and all(table[name].combine_chunks().equals(told[name]) for name in told):
        return False
    for name, column in told.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    _write(
        table.cast(_schema(state)).replace_schema_metadata(_schema(state._replace(select=rules)).metadata),
        path,
    )
    return True


def read_state(path: Path) -> State | None:
    """What a file of records says of itself; None where there is none.

    Raises:
        ZooError: There is something else.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        metadata = parquet.read_schema(path).metadata or {}
        told = json.loads(metadata[KEY])
    except FileNotFoundError:
        return None
    except (pyarrow.ArrowException, OSError, KeyError, ValueError):
        raise ZooError(
            f"{path} holds no records of mmzoo capfilt: remove it, or name another folder."
        ) from None
    return State(
        **told
        | {
            "faults": tuple(tuple(fault) for fault in told["faults"]),
            "fault_counts": tuple(tuple(count) for count in told["fault_counts"]),
        }
    )


def read_records(path: Path) -> list[Record]:
    """All records of a shard."""
    from pyarrow import parquet

    table = parquet.read_table(path, columns=list(Record._fields))
    return [Record(*row) for row in zip(*(column.to_pylist() for column in table.columns), strict=True)]


def read_columns(path: Path, names: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
    """Some columns of a shard's records, part by part."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=2**14, columns=list(names)):
            yield batch.to_pydict()


def parquet_groups(path: Path) -> tuple[list[str], list[int]]:
    """Names of the columns of any Parquet file, and the rows of its groups.

    Raises:
        ZooError: It is damaged or none.
    """
    need_pyarrow()
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            about = file.metadata
            return list(file.schema_arrow.names), [
                about.row_group(i).num_rows for i in range(about.num_row_groups)
            ]
    except (pyarrow.ArrowException, OSError) as error:
        raise ZooError(f"{path} is damaged or no Parquet file ({error}).") from None


def parquet_rows(path: Path, group: int, start: int, count: int) -> list[dict[str, Any]]:
    """Rows of a Parquet list of pictures, of the columns in `URL_LIST`.

    Raises:
        ZooError: It is damaged.
    """
    import pyarrow
    from pyarrow import parquet

    wanted = {name for names in URL_LIST.values() for name in names}
    try:
        with parquet.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in wanted]
            rows: list[dict[str, Any]] = file.read_row_group(group, columns).slice(start, count).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ZooError(f"{path} is damaged ({error}).") from None
    return rows
