"""Reads a shard of any input sample by sample. What is broken is a fault with a name, and costs nothing else."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from mmzoo.apps.capfilt.plan import Shard
from mmzoo.apps.capfilt.records import URL_LIST, parquet_rows
from mmzoo.data.open import open_source
from mmzoo.data.sample import Picture
from mmzoo.data.sources.common import as_captions, check_relative, read_inside
from mmzoo.data.sources.shards import IMAGE_EXTENSIONS, TEXT_EXTENSIONS, parse_text, split_key
from mmzoo.errors import ZooError

__all__ = ["Fault", "Item", "picture_bytes", "read_shard"]


class Item(NamedTuple):
    """A picture and what is said of it.

    Attributes:
        key: Its name; drawing captions is seeded by it.
        sample: Its place in the shard.
        image: The file's bytes, or a PIL image where the source holds no file.
        texts: What the source says of it, in valid Unicode.
        suffix: Ending of its file, `".jpg"`.
        url: Where it comes from, if the source knows.
        path: Its file, where it has one of its own.
    """

    key: str
    sample: int
    image: Picture
    texts: tuple[str, ...]
    suffix: str
    url: str | None = None
    path: Path | None = None


class Fault(NamedTuple):
    """Something in a shard that could not be used as it was.

    Attributes:
        kind: `"picture"`, `"record"` (a line or row of no use), `"duplicate key"` or `"shard"` (cut off).
        key: The sample's key, or where it stands.
        reason: What is wrong.
    """

    kind: str
    key: str
    reason: str


def read_shard(shard: Shard, only: Collection[int] | None = None) -> Iterator[Item | Fault]:
    """Read a shard in its order.

    Args:
        shard: What to read.
        only: Places of the samples to read; None means all. Of the others not even the pictures are read.

    Yields:
        Samples, with pictures undecoded, and faults where they are met. A key that comes again is used and named.

    Raises:
        OSError: The shard's file cannot be read.
        ZooError: It has changed since it was planned.
    """
    shard.check()
    seen: Counter[str] = Counter()
    for found in _READERS[shard.kind](shard, only):
        if isinstance(found, Item):
            seen[found.key] += 1
            if seen[found.key] == 2:
                yield Fault("duplicate key", found.key, "stands in its shard more than once")
        yield found


def picture_bytes(image: Picture) -> bytes:
    """The bytes of a picture's file; PNG where it has none."""
    if isinstance(image, bytes):
        return image
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _valid(texts: Any) -> tuple[str, ...]:
    """Texts without lone surrogates, which no file in UTF-8 can hold."""
    return tuple(text.encode("utf-8", "replace").decode() for text in texts)


def _file(root: Path, image: str, key: str, sample: int, texts: Any, url: str | None = None) -> Item | Fault:
    """A sample whose picture is a file below `root`."""
    try:
        data = read_inside(root, check_relative(image, key))
    except ZooError as error:
        return Fault("picture", key, str(error))
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        return Fault("picture", key, getattr(error, "strerror", None) or str(error))
    return Item(key, sample, data, _valid(texts), Path(image).suffix.lower(), url, root / image)


def _lines(shard: Shard, only: Collection[int] | None) -> Iterator[Item | Fault]:
    root, file = Path(shard.root).resolve(), Path(shard.path)
    with file.open("rb") as lines:
        lines.seek(shard.start)
        for sample, raw in enumerate(islice(lines, shard.samples)):
            if not raw.strip() or (only is not None and sample not in only):
                continue
            where = f"{file.name}, line {sample + 1} of shard {shard.number}"
            try:
                record = json.loads(raw.decode("utf-8-sig"))
            except ValueError as error:
                yield Fault("record", where, f"broken JSON ({error})")
                continue
            image = record.get("image") if isinstance(record, dict) else None
            if not isinstance(image, str):
                yield Fault("record", where, "names no picture")
                continue
            key = _valid([image])[0]
            if shard.kind == "pictures":
                yield _file(root, image, key, sample, _beside(root / image))
                continue
            said = record.get("captions", record.get("caption"))
            texts = (said,) if isinstance(said, str) else as_captions(said)
            if texts is None:
                yield Fault("record", key, "its captions are no list of texts")
            yield _file(root, image, key, sample, texts or (), record.get("url"))


