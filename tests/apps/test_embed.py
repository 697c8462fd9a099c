"""`mmzoo embed`: vectors and keys in one file, whole or not at all, never over an older one by accident."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import mmzoo
from mmzoo.apps import embed as module
from mmzoo.apps.embed import embed
from mmzoo.apps.opening import open_model
from mmzoo.cli.main import main
from mmzoo.errors import UsageError, ZooError
from mmzoo.processing.image import decode_image

HAS_PYARROW = importlib.util.find_spec("pyarrow") is not None


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def test_pictures_and_texts_keep_their_keys(colours, photos, tmp_path):
    out = tmp_path / "deep" / "x.safetensors"
    done = embed(
        colours, [photos / "red", photos / "blue"], out=out, texts=["red", "blue thing", "red"], batch_size=3
    )
    assert done == (out, 5, 2, 3, [])
    tensors, about = read(out)
    keys = json.loads(about["image_keys"])
    assert keys == [str(photos / "red" / name) for name in ("0.png", "1.png", "2.png", "odd.png")] + [
        str(photos / "blue" / "0.png")
    ]
    assert json.loads(about["texts"]) == ["red", "blue thing"]
    model, processor = colours
    for key, row in zip(keys, tensors["image"], strict=True):
        expected = model.encode_image(processor.images([decode_image(key)]))[0]
        assert torch.equal(row, expected)
    assert torch.equal(tensors["text"][0], torch.tensor([1.0, 0, 0]))
    assert tensors["text"].shape == (2, 3)
    assert about["model"] == "ColourModel"
    assert about["weights_sha256"] == open_model(colours, device="cpu").digest()


def test_a_data_set_brings_its_texts(colours, photos, tmp_path):
    done = embed(colours, data=photos, out=tmp_path / "x.safetensors")
    tensors, about = read(done.out)
    assert json.loads(about["texts"]) == ["blue", "green", "red"]
    assert tensors["image"].shape == (7, 3)
    assert tensors["text"].shape == (3, 3)


def test_a_classifier_gives_its_pooled_features(photos, tmp_path):
    out = tmp_path / "x.safetensors"
    embed("vit-tiny", [photos], out=out, device="cpu")
    tensors, about = read(out)
    opened = open_model("vit-tiny", device="cpu")
    keys = json.loads(about["image_keys"])
    with torch.no_grad():
        pooled = opened.model.features(opened.processor.images([decode_image(key) for key in keys]))[1]
    assert set(tensors) == {"image"}
    assert torch.allclose(tensors["image"], pooled, atol=1e-6)
    with pytest.raises(
        ZooError, match=r"vit-tiny cannot embed texts \(it classifies\)\. Models that can: clip-tiny"
    ):
        embed("vit-tiny", texts=["a"], out=tmp_path / "y.safetensors", device="cpu")


def test_broken_pictures_are_left_out_with_their_keys(colours, photos, tmp_path):
    (photos / "red" / "bad.png").write_text("no picture")
    done = embed(colours, [photos / "red"], out=tmp_path / "x.safetensors", batch_size=2)
    assert [Path(item.key).name for item in done.broken] == ["bad.png"]
    tensors, about = read(done.out)
    assert len(tensors["image"]) == len(json.loads(about["image_keys"])) == done.images == 4


def test_an_older_file_stays_unless_it_shall_go(colours, photos, tmp_path):
    out = tmp_path / "x.safetensors"
    out.write_text("precious")
    with pytest.raises(UsageError, match=r"x\.safetensors exists already; --overwrite replaces it\."):
        embed(colours, [photos], out=out)
    assert out.read_text() == "precious"
    embed(colours, [photos], out=out, overwrite=True)
    assert read(out)[0]["image"].shape == (7, 3)


def test_damaged_weights_are_a_sentence(colours, photos, tmp_path, monkeypatch):
    model, processor = colours
    monkeypatch.setattr(model, "encode_image", lambda images: torch.full((len(images), 3), torch.nan))
    with pytest.raises(ZooError, match="ColourModel gives numbers that are not finite"):
        embed((model, processor), [photos], out=tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_a_full_disk_leaves_the_older_file(colours, photos, tmp_path, monkeypatch):
    out = tmp_path / "x.safetensors"
    out.write_text("precious")

    def full(writer, name, tensor):
        writer._file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmzoo.weights.write.SafetensorsWriter.add", full)
    with pytest.raises(OSError, match="No space left"):
        embed(colours, [photos], out=out, overwrite=True)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["x.safetensors"]
    assert out.read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"out": "x.npy", "texts": ["a"]}, "x.npy: embeddings are written as .safetensors or .parquet"),
        ({"out": "x.safetensors"}, "nothing to embed: give pictures, --texts or --data."),
        ({"out": "x.safetensors", "images": ["a"], "data": "b"}, "give pictures or --data, not both."),
        ({"out": "d.safetensors", "texts": ["a"]}, "d.safetensors is a folder; name a file."),
    ],
)
def test_what_cannot_be_meant(arguments, sentence, colours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.safetensors").mkdir()
    with pytest.raises(UsageError) as caught:
        embed(colours, **arguments)
    assert str(caught.value).startswith(sentence)


def test_parquet_without_pyarrow_is_a_sentence(colours, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"Parquet needs pyarrow: pip install 'mmzoo\[parquet\]'"):
        embed(colours, [photos], out=tmp_path / "x.parquet")


@pytest.mark.skipif(not HAS_PYARROW, reason="no pyarrow to read Parquet with: pip install 'mmzoo[parquet]'")
def test_parquet_holds_the_same(colours, photos, tmp_path):
    from pyarrow import parquet

    embed(colours, [photos / "red"], texts=["red", "blue"], out=tmp_path / "x.parquet")
    embed(colours, [photos / "red"], texts=["red", "blue"], out=tmp_path / "x.safetensors")
    table = parquet.read_table(tmp_path / "x.parquet")
    tensors, about = read(tmp_path / "x.safetensors")
    assert table["kind"].to_pylist() == ["image"] * 4 + ["text"] * 2
    assert table["key"].to_pylist() == json.loads(about["image_keys"]) + json.loads(about["texts"])
    rows = torch.tensor(table["embedding"].to_pylist())
    assert torch.equal(rows, torch.cat([tensors["image"], tensors["text"]]))
    assert table.schema.metadata[b"weights_sha256"].decode() == about["weights_sha256"]


def test_command(photos, tmp_path, capsys):
    mmzoo.save(mmzoo.create_model("clip-tiny"), tmp_path / "saved")
    (tmp_path / "words.txt").write_text("a cat\na dog\n")
    out = tmp_path / "x.safetensors"
    words = ["embed", "--model", str(tmp_path / "saved"), "--device", "cpu", "--out", str(out)]
    assert main([*words, str(photos), "--texts", str(tmp_path / "words.txt"), "--json"]) == 0
    printed, err = capsys.readouterr()
    assert json.loads(printed) == {
        "out": str(out),
        "images": 7,
        "texts": 2,
        "width": mmzoo.get_config("clip-tiny").embed,
        "broken": [],
    }
    assert err == ""
    assert main([*words, "--texts", str(tmp_path / "words.txt")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--texts", str(tmp_path / "gone.txt")]) == 2
    assert capsys.readouterr().err == f"mmzoo: no file {tmp_path}/gone.txt.\n"
    assert main([*words, "--overwrite", "--texts", str(tmp_path / "words.txt")]) == 0
    assert capsys.readouterr().out == f"{out}\n"
