"""Small pictures and data folders, made on the fly."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from PIL import Image


def encode(colour: int, size: tuple[int, int] = (20, 16), kind: str = "PNG") -> bytes:
    """Bytes of a one-coloured picture."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (colour % 256, (colour * 7) % 256, (colour * 31) % 256)).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """A tar file of (name, bytes)."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """Makes picture bytes of a colour."""
    return encode


@pytest.fixture
def make_tar() -> Callable[..., Path]:
    """Writes a tar file."""
    return write_tar


@pytest.fixture
def class_folder(tmp_path: Path) -> Path:
    """Two classes with three and two pictures, one of them deeper."""
    for i, name in enumerate(
        ["dog/b.png", "dog/a.png", "dog/deep/c.png", "black_cat/1.jpg", "black_cat/2.jpg"]
    ):
        file = tmp_path / "pets" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(i, kind="JPEG" if name.endswith("jpg") else "PNG"))
    return tmp_path / "pets"


@pytest.fixture
def make_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder of N captioned pictures; `texts(i)` gives the captions of picture i."""

    def make(
        count: int, texts: Callable[[int], list[str]] = lambda i: [f"picture {i}"], name: str = "set"
    ) -> Path:
        folder = tmp_path / name
        (folder / "img").mkdir(parents=True)
        with (folder / "captions.jsonl").open("w") as lines:
            for i in range(count):
                (folder / "img" / f"{i:03}.png").write_bytes(encode(i))
                lines.write(json.dumps({"image": f"img/{i:03}.png", "captions": texts(i)}) + "\n")
        return folder

    return make
