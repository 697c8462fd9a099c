"""Layouts at the sizes that are published: models of other libraries with random weights, saved by their own code.

float32, as the files are. Each takes half a minute and up to 2 GB, so they are `slow`; the same claims in float64 at
small sizes, with every switch on, are in test_layouts.py and test_text_layouts.py.
"""

from __future__ import annotations

import shutil
import types

import numpy as np
import pytest
import torch
from hand_copy import shake

import mmzoo

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def folder(tmp_path):
    """A place that is emptied at once: these files are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def same(found, expected):
    """Equal within float32: 1e-5 of the largest number."""
    for a, b in zip(found, expected, strict=True):
        scale = float(b.abs().max())
        assert scale > 1e-3
        assert float((a - b).abs().max()) <= 1e-5 * max(scale, 1.0)


def bit_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def strictly_loaded(cls, place, **settings):
    """By transformers' own loader, which must find every tensor and no other."""
    model, report = cls.from_pretrained(place, output_loading_info=True, **settings)
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@torch.inference_mode()
def test_vit_b16_of_timm_also_as_googles_archive(folder):
    import timm
    from timm.models import load_checkpoint, save_for_hf

    theirs = shake(timm.create_model("vit_base_patch16_224.augreg_in1k", pretrained=False).eval(), std=0.02)
    save_for_hf(theirs, str(folder / "timm"), safe_serialization=True)
    ours = mmzoo.create_model("vit-b16-224", pretrained=folder / "timm")
    images = torch.randn(2, 3, 224, 224)
    expected = theirs(images)
    same([ours(images)], [expected])

    back = mmzoo.convert(folder / "timm", folder / "back", layout="vit/timm")
    again = timm.create_model("vit_base_patch16_224", pretrained=False).eval()
    load_checkpoint(again, str(back), strict=True)
    bit_equal(again.state_dict(), theirs.state_dict())
    assert torch.equal(again(images), expected)

    google = mmzoo.convert(folder / "timm", folder / "ViT-B_16.npz", layout="vit/google")
    again = shake(timm.create_model("vit_base_patch16_224", pretrained=False).eval(), seed=5)
    again.load_pretrained(str(google))  # timm's reader of Google's files
    bit_equal(again.state_dict(), theirs.state_dict())
    with np.load(google) as file:
        assert file["Transformer/encoderblock_11/MultiHeadDotProductAttention_1/query/kernel"].shape == (
            768,
            12,
            64,
        )
    ours = mmzoo.create_model("vit-b16-224", pretrained=google)
    same([ours(images)], [expected])


@torch.inference_mode()
def test_vit_b16_of_transformers(folder):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    theirs = shake(ViTForImageClassification(ViTConfig(num_labels=1000)).eval(), std=0.02)
    theirs.save_pretrained(folder / "hf")
    ViTImageProcessor().save_pretrained(folder / "hf")
    ours = mmzoo.create_model("vit-b16-224", pretrained=folder / "hf")
    images = torch.randn(2, 3, 224, 224)
    expected = theirs(images).logits
    same([ours(images)], [expected])
    mmzoo.convert(folder / "hf", folder / "back", layout="vit/transformers")
    again = strictly_loaded(ViTForImageClassification, folder / "back")
    bit_equal(again.state_dict(), theirs.state_dict())
    assert torch.equal(again(images).logits, expected)


SENTENCES = ["a photo of a cat", "two dogs on a beach at sunset, seen from above"]


@pytest.mark.parametrize(
    ("name", "ours"), [("ViT-B-32-quickgelu", "clip-vit-b32"), ("ViT-B-32", "clip-vit-b32-laion")]
)
@torch.inference_mode()
def test_clip_b32_of_open_clip(name, ours, folder):
    import importlib

    import open_clip

    save_for_hf = importlib.import_module("open_clip.push_to_hf_hub").save_for_hf
    torch.manual_seed(0)
    theirs = shake(open_clip.create_model(name).eval(), std=0.02)
    words = types.SimpleNamespace(save_pretrained=lambda folder: None)  # only the weights are of interest
    save_for_hf(theirs, words, open_clip.get_model_config(name), str(folder / "hub"), safe_serialization=True)
    ours = mmzoo.create_model(ours, pretrained=folder / "hub")
    images, ids = torch.randn(2, 3, 224, 224), open_clip.get_tokenizer(name)(SENTENCES)
    expected = theirs.encode_image(images, normalize=True), theirs.encode_text(ids, normalize=True)
    same(ours(images, ids), expected)

    mmzoo.convert(folder / "hub", folder / "back", layout="clip/open_clip")
    again = open_clip.create_model(f"local-dir:{folder / 'back'}").eval()
    bit_equal(again.state_dict(), theirs.state_dict())
    assert torch.equal(again.encode_text(ids, normalize=True), expected[1])


