"""Exported encoders give the model's numbers in torch.export and in ONNX Runtime, at any batch size and length."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from hand_copy import shake

import mmzoo
from mmzoo.adapt import replace_head
from mmzoo.apps import export as module
from mmzoo.apps.export import export
from mmzoo.cli.main import main
from mmzoo.errors import UsageError, ZooError


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Both tiny models, shaken so that no weight is at its quiet start, exported once."""
    folder = tmp_path_factory.mktemp("exported")
    found = {}
    for name in ("clip-tiny", "vit-tiny"):
        torch.manual_seed(0)
        model = shake(mmzoo.create_model(name))
        mmzoo.save(model, folder / name)
        found[name] = model, export(folder / name, folder / f"{name}-out")
    return found


def runner(done, part, format):
    file = next(f for f in done.files if (f.part, f.format) == (part, format))
    if format == "torch":
        return torch.export.load(file.file).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(file.file, providers=["CPUExecutionProvider"])
    return lambda *inputs: torch.from_numpy(
        session.run([file.output], {n: x.numpy() for n, x in zip(file.inputs, inputs, strict=True)})[0]
    )


@pytest.mark.parametrize("format", ["torch", "onnx"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_images(format, count, exported):
    for name, part, method in (("clip-tiny", "image", "encode_image"), ("vit-tiny", "classifier", "forward")):
        model, done = exported[name]
        size = model.config.image.size
        images = torch.randn(count, 3, size, size)
        with torch.inference_mode():
            expected = getattr(model, method)(images)
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(runner(done, part, format)(images), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("format", ["torch", "onnx"])
@pytest.mark.parametrize("texts", [["a"], ["a red apple", "x"], ["many " * 99, "", "two birds on a wire"]])
def test_texts_of_any_length(format, texts, exported):
    model, done = exported["clip-tiny"]
    ids, keep = mmzoo.create_processor(model).texts(texts)
    with torch.inference_mode():
        expected = model.encode_text(ids, keep)
    torch.testing.assert_close(runner(done, "text", format)(ids, keep), expected, rtol=0, atol=1e-5)


def test_what_is_written_and_told(exported):
    model, done = exported["clip-tiny"]
    names = {"image.pt2", "image.onnx", "text.pt2", "text.onnx", "processor.json", "export.json"}
    assert {p.name for p in done.folder.iterdir()} == names
    told = json.loads((done.folder / "export.json").read_text())
    assert {f["file"] for f in told["files"]} == {n for n in names if not n.endswith("json")}
    text = next(f for f in done.files if f.file.name == "text.onnx")
    assert text.inputs == {"ids": ("batch", "length"), "keep": ("batch", "length")}
    assert all(0 <= f.error < 1e-5 for f in done.files)
    from mmzoo.processing.processor import Processor

    processor = Processor.from_dict(json.loads((done.folder / "processor.json").read_text()))
    assert torch.equal(processor.texts(["a cat"]).ids, mmzoo.create_processor(model).texts(["a cat"]).ids)


@pytest.mark.parametrize("part", ["image", "text"])
def test_a_program_carries_its_own_tower_only(part, exported):
    model, done = exported["clip-tiny"]
    tower = {"image": (model.vision, model.vision_proj), "text": (model.text, model.text_proj)}[part]
    size = 4 * sum(p.numel() for m in tower for p in m.parameters())
    for file in (f.file for f in done.files if f.part == part):
        assert size < file.stat().st_size < size + 300_000
    assert [name for name, _ in model.named_children()] == ["vision", "text", "vision_proj", "text_proj"]


def test_a_program_that_gives_other_numbers_is_not_kept(tmp_path, monkeypatch):
    def wrong(part, program, file):
        file.write_bytes(b"x")
        return 2e-4

    monkeypatch.setattr(module, "_save_torch", wrong)
    monkeypatch.setattr(module, "_program", lambda part: None)
    with pytest.raises(
        ZooError, match=r"the exported classifier encoder \(torch\) differs from the model by 2\.0e-04"
    ):
        export("vit-tiny", tmp_path / "out", formats=["torch"])
    assert list(tmp_path.iterdir()) == []


def test_the_check_sees_other_numbers():
    part = module._Part(
        "x", torch.nn.Identity(), "y", ("a",), ({},), (), ((torch.ones(2),), (torch.full((2,), 4.0),))
    )
    assert module._error(part, lambda x: x) == 0
    assert module._error(part, lambda x: torch.where(x == 4, x + 1, x)) == 0.25
    assert module._error(part, lambda x: x[:1]) == float("inf")
    assert module._error(part, lambda x: torch.where(x == 4, torch.nan, x)) == float("inf")


def test_the_command(tmp_path, capsys):
    assert main(["export", "vit-tiny", str(tmp_path / "out"), "--format", "torch", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [f["part"] for f in told["files"]] == ["classifier"]
    assert (tmp_path / "out" / "classifier.pt2").stat().st_size > 1e6
    assert main(["export", "vit-tinny", str(tmp_path / "x")]) == 2
    assert "Did you mean vit-tiny" in capsys.readouterr().err


def test_a_model_without_a_head_gives_its_features(tmp_path):
    model = shake(replace_head(mmzoo.create_model("vit-tiny"), 0))
    mmzoo.save(model, tmp_path / "m")
    done = export(tmp_path / "m", tmp_path / "out", formats=["torch"])
    assert [(f.part, f.output) for f in done.files] == [("image", "features")]
    images = torch.randn(2, 3, 48, 48)
    with torch.inference_mode():
        torch.testing.assert_close(
            runner(done, "image", "torch")(images), model.features(images)[1], rtol=0, atol=1e-5
        )


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"no format 'tflite'; choose from torch, onnx"):
        export("vit-tiny", tmp_path, formats=["tflite"])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ZooError, match=r"pip install 'mmzoo\[export\]'"):
        export("vit-tiny", tmp_path / "out")
    assert not (tmp_path / "out").exists()
