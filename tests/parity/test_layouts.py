"""Checkpoints written by other libraries' own code load strictly and give their numbers; and the way back."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from hand_copy import shake
from safetensors.torch import load_file, save_file

import mmzoo
from mmzoo.errors import ZooError
from mmzoo.spec import ImageSpec, TextSpec

pytestmark = pytest.mark.filterwarnings("ignore")

VOCAB, CONTEXT = 60, 12


def _clip_variant(act: str, heads: int = 16):
    """The small CLIP below as a variant of a named one."""
    base = mmzoo.get_config("clip-vit-b32")
    return dataclasses.replace(
        base,
        vision=dataclasses.replace(
            base.vision, image_size=16, patch=4, width=32, depth=3, heads=32 // heads, hidden=128, act=act
        ),
        text=dataclasses.replace(
            base.text, vocab=VOCAB, context=CONTEXT, width=48, depth=3, heads=48 // heads, hidden=192, act=act
        ),
        embed=20,
        image=ImageSpec(16),
        text_input=TextSpec("clip", CONTEXT, VOCAB),
    )


def _inputs(count: int = 3):
    ids = torch.zeros(count, CONTEXT, dtype=torch.long)
    for row, length in zip(ids, (4, 12, 7), strict=True):
        row[:length] = torch.randint(1, 50, (length,), generator=torch.Generator().manual_seed(length))
        row[0], row[length - 1] = 58, 59
    images = torch.randn(count, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return images, ids


def _open_clip(act: str):
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    torch.manual_seed(0)
    model = CLIP(
        20,
        CLIPVisionCfg(layers=3, width=32, head_width=16, patch_size=4, image_size=16),
        CLIPTextCfg(context_length=CONTEXT, vocab_size=VOCAB, width=48, heads=3, layers=3),
        quick_gelu=act == "quick_gelu",
    )
    return shake(model.eval())


def _hf_clip(act: str):
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    common = {"num_hidden_layers": 3, "hidden_act": act}
    config = CLIPConfig(
        text_config={
            "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 192, "num_attention_heads": 3,
            "max_position_embeddings": CONTEXT, "bos_token_id": 58, "eos_token_id": 59, "pad_token_id": 0, **common,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2, "image_size": 16, "patch_size": 4,
            **common,
        },
        projection_dim=20,
    )  # fmt: skip
    return shake(CLIPModel(config).eval())


def _same(a, b):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


# --- CLIP ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("wrap", ["bare", "state_dict", "ddp", "safetensors", "fp16"])
def test_open_clip_file(act, wrap, tmp_path):
    theirs = _open_clip(act)
    state = theirs.state_dict()
    file = tmp_path / ("w.safetensors" if wrap == "safetensors" else "w.pt")
    if wrap == "safetensors":
        save_file(state, file)
    elif wrap == "fp16":
        theirs = theirs.half().float()
        torch.save({n: t.half() for n, t in theirs.state_dict().items()}, file)
    else:
        prefixed = {f"module.{n}": t for n, t in state.items()} if wrap == "ddp" else state
        torch.save(prefixed if wrap == "bare" else {"state_dict": prefixed, "epoch": 3, "name": "x"}, file)
    ours = mmzoo.create_model("clip-vit-b32", config=_clip_variant(act), pretrained=file, dtype=torch.float64)
    images, ids = _inputs()
    theirs = theirs.double()
    _same(
        ours(images, ids),
        (theirs.encode_image(images, normalize=True), theirs.encode_text(ids, normalize=True)),
    )
    assert {p.dtype for p in ours.parameters()} == {torch.float64}
    assert {
        p.dtype
        for p in mmzoo.create_model("clip-vit-b32", config=_clip_variant(act), pretrained=file).parameters()
    } == {torch.float32}


@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
def test_open_clip_folder_and_back(act, tmp_path):
    """open_clip's hub folder tells everything, so it converts without a name; and goes back bit for bit."""
    from open_clip.factory import load_state_dict

    theirs = _open_clip(act)
    folder = tmp_path / "hub"
    folder.mkdir()
    save_file(theirs.state_dict(), folder / "open_clip_model.safetensors")
    vision = {"image_size": 16, "layers": 3, "width": 32, "head_width": 16, "patch_size": 4}
    text = {"context_length": CONTEXT, "vocab_size": VOCAB, "width": 48, "heads": 3, "layers": 3}
    config = {"embed_dim": 20, "vision_cfg": vision, "text_cfg": text} | (
        {"quick_gelu": True} if act == "quick_gelu" else {}
    )
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    )
    with pytest.raises(ZooError, match="vocabulary has 49408"):  # the toy vocabulary has no tokenizer to save
        mmzoo.convert(folder, tmp_path / "own", layout="mmzoo")
    mmzoo.convert(folder, tmp_path / "own.safetensors", layout="mmzoo")
    ours = mmzoo.create_model(
        "clip-vit-b32",
        config=_clip_variant(act),
        pretrained=tmp_path / "own.safetensors",
        dtype=torch.float64,
    )
    images, ids = _inputs()
    double = _open_clip(act).double()
    _same(
        ours(images, ids),
        (double.encode_image(images, normalize=True), double.encode_text(ids, normalize=True)),
    )

    back = mmzoo.convert(folder, tmp_path / "back", layout="clip/open_clip")
    told = json.loads((tmp_path / "back" / "open_clip_config.json").read_text())
    assert told["preprocess_cfg"]["mean"] == [0.5] * 3
    again = _open_clip("gelu" if act == "quick_gelu" else "quick_gelu")
    again.load_state_dict(load_state_dict(str(back)), strict=True)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