@torch.inference_mode()
def test_clip_b32_of_openai(folder):
    """A TorchScript archive as OpenAI's are: matrices in float16, norms in float32, three numbers."""
    import open_clip
    from open_clip.model import convert_weights_to_fp16
    from open_clip.openai import build_model_from_openai_state_dict

    class Holder(torch.nn.Module):
        def forward(self, x):
            return x

    theirs = shake(open_clip.create_model("ViT-B-32-quickgelu").eval(), std=0.02)
    convert_weights_to_fp16(theirs)
    root = Holder()
    for name, tensor in theirs.state_dict().items():
        *parents, last = name.split(".")
        node = root
        for part in parents:
            if not hasattr(node, part):
                node.add_module(part, Holder())
            node = getattr(node, part)
        node.register_parameter(last, torch.nn.Parameter(tensor, requires_grad=False))
    for name, value in (("input_resolution", 224), ("context_length", 77), ("vocab_size", 49408)):
        root.register_buffer(name, torch.tensor(value))
    torch.jit.script(root).save(str(folder / "ViT-B-32.pt"))

    ours = mmzoo.create_model("clip-vit-b32", pretrained=folder / "ViT-B-32.pt")
    theirs = theirs.float()
    images, ids = torch.randn(2, 3, 224, 224), open_clip.get_tokenizer("ViT-B-32")(SENTENCES)
    expected = theirs.encode_image(images, normalize=True), theirs.encode_text(ids, normalize=True)
    same(ours(images, ids), expected)
    back = mmzoo.convert(folder / "ViT-B-32.pt", folder / "back.pt", layout="clip/openai")
    again = build_model_from_openai_state_dict(torch.load(back, weights_only=True), cast_dtype=torch.float32)
    bit_equal(again.float().state_dict(), theirs.state_dict())  # it leaves the projections in float16


@torch.inference_mode()
def test_clip_b32_of_transformers(folder):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    theirs = shake(CLIPModel(CLIPConfig()).eval(), std=0.02)
    theirs.save_pretrained(folder / "hf")
    CLIPImageProcessor().save_pretrained(folder / "hf")
    ours = mmzoo.create_model("clip-vit-b32", pretrained=folder / "hf")
    images = torch.randn(2, 3, 224, 224)
    ids, keep = mmzoo.create_processor("clip-vit-b32").texts(SENTENCES)
    out = theirs(input_ids=ids, attention_mask=keep.long(), pixel_values=images)
    same(ours(images, ids, keep), (out.image_embeds, out.text_embeds))
    mmzoo.convert(folder / "hf", folder / "back", layout="clip/transformers")
    again = strictly_loaded(CLIPModel, folder / "back")
    bit_equal(again.state_dict(), theirs.state_dict())


@torch.inference_mode()
def test_bert_base_of_transformers(folder):
    from transformers import BertConfig, BertForPreTraining, BertModel

    theirs = shake(BertForPreTraining(BertConfig()).eval(), std=0.02)
    theirs.save_pretrained(folder / "hf")
    ours = mmzoo.create_model("bert-base", pretrained=folder / "hf")
    ids = torch.randint(1000, 30000, (2, 40))
    keep = torch.arange(40) < torch.tensor([40, 17])[:, None]
    expected = theirs.bert(ids, attention_mask=keep.long()).last_hidden_state
    same([ours.text(ids, keep=keep).tokens[keep]], [expected[keep]])
    mmzoo.convert(folder / "hf", folder / "back", layout="bert/transformers")
    again = strictly_loaded(BertModel, folder / "back", add_pooling_layer=False)
    whole = theirs.bert.state_dict()
    bit_equal(again.state_dict(), {name: whole[name] for name in again.state_dict()})