def _beside(picture: Path) -> tuple[str, ...]:
    """The caption in a text file beside a picture, if there is one."""
    try:
        return (picture.with_suffix(".txt").read_text(encoding="utf-8", errors="replace").strip(),)
    except (OSError, ValueError):
        return ()


def _parquet(shard: Shard, only: Collection[int] | None) -> Iterator[Item | Fault]:
    root, name = Path(shard.root).resolve(), Path(shard.path).name
    rows = parquet_rows(Path(shard.path), shard.group, shard.start, shard.samples)
    for sample, row in enumerate(rows):
        if only is not None and sample not in only:
            continue
        image, text, url, key = (_first(row, column) for column in ("image", "text", "url", "key"))
        if not isinstance(image, str):
            yield Fault("record", f"{name}, row {sample} of shard {shard.number}", "names no picture")
            continue
        texts = (text,) if isinstance(text, str) else as_captions(text)
        key = image if key is None else str(key)
        if texts is None and text is not None:
            yield Fault("record", key, "its caption is no text")
        yield _file(root, image, _valid([key])[0], sample, texts or (), url)


def _first(row: dict[str, Any], what: str) -> Any:
    return next((row[name] for name in URL_LIST[what] if row.get(name) is not None), None)


def _source(shard: Shard, only: Collection[int] | None) -> Iterator[Item | Fault]:
    source = open_source(shard.path, split=shard.split)
    for sample in range(shard.samples):
        if only is not None and sample not in only:
            continue
        try:
            found = source[shard.start + sample]
        except OSError as error:
            yield Fault(
                "picture", str(error.filename or f"{source.name}[{sample}]"), error.strerror or str(error)
            )
            continue
        suffix = Path(found.key).suffix.lower() if isinstance(found.image, bytes) else ".png"
        yield Item(found.key, sample, found.image, _valid(found.texts), suffix)


def _tar(shard: Shard, only: Collection[int] | None) -> Iterator[Item | Fault]:
    """Samples of a tar file. Unlike `TarSource`, one that is cut off gives what is whole in it."""
    path = Path(shard.path)
    pictures: dict[str, list[tuple[str, int, int]]] = {}
    texts: dict[str, tuple[str, int, int]] = {}
    cut = None
    end = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                if not member.isreg():
                    continue
                key, extension = split_key(member.name)
                span = (extension, member.offset_data, member.size)
                if member.offset_data + member.size > end:
                    cut = f"cut off inside {member.name}"
                elif extension in IMAGE_EXTENSIONS:
                    pictures.setdefault(key, []).append(span)
                elif extension in TEXT_EXTENSIONS and (key not in texts or extension == TEXT_EXTENSIONS[0]):
                    texts[key] = span
    except (tarfile.TarError, EOFError) as error:
        cut = cut or f"damaged ({error})"
    if cut is not None:
        yield Fault("shard", path.name, cut)
    sample = -1
    with path.open("rb") as file:
        for key in dict.fromkeys((*pictures, *texts)):
            if key not in pictures:
                sample += 1
                yield Fault("picture", f"{path.stem}/{key}", "a text without a picture")
            for extension, offset, size in pictures.get(key, ()):
                sample += 1
                if only is not None and sample not in only:
                    continue
                said, url = _said(_span(file, texts.get(key)), texts[key][0]) if key in texts else ((), None)
                name = _valid([f"{path.stem}/{key}"])[0]
                yield Item(name, sample, _span(file, (extension, offset, size)), said, f".{extension}", url)


def _said(data: bytes, extension: str) -> tuple[tuple[str, ...], str | None]:
    """Captions and address in a text member."""
    url = None
    if extension == "json":
        try:
            record = json.loads(data)
            url = record.get("url") if isinstance(record, dict) else None
        except ValueError:
            pass
    return _valid(parse_text(data, extension, 0)[0]), url if isinstance(url, str) else None


def _span(file: io.BufferedReader, span: tuple[str, int, int] | None) -> bytes:
    assert span is not None
    file.seek(span[1])
    return file.read(span[2])


_READERS = {"tar": _tar, "lines": _lines, "pictures": _lines, "parquet": _parquet, "source": _source}
