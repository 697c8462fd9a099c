"""Being listed is being tested: every name of the zoo, and the factory's promises."""

from __future__ import annotations

import dataclasses
import inspect
import json

import pytest
import torch

import mmzoo
from mmzoo.config import from_dict, to_dict
from mmzoo.errors import UsageError, ZooError
from mmzoo.models.capabilities import CAPABILITIES, Classifies, GivesFeatures, capabilities_of
from mmzoo.spec import TextSpec
from mmzoo.weights.io import read_tensors, weights_hash, write_tensors
from mmzoo.zoo import FAMILIES, MODELS, family_of

TINY = [name for name in mmzoo.list_models() if name.endswith("-tiny")]

# spec: parameters in millions as published or counted, two decimals
PUBLISHED = {
    "vit-ti16-224": 5.72, "vit-s16-224": 22.05, "vit-b32-224": 88.22, "vit-b16-224": 86.57, "vit-l32-224": 306.54,
    "vit-l16-224": 304.33, "vit-h14-224": 632.05, "clip-vit-b32": 151.28, "clip-vit-b16": 149.62,
    "clip-vit-l14": 427.62, "clip-vit-l14-336": 427.94,
}  # fmt: skip

CONTRACT = [
    *(f"vit-{s}-224" for s in ("ti16", "s16", "b16", "l16", "b32", "l32", "h14")),
    *(f"vit-{s}-384" for s in ("ti16", "s16", "b16", "l16", "b32", "l32")),
    *(f"clip-vit-{s}" for s in ("b32", "b16", "l14", "l14-336")),
    *(f"clip-vit-{s}-laion" for s in ("b32", "b16", "l14", "h14", "g14")),
    "vit-tiny",
    "clip-tiny",
    "vit-s14-imgfocus",
    "bert-base",
    "minilm-l6",
    "smollm2-135m",
]


@pytest.mark.parametrize("name", CONTRACT)
def test_contract_names_exist(name):
    assert name in mmzoo.list_models()


