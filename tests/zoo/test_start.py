"""Models that start from related ones, and towers from files that lack what a tower declares as fresh."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import mmzoo
from mmzoo.adapt import replace_head
from mmzoo.config import paths_of
from mmzoo.errors import UsageError, ZooError
from mmzoo.growth import Growth, plan
from mmzoo.interchange import fill_tower, open_weights
from mmzoo.models.albef import ALBEF, VARIANTS, ALBEFNLVR2Config, ALBEFVEConfig, ALBEFVQAConfig
from mmzoo.models.vilt import VARIANTS as VILT
from mmzoo.models.vilt import ViLTNLVR2, ViLTNLVR2Config, ViLTVQAConfig
from mmzoo.spec import TINY_VOCAB, TextSpec
from mmzoo.start import grown, start_parts
from mmzoo.towers import VisionConfig
from mmzoo.towers.text import bert_text
from mmzoo.weights.io import write_tensors

VISION = VisionConfig(
    image_size=16, patch=8, width=16, depth=2, heads=2, hidden=32, norm_eps=1e-6, act="gelu", init="timm",
    resample="albef",
)  # fmt: skip
TEXT = bert_text(
    vocab=TINY_VOCAB, context=12, width=16, depth=4, heads=2, hidden=32, cross_layers=(2, 3), cross_width=16
)


def albef(**changes):
    tiny = VARIANTS["albef-tiny"]
    base = dataclasses.replace(
        tiny, vision=VISION, text=TEXT, embed=8, image=dataclasses.replace(tiny.image, size=16),
        text_input=TextSpec("tiny", context=12, vocab=TINY_VOCAB),
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def inputs(config):
    return config.vision, config.text, config.image, config.text_input


def vqa(**changes):
    decoder = dataclasses.replace(TEXT, depth=2, cross_layers=(0, 1), causal=True)
    return ALBEFVQAConfig(*inputs(albef(**changes)), decoder)


# -- the plan ---------------------------------------------------------------------------------------------------------


def test_parts_are_copied_renumbered_doubled_and_new():
    have = {
        "a.0.w": (2,),
        "a.1.w": (2,),
        "a.10.w": (2,),
        "table": (2, 3),
        "old.w": (4,),
        "head.w": (5, 2),
        "head.b": (5,),
    }
    want = {
        "a.0.w": (2,), "a.1.w": (2,), "a.2.w": (2,), "a.10.w": (2,), "table": (3, 3), "new.w": (7,), "head.w": (6, 2),
        "head.b": (6,),
    }  # fmt: skip
    growth = Growth(moves=(("a.1", "a.2"),), heads=("old", "head"), fresh=("new",), rows={"table": (0, 1, 1)})
    found = plan(growth, have, want, "it")
    assert found.sources == {
        "a.0.w": "a.0.w", "a.1.w": "a.1.w", "a.2.w": "a.1.w", "a.10.w": "a.10.w", "table": "table"
    }  # fmt: skip
    assert set(found.fresh) == {"new.w", "head.w", "head.b"}
    # a head is kept or new as a whole
    part = plan(growth, have, want | {"head.b": (5,)}, "it")
    assert {"head.w", "head.b"} <= set(part.fresh)
    assert plan(growth, have, want | {"head.w": (5, 2), "head.b": (5,)}, "it").sources["head.b"] == "head.b"


def test_what_is_not_declared_is_listed_on_both_sides():
    with pytest.raises(
        ZooError, match=r"it: 1 without a place \(b\.w\).*; 2 without a source \(c\.w, d\.w\)"
    ):
        plan(Growth(), {"a.w": (1,), "b.w": (1,)}, {"a.w": (1,), "c.w": (1,), "d.w": (1,)}, "it")
    with pytest.raises(ZooError, match=r"1 without a place \(a\.1\.w\)\.$"):
        plan(
            Growth(moves=(("a.0", "a.1"),)),
            {"a.0.w": (1,), "a.1.w": (1,)},
            {"a.0.w": (1,), "a.1.w": (1,)},
            "it",
        )


# -- models -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pretrained(tmp_path):
    torch.manual_seed(1)
    model = ALBEF(albef())
    mmzoo.save(model, tmp_path / "albef")
    return model, tmp_path / "albef"


def test_a_task_model_starts_from_a_saved_pretrained_one(pretrained):
    source, folder = pretrained
    model = mmzoo.create_model("albef-b16-vqa", config=vqa())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    filled = start_parts(model, {"model": str(folder)})
    old, new = source.state_dict(), model.state_dict()
    for i in (0, 1):
        for name in ("mlp.fc1.weight", "cross.kv.weight", "attn.qkv.bias"):
            assert torch.equal(new[f"decoder.blocks.{i}.{name}"], old[f"text.blocks.{2 + i}.{name}"])
            assert torch.equal(new[f"text.blocks.{2 + i}.{name}"], old[f"text.blocks.{2 + i}.{name}"])
    assert torch.equal(new["lm.dense.weight"], old["mlm.dense.weight"])
    assert filled == new.keys()
    assert all(p.requires_grad for p in model.parameters())
    # two copies of a tensor are trained apart, though one file's tensor started both
    with torch.no_grad():
        model.decoder.embed.tok.weight.add_(1.0)
    assert torch.equal(model.text.embed.tok.weight, old["text.embed.tok.weight"])
    assert not torch.equal(before["text.embed.tok.weight"], old["text.embed.tok.weight"])


def test_twins_train_apart_but_for_what_they_share(pretrained):
    source, folder = pretrained
    twins = dataclasses.replace(TEXT, depth=6, cross_layers=(2, 3, 4, 5))
    model = mmzoo.create_model("albef-b16-nlvr2", config=ALBEFNLVR2Config(*inputs(albef(text=twins))))
    filled = start_parts(model, {"model": folder})
    blocks = model.text.blocks
    assert torch.equal(blocks[2].mlp.fc1.weight, source.text.blocks[2].mlp.fc1.weight)
    assert torch.equal(blocks[5].mlp.fc1.weight, source.text.blocks[3].mlp.fc1.weight)
    assert blocks[2].mlp.fc1.weight.data_ptr() != blocks[3].mlp.fc1.weight.data_ptr()
    assert blocks[2].cross.kv.weight is blocks[3].cross.kv.weight
    assert not any(name.startswith("compare_head") for name in filled)


def test_larger_images_and_other_heads(pretrained):
    source, folder = pretrained
    larger = dataclasses.replace(VISION, image_size=32)
    model = mmzoo.create_model("albef-b16-ve", config=ALBEFVEConfig(*inputs(albef(vision=larger)), classes=5))
    head = model.entail_head.fc2.weight.clone()
    filled = start_parts(model, {"model": folder})
    assert model.vision.pos.shape == (1, 17, 16)
    assert torch.equal(model.vision.pos[:, 0], source.vision.pos[:, 0])
    assert torch.equal(model.entail_head.fc2.weight, head)
    assert "entail_head.fc2.weight" not in filled
    retrieval = grown(source, albef(words=False))
    assert retrieval.mlm is None
    assert torch.equal(retrieval.match_head.weight, source.match_head.weight)
    again = grown(retrieval, albef())
    assert torch.equal(again.text_proj.weight, source.text_proj.weight)
    assert again.text_proj.weight.data_ptr() != retrieval.text_proj.weight.data_ptr()


def test_what_a_model_cannot_start_from(pretrained, tmp_path):
    _, folder = pretrained
    question = mmzoo.create_model("albef-b16-vqa", config=vqa())
    mmzoo.save(question, tmp_path / "vqa")
    other = ALBEF(albef())
    with pytest.raises(UsageError, match=r"a ALBEF cannot start from a ALBEFVQA; it can from ALBEF\.$"):
        start_parts(other, {"model": tmp_path / "vqa"})
    deep = ALBEF(albef(text=dataclasses.replace(TEXT, depth=5, cross_layers=(2, 3, 4))))
    before = {name: tensor.clone() for name, tensor in deep.state_dict().items()}
    with pytest.raises(
        ZooError, match=r"a ALBEF cannot start from .*: \d+ without a source \(text\.blocks\.4"
    ):
        start_parts(deep, {"model": folder})
    wide = ALBEF(albef(text=dataclasses.replace(TEXT, heads=4)))
    with pytest.raises(ZooError, match=r"text\.heads is 2 in the file and 4 in the model"):
        start_parts(wide, {"model": folder})
    early = ALBEF(albef(text=dataclasses.replace(TEXT, norm="pre")))
    with pytest.raises(ZooError, match=r"text\.norm is 'post' in the file and 'pre' in the model"):
        start_parts(early, {"model": folder})
    assert all(torch.equal(before[name], tensor) for name, tensor in deep.state_dict().items())
    vit = mmzoo.create_model("vit-tiny")
    with pytest.raises(UsageError, match=r"is a albef model, not a vit.*start\.vision"):
        start_parts(vit, {"model": folder})
    (folder / "config.json").unlink()
    with pytest.raises(UsageError, match=r"no config\.json beside it"):
        start_parts(other, {"model": folder})


def test_a_family_without_a_table_starts_from_its_own_kind(tmp_path):
    vit = mmzoo.create_model("vit-tiny")
    mmzoo.save(vit, tmp_path / "vit")
    torch.manual_seed(5)
    other = mmzoo.create_model("vit-tiny")
    assert start_parts(other, {"model": tmp_path / "vit"}) == vit.state_dict().keys()
    assert torch.equal(other.vision.cls, vit.vision.cls)


def test_a_published_file_starts_a_task_model(tmp_path):
    """The layout is undone first, then the model grows."""
    torch.manual_seed(2)
    heads = {"heads": 12, "width": 48, "hidden": 32}
    vision = dataclasses.replace(VISION, **heads)
    text = dataclasses.replace(TEXT, **heads, cross_width=48, cross_layers=(2, 3))
    source = ALBEF(albef(vision=vision, text=text))
    mmzoo.save(source, tmp_path / "own")
    mmzoo.convert(tmp_path / "own", tmp_path / "file", layout="albef/official")
    config = ALBEFVEConfig(*inputs(albef(vision=vision, text=text)))
    model = mmzoo.create_model("albef-b16-ve", config=config)
    filled = start_parts(model, {"model": tmp_path / "file" / "model.pth"})
    assert torch.equal(model.text.blocks[3].cross.kv.weight, source.text.blocks[3].cross.kv.weight)
    assert {name for name in model.state_dict() if name not in filled} == {
        name for name in model.state_dict() if name.startswith("entail_head.")
    }


def test_vilt_takes_rows_of_tables():
    tiny = VILT["vilt-tiny"]
    torch.manual_seed(3)
    model = mmzoo.create_model("vilt-tiny")
    pairs = grown(model, ViLTNLVR2Config(*inputs(tiny)))
    assert isinstance(pairs, ViLTNLVR2)
    assert torch.equal(pairs.modality.weight, model.modality.weight[[0, 1, 1]])
    ranking = grown(model, dataclasses.replace(tiny, rank=True))
    assert torch.equal(ranking.rank_head.weight, model.match_head.weight[1:])
    assert torch.equal(ranking.match_head.weight, model.match_head.weight)
    answers = grown(
        grown(model, ViLTVQAConfig(*inputs(tiny), answers=7)), ViLTVQAConfig(*inputs(tiny), answers=9)
    )
    assert answers.answer_head.fc2.weight.shape[0] == 9


# -- towers -----------------------------------------------------------------------------------------------------------


def test_albef_starts_from_a_bert_and_a_vit(tmp_path):
    """Of the fusion layers, BERT gives all but the cross-attention."""
    from transformers import BertConfig, BertForPreTraining

    bert = BertForPreTraining(
        BertConfig(
            vocab_size=TINY_VOCAB, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=12,
        )
    )  # fmt: skip
    bert.save_pretrained(tmp_path / "bert")
    vit = mmzoo.create_model(
        "vit-tiny", config=dataclasses.replace(mmzoo.get_config("vit-tiny"), vision=VISION, classes=3)
    )
    mmzoo.save(vit, tmp_path / "vit")
    model = ALBEF(albef())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    filled = start_parts(model, {"vision": tmp_path / "vit", "text": tmp_path / "bert"})
    state = model.state_dict()
    fresh = {name for name in state if name not in filled}
    crossing = {name for name in state if ".cross." in name or ".cross_norm." in name}
    assert len(crossing) == 2 * 8
    assert fresh == crossing | {name for name in state if not name.startswith(("vision.", "text."))}
    assert all(torch.equal(before[name], state[name]) for name in fresh)
    assert torch.equal(
        state["text.blocks.3.mlp.fc1.weight"], bert.bert.encoder.layer[3].intermediate.dense.weight
    )
    assert torch.equal(state["vision.cls"], vit.vision.cls)
    assert torch.isfinite(
        model.encode_text(torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5).bool())
    ).all()
    # from a fusion model's file, its cross-attention comes along, and half of it is an error
    mmzoo.save(model, tmp_path / "albef")
    other = ALBEF(albef())
    assert crossing <= fill_tower(other, "text", tmp_path / "albef")
    assert torch.equal(other.text.blocks[2].cross.kv.weight, model.text.blocks[2].cross.kv.weight)
    more = ALBEF(albef(text=dataclasses.replace(TEXT, cross_layers=(1, 2, 3))))
    with pytest.raises(ZooError, match=r"missing \(blocks\.1\.cross"):
        fill_tower(more, "text", tmp_path / "albef")


# -- what configs and files say of themselves --------------------------------------------------------------------------


def test_another_head_than_the_files_is_told_for_every_kind_of_head(tmp_path):
    tiny = VILT["vilt-tiny"]
    model = grown(mmzoo.create_model("vilt-tiny"), ViLTVQAConfig(*inputs(tiny), answers=7))
    mmzoo.save(model, tmp_path)
    with pytest.raises(
        ZooError, match=r"seems to have 7 answers, not 9: .* mmzoo\.start\.grown\(model, config\)"
    ):
        mmzoo.create_model(
            "vilt-b32-vqa", config=dataclasses.replace(model.config, answers=9), pretrained=tmp_path
        )
    started = mmzoo.create_model("vilt-b32-vqa", config=dataclasses.replace(model.config, answers=9))
    filled = start_parts(started, {"model": tmp_path})
    assert "answer_head.fc2.weight" not in filled
    assert "vision.cls" in filled


def test_a_file_of_ours_says_so_whatever_its_names_are(tmp_path):
    state = {"fusion.dense.weight": torch.zeros(2, 2)}
    write_tensors(tmp_path / "own.safetensors", state, {"family": "vilt", "sha256": "0" * 64})
    opened = open_weights(tmp_path / "own.safetensors", None, None)
    assert opened.checkpoint is None
    assert opened.source.shapes() == {"fusion.dense.weight": (2, 2)}
    write_tensors(tmp_path / "other.safetensors", state, {"family": "serif"})
    with pytest.raises(ZooError, match="no layout that mmzoo knows"):
        open_weights(tmp_path / "other.safetensors", None, None)


def test_configs_say_what_published_files_do_not_keep():
    assert paths_of(mmzoo.get_config("clip-tiny"), "unkept") >= {
        "vision.dropout", "vision.init", "text.attn_dropout", "logit_scale"
    }  # fmt: skip
    assert paths_of(VILT["vilt-b32"], "unkept") >= {"max_patches", "sample_in_eval", "vision.patch_drop"}
    assert not {"vision.width", "text.vocab", "words"} & paths_of(albef(), "unkept")


def test_any_model_may_offer_another_head():
    class Judge(torch.nn.Module):
        def reset_head(self, classes):
            self.classes = classes

    assert replace_head(Judge(), 4).classes == 4
