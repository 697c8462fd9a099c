"""ALBEF's files under the authors' names and LAVIS's, written down by hand: strictly in, every task, and back."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hand_copy import shake

import mmzoo
from mmzoo.errors import ZooError
from mmzoo.models.albef import VARIANTS
from mmzoo.spec import ImageSpec, TextSpec
from mmzoo.weights.catalog import find

VOCAB, CONTEXT, WIDTH, EYE = 50, 12, 24, 36


def _config(name: str, *, types: int = 2, **changes):
    base = VARIANTS[name]
    vision = replace(base.vision, image_size=16, patch=4, width=EYE, depth=2, heads=3, hidden=40)
    deep = 6 if "nlvr2" in name else 4
    sizes = {
        "vocab": VOCAB,
        "context": CONTEXT,
        "width": WIDTH,
        "heads": 3,
        "hidden": 40,
        "token_types": types,
    }
    text = replace(base.text, depth=deep, cross_layers=tuple(range(2, deep)), cross_width=EYE, **sizes)
    if "vqa" in name:
        changes["decoder"] = replace(base.decoder, depth=2, cross_layers=(0, 1), cross_width=WIDTH, **sizes)
    if name == "albef-b16" or changes.get("task") == "assign":
        changes["embed"] = 20
    words = TextSpec("bert", CONTEXT, VOCAB, sep=types == 0, clean="albef")
    return replace(
        base, vision=vision, text=text, image=ImageSpec(16, fit="squash"), text_input=words, **changes
    )


_EYE = {
    "attn_norm": "norm1", "attn.qkv": "attn.qkv", "attn.out": "attn.proj", "mlp_norm": "norm2", "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}  # fmt: skip
_BERT = {
    "attn.out": "attention.output.dense", "attn_norm": "attention.output.LayerNorm", "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense", "mlp_norm": "output.LayerNorm", "cross.q": "crossattention.self.query",
    "cross.out": "crossattention.output.dense", "cross_norm": "crossattention.output.LayerNorm",
}  # fmt: skip
_TABLES = {
    "tok": "word_embeddings", "pos": "position_embeddings", "token_type": "token_type_embeddings", "norm": "LayerNorm",
}  # fmt: skip
_REST = {
    "vision.cls": "visual_encoder.cls_token", "vision.pos": "visual_encoder.pos_embed",
    "vision.patch.proj": "visual_encoder.patch_embed.proj", "vision.norm": "visual_encoder.norm",
    "match_head": "itm_head", "assign_head": "ta_head", "compare_head.fc1": "cls_head.0",
    "compare_head.fc2": "cls_head.2", "entail_head.fc1": "cls_head.0", "entail_head.fc2": "cls_head.2",
    "vision_proj": "vision_proj", "text_proj": "text_proj",
}  # fmt: skip
_WORDS = {"dense": "transform.dense", "norm": "transform.LayerNorm"}


def _theirs(model) -> dict[str, torch.Tensor]:
    """The tensors of our model under the authors' names."""
    deep = "bert." if getattr(model, "mlm", None) is not None else ""
    backbones = {"text": f"text_encoder.{deep}", "decoder": "text_decoder.bert."}
    heads = {"mlm": "text_encoder.cls.predictions", "lm": "text_decoder.cls.predictions"}
    out: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        part, _, rest = name.partition(".")
        layer, _, kind = rest.rpartition(".")
        if name == "logit_scale":
            out["temp"] = torch.exp(-tensor)
        elif part in heads and rest == "bias":
            out[f"{heads[part]}.bias"] = out[f"{heads[part]}.decoder.bias"] = tensor
        elif part in heads:
            out[f"{heads[part]}.{_WORDS[layer]}.{kind}"] = tensor
        elif part in backbones and layer.startswith("embed."):
            out[f"{backbones[part]}embeddings.{_TABLES[layer[6:]]}.{kind}"] = tensor
        elif part in backbones:
            _, number, inner = layer.split(".", 2)
            where = f"{backbones[part]}encoder.layer.{number}"
            if inner == "attn.qkv":
                for one, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    out[f"{where}.attention.self.{one}.{kind}"] = piece.clone()
            elif inner == "cross.kv":
                for one, piece in zip(("key", "value"), tensor.chunk(2), strict=True):
                    out[f"{where}.crossattention.self.{one}.{kind}"] = piece.clone()
            else:
                out[f"{where}.{_BERT[inner]}.{kind}"] = tensor
        elif name.startswith("vision.blocks."):
            _, number, inner = layer.split(".", 2)
            out[f"visual_encoder.blocks.{number}.{_EYE[inner]}.{kind}"] = tensor
        else:
            out[_REST[name] if name in _REST else f"{_REST[name.rpartition('.')[0]]}.{kind or rest}"] = tensor
    for head, table in (("mlm", "text"), ("lm", "decoder")):
        if getattr(model, head, None) is not None:
            out[f"{heads[head]}.decoder.weight"] = model.get_submodule(table).embed.tok.weight.detach()
    return out