@pytest.mark.parametrize("name", mmzoo.list_models())
def test_table_tells_the_truth(name):
    entry = MODELS[name]
    model = mmzoo.create_model(name, device="meta")
    assert all(p.is_meta for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == entry.params
    image = getattr(mmzoo.get_config(name), "image", None)
    assert (image and image.size) == entry.image_size
    assert family_of(model) == family_of(model.config) == entry.family
    assert capabilities_of(model) == entry.capabilities
    assert not model.training
    if name in PUBLISHED:
        assert round(entry.params / 1e6, 2) == PUBLISHED[name]


def test_a_classifier_without_a_head_gives_features_only(tmp_path):
    config = dataclasses.replace(mmzoo.get_config("vit-tiny"), classes=0)
    model = mmzoo.create_model("vit-tiny", config=config)
    assert capabilities_of(model) == ()
    assert not isinstance(model, Classifies)
    assert isinstance(model, GivesFeatures)
    mmzoo.save(model, tmp_path / "own")
    mmzoo.convert(tmp_path / "own", tmp_path / "again", layout="mmzoo")
    for folder in ("own", "again"):
        assert "It gives features." in (tmp_path / folder / "README.md").read_text()


@pytest.mark.parametrize("name", TINY)
def test_protocols_ask_only_for_what_every_python_finds(name):
    """From Python 3.12 on, isinstance() looks into classes and `__dict__` only, not for parameters and submodules."""
    model = mmzoo.create_model(name)
    for able in capabilities_of(model):
        protocol = CAPABILITIES[able]
        members = {m for p in protocol.__mro__ for m in (*vars(p), *vars(p).get("__annotations__", ()))}
        members = {m for m in members if not m.startswith("_")}
        assert members
        for member in members:
            inspect.getattr_static(model, member)


@pytest.mark.parametrize("name", mmzoo.list_models())
def test_config_round_trip(name):
    config = mmzoo.get_config(name)
    data = json.loads(json.dumps(to_dict(config)))
    assert from_dict(type(config), data) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.image = None


def test_variants_and_table_hold_the_same_names():
    import importlib

    names = {n for f in FAMILIES.values() for n in importlib.import_module(f.module).VARIANTS}
    assert names == set(MODELS)
    assert set(CAPABILITIES) >= {c for f in FAMILIES.values() for c in f.capabilities}


@pytest.mark.parametrize("name", TINY)
def test_save_and_load_give_the_same_model(name, tmp_path):
    torch.manual_seed(0)
    model = mmzoo.create_model(name)
    mmzoo.save(model, tmp_path / "m")
    assert {p.name for p in (tmp_path / "m").iterdir()} == {
        "README.md", "config.json", "model.safetensors", "processor.json",
    }  # fmt: skip
    again, processor = mmzoo.load(tmp_path / "m")
    assert again.config == model.config
    assert weights_hash(again.state_dict()) == weights_hash(model.state_dict())
    assert not again.training
    size = model.config.image.size
    images = torch.randn(2, 3, size, size)
    if hasattr(model.config, "text_input"):
        ids, keep = processor.texts(["a cat", "two red apples on a table"])
        for a, b in zip(model(images, ids, keep), again(images, ids, keep), strict=True):
            assert torch.equal(a, b)
        assert processor.decode(ids) == ["a cat", "two red apples on a table"]
    else:
        assert torch.equal(model(images), again(images))
    assert f"A {MODELS[name].family} model" in (tmp_path / "m" / "README.md").read_text()
    # the folder's weights also fill a model by name
    filled = mmzoo.create_model(name, pretrained=tmp_path / "m")
    assert weights_hash(filled.state_dict()) == weights_hash(model.state_dict())
    assert all(p.requires_grad for p in filled.parameters())


def test_another_image_size_resamples_the_table(tmp_path):
    model = mmzoo.create_model("vit-tiny")
    mmzoo.save(model, tmp_path)
    config = mmzoo.get_config("vit-tiny")
    larger = dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, image_size=64),
        image=dataclasses.replace(config.image, size=64),
    )
    again = mmzoo.create_model("vit-tiny", config=larger, pretrained=tmp_path)
    assert again.vision.pos.shape == (1, 65, 96)
    assert again(torch.randn(1, 3, 64, 64)).shape == (1, config.classes)


def test_dtype_and_device():
    assert mmzoo.create_model("vit-tiny", dtype=torch.float64).head.weight.dtype == torch.float64
    assert mmzoo.create_model("vit-h14-224", device="meta").head.weight.is_meta


def test_published_initialisation():
    torch.manual_seed(0)
    clip = mmzoo.create_model("clip-vit-b32")
    assert clip.logit_scale.item() == pytest.approx(2.6593, abs=1e-4)
    assert clip.scale.item() == pytest.approx(1 / 0.07, rel=1e-5)
    block = clip.vision.blocks[3]
    assert block.attn.qkv.weight.std().item() == pytest.approx(768**-0.5, rel=0.02)
    assert block.attn.out.weight.std().item() == pytest.approx(768**-0.5 * 24**-0.5, rel=0.02)
    assert block.mlp.fc1.weight.std().item() == pytest.approx(1536**-0.5, rel=0.02)
    assert not block.attn.qkv.bias.any()
    assert clip.text.embed.tok.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert clip.text.embed.pos.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert clip.vision.pos.std().item() == pytest.approx(768**-0.5, rel=0.05)
    assert clip.text_proj.weight.std().item() == pytest.approx(512**-0.5, rel=0.02)
    vit = mmzoo.create_model("vit-ti16-224")
    assert not vit.head.weight.any()
    assert not vit.vision.cls.any()
    bound = (6 / (192 + 192)) ** 0.5
    for third in vit.vision.blocks[0].attn.qkv.weight.chunk(3):  # each projection has its own Xavier bound
        assert 0.98 * bound < third.abs().max().item() <= bound
    assert vit.vision.blocks[0].mlp.fc1.bias.std().item() == pytest.approx(1e-6, rel=0.2)
    assert vit.vision.patch.proj.weight.std().item() == pytest.approx((3 * 256) ** -0.5, rel=0.02)


