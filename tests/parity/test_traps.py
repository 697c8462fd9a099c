"""The parity traps of spec/models.md (section 4.5) that concern ViT, CLIP and text: wrong numbers without an error.

P1, P5 and P12 (BLIP's special tokens, and its ranking without smoothing) stand in test_blip_parity.py, its P3 and P4 in
test_blip_layouts.py. P7 (the activation) and P6 through timm's own code stand in test_layouts.py too, where the files
are made.
"""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from hand_copy import shake
from PIL import Image
from safetensors.torch import load_file, save_file

import mmzoo
from mmzoo.errors import ZooError
from mmzoo.ops.grid import resample_grid
from mmzoo.processing.image import ImageTransform
from mmzoo.spec import HALF, ImageSpec, TextSpec
from mmzoo.weights.rules import FuseWithoutKeyBias

pytestmark = pytest.mark.filterwarnings("ignore")


def hf_vit(folder, **settings):
    """A small ViT that transformers saved, with its processor's file beside it."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, image_size=32,
        patch_size=16, num_labels=7, **settings,
    )  # fmt: skip
    model = shake(ViTForImageClassification(config).eval())
    model.save_pretrained(folder)
    return model


def photo(width, height):
    """A smooth picture with edges and fine texture in it."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([127 + 90 * np.sin(x / 9 + c) * np.cos(y / 7 - c) for c in range(3)], -1)
    base[(x // 16 + y // 16) % 2 == 0] *= 0.7
    return Image.fromarray((base + rng.normal(0, 12, base.shape)).clip(0, 255).astype(np.uint8))


def clip_config(**text):
    base = mmzoo.get_config("clip-vit-b32")
    vision = dataclasses.replace(base.vision, image_size=16, patch=8, width=32, depth=2, heads=2, hidden=64)
    tower = dataclasses.replace(
        base.text, vocab=80, context=12, width=32, depth=2, heads=2, hidden=64, **text
    )
    return dataclasses.replace(
        base, vision=vision, text=tower, embed=16, image=ImageSpec(16), text_input=TextSpec("clip", 12, 80)
    )


def test_p2_token_types_that_are_missing_are_refused(tmp_path):
    """P2: `strict=False` dropped the token types of ALBEF's BERT, and the features differed without a word."""
    from transformers import BertConfig, BertModel

    sizes = {"vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    theirs = BertModel(BertConfig(**sizes, intermediate_size=48, max_position_embeddings=16))
    shake(theirs).save_pretrained(tmp_path)
    base = mmzoo.get_config("bert-base")
    text = dataclasses.replace(base.text, vocab=40, context=16, width=24, depth=2, heads=3, hidden=48)
    config = dataclasses.replace(base, text=text, text_input=TextSpec("bert", 16, 40))
    model = mmzoo.create_model("bert-base", config=config, pretrained=tmp_path)
    with torch.no_grad():  # and they are part of the features, whoever gives no types
        before = model.encode_text(torch.ones(1, 4, dtype=torch.long))
        model.text.embed.token_type.weight[0, 0] += 3
        assert (model.encode_text(torch.ones(1, 4, dtype=torch.long)) - before).abs().max() > 0.1
    state = load_file(tmp_path / "model.safetensors")
    del state["embeddings.token_type_embeddings.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ZooError, match=r"missing: bert\.embeddings\.token_type_embeddings\.weight"):
        mmzoo.create_model("bert-base", config=config, pretrained=tmp_path)


def test_p3_heads_that_the_side_file_leaves_out_are_the_librarys_default(tmp_path):
    """P3: any number of heads fits the shapes, so the name's and the file's must agree."""
    hf_vit(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    del told["num_attention_heads"]  # transformers' default is 12, the name's is 3
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(ZooError, match=r"is not vit-ti16-224: vision\.heads is 12 in the file and 3 in the"):
        mmzoo.create_model("vit-ti16-224", pretrained=tmp_path)


@pytest.mark.parametrize("eps", [None, 1e-3])
def test_p4_the_epsilon_is_the_files(eps, tmp_path):
    """P4: transformers' ViT has 1e-12 by default where the name has 1e-6, and no shape shows it."""
    settings = {} if eps is None else {"layer_norm_eps": eps}
    hf = hf_vit(tmp_path, **settings).double()
    expected_eps = eps or 1e-12
    assert hf.config.layer_norm_eps == expected_eps
    named = mmzoo.get_config("vit-ti16-224")
    images = 1e-3 * torch.randn(2, 3, 224, 224, dtype=torch.float64)
    ours = mmzoo.create_model("vit-ti16-224", pretrained=tmp_path, dtype=torch.float64)
    assert ours.config.vision.norm_eps == expected_eps
    small = images[:, :, :32, :32]
    at_32 = dataclasses.replace(
        ours.config,
        vision=dataclasses.replace(ours.config.vision, image_size=32),
        image=dataclasses.replace(ours.config.image, size=32),
    )
    ours = mmzoo.create_model("vit-ti16-224", config=at_32, pretrained=tmp_path, dtype=torch.float64)
    torch.testing.assert_close(ours(small), hf(small).logits, rtol=1e-9, atol=1e-9)
    wrong = dataclasses.replace(at_32, vision=dataclasses.replace(at_32.vision, norm_eps=1e-6))
    with pytest.raises(ZooError, match=rf"vision\.norm_eps is {expected_eps} in the file and 1e-06 in the m"):
        mmzoo.create_model("vit-ti16-224", config=wrong, pretrained=tmp_path)
    assert named.vision.norm_eps == 1e-6


def test_p4_and_p7_hold_for_our_own_folders(tmp_path):
    """P4, P7: a saved folder says its epsilon and activation, which another name's config must not override."""
    base = mmzoo.get_config("vit-tiny")
    for field, value in (("norm_eps", 1e-3), ("act", "quick_gelu")):
        config = dataclasses.replace(base, vision=dataclasses.replace(base.vision, **{field: value}))
        mmzoo.save(mmzoo.create_model("vit-tiny", config=config), tmp_path / field)
        with pytest.raises(ZooError, match=rf"is not vit-tiny: vision\.{field} is {value!r} in the file"):
            mmzoo.create_model("vit-tiny", pretrained=tmp_path / field)


def test_p6_five_sources_resize_positions_in_five_ways():
    """P6: no file names its recipe, so the config does. Each is held to its own source's code in tests/ops.

    ViLT's is Google's in numbers, and differs in being done for each picture.
    """
    table, found = torch.randn(1, 17, 6, dtype=torch.float64), {}
    for recipe in ("google", "timm", "albef", "lavis_clip", "vilt"):
        found[recipe] = resample_grid(table, (4, 4), (6, 6), prefix=1, recipe=recipe)
        assert torch.equal(found[recipe][:, :1], table[:, :1])  # the class token's row stays
        shrunk = resample_grid(table, (4, 4), (3, 3), prefix=1, recipe=recipe)
        found[recipe] = torch.cat([found[recipe], shrunk], 1)
    for one, other in itertools.combinations(found, 2):
        if {one, other} == {"google", "vilt"}:
            continue
        assert (found[one] - found[other]).abs().max() > 1e-3, (one, other)


def test_p10_crop_and_squash_are_told_apart():
    """P10: CLIP resizes the short side and crops, others squash. A frame around the picture shows which was done."""
    wide = Image.new("RGB", (400, 200), (255, 0, 0))
    wide.paste((0, 0, 255), (100, 0, 300, 200))  # the middle square is blue, the sides are red
    red = {}
    for name in ("clip-vit-b32", "vit-b16-224"):
        pixels = mmzoo.create_processor(name).images([wide])[0]
        red[name] = float((pixels[0] > pixels[2]).float().mean())
    squash = ImageTransform(ImageSpec(224, fit="squash"))([wide])[0]
    assert red["clip-vit-b32"] == 0
    assert float((squash[0] > squash[2]).float().mean()) == pytest.approx(0.5, abs=0.02)
    # timm's files of ViT are cropped, Google's own and transformers' are squashed
    from mmzoo.weights.catalog import records

    for record in records("vit-*"):
        image = record.image or mmzoo.get_config(record.model).image
        assert image.fit == ("crop" if record.layout == "vit/timm" else "squash"), record.name


def test_p10_preprocessing_beside_the_weights_is_taken(tmp_path):
    """P10: a folder that says how its pictures are prepared is not fed as the name's are."""
    hf_vit(tmp_path, layer_norm_eps=1e-6)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4] * 3, "resample": 2})
    )
    model = mmzoo.create_model("vit-ti16-224", pretrained=tmp_path)
    assert model.config.image == ImageSpec(
        224, (0.1, 0.2, 0.3), (0.4, 0.4, 0.4), fit="squash", interpolation="bilinear", crop_pct=0.9
    )
    assert mmzoo.create_processor(model).image_spec == model.config.image
    given = mmzoo.get_config("vit-ti16-224")
    given = dataclasses.replace(given, classes=7)
    model = mmzoo.create_model("vit-ti16-224", config=given, pretrained=tmp_path)
    assert model.config.image.mean == HALF  # who gives a config has decided


def test_p11_a_key_without_bias_gets_zeros():
    """P11: EVA's queries and values have a bias, its keys none; fused, the key's third is zero."""
    q, v = torch.randn(6), torch.randn(6)
    fused = FuseWithoutKeyBias().join([q, v])
    assert torch.equal(fused, torch.cat([q, torch.zeros(6), v]))
    assert all(torch.equal(a, b) for a, b in zip(FuseWithoutKeyBias().split(fused, 2), (q, v), strict=True))


def test_p13_texts_are_pooled_at_their_end_not_at_their_highest_id():
    """P13: a word that was added behind the end token has a higher id, and arg-max takes it for the end."""
    torch.manual_seed(0)
    model = shake(mmzoo.create_model("clip-vit-b32", config=clip_config())).double()
    end, added = 59, 70
    ids = torch.tensor([[58, 5, 6, end, 0, 0], [58, added, 6, end, 0, 0]])
    keep = torch.tensor([[True] * 4 + [False] * 2] * 2)
    found = model.encode_text(ids, keep)
    tokens = model.text(ids[:, :4]).tokens
    expected = torch.nn.functional.normalize(tokens[:, 3] @ model.text_proj.weight.T, dim=-1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    by_highest_id = model.encode_text(ids)  # OpenAI's way, for their vocabulary alone
    torch.testing.assert_close(by_highest_id[0], found[0], rtol=1e-9, atol=1e-9)
    assert (by_highest_id[1] - found[1]).abs().max() > 1e-2
    # so our processor says where a text ends, and a vocabulary of another kind may not leave it out
    processor = mmzoo.create_processor("clip-vit-b32")
    ids, keep = processor.texts(["a cat", "a photo of a dog on the beach"])
    assert [int(row[k].argmax()) for row, k in zip(ids, keep, strict=True)] == [
        int(k.sum()) - 1 for k in keep
    ]
    tiny = mmzoo.create_model("clip-tiny")
    with pytest.raises(ZooError, match="needs keep for this vocabulary"):
        tiny.encode_text(torch.ones(1, 4, dtype=torch.long))


@pytest.mark.parametrize("shape", [(640, 480), (333, 500), (1200, 300)])
def test_p14_resizing_is_pils_and_not_a_tensors_without_antialias(shape):
    """P14: a tensor's bicubic without antialias is another filter. Ours is held to open_clip's, which is PIL's."""
    from open_clip.transform import image_transform

    spec, image = mmzoo.get_config("clip-vit-b32").image, photo(*shape)
    expected = image_transform(224, False, spec.mean, spec.std)(image)
    level = 1 / 255 / min(spec.std)
    found = mmzoo.create_processor("clip-vit-b32").images([image])[0]
    assert (found - expected).abs().max() <= 1.001 * level
    assert (ImageTransform(spec, exact=True)([image])[0] - expected).abs().max() <= 1e-6
    # the trap itself is far outside of that bar
    pixels = torch.from_numpy(np.asarray(image)).permute(2, 0, 1).double()[None]
    height, width = pixels.shape[-2:]
    size = (224, int(224 * width / height)) if width >= height else (int(224 * height / width), 224)
    plain = torch.nn.functional.interpolate(pixels, size, mode="bicubic")
    soft = torch.nn.functional.interpolate(pixels, size, mode="bicubic", antialias=True)
    assert (plain - soft).abs().max() / 255 / min(spec.std) > 5 * level