def test_transformers_clip_and_back(act, tmp_path):
    from transformers import CLIPModel

    hf = _hf_clip(act)
    hf.save_pretrained(tmp_path / "hf")
    ours = mmzoo.create_model(
        "clip-vit-b32", config=_clip_variant(act), pretrained=tmp_path / "hf", dtype=torch.float64
    )
    images, ids = _inputs()
    out = hf.double()(input_ids=ids, pixel_values=images)
    _same(ours(images, ids), (out.image_embeds, out.text_embeds))

    # our tensors, another layout, transformers' own strict loader
    mmzoo.convert(tmp_path / "hf", tmp_path / "oc.pt", layout="clip/open_clip", model="clip-vit-b32")
    (tmp_path / "hf" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    mmzoo.convert(tmp_path / "hf", tmp_path / "back", layout="clip/transformers")
    back, report = CLIPModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    again = back.double().eval()(input_ids=ids, pixel_values=images)
    _same((again.image_embeds, again.text_embeds), (out.image_embeds, out.text_embeds))


@pytest.mark.parametrize("sharded", [False, True])
def test_transformers_shards(sharded, tmp_path):
    hf = _hf_clip("quick_gelu")
    hf.save_pretrained(tmp_path, max_shard_size="40KB" if sharded else "5GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == sharded
    ours = mmzoo.create_model("clip-vit-b32", config=_clip_variant("quick_gelu"), pretrained=tmp_path)
    assert torch.equal(ours.vision_proj.weight, hf.visual_projection.weight)
    if sharded:
        next(tmp_path.glob("model-00002*")).unlink()
        with pytest.raises(ZooError, match=r"shard .*model-00002.* is missing"):
            mmzoo.create_model("clip-vit-b32", config=_clip_variant("quick_gelu"), pretrained=tmp_path)


def _openai_archive(path, half: bool = True):
    """A TorchScript archive with OpenAI's names, as their files are: fp16 matrices, float32 norms, three numbers."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, convert_weights_to_fp16

    torch.manual_seed(0)
    model = CLIP(
        64,
        CLIPVisionCfg(layers=2, width=64, patch_size=4, image_size=16),
        CLIPTextCfg(context_length=CONTEXT, vocab_size=VOCAB, width=64, heads=1, layers=2),
        quick_gelu=True,
    )
    model = shake(model.eval())
    if half:
        convert_weights_to_fp16(model)
    state = dict(model.state_dict())

    class Holder(torch.nn.Module):
        def forward(self, x):
            return x

    root = Holder()
    for name, tensor in state.items():
        *parents, last = name.split(".")
        node = root
        for part in parents:
            if not hasattr(node, part):
                node.add_module(part, Holder())
            node = getattr(node, part)
        node.register_parameter(last, torch.nn.Parameter(tensor.clone(), requires_grad=False))
    for name, value in (("input_resolution", 16), ("context_length", CONTEXT), ("vocab_size", VOCAB)):
        root.register_buffer(name, torch.tensor(value))
    torch.jit.script(root).save(str(path))
    return model.float()


def _openai_variant():
    base = _clip_variant("quick_gelu")
    return dataclasses.replace(
        base,
        vision=dataclasses.replace(base.vision, width=64, heads=1, depth=2, hidden=256),
        text=dataclasses.replace(base.text, width=64, heads=1, depth=2, hidden=256),
        embed=64,
    )


def test_openai_archive_and_back(tmp_path):
    from open_clip.openai import build_model_from_openai_state_dict

    theirs = _openai_archive(tmp_path / "ViT.pt")
    ours = mmzoo.create_model(
        "clip-vit-b32", config=_openai_variant(), pretrained=tmp_path / "ViT.pt", dtype=torch.float64
    )
    images, ids = _inputs()
    double = theirs.double()
    _same(
        ours(images, ids),
        (double.encode_image(images, normalize=True), double.encode_text(ids, normalize=True)),
    )

    back = mmzoo.convert(tmp_path / "ViT.pt", tmp_path / "back.pt", layout="clip/openai")
    state = torch.load(back, weights_only=True)
    assert int(state["input_resolution"]) == 16
    again = build_model_from_openai_state_dict(state, cast_dtype=torch.float32).double().eval()
    _same(
        (again.encode_image(images, normalize=True), again.encode_text(ids, normalize=True)),
        (double.encode_image(images, normalize=True), double.encode_text(ids, normalize=True)),
    )


# --- ViT ----------------------------------------------------------------------------------------------------------


def _vit_variant(classes: int = 7, **vision):
    base = mmzoo.get_config("vit-b16-224")
    size = {"image_size": 16, "patch": 4, "width": 24, "depth": 3, "heads": 3, "hidden": 96} | vision
    return dataclasses.replace(
        base,
        vision=dataclasses.replace(base.vision, **size),
        image=ImageSpec(size["image_size"]),
        classes=classes,
    )


def _timm_vit(**changes):
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    size = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 7}
    return shake(VisionTransformer(**size | changes).eval())


def test_timm_vit_and_back(tmp_path):
    theirs = _timm_vit()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours = mmzoo.create_model(
        "vit-b16-224", config=_vit_variant(), pretrained=tmp_path / "w.pth", dtype=torch.float64
    )
    images, _ = _inputs()
    expected = theirs.double()(images)
    _same([ours(images)], [expected])
    mmzoo.save(
        mmzoo.create_model("vit-b16-224", config=_vit_variant(), pretrained=tmp_path / "w.pth"),
        tmp_path / "own",
    )
    back = mmzoo.convert(tmp_path / "own", tmp_path / "back", layout="vit/timm")
    again = _timm_vit()
    again.load_state_dict(load_file(back), strict=True)
    _same([again.double()(images)], [expected])
    assert json.loads((tmp_path / "back" / "config.json").read_text())["num_classes"] == 7


@pytest.mark.parametrize("kind", ["classifier", "bare"])
def test_transformers_vit_and_back(kind, tmp_path):
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=96, image_size=16, patch_size=4,
        num_labels=7, layer_norm_eps=1e-6,
    )  # fmt: skip
    cls = ViTForImageClassification if kind == "classifier" else ViTModel
    hf = shake(cls(config).eval())
    hf.save_pretrained(tmp_path / "hf")
    variant = _vit_variant(7 if kind == "classifier" else 0)
    if kind == "bare":
        variant = dataclasses.replace(variant, representation=24)  # the pooler is Google's tanh layer
    ours = mmzoo.create_model("vit-b16-224", config=variant, pretrained=tmp_path / "hf", dtype=torch.float64)
    images, _ = _inputs()
    out = hf.double()(images)
    expected = out.logits if kind == "classifier" else out.pooler_output
    _same([ours(images)], [expected])
    (tmp_path / "hf" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    mmzoo.convert(tmp_path / "hf", tmp_path / "back", layout="vit/transformers")
    back, report = cls.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    again = back.double().eval()(images)
    _same([again.logits if kind == "classifier" else again.pooler_output], [expected])


def test_google_npz_and_back(tmp_path):
    """Written the way flax stores its parameters; read by timm's own npz loader on the way back."""
    from timm.models.vision_transformer import _load_weights

    theirs = _timm_vit()
    s = {name: t.detach().numpy() for name, t in theirs.state_dict().items()}
    flax = {
        "cls": s["cls_token"],
        "embedding/kernel": s["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": s["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": s["pos_embed"],
        "Transformer/encoder_norm/scale": s["norm.weight"],
        "Transformer/encoder_norm/bias": s["norm.bias"],
        "head/kernel": s["head.weight"].T,
        "head/bias": s["head.bias"],
    }
    for i in range(3):
        block, to = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        for ours_name, flax_name in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            flax[f"{to}/{flax_name}/scale"] = s[f"{block}.{ours_name}.weight"]
            flax[f"{to}/{flax_name}/bias"] = s[f"{block}.{ours_name}.bias"]
        attn = f"{to}/MultiHeadDotProductAttention_1"
        for part, w, b in zip(
            ("query", "key", "value"),
            np.split(s[f"{block}.attn.qkv.weight"], 3),
            np.split(s[f"{block}.attn.qkv.bias"], 3),
            strict=True,
        ):
            flax[f"{attn}/{part}/kernel"] = w.T.reshape(24, 3, 8)
            flax[f"{attn}/{part}/bias"] = b.reshape(3, 8)
        flax[f"{attn}/out/kernel"] = s[f"{block}.attn.proj.weight"].T.reshape(3, 8, 24)
        flax[f"{attn}/out/bias"] = s[f"{block}.attn.proj.bias"]
        for j in (0, 1):
            flax[f"{to}/MlpBlock_3/Dense_{j}/kernel"] = s[f"{block}.mlp.fc{j + 1}.weight"].T
            flax[f"{to}/MlpBlock_3/Dense_{j}/bias"] = s[f"{block}.mlp.fc{j + 1}.bias"]
    np.savez(tmp_path / "ViT.npz", **flax)
    ours = mmzoo.create_model(
        "vit-b16-224", config=_vit_variant(), pretrained=tmp_path / "ViT.npz", dtype=torch.float64
    )
    images, _ = _inputs()
    expected = theirs.double()(images)
    _same([ours(images)], [expected])

    mmzoo.save(
        mmzoo.create_model("vit-b16-224", config=_vit_variant(), pretrained=tmp_path / "ViT.npz"),
        tmp_path / "own",
    )
    back = mmzoo.convert(tmp_path / "own", tmp_path / "back.npz", layout="vit/google")
    with np.load(back) as file:
        assert set(file.files) == set(flax)
        for name in flax:
            assert np.array_equal(file[name], flax[name]), name
    again = _timm_vit()
    shake(again, seed=5)
    _load_weights(again, str(back))
    _same([again.double()(images)], [expected])


def test_the_files_head_size_is_taken_and_its_image_size_resampled(tmp_path):
    """P6: the family's own recipe, here timm's, as timm itself does it."""
    theirs = _timm_vit()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    named = mmzoo.get_config("vit-ti16-224")
    assert named.classes == 1000
    larger = _vit_variant(image_size=24)
    ours = mmzoo.create_model(
        "vit-b16-224", config=larger, pretrained=tmp_path / "w.pth", dtype=torch.float64
    )
    big = _timm_vit(img_size=24)
    from timm.models.vision_transformer import checkpoint_filter_fn

    big.load_state_dict(checkpoint_filter_fn(theirs.state_dict(), big))
    images = torch.randn(2, 3, 24, 24, dtype=torch.float64)
    torch.testing.assert_close(
        ours(images), big.double()(images), rtol=0, atol=1e-6
    )  # timm resamples in float32


# --- what cannot be known, and what does not fit ------------------------------------------------------------------


def test_what_a_file_cannot_tell_is_asked_for(tmp_path):
    torch.save(_open_clip("gelu").state_dict(), tmp_path / "w.pt")
    with pytest.raises(ZooError, match=r"does not tell .*heads.*model='clip-vit-b32'"):
        mmzoo.convert(tmp_path / "w.pt", tmp_path / "out", layout="clip/transformers")
    assert not (tmp_path / "out").exists()


def test_p7_a_contradicting_activation_is_refused(tmp_path):
    """P7: QuickGELU weights under a GELU name would silently cost several points."""
    _hf_clip("quick_gelu").save_pretrained(tmp_path)
    with pytest.raises(ZooError, match=r"vision\.act is 'quick_gelu' in the file and 'gelu' in the model"):
        mmzoo.create_model("clip-vit-b32-laion", config=_clip_variant("gelu"), pretrained=tmp_path)


def test_p3_contradicting_heads_are_refused(tmp_path):
    """P3: another number of heads fits every shape."""
    _hf_clip("gelu").save_pretrained(tmp_path)
    with pytest.raises(ZooError, match=r"vision\.heads is 2 in the file and 4 in the model"):
        mmzoo.create_model("clip-vit-b32", config=_clip_variant("gelu", heads=8), pretrained=tmp_path)


def test_another_family_is_named(tmp_path):
    torch.save(_timm_vit().state_dict(), tmp_path / "w.pth")
    with pytest.raises(ZooError, match="is a vit checkpoint"):
        mmzoo.create_model("clip-vit-b32", pretrained=tmp_path / "w.pth")
    torch.save({"a.weight": torch.zeros(2)}, tmp_path / "x.pth")
    with pytest.raises(ZooError, match="no layout that mmzoo knows"):
        mmzoo.create_model("clip-vit-b32", pretrained=tmp_path / "x.pth")