# --- refusals -----------------------------------------------------------------------------------------------------


def test_unknown_names_suggest_near_ones():
    with pytest.raises(UsageError, match="Did you mean clip-tiny"):
        mmzoo.create_model("clip-tinny")
    with pytest.raises(UsageError, match="List them"):
        mmzoo.get_config("resnet50")
    with pytest.raises(UsageError, match="no model named"):
        mmzoo.create_processor("nothing")
    with pytest.raises(UsageError, match="takes a CLIPConfig"):
        mmzoo.create_model("clip-tiny", config=mmzoo.get_config("vit-tiny"))
    with pytest.raises(UsageError, match="layout"):
        mmzoo.create_model("clip-tiny", layout="clip/nothing")
    with pytest.raises(ZooError, match="no weights at"):
        mmzoo.create_model("clip-tiny", pretrained="/no/such/place")


def test_damaged_folders_are_refused_in_a_sentence(tmp_path):
    model = mmzoo.create_model("vit-tiny")
    mmzoo.save(model, tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ZooError, match="truncated"):
        mmzoo.load(tmp_path)
    file.unlink()
    with pytest.raises(ZooError, match="no file"):
        mmzoo.load(tmp_path)
    file.write_bytes(whole)
    (tmp_path / "config.json").write_text('{"family": "vit", ')
    with pytest.raises(ZooError, match="not valid JSON"):
        mmzoo.load(tmp_path)
    (tmp_path / "config.json").write_text('{"family": "gpt"}')
    with pytest.raises(ZooError, match="family 'gpt'"):
        mmzoo.load(tmp_path)
    with pytest.raises(ZooError, match=r"no config\.json"):
        mmzoo.load(tmp_path / "nowhere")


