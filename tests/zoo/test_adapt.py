"""Freezing, other heads, LoRA and int8: what changes, what must not, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hand_copy import shake
from torch import nn

import mmzoo
from mmzoo.adapt import add_lora, freeze, merge_lora, quantize_int8, replace_head
from mmzoo.errors import UsageError, ZooError
from mmzoo.models.capabilities import capabilities_of
from mmzoo.weights.io import weights_hash


@pytest.fixture
def clip():
    torch.manual_seed(0)
    return shake(mmzoo.create_model("clip-tiny"))


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return shake(mmzoo.create_model("vit-tiny"))


def images_for(model, count=3):
    size = model.config.image.size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def texts_for(model):
    return mmzoo.create_processor(model).texts(["a red apple", "two birds on a wire", "x"])


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


# --- freezing -----------------------------------------------------------------------------------------------------


def test_freeze_by_part_counts(clip):
    total = sum(p.numel() for p in clip.parameters())
    done = freeze(clip, ["vision"])
    inside = sum(p.numel() for p in clip.vision.parameters())
    assert done == (inside, total - inside)
    assert not any(name.startswith("vision.") for name in trained(clip))
    done = freeze(clip, ["text.blocks.0-1", "logit_scale"])
    expected = {"text.embed.tok.weight", "text.embed.pos.weight", "text.norm.weight", "text.norm.bias"}
    assert trained(clip) == expected | {"vision_proj.weight", "text_proj.weight"}
    assert freeze(clip, []) == done
    freeze(clip, ["vision.blocks.1-2.mlp.fc1"], frozen=False)
    assert {n for n in trained(clip) if n.startswith("vision.")} == {
        f"vision.blocks.{i}.mlp.fc1.{p}" for i in (1, 2) for p in ("weight", "bias")
    }
    assert freeze(clip, ["vision", "text", "vision_proj", "text_proj", "logit_scale"]).trainable == 0


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            "visoin",
            r"no part 'visoin': CLIP has no 'visoin'\. Did you mean vision.*Its parts: vision, text, ",
        ),
        ("text.blocks.0-5", r"no part 'text\.blocks\.2': text\.blocks has no '2'\. Its parts: 0-1\."),
        ("text.blocks.1-0", "runs backwards"),
        ("vision.blocks.0.attn.qvk", "vision.blocks.0.attn has no 'qvk'. Did you mean qkv"),
        ("logit_scale.x", "CLIP has no 'logit_scale'|no part"),
        ("", "no part ''"),
    ],
)
def test_an_unknown_part_is_named_with_those_there_are(part, message, clip):
    with pytest.raises(UsageError, match=message):
        freeze(clip, ["vision", part])
    assert any(name.startswith("vision.") for name in trained(clip))  # nothing was frozen on the way


# --- heads --------------------------------------------------------------------------------------------------------


def test_another_head_keeps_the_rest_and_is_saved(vit, tmp_path):
    tower = weights_hash(vit.vision.state_dict())
    assert replace_head(vit, 3) is vit
    assert vit.config.classes == 3
    assert weights_hash(vit.vision.state_dict()) == tower
    images = images_for(vit)
    assert torch.equal(vit(images), torch.zeros(3, 3))
    nn.init.normal_(vit.head.weight)
    mmzoo.save(vit, tmp_path)
    again, _ = mmzoo.load(tmp_path)
    assert again.config.classes == 3
    assert torch.equal(again(images), vit(images))
    named = mmzoo.create_model("vit-tiny", pretrained=tmp_path)  # the file's head, where no config insists
    assert torch.equal(named(images), vit(images))
    replace_head(vit.double().train(), 7)
    assert vit.head.weight.dtype == torch.float64
    assert vit.head.training
    replace_head(vit.float().eval(), 0)
    assert capabilities_of(vit) == ()
    assert torch.equal(vit(images), vit.features(images)[1])
    assert replace_head(vit, 2)(images).shape == (3, 2)
    assert capabilities_of(vit) == ("classifies",)


def test_a_head_of_another_size_is_refused_with_the_way(vit, tmp_path):
    mmzoo.save(vit, tmp_path / "own")
    config = dataclasses.replace(mmzoo.get_config("vit-tiny"), classes=9)
    with pytest.raises(
        ZooError,
        match=r"head\.weight is \(5, 96\), wanted \(9, 96\).*5 classes, not 9: .*adapt\.replace_head\(model, 9\)",
    ):
        mmzoo.create_model("vit-tiny", config=config, pretrained=tmp_path / "own")
    base = mmzoo.get_config("vit-b16-224")
    small = dataclasses.replace(
        base, vision=dataclasses.replace(base.vision, width=24, depth=1, heads=3, hidden=48), classes=6
    )
    mmzoo.save(mmzoo.create_model("vit-b16-224", config=small), tmp_path / "b")
    mmzoo.convert(tmp_path / "b", tmp_path / "timm", layout="vit/timm")
    other = dataclasses.replace(small, classes=9)
    with pytest.raises(
        ZooError, match=r"head\.weight \(6, 24\) does not make .*6 classes, not 9: .*replace_head\(model, 9\)"
    ):
        mmzoo.create_model("vit-b16-224", config=other, pretrained=tmp_path / "timm")


def test_heads_that_cannot_be(clip, vit):
    with pytest.raises(ZooError, match="a CLIP has no head of classes"):
        replace_head(clip, 3)
    with pytest.raises(UsageError, match="0 or more classes, asked for -1"):
        replace_head(vit, -1)


# --- LoRA ---------------------------------------------------------------------------------------------------------


def test_lora_trains_only_itself_merges_exactly_and_is_saved(clip, tmp_path):
    clip = clip.double()
    images, (ids, keep) = images_for(clip).double(), texts_for(clip)
    before = [t.clone() for t in clip(images, ids, keep)]
    names = {n: p.detach().clone() for n, p in clip.named_parameters()}
    done = add_lora(clip, ["vision", "text.blocks.1"], 4, alpha=8)
    width, text_width = clip.config.vision.width, clip.config.text.width
    assert done.trainable == 4 * (
        clip.config.vision.depth * (width + 3 * width + 2 * width)
        + (text_width + 3 * text_width + 2 * text_width)
    )
    assert all("lora_" in name for name in trained(clip))
    assert not any("text.blocks.0" in name for name in trained(clip))
    for a, b in zip(clip(images, ids, keep), before, strict=True):
        assert torch.equal(a, b)  # adapters begin at zero
    assert capabilities_of(clip) == ("embeds pairs",)

    optimizer = torch.optim.SGD([p for p in clip.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        image, text = clip(images, ids, keep)
        (image * text).sum().backward()
        optimizer.step()
    unmerged = clip(images, ids, keep)
    for a, b in zip(unmerged, before, strict=True):
        assert (a - b).abs().max() > 1e-4
    with pytest.raises(ZooError, match="has LoRA adapters already"):
        add_lora(clip, ["text"], 2)
    with pytest.raises(ZooError, match=r"merge_lora"):
        mmzoo.save(clip, tmp_path / "early")
    assert not (tmp_path / "early").exists()

    assert merge_lora(clip) is clip
    merged = clip(images, ids, keep)
    for a, b in zip(merged, unmerged, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    changed = {n for n, p in clip.named_parameters() if not torch.equal(p, names[n])}
    assert clip.state_dict().keys() == names.keys()
    assert changed == {
        *(
            f"vision.blocks.{i}.attn.{x}.weight"
            for i in range(clip.config.vision.depth)
            for x in ("qkv", "out")
        ),
        *(f"text.blocks.1.attn.{x}.weight" for x in ("qkv", "out")),
    }
    assert all(p.requires_grad for p in clip.parameters())
    mmzoo.save(clip, tmp_path / "m")
    again, _ = mmzoo.load(tmp_path / "m")
    for a, b in zip(again(images, ids, keep), merged, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ZooError, match="no LoRA adapters to merge"):
        merge_lora(clip)


def test_lora_on_chosen_layers_and_with_dropout(vit):
    done = add_lora(vit, ["vision.blocks.0-1"], 2, layers=("fc1", "fc2"), dropout=0.5)
    width, hidden = vit.config.vision.width, vit.config.vision.hidden
    assert done.trainable == 2 * 2 * 2 * (width + hidden)
    assert not vit.training
    assert not vit.vision.blocks[0].mlp.fc1.training


def test_lora_refusals(clip, monkeypatch):
    with pytest.raises(UsageError, match="no part 'visual'"):
        add_lora(clip, ["visual"], 4)
    with pytest.raises(
        UsageError, match=r"text\.embed holds no linear layers called qkv or out; it has none"
    ):
        add_lora(clip, ["text.embed"], 4)
    with pytest.raises(UsageError, match="it has fc1, fc2, out, qkv"):
        add_lora(clip, ["text"], 4, layers=("query",))
    with pytest.raises(UsageError, match="at least 1"):
        add_lora(clip, ["text"], 0)
    # a projection to unit length is more than a matrix, which an adapter would go past
    with pytest.raises(UsageError, match="holds no linear layers"):
        add_lora(clip, ["text_proj"], 4, layers=("text_proj",))
    assert len(trained(clip)) == len(list(clip.parameters()))
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ZooError, match=r"pip install 'mmzoo\[peft\]'"):
        add_lora(clip, ["text"], 4)


# --- int8 ---------------------------------------------------------------------------------------------------------


def test_int8_is_small_and_close(clip, vit):
    before = weights_hash(clip.state_dict())
    images, texts = images_for(clip), texts_for(clip)
    done = quantize_int8(clip, images, texts, floor=0.999)
    assert 0.999 <= done.cosine < 1
    linear = sum(m.weight.numel() for m in clip.modules() if type(m) is nn.Linear)
    assert done.bytes_before == 4 * sum(p.numel() for p in clip.parameters())
    assert done.bytes_before - done.bytes_after > 2.9 * linear
    assert weights_hash(clip.state_dict()) == before
    assert capabilities_of(done.model) == ("embeds pairs",)
    cosines = (done.model.encode_image(images) * clip.encode_image(images)).sum(1)
    text = (done.model.encode_text(*texts) * clip.encode_text(*texts)).sum(1)
    assert min(float(cosines.min()), float(text.min())) == pytest.approx(done.cosine, abs=1e-6)
    only = quantize_int8(clip, images, parts=("vision",))
    assert torch.equal(only.model.encode_text(*texts), clip.encode_text(*texts))
    assert quantize_int8(vit, images_for(vit)).cosine > 0.99


def test_int8_that_changes_too_much_is_refused(vit):
    """One weight a million times the others takes the whole scale of its row."""
    with torch.no_grad():
        for block in vit.vision.blocks:
            block.mlp.fc2.weight[:, 0] = 1e4
    vit.train()
    with pytest.raises(
        ZooError, match=r"smallest cosine to the original is [-\d.]+, below the floor of 0\.9999"
    ):
        quantize_int8(vit, images_for(vit), floor=0.9999)
    assert vit.training


def test_int8_that_gives_no_numbers_is_refused(clip, monkeypatch):
    """The last text's embedding is not a number: Python's own min would not see it."""
    import mmzoo.adapt as module

    embeddings = module._embeddings

    def spoilt(model, images, texts):
        found = [t.clone() for t in embeddings(model, images, texts)]
        if model is not clip:
            found[1][-1] = torch.nan
        return found

    monkeypatch.setattr(module, "_embeddings", spoilt)
    with pytest.raises(ZooError, match="smallest cosine to the original is nan"):
        quantize_int8(clip, images_for(clip), texts_for(clip))


def test_int8_refusals(clip, monkeypatch):
    with pytest.raises(UsageError, match="no part 'visual'"):
        quantize_int8(clip, images_for(clip), parts=("visual",))
    with pytest.raises(ZooError, match="a Linear gives no embeddings"):
        quantize_int8(nn.Linear(3, 3), torch.zeros(1, 3))
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    with pytest.raises(ZooError, match=r"pip install 'mmzoo\[quant\]'"):
        quantize_int8(clip, images_for(clip))
