"""Files of embeddings: read as they were written, block by block, and refused when damaged or of another kind."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from mmzoo.apps import embeddings
from mmzoo.apps.embeddings import open_embeddings, write_embeddings
from mmzoo.errors import UsageError, ZooError
from mmzoo.weights.io import read_tensors, write_tensors

ENDINGS = [
    ".safetensors",
    pytest.param(
        ".parquet",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("pyarrow") is None,
            reason="no pyarrow to read Parquet with: pip install 'mmzoo[parquet]'",
        ),
    ),
]
KEYS = {"image": [f"häßlich/{i}.png" for i in range(50)], "text": [f"text {i}\n" for i in range(7)]}


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {kind: torch.randn(len(keys), 6, generator=generator) for kind, keys in KEYS.items()}


def written(path):
    write_embeddings(path, tensors(), KEYS, model="some-model", weights_sha256="ab" * 32)
    return path


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("rows", [1, 7, 16, 1000])
def test_blocks_are_the_vectors_in_order(ending, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "ROW_GROUP", 20)  # groups, kinds and blocks end in different places
    file = open_embeddings(written(tmp_path / f"x{ending}"))
    assert (file.model, file.weights_sha256) == ("some-model", "ab" * 32)
    for kind, vectors in tensors().items():
        blocks = list(file.blocks(kind, rows))
        assert max(map(len, blocks)) <= rows
        assert torch.equal(torch.cat(blocks), vectors)
        assert file.count(kind) == len(vectors)
        assert file.shape(kind) == (6,)
        assert file.keys(kind) == KEYS[kind]


def test_keys_too_many_for_a_header_are_a_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "HEADER", 200)
    file = open_embeddings(written(tmp_path / "x.safetensors"))
    assert {kind: file.keys(kind) for kind in ("image", "text")} == KEYS
    assert set(read_tensors(tmp_path / "x.safetensors")) == {
        "image",
        "text",
        "image_keys",
    }  # the texts are short


def test_several_vectors_per_picture(tmp_path):
    stack = torch.randn(5, 4, 6)
    path = tmp_path / "x.safetensors"
    write_embeddings(
        path, {"image": stack}, {"image": list("abcde"), "text": []}, model="m", weights_sha256="0"
    )
    file = open_embeddings(path)
    assert file.shape("image") == (4, 6)
    assert file.count("text") == 0
    assert torch.equal(torch.cat(list(file.blocks("image", 2))), stack)


@pytest.mark.parametrize("ending", ENDINGS)
def test_whatever_is_cut_off_is_noticed(ending, tmp_path):
    whole = written(tmp_path / f"x{ending}").read_bytes()
    for part in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path = tmp_path / f"cut{ending}"
        path.write_bytes(whole[:part])
        with pytest.raises(ZooError, match=r"cut\.\w+ cannot be read \(.*embed again\.$"):
            open_embeddings(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_missing_file_says_how_to_write_it(ending, tmp_path):
    with pytest.raises(UsageError, match=r"no file .*; mmzoo embed --out .* writes one\."):
        open_embeddings(tmp_path / f"x{ending}")


@pytest.mark.parametrize(
    ("about", "sentence"),
    [
        ({}, "holds no embeddings of mmzoo embed"),
        ({"weights_sha256": "0", "image_keys": '["a"]'}, "2 vectors of images but 1 keys"),
        ({"weights_sha256": "0", "image_keys": '["a'}, "its list image_keys is not JSON"),
    ],
)
def test_safetensors_of_another_kind(about, sentence, tmp_path):
    write_tensors(tmp_path / "x.safetensors", {"image": torch.ones(2, 3)}, about)
    with pytest.raises(ZooError, match=sentence):
        open_embeddings(tmp_path / "x.safetensors")


@pytest.mark.parametrize("ending", ENDINGS[1:])
def test_parquet_of_another_kind(ending, tmp_path):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / f"x{ending}"
    parquet.write_table(pyarrow.table({"key": ["a"]}), path)
    with pytest.raises(ZooError, match=r"holds no embeddings of mmzoo embed \(it lacks their columns"):
        open_embeddings(path)
    lists = pyarrow.table({"kind": ["image"], "key": ["a"], "embedding": [[1.0, 2.0]]})
    parquet.write_table(lists.replace_schema_metadata({"weights_sha256": "0"}), path)
    with pytest.raises(ZooError, match="its column embedding is of type list"):
        open_embeddings(path)


@pytest.mark.parametrize("ending", ENDINGS[1:])
def test_parquet_without_pyarrow_is_a_sentence(ending, tmp_path, monkeypatch):
    path = written(tmp_path / f"x{ending}")
    monkeypatch.setattr(embeddings.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"Parquet needs pyarrow"):
        open_embeddings(path)