@pytest.mark.parametrize("change", ["rename", "drop", "extra", "transpose"])
def test_loading_is_strict(change, tmp_path):
    model = mmzoo.create_model("vit-tiny")
    state = dict(model.state_dict())
    key = "vision.blocks.1.mlp.fc1.weight"
    if change == "rename":
        state["vision.blocks.1.mlp.fc1.wieght"] = state.pop(key)
    elif change == "drop":
        del state[key]
    elif change == "extra":
        state["teacher.weight"] = torch.zeros(1)
    else:
        state[key] = state[key].T.contiguous()
    write_tensors(tmp_path / "w.safetensors", state)
    name = {"extra": "teacher.weight"}.get(change, key)
    with pytest.raises(ZooError, match=name.replace(".", r"\.")):
        mmzoo.create_model("vit-tiny", pretrained=tmp_path / "w.safetensors")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"a": torch.ones(3)})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmzoo.weights.write.SafetensorsWriter.add", full)
    with pytest.raises(OSError, match="No space"):
        write_tensors(path, {"a": torch.zeros(3)})
    assert torch.equal(read_tensors(path)["a"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_config_errors_name_the_field():
    config = to_dict(mmzoo.get_config("clip-tiny"))
    kind = type(mmzoo.get_config("clip-tiny"))
    config["text"]["dept"] = 3
    with pytest.raises(ZooError, match=r"config\.text has no field 'dept'.*depth"):
        from_dict(kind, config)
    del config["text"]["dept"], config["embed"]
    with pytest.raises(ZooError, match="lacks embed"):
        from_dict(kind, config)
    config["embed"], config["vision"]["kind"] = 4, "Unknown"
    with pytest.raises(ZooError, match="kind 'Unknown'"):
        from_dict(kind, config)


def test_timm_guest_in_a_clip_round_trips(tmp_path):
    from mmzoo.towers import TimmConfig

    config = dataclasses.replace(mmzoo.get_config("clip-tiny"), vision=TimmConfig("resnet18", image_size=48))
    model = mmzoo.create_model("clip-tiny", config=config)
    mmzoo.save(model, tmp_path)
    again, _ = mmzoo.load(tmp_path)
    assert again.config == config
    images = torch.randn(2, 3, 48, 48)
    assert torch.equal(model.encode_image(images), again.encode_image(images))


# --- models without an image side ---------------------------------------------------------------------------------


def _small_text(**changes):
    config = mmzoo.get_config("minilm-l6")
    vocab = 3072
    text = dataclasses.replace(
        config.text, vocab=vocab, context=32, width=24, depth=2, heads=3, hidden=48, **changes
    )
    return dataclasses.replace(config, text=text, text_input=TextSpec("tiny", context=32, vocab=vocab))


def test_a_text_model_is_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    model = mmzoo.create_model("minilm-l6", config=_small_text())
    mmzoo.save(model, tmp_path)
    again, processor = mmzoo.load(tmp_path)
    assert again.config == model.config
    assert json.loads((tmp_path / "processor.json").read_text())["image"] is None
    ids, keep = processor.texts(["a cat", "two red apples on a table"])
    vectors = again.encode_text(ids, keep)
    assert torch.equal(vectors, model.encode_text(ids, keep))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    assert processor.image_spec is None
    with pytest.raises(ZooError, match="reads texts only"):
        processor.images([])
    with pytest.raises(ZooError, match="not causal"):
        model.logits(ids)
    assert "context" in (tmp_path / "README.md").read_text()


def test_a_causal_text_model_goes_on_from_its_cache():
    from mmzoo.layers.cache import KVCache

    torch.manual_seed(0)
    config = mmzoo.get_config("smollm2-135m")
    text = dataclasses.replace(config.text, vocab=50, width=24, depth=2, heads=3, kv_heads=1, hidden=48)
    config = dataclasses.replace(config, text=text, text_input=TextSpec("smollm", context=8192, vocab=50))
    model = mmzoo.create_model("smollm2-135m", config=config, dtype=torch.float64)
    ids = torch.randint(0, 50, (2, 7))
    whole = model(ids)
    assert whole.shape == (2, 7, 50)
    torch.testing.assert_close(whole, model.text(ids).tokens @ model.text.embed.tok.weight.T)
    cache = KVCache(text.depth)
    steps = [model.logits(ids[:, :3], cache=cache)]
    steps += [model.logits(ids[:, i : i + 1], cache=cache) for i in range(3, 7)]
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        model.encode_text(ids), model.text(ids).tokens[:, -1]
    )  # the last token, no unit length


def test_text_vocabularies_must_agree():
    with pytest.raises(ZooError, match="make them equal"):
        mmzoo.create_model(
            "bert-base", config=dataclasses.replace(_small_text(), text_input=TextSpec("bert", 32, 9))
        )


def test_a_config_may_choose_among_a_familys_classes(tmp_path):
    """A capability is there exactly if the weights are."""
    from mmzoo.models.capabilities import capabilities_of
    from mmzoo.zoo import family_of

    whole = mmzoo.get_config("blip-tiny")
    kinds = {"BLIPReader": {"writes": False}, "BLIPWriter": {"reads": False}, "BLIP": {}}
    for kind, changes in kinds.items():
        model = mmzoo.create_model("blip-tiny", config=dataclasses.replace(whole, **changes))
        assert type(model).__name__ == kind
        assert family_of(model) == "blip"
        found = capabilities_of(model)
        assert ("writes captions" in found) == (kind != "BLIPReader")
        assert ("embeds pairs" in found) == ("scores pairs" in found) == (kind != "BLIPWriter")
        mmzoo.save(model, tmp_path / kind)
        again, _ = mmzoo.load(tmp_path / kind)
        assert type(again) is type(model)
        for name, tensor in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor), name
    with pytest.raises(ZooError, match="reads, writes or does both"):
        dataclasses.replace(whole, reads=False, writes=False)
