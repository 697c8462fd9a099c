"""Towers that start from weights of any family, stay frozen, and are run once for each input."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

import mmzoo
from mmzoo.errors import UsageError, ZooError
from mmzoo.interchange import fill_tower
from mmzoo.lit.base import Recipe
from mmzoo.lit.clip import CLIPAdamW, LitCLIP
from mmzoo.lit.features import Remembered
from mmzoo.models.clip import CLIP

FROZEN = Recipe(freeze=("vision", "text"))


class Counting:
    """A tower that says how many rows it was given."""

    def __init__(self):
        self.rows = 0

    def __call__(self, x, keep=None):
        self.rows += len(x)
        weight = torch.ones_like(x) if keep is None else keep.to(x.dtype)
        return (x * weight).flatten(1).double().sum(1, keepdim=True)


def test_each_input_is_computed_once():
    tower = Counting()
    remembered = Remembered(tower)
    images = torch.randn(5, 3, 4, 4)
    images[3] = images[0]
    expected = images.flatten(1).double().sum(1, keepdim=True)
    assert torch.equal(remembered(images), expected)
    assert tower.rows == 4  # a picture that comes twice in a batch, too
    assert torch.equal(remembered(images.flip(0)), expected.flip(0))
    assert tower.rows == 4
    images[1, 0, 0, 0] += 1e-6  # any other picture is another one
    remembered(images)
    assert (tower.rows, len(remembered)) == (5, 5)


def test_padding_makes_no_other_text():
    tower = Counting()
    remembered = Remembered(tower)
    ids = torch.tensor([[3, 4, 0, 0], [3, 4, 5, 0]])
    keep = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    assert remembered(ids, keep=keep).tolist() == [[7.0], [12.0]]
    assert remembered(ids[:1, :2], keep=keep[:1, :2]).tolist() == [[7.0]]
    assert remembered(torch.tensor([[3, 4, 9, 9]]), keep=keep[:1]).tolist() == [[7.0]]
    assert tower.rows == 2


@pytest.fixture
def donors(toys, tmp_path):
    """A ViT and a CLIP with the toy's towers, as other people's files."""
    torch.manual_seed(7)
    config = toys.clip()
    vit = mmzoo.create_model(
        "vit-tiny",
        config=dataclasses.replace(toys.vit(), vision=dataclasses.replace(config.vision, image_size=32)),
    )
    mmzoo.save(vit, tmp_path / "vit")
    clip = CLIP(config)
    mmzoo.save(clip, tmp_path / "clip")
    return tmp_path, vit, clip


def test_towers_start_from_other_families(toys, donors):
    folder, vit, clip = donors
    module = LitCLIP(
        toys.clip(), start={"vision": str(folder / "vit"), "text": str(folder / "clip")}, recipe=FROZEN
    )
    for name, tensor in clip.text.state_dict().items():
        assert torch.equal(module.model.text.state_dict()[name], tensor), name
    fitted = module.model.vision.fit_state(vit.vision.state_dict())  # from 4 x 4 places to 2 x 2
    for name, tensor in fitted.items():
        assert torch.equal(module.model.vision.state_dict()[name], tensor), name
    trained = {name for name, p in module.model.named_parameters() if p.requires_grad}
    assert trained == {"vision_proj.weight", "text_proj.weight", "logit_scale"}


def test_a_published_tower_starts_from_its_own_file(toys, tmp_path):
    """A bare BERT's file with heads, which the tower has no use for."""
    from transformers import BertConfig, BertForPreTraining

    from mmzoo.towers.text import bert_text

    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=12,
    )  # fmt: skip
    bert = BertForPreTraining(config)
    bert.save_pretrained(tmp_path)
    text = bert_text(vocab=40, context=12, width=16, depth=2, heads=2, hidden=32, pool="mean")
    spec = dataclasses.replace(toys.clip().text_input, kind="bert", context=12, vocab=40)
    model = CLIP(toys.clip(text=text, text_input=spec))
    fill_tower(model, "text", tmp_path)
    assert torch.equal(model.text.embed.tok.weight, bert.bert.embeddings.word_embeddings.weight)
    assert all(p.requires_grad for p in model.parameters())
    other = CLIP(toys.clip(text=dataclasses.replace(text, heads=4), text_input=spec))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ZooError, match="heads is 2 in the file and 4 in the model"):
        fill_tower(other, "text", tmp_path)
    with pytest.raises(ZooError, match="has no vision tower"):
        fill_tower(other, "vision", tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())
    shallow = CLIP(toys.clip(text=dataclasses.replace(text, depth=1), text_input=spec))
    with pytest.raises(ZooError, match=r"encoder\.layer\.1"):
        fill_tower(shallow, "text", tmp_path)