_TAUGHT = ("visual_encoder", "text_encoder", "text_decoder", "vision_proj", "text_proj", "cls_head")


def _training_state(file: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the authors' files hold beside the model."""
    extra = {
        f"{name.split('.')[0]}_m.{name.partition('.')[2]}": tensor
        for name, tensor in file.items()
        if name.split(".")[0] in _TAUGHT
    }
    for name in [n for n in file if n.endswith("word_embeddings.weight")]:
        extra[name.replace("word_embeddings.weight", "position_ids")] = torch.arange(CONTEXT)[None]
    if "temp" in file:
        extra |= {"image_queue": torch.randn(20, 8), "text_queue": torch.randn(20, 8)}
        extra |= {"queue_ptr": torch.zeros(1, dtype=torch.long)}
    return extra


CASES = [
    ("albef-b16", {}),
    ("albef-b16", {"words": False}),
    ("albef-b16-vqa", {}),
    ("albef-b16-nlvr2", {}),
    ("albef-b16-nlvr2", {"task": "assign"}),
    ("albef-b16-ve", {}),
]


def _built(name: str, **changes):
    torch.manual_seed(0)
    config = _config(name, **changes)
    return config, shake(mmzoo.create_model(name, config=config))


@pytest.mark.parametrize(("name", "changes"), CASES)
@pytest.mark.parametrize("school", ["official", "lavis"])
def test_every_task_and_back(name, changes, school, tmp_path):
    config, model = _built(name, **changes, types=2 if school == "official" else 0)
    file = _theirs(model)
    extra = _training_state(file)
    if changes.get("task") == "assign":  # text assignment's file has a common space for texts too
        extra |= {"text_proj.weight": torch.randn(20, WIDTH), "text_proj.bias": torch.randn(20)}
        extra |= {"temp": torch.tensor(0.07)}
    torch.save({"model": file | extra, "epoch": 1, "config": {"a": 1}}, tmp_path / "w.pth")
    load = {"config": config, "pretrained": tmp_path / "w.pth"}
    again = mmzoo.create_model(name, **load)
    for key, tensor in model.state_dict().items():
        if key == "logit_scale":
            torch.testing.assert_close(again.logit_scale, tensor, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(again.state_dict()[key], tensor), key
    mmzoo.save(again, tmp_path / "own", processor=_processor(config))
    back = mmzoo.convert(tmp_path / "own", tmp_path / "back.pth", layout=f"albef/{school}")
    loaded = torch.load(back, weights_only=True)
    assert loaded.keys() == file.keys()
    for key in file:
        torch.testing.assert_close(loaded[key], file[key], rtol=1e-6, atol=1e-6) if key == "temp" else None
        assert key == "temp" or torch.equal(loaded[key], file[key]), key


def _processor(config):
    from tokenizers import Tokenizer as Core
    from tokenizers.models import WordPiece

    from mmzoo.processing.processor import Processor
    from mmzoo.processing.text import Tokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [f"w{i}" for i in range(VOCAB - 5)]
    core = Core(WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    return Processor(config.image, tokenizer=Tokenizer(core, config.text_input))


def test_the_schools_are_told_apart(tmp_path):
    """P2: LAVIS's text transformer has no token types; a file is never read as the other school's."""
    from mmzoo.weights.convert import recognise
    from mmzoo.weights.read import open_checkpoint

    for school, types in (("official", 2), ("lavis", 0)):
        for name in ("albef-b16", "albef-b16-ve"):
            _, model = _built(name, types=types)
            torch.save({"model": _theirs(model)}, tmp_path / "w.pth")
            found = recognise(tmp_path / "w.pth", open_checkpoint(tmp_path / "w.pth"))
            assert found.layout.name == f"albef/{school}"


def test_p2_the_catalog_says_whether_texts_end_with_sep():
    assert find("albef-b16", "pretrain-14m").settings["text_input.sep"] is False
    assert find("albef-b16", "coco-retrieval-lavis").settings["text_input.sep"] is True


def test_twins_that_differ_and_other_tasks_are_refused(tmp_path):
    config, model = _built("albef-b16-nlvr2")
    file = _theirs(model)
    file["text_encoder.encoder.layer.3.crossattention.self.key.weight"] += 1
    torch.save({"model": file}, tmp_path / "w.pth")
    with pytest.raises(ZooError, match="twins"):
        mmzoo.create_model("albef-b16-nlvr2", config=config, pretrained=tmp_path / "w.pth")
    with pytest.raises(ZooError, match=r"holds another model of the family \(ALBEFNLVR2\) than albef-b16"):
        mmzoo.create_model("albef-b16", pretrained=tmp_path / "w.pth")


def test_the_temperature_is_a_divisor_there():
    config, model = _built("albef-b16")
    assert float(_theirs(model)["temp"]) == pytest.approx(math.exp(-float(model.logit_scale)))
    assert config.logit_scale == pytest.approx(math.log(1 / 0.07))
