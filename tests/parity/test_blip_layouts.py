"""BLIP's files: the authors' and LAVIS's by names written down here, transformers' by its saving code; both ways."""

from __future__ import annotations

import json
from dataclasses import replace

import blip_oracle as o
import pytest
import torch
from hand_copy import shake
from safetensors.torch import load_file, save_file

import mmzoo
from mmzoo.errors import ZooError
from mmzoo.start import start_parts
from mmzoo.weights.convert import recognise
from mmzoo.weights.read import open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")

_EYE = {
    "attn_norm": "norm1", "attn.qkv": "attn.qkv", "attn.out": "attn.proj", "mlp_norm": "norm2", "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}  # fmt: skip
_BERT = {
    "attn.out": "attention.output.dense", "attn_norm": "attention.output.LayerNorm", "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense", "mlp_norm": "output.LayerNorm", "cross.q": "crossattention.self.query",
    "cross.out": "crossattention.output.dense", "cross_norm": "crossattention.output.LayerNorm",
    "cross.first.q": "crossattention.self0.query", "cross.second.q": "crossattention.self1.query",
    "cross.first.out": "crossattention.output.dense0", "cross.second.out": "crossattention.output.dense1",
    "cross.merge": "crossattention.output.merge_layer",
}  # fmt: skip
_FUSED = {
    "attn.qkv": ("attention.self", ("query", "key", "value")),
    "cross.kv": ("crossattention.self", ("key", "value")),
    "cross.first.kv": ("crossattention.self0", ("key", "value")),
    "cross.second.kv": ("crossattention.self1", ("key", "value")),
}
_TABLES = {"tok": "word_embeddings", "pos": "position_embeddings", "norm": "LayerNorm"}
_REST = {
    "vision.cls": "visual_encoder.cls_token", "vision.pos": "visual_encoder.pos_embed",
    "vision.patch.proj": "visual_encoder.patch_embed.proj", "vision.norm": "visual_encoder.norm",
    "match_head": "itm_head", "compare_head.fc1": "cls_head.0", "compare_head.fc2": "cls_head.2",
    "vision_proj": "vision_proj", "text_proj": "text_proj",
}  # fmt: skip
_WORDS = {"dense": "transform.dense", "norm": "transform.LayerNorm"}
_HEAD = "text_decoder.cls.predictions"


def _backbone(backbone, theirs: str) -> dict[str, torch.Tensor]:
    """A text transformer under BERT's names; of a tied decoder, everything that it has, shared or not."""
    out = {}
    for name, tensor in backbone.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if layer.startswith("embed."):
            out[f"{theirs}embeddings.{_TABLES[layer[6:]]}.{kind}"] = tensor
            continue
        _, number, inner = layer.split(".", 2)
        where = f"{theirs}encoder.layer.{number}"
        if inner in _FUSED:
            module, parts = _FUSED[inner]
            for one, piece in zip(parts, tensor.chunk(len(parts)), strict=True):
                out[f"{where}.{module}.{one}.{kind}"] = piece.clone()
        else:
            out[f"{where}.{_BERT[inner]}.{kind}"] = tensor
    return out


def _theirs(model) -> dict[str, torch.Tensor]:
    """The tensors of our model under the authors' names."""
    out: dict[str, torch.Tensor] = {}
    if hasattr(model, "text"):
        out |= _backbone(model.text, "text_encoder.")
    if hasattr(model, "decoder"):
        out |= _backbone(model.decoder, "text_decoder.bert.")
        out[f"{_HEAD}.decoder.weight"] = model.decoder.embed.tok.weight.detach()
    for name, tensor in model.state_dict().items():
        part, _, rest = name.partition(".")
        layer, _, kind = rest.rpartition(".")
        if part in ("text", "decoder"):
            continue
        if name == "logit_scale":
            out["temp"] = torch.exp(-tensor)
        elif name == "lm.bias":
            out[f"{_HEAD}.bias"] = out[f"{_HEAD}.decoder.bias"] = tensor
        elif part == "lm":
            out[f"{_HEAD}.{_WORDS[layer]}.{kind}"] = tensor
        elif name.startswith("vision.blocks."):
            _, number, inner = layer.split(".", 2)
            out[f"visual_encoder.blocks.{number}.{_EYE[inner]}.{kind}"] = tensor
        else:
            out[_REST[name] if name in _REST else f"{_REST[name.rpartition('.')[0]]}.{kind or rest}"] = tensor
    return {name: tensor.clone() for name, tensor in out.items()}


def _training_state(file: dict[str, torch.Tensor], school: str) -> dict[str, torch.Tensor]:
    """What the files hold beside the model."""
    extra = {
        name.replace("word_embeddings.weight", "position_ids"): torch.arange(o.CONTEXT)[None]
        for name in file
        if name.endswith("word_embeddings.weight")
    }
    if "temp" not in file:
        return extra
    taught = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")
    for name, tensor in file.items():
        part, _, rest = name.partition(".")
        if part in taught:
            extra[f"{part}_m.{rest}"] = tensor
    retrieval = f"{_HEAD}.bias" not in file
    extra |= {"image_queue": torch.randn(16, 8), "text_queue": torch.randn(16, 8)}
    pointer = "ptr_queue" if retrieval and school == "official" else "queue_ptr"
    extra[pointer] = torch.zeros(1, dtype=torch.long)
    return extra | ({"idx_queue": torch.full((1, 8), -100)} if retrieval else {})


CASES = [
    ("blip-base", {}),
    ("blip-base", {"writes": False}),
    ("blip-base", {"reads": False}),
    ("blip-base-vqa", {}),
    ("blip-base-nlvr2", {"merge_from": 2}),
]


def _built(name: str, **changes):
    torch.manual_seed(0)
    config = o.config(name, **changes)
    return config, shake(mmzoo.create_model(name, config=config))


def _same_state(a, b, *, temperature: bool = True):
    assert a.keys() == b.keys()
    for key in a:
        if key in ("logit_scale", "temp"):
            assert not temperature or float(a[key]) == pytest.approx(float(b[key]), abs=1e-6)
        else:
            assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize(("name", "changes"), CASES)
@pytest.mark.parametrize("school", ["official", "lavis"])
def test_every_task_and_back(name, changes, school, tmp_path):
    config, model = _built(name, **changes)
    file = _theirs(model)
    torch.save({"model": file | _training_state(file, school), "epoch": 1}, tmp_path / "w.pth")
    again = mmzoo.create_model(name, config=config, pretrained=tmp_path / "w.pth", layout=f"blip/{school}")
    assert type(again) is type(model)
    _same_state(again.state_dict(), model.state_dict())
    mmzoo.save(again, tmp_path / "own", processor=_processor(config))
    back = mmzoo.convert(tmp_path / "own", tmp_path / "back.pth", layout=f"blip/{school}")
    _same_state(torch.load(back, weights_only=True), file)


def _processor(config):
    from tokenizers import Tokenizer as Core
    from tokenizers.models import WordPiece

    from mmzoo.processing.processor import Processor
    from mmzoo.processing.text import Tokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [f"w{i}" for i in range(o.VOCAB - 5)]
    core = Core(WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    return Processor(getattr(config, "image", None), tokenizer=Tokenizer(core, config.text_input))


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_files_are_recognised(name, changes, tmp_path):
    """Both schools, and never as ALBEF's, whose tables claim most of these names too."""
    _, model = _built(name, **changes)
    file = _theirs(model)
    for school in ("official", "lavis"):
        torch.save({"model": file | _training_state(file, school)}, tmp_path / "w.pth")
        found = recognise(tmp_path / "w.pth", open_checkpoint(tmp_path / "w.pth")).layout.name
        assert found == (
            "blip/lavis" if school == "lavis" and changes == {"writes": False} else "blip/official"
        )


def test_what_a_file_holds_decides_the_model(tmp_path):
    """A caption file under the name of the whole model gives one that writes, and so on."""
    whole, _ = _built("blip-base")
    for changes, kind in (({}, "BLIP"), ({"reads": False}, "BLIPWriter"), ({"writes": False}, "BLIPReader")):
        config, model = _built("blip-base", **changes)
        mmzoo.save(model, tmp_path / kind, processor=_processor(config))
        again, _ = mmzoo.load(tmp_path / kind)
        assert type(again).__name__ == kind
        _same_state(again.state_dict(), model.state_dict())
        with pytest.raises(ZooError) if changes else _nothing():
            mmzoo.create_model("blip-base", config=whole, pretrained=tmp_path / kind)


def _nothing():
    import contextlib

    return contextlib.nullcontext()


@pytest.mark.parametrize(
    "spoilt",
    [
        "text_decoder.bert.encoder.layer.1.crossattention.self.value.weight",
        "text_decoder.bert.encoder.layer.0.output.dense.bias",
        "text_decoder.bert.embeddings.word_embeddings.weight",
    ],
)
def test_shared_weights_that_differ_are_refused(spoilt, tmp_path):
    config, model = _built("blip-base")
    file = _theirs(model)
    file[spoilt] += 1
    torch.save({"model": file}, tmp_path / "w.pth")
    with pytest.raises(ZooError, match="one tensor in the model") as error:
        mmzoo.create_model("blip-base", config=config, pretrained=tmp_path / "w.pth")
    assert spoilt in str(error.value)


def test_self_attention_is_each_faces_own(tmp_path):
    config, model = _built("blip-base")
    file = _theirs(model)
    file["text_decoder.bert.encoder.layer.1.attention.self.key.weight"] += 1
    torch.save({"model": file}, tmp_path / "w.pth")
    again = mmzoo.create_model("blip-base", config=config, pretrained=tmp_path / "w.pth")
    difference = again.decoder.blocks[1].attn.qkv.weight - model.decoder.blocks[1].attn.qkv.weight
    assert difference.abs().sum(1).bool().tolist() == [False] * o.WIDTH + [True] * o.WIDTH + [False] * o.WIDTH
    assert torch.equal(again.text.blocks[1].attn.qkv.weight, model.text.blocks[1].attn.qkv.weight)


def test_another_model_of_the_family_is_refused_by_name(tmp_path):
    _, model = _built("blip-base-vqa")
    torch.save({"model": _theirs(model)}, tmp_path / "w.pth")
    with pytest.raises(ZooError, match=r"holds another model of the family \(BLIPVQA\) than blip-base"):
        mmzoo.create_model("blip-base", config=o.config(), pretrained=tmp_path / "w.pth")


def test_an_encoder_from_bert_starts_the_decoder_too(tmp_path):
    from mmzoo.models.text import TextModel, TextModelConfig

    config, model = _built("blip-base")
    plain = replace(config.text, cross_layers=(), cross_width=None, token_types=0)
    bert = shake(TextModel(TextModelConfig(plain, replace(config.text_input, clean=None))), seed=3)
    mmzoo.save(bert, tmp_path / "bert", processor=_processor(bert.config))
    start_parts(model, {"text": tmp_path / "bert"})
    for i, block in enumerate(model.decoder.blocks):
        assert torch.equal(block.attn.qkv.weight, bert.text.blocks[i].attn.qkv.weight)
        assert torch.equal(block.mlp.fc1.weight, bert.text.blocks[i].mlp.fc1.weight)


# -- transformers ---------------------------------------------------------------------------------------------------

HF = [
    ("BlipForImageTextRetrieval", "blip-base", {"writes": False}),
    ("BlipForConditionalGeneration", "blip-base", {"reads": False}),
    ("BlipForQuestionAnswering", "blip-base-vqa", {"vision": 36}),
]


def _hf(name: str, folder, *, vision: int = o.VISION, eps: float = 1e-6):
    import transformers

    torch.manual_seed(0)
    config = o.hf_config(vision=vision, vision_eps=eps)
    if name == "BlipForQuestionAnswering":  # its decoder reads states as wide as the image's tokens
        config.text_config.hidden_size = config.text_config.encoder_hidden_size = vision
    model = shake(getattr(transformers, name)(config).eval())
    model.save_pretrained(folder)
    return model


def _outputs(hf, kind: str, images, ids, keep):
    """What transformers computes, given the right first tokens."""
    if kind == "BlipForImageTextRetrieval":
        return hf(o.led_by("encode", ids), images, attention_mask=keep.long()).itm_score
    if kind == "BlipForConditionalGeneration":
        return hf(images, o.led_by("begin", ids)).logits
    tokens = hf.vision_model(images).last_hidden_state
    question = hf.text_encoder(o.led_by("encode", ids), encoder_hidden_states=tokens).last_hidden_state
    return hf.text_decoder(o.led_by("begin", ids), encoder_hidden_states=question).logits


def _our_outputs(model, kind: str, images, ids, keep):
    if kind == "BlipForImageTextRetrieval":
        return model.match(images, ids, keep)
    if kind == "BlipForConditionalGeneration":
        return model.lm.logits(model.write_states(model.project_images(images), ids))
    everything = torch.ones_like(keep)
    return model.lm.logits(model.answer_states(model.read_question(images, ids, everything), ids))


def _config(name: str, changes):
    vision = changes.get("vision", o.VISION)
    config = o.config(name, **changes)
    if name == "blip-base-vqa":
        wide = {"width": vision, "cross_width": vision}
        config = replace(config, text=replace(config.text, **wide), decoder=replace(config.decoder, **wide))
    return config


@pytest.mark.parametrize(("kind", "name", "changes"), HF)
def test_transformers_files_and_back(kind, name, changes, tmp_path):
    import transformers

    hf = _hf(kind, tmp_path / "hf", vision=changes.get("vision", o.VISION))
    config = _config(name, changes)
    model = mmzoo.create_model(name, config=config, pretrained=tmp_path / "hf")
    images, ids, keep = o.inputs()
    images = images.float()
    with torch.no_grad():
        theirs = _outputs(hf, kind, images, ids, keep)
        torch.testing.assert_close(_our_outputs(model, kind, images, ids, keep), theirs, rtol=1e-4, atol=1e-5)
    mmzoo.save(model, tmp_path / "own", processor=_processor(config))
    mmzoo.convert(tmp_path / "own", tmp_path / "back", layout="blip/transformers")
    again, info = getattr(transformers, kind).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    told = json.loads((tmp_path / "back" / "config.json").read_text())
    assert told["architectures"] == [kind]
    assert told["text_config"]["num_attention_heads"] == o.HEADS
    assert told["vision_config"]["layer_norm_eps"] == 1e-6
    with torch.no_grad():
        assert torch.equal(_outputs(again.eval(), kind, images, ids, keep), theirs)
    if kind == "BlipForConditionalGeneration":
        written = again.generate(images, max_new_tokens=6, do_sample=False)
        assert torch.equal(written, hf.generate(images, max_new_tokens=6, do_sample=False))
    third = mmzoo.create_model(name, config=config, pretrained=tmp_path / "back")
    _same_state(third.state_dict(), model.state_dict())


@pytest.mark.parametrize(("kind", "name", "changes"), HF)
def test_the_config_beside_the_weights_says_the_rest(kind, name, changes, tmp_path):
    _hf(kind, tmp_path / "hf", vision=changes.get("vision", o.VISION), eps=1e-5)
    opened = open_checkpoint(tmp_path / "hf")
    told = recognise(tmp_path / "hf", opened).told()
    assert told["text"]["heads"] == o.HEADS
    assert told["vision"]["heads"] == 3
    assert told["vision"]["norm_eps"] == 1e-5
    assert told["tokens"]["begin"] == o.TOKENS["begin"]
    base = _config(name, changes)
    named = replace(base, vision=replace(base.vision, norm_eps=1e-5))
    model = mmzoo.create_model(name, config=named, pretrained=tmp_path / "hf")
    assert model.config.vision.norm_eps == 1e-5
    with pytest.raises(ZooError, match=r"vision\.norm_eps is 1e-05 in the file and 1e-06 in the model"):
        mmzoo.create_model(name, config=base, pretrained=tmp_path / "hf")


def test_p3_p4_what_a_config_by_hand_leaves_out_is_not_silently_wrong(tmp_path):
    """transformers leaves out its default of 8, which BLIP's weights do not have: the name of the model says 12."""
    config, model = _built("blip-base", reads=False)
    wide = replace(config, text=replace(config.text, width=768, heads=12), embed=256)
    model = mmzoo.create_model("blip-base", config=wide)
    mmzoo.save(model, tmp_path / "own", processor=_processor(wide))
    mmzoo.convert(tmp_path / "own", tmp_path / "hf", layout="blip/transformers")
    file = tmp_path / "hf" / "config.json"
    told = json.loads(file.read_text())
    assert told["text_config"].pop("num_attention_heads") == 12
    file.write_text(json.dumps(told))
    with pytest.raises(ZooError, match="does not tell its heads"):
        mmzoo.convert(tmp_path / "hf", tmp_path / "third", layout="blip/official")
    assert mmzoo.create_model("blip-base", config=wide, pretrained=tmp_path / "hf").config.text.heads == 12
    del told["vision_config"]["layer_norm_eps"]
    file.write_text(json.dumps(told))
    with pytest.raises(ZooError, match=r"vision\.norm_eps is 1e-05 in the file and 1e-06"):
        mmzoo.create_model("blip-base", config=wide, pretrained=tmp_path / "hf")
    told["vision_config"]["layer_norm_eps"] = 1e-6
    told["text_config"]["num_attention_heads"] = 8
    file.write_text(json.dumps(told))
    with pytest.raises(ZooError, match=r"text\.heads is 8 in the file and 12 in the model"):
        mmzoo.create_model("blip-base", config=wide, pretrained=tmp_path / "hf")


def test_what_transformers_has_no_class_for(tmp_path):
    for name, changes, match in (
        ("blip-base", {}, "no BLIP that reads and writes"),
        ("blip-base-nlvr2", {}, "no BLIP for pairs of images"),
        ("blip-base-vqa", {}, "they are 32 and 24 wide"),
    ):
        config, model = _built(name, **changes)
        mmzoo.save(model, tmp_path / name, processor=_processor(config))
        with pytest.raises(ZooError, match=match):
            mmzoo.convert(tmp_path / name, tmp_path / "hf", layout="blip/transformers")


def test_transformers_keeps_no_temperature(tmp_path):
    """It is said that it gets lost, and that another start takes its place."""
    from mmzoo.conversion import convert_with_report

    config, model = _built("blip-base", writes=False)
    mmzoo.save(model, tmp_path / "own", processor=_processor(config))
    report = convert_with_report(tmp_path / "own", tmp_path / "hf", "blip/transformers")
    assert any(line.startswith("logit_scale: transformers keeps no temperature") for line in report.unsaid)
    again = mmzoo.create_model("blip-base", config=config, pretrained=tmp_path / "hf")
    assert float(again.logit_scale) == pytest.approx(config.logit_scale)
    state = load_file(tmp_path / "hf" / "model.safetensors")
    assert "temp" not in state


def test_older_files_store_every_copy(tmp_path):
    """Until transformers 4.3x the decoder's table and bias were written again, and positions as a buffer."""
    _hf("BlipForConditionalGeneration", tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    state = load_file(file)
    table = state["text_decoder.bert.embeddings.word_embeddings.weight"]
    bias = next(state[n] for n in state if n.endswith(("predictions.bias", "predictions.decoder.bias")))
    state |= {
        f"{_HEAD}.decoder.weight": table.clone(),
        f"{_HEAD}.bias": bias.clone(),
        f"{_HEAD}.decoder.bias": bias.clone(),
    }
    state["text_decoder.bert.embeddings.position_ids"] = torch.arange(o.CONTEXT)[None]
    save_file(state, file)
    model = mmzoo.create_model("blip-base", config=o.config(reads=False), pretrained=tmp_path / "hf")
    assert torch.equal(model.lm.bias, bias)


@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize(
    ("task", "face"),
    [("", {}), ("", {"reads": False}), ("", {"writes": False}), ("-vqa", {}), ("-nlvr2", {})],
)
def test_files_of_the_published_sizes_say_all_of_the_model(size, task, face):
    """By names and shapes: no model name is needed to convert one."""
    from mmzoo.config import from_dict, paths_of, to_dict
    from mmzoo.conversion import _differences
    from mmzoo.interchange import meta_model, shapes_of
    from mmzoo.weights.convert import lay_out
    from mmzoo.weights.layout import fill
    from mmzoo.weights.maps import get_layout
    from mmzoo.zoo import FAMILIES

    config = replace(mmzoo.get_config(f"blip-{size}{task}"), **face)
    plain, shapes = to_dict(config), shapes_of(meta_model(FAMILIES["blip"], config))
    for school in ("official", "lavis", *(["transformers"] if face else [])):
        layout = get_layout(f"blip/{school}")
        outlet = lay_out(layout, plain, shapes)
        told = fill(layout.describe(outlet.shapes, outlet.side), None, "the file")
        assert told.pop("kind") == type(config).__name__
        found = to_dict(from_dict(type(config), told))
        assert _differences(plain, found, paths_of(config, "unkept")) == {}
