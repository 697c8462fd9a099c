"""Opening models, `list` and `show`: names, folders, objects, and refusals that say who can."""

from __future__ import annotations

import json

import pytest
import torch

import mmzoo
from mmzoo.apps.list import list_models
from mmzoo.apps.opening import open_model, require
from mmzoo.apps.show import show
from mmzoo.config import from_dict
from mmzoo.errors import UsageError, ZooError
from mmzoo.weights.catalog import find, tags
from mmzoo.zoo import MODELS


def test_open_by_name_is_random_and_says_so():
    opened = open_model("vit-tiny", device="cpu")
    assert (opened.name, opened.weights) == ("vit-tiny", "random")
    assert not opened.model.training


def test_open_a_saved_folder_and_a_pair(tmp_path):
    model = mmzoo.create_model("vit-tiny")
    mmzoo.save(model, tmp_path / "saved")
    opened = open_model(str(tmp_path / "saved"), device="cpu")
    assert opened.name == opened.weights == str(tmp_path / "saved")
    same = open_model((opened.model, opened.processor), device="cpu")
    assert same.digest() == opened.digest()
    assert opened.digest() in (tmp_path / "saved" / "README.md").read_text()
    with pytest.raises(UsageError, match="is a saved model with weights of its own"):
        open_model(tmp_path / "saved", pretrained="x.safetensors")
    again = open_model("vit-tiny", pretrained=tmp_path / "saved", device="cpu")
    assert (again.weights, again.digest()) == (str(tmp_path / "saved"), opened.digest())


def test_unknown_names_and_devices():
    with pytest.raises(
        UsageError, match=r"'clip-tiney' is neither a model of the zoo nor a folder\. Did you mean clip-tiny"
    ):
        open_model("clip-tiney")
    with pytest.raises(UsageError, match=r"device 'gpu' cannot be used here \("):
        open_model("vit-tiny", device="gpu")


def test_require_says_what_the_model_does_and_who_can():
    opened = open_model("vit-tiny", device="cpu")
    require(opened, "classifies", "classify")
    with pytest.raises(ZooError) as caught:
        require(opened, "embeds pairs", "compare pictures with words")
    assert str(caught.value).startswith(
        "vit-tiny cannot compare pictures with words (it classifies). Models that can: clip-tiny, "
    )
    assert str(caught.value).endswith("more.")


def test_list_is_the_registry_sorted():
    models = list_models()
    assert [model.name for model in models] == sorted(MODELS)
    for model in models:
        entry = MODELS[model.name]
        assert (model.params, model.image_size) == (entry.params, entry.image_size)
        assert model.capabilities == entry.capabilities
        assert model.family == entry.family
        assert model.tags == tuple(tags(model.name))
        assert model.licence or not model.tags  # where no weights were published, none has a licence


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*-tiny", ["albef-tiny", "blip-tiny", "clip-tiny", "vilt-tiny", "vit-tiny"]),
        ("tiny", ["albef-tiny", "blip-tiny", "clip-tiny", "vilt-tiny", "vit-tiny"]),
        ("mmzoo", ["albef-tiny", "blip-tiny", "clip-tiny", "vilt-tiny", "vit-tiny"]),
        ("clip-vit-l14", ["clip-vit-l14", "clip-vit-l14-336", "clip-vit-l14-laion"]),
        ("h14", ["clip-vit-h14-laion", "vit-h14-224"]),
    ],
)
def test_list_by_pattern_word_and_tag(pattern, names):
    assert [model.name for model in list_models(pattern)] == names


def test_list_by_capability_and_origin():
    assert {model.name.split("-")[0] for model in list_models("classifies")} == {"vit"}
    assert "vit-s14-imgfocus" not in {model.name for model in list_models("classifies")}  # it has no head
    assert show("vit-s14-imgfocus").capabilities == ()
    assert {model.name for model in list_models("openai")} == {
        f"clip-vit-{s}" for s in ("b16", "b32", "l14", "l14-336")
    }
    assert [model.name for model in list_models("sam_in1k")] == ["vit-b16-224", "vit-b32-224"]
    assert list_models("clip-vit-l14-336")[0].licence == "MIT"
    assert list_models("clip-vit-b32")[0].licence == "MIT, CC-BY-NC-4.0"
    with pytest.raises(UsageError, match=r"no model matches 'clpi-tiny'\. Did you mean clip-tiny"):
        list_models("clpi-tiny")


def test_show_counts_parts_without_memory_and_its_config_comes_back():
    shown = show("clip-vit-b32")
    assert shown.params == sum(shown.parts.values()) == MODELS["clip-vit-b32"].params == 151_277_313
    assert set(shown.parts) == {"vision", "text", "vision_proj", "text_proj", "logit_scale"}
    # spec: 87.85 M on the image side, 63.43 M on the text side, projections included
    assert round((shown.parts["vision"] + shown.parts["vision_proj"]) / 1e6, 2) == 87.85
    assert round((shown.parts["text"] + shown.parts["text_proj"]) / 1e6, 2) == 63.43
    config = mmzoo.get_config("clip-vit-b32")
    assert from_dict(type(config), json.loads(json.dumps(shown.config))) == config
    assert shown.preprocessing["image"]["size"] == 224
    assert shown.preprocessing["text"]["context"] == 77
    assert "Radford" in shown.citation


def test_show_tells_of_published_weights():
    shown = show("clip-vit-b32")
    assert [w.tag for w in shown.weights] == tags("clip-vit-b32")
    first, record = shown.weights[0], find("clip-vit-b32", "openai")
    assert (first.layout, first.licence, first.size) == ("clip/openai", "MIT", record.size)
    assert first.verified == record.verified
    assert first.verified in ("real", "synthetic", "no")
    assert first.source == record.url
    assert first.numbers["ImageNet-1k zero-shot top-1"] > 60
    assert show("vit-tiny").weights == ()


def test_show_a_model_that_reads_no_text():
    assert set(show("vit-tiny").preprocessing) == {"image"}
    with torch.device("meta"):  # whatever the caller's default device
        assert show("vit-tiny").params == MODELS["vit-tiny"].params