def test_what_no_tower_can_start_from(toys, donors, tmp_path):
    folder, _, _ = donors
    with pytest.raises(UsageError, match="towers are called vision and text"):
        LitCLIP(toys.clip(), start={"visual": str(folder / "vit")})
    with pytest.raises(ZooError, match="has no text tower"):
        LitCLIP(toys.clip(), start={"text": str(folder / "vit")})
    with pytest.raises(ZooError, match="no file or folder"):
        LitCLIP(toys.clip(), start={"text": str(folder / "nothing")})
    with pytest.raises(
        UsageError, match="'no_such_package' is not installed: pip install --no-deps no-such-package"
    ):
        LitCLIP(toys.clip(), start={"text": "pkg:no_such_package/model"})
    with pytest.raises(UsageError, match="holds no 'nothing'"):
        LitCLIP(toys.clip(), start={"text": "pkg:mmzoo/nothing"})
    save_file({"text.blocks.0.x": torch.zeros(1)}, tmp_path / "odd.safetensors")
    with pytest.raises(ZooError, match=r"blocks\.0\.x"):
        LitCLIP(toys.clip(), start={"text": str(tmp_path / "odd.safetensors")})


def test_cached_features_train_as_computed_ones_do(toys, donors, tmp_path):
    """Same weights after the same steps, with each picture and text seen by the towers once."""
    folder, _, _ = donors
    start = {"vision": str(folder / "clip"), "text": str(folder / "clip")}
    runs = {}
    for cached in (False, True):
        torch.manual_seed(0)
        module = LitCLIP(
            toys.clip(),
            start=start,
            cache_features=cached,
            optimizer=lambda params: CLIPAdamW(params, lr=1e-2),
            recipe=FROZEN,
        )
        seen = []
        module.model.vision.register_forward_hook(lambda m, args, out, seen=seen: seen.append(len(args[0])))
        trainer = toys.trainer(tmp_path / str(cached), max_epochs=2)
        trainer.fit(module, datamodule=toys.data())
        runs[cached] = module.model.state_dict(), sum(seen)
    for name, tensor in runs[False][0].items():
        torch.testing.assert_close(runs[True][0][name], tensor, rtol=0, atol=1e-6)
    # two epochs of 20 drawn from 22, each epoch's pictures other ones (as augmented ones are), and 22 held out twice
    assert runs[False][1] == 2 * 20 + 2 * 22
    assert runs[True][1] < runs[False][1]
    saved = torch.load(tmp_path / "True" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {name for name in saved if name.startswith("model.")} == {
        "model.vision_proj.weight",
        "model.text_proj.weight",
        "model.logit_scale",
    }  # what comes from files is not saved again


def test_frozen_towers_without_a_file_are_saved(toys, donors, tmp_path):
    folder, _, _ = donors
    module = LitCLIP(toys.clip(), start={"vision": str(folder / "clip")}, recipe=FROZEN)
    toys.trainer(tmp_path / "run", max_steps=1).fit(module, datamodule=toys.data())
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert "model.text.embed.tok.weight" in saved


def test_caching_needs_a_frozen_tower(toys):
    with pytest.raises(UsageError, match=r"none is frozen: add recipe\.freeze"):
        LitCLIP(toys.clip(), cache_features=True)


def test_what_no_file_held_is_saved_though_it_is_frozen(toys, donors, tmp_path):
    """A text transformer that starts from one without cross-attention keeps its own in checkpoints."""
    from mmzoo.lit.albef import LitALBEF
    from mmzoo.models.text import TextModel, TextModelConfig

    tiny = mmzoo.get_config("albef-tiny")
    bare = dataclasses.replace(tiny.text, cross_layers=(), cross_width=None)
    mmzoo.save(TextModel(TextModelConfig(bare, tiny.text_input)), tmp_path / "text")
    start = {"text": str(tmp_path / "text")}
    module = LitALBEF("albef-tiny", start=start, queue=0, recipe=Recipe(freeze=("text",)))
    kept = {name for name in module._left_out if name.startswith("model.text.")}
    crossing = {
        name for name, _ in module.named_parameters() if name.startswith("model.text.") and "cross" in name
    }
    assert crossing
    assert not kept & crossing
    assert kept | crossing == {n for n, _ in module.named_parameters() if n.startswith("model.text.")}
    folder, _, _ = donors
    with pytest.raises(UsageError, match="give one"):
        LitCLIP(toys.clip(), str(folder / "clip"), start={"model": str(folder / "clip")})
    # a model of the same kind starts another, as pretrained does
    other = LitCLIP(toys.clip(), start={"model": str(folder / "clip")}, recipe=FROZEN)
    assert other._left_out == {n for n, p in other.named_parameters() if not p.requires_grad}
