"""The maps of words are attention times the positive part of its gradient, whoever else is in the batch."""

from __future__ import annotations

import pytest
import torch

import mmzoo
from mmzoo.errors import UsageError, ZooError
from mmzoo.layers.attention import CrossAttention
from mmzoo.models import explaining
from mmzoo.models.capabilities import Explains, ExplainsCaptions
from mmzoo.ops.attention import attend_weights

IDS = torch.randint(5, 3000, (3, 6), generator=torch.Generator().manual_seed(0))
KEEP = torch.arange(6) < torch.tensor([[6], [3], [4]])


def _model(name):
    torch.manual_seed(0)
    model = mmzoo.create_model(name).double()
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    size = (24, 24) if name == "albef-tiny" else (64, 48)
    return model, torch.randn(3, 3, *size, dtype=torch.float64)


@pytest.mark.parametrize("name", ["albef-tiny", "vilt-tiny"])
def test_maps_do_not_depend_on_the_batch(name):
    model, images = _model(name)
    assert isinstance(model, Explains)
    maps = model.explain(images, IDS, KEEP)
    assert maps.shape == (3, 6, *((4, 4) if name == "albef-tiny" else (8, 6)))
    assert (maps >= 0).all()
    assert not maps[~KEEP].any()
    assert (maps.flatten(2).sum(-1)[KEEP] > 0).all()  # also of words that the head does not read
    for row, length in enumerate((6, 3, 4)):
        alone = model.explain(
            images[row : row + 1], IDS[row : row + 1, :length], KEEP[row : row + 1, :length]
        )
        torch.testing.assert_close(maps[row, :length], alone[0], rtol=1e-9, atol=1e-12)
    same = model.explain(images[:1], IDS, KEEP)
    torch.testing.assert_close(same, model.explain(images[[0, 0, 0]], IDS, KEEP), rtol=1e-9, atol=1e-12)
    assert all(p.grad is None for p in model.parameters())
    with torch.inference_mode():
        torch.testing.assert_close(model.explain(images, IDS, KEEP), maps, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        model.requires_grad_(False).explain(images, IDS, KEEP), maps, rtol=1e-9, atol=1e-12
    )


def test_albef_maps_by_hand():
    """One fusion layer written out with plain matrix products, its gradient by finite differences."""
    model, images = _model("albef-tiny")
    layer = model.explain_layer
    assert layer == 2
    cross: CrossAttention = model.text.blocks[layer].cross
    inputs = {}
    hook = cross.register_forward_hook(
        lambda module, given, kwargs, out: inputs.update(x=given[0], kv=given[1]), with_kwargs=True
    )
    with torch.no_grad():
        kv = model.project_images(images)
        model.match(kv, IDS, KEEP, packed=False)
        hook.remove()
        q = cross.q(inputs["x"]).unflatten(2, (cross.heads, -1)).transpose(1, 2)
        weights = attend_weights(q, inputs["kv"].k)
        reference = (q @ inputs["kv"].k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
        torch.testing.assert_close(weights, reference, rtol=0, atol=1e-12)

        def match(changed):
            """The logit of "match" where the layer attends with other weights."""
            mixed = cross.out((changed @ inputs["kv"].v).transpose(1, 2).flatten(2))
            swap = cross.register_forward_hook(lambda module, given, out: mixed)
            logit = model.match(kv, IDS, KEEP, packed=False)[:, 1].sum()
            swap.remove()
            return logit

        found = model.explain(images, IDS, KEEP)
        for text, token, patch in ((0, 0, 3), (0, 4, 7), (1, 2, 0), (2, 3, 15)):
            expected = 0.0
            for head in range(cross.heads):
                step = torch.zeros_like(weights)
                step[text, head, token, patch] = 1e-5
                slope = (match(weights + step) - match(weights - step)) / 2e-5
                expected += float(weights[text, head, token, patch] * slope.clamp(min=0)) / cross.heads
            torch.testing.assert_close(
                float(found[text, token].flatten()[patch]), expected, rtol=1e-5, atol=1e-11
            )


def test_layers_are_those_of_the_paper():
    model = mmzoo.create_model("albef-b16", device="meta")
    assert model.explain_layer == 8
    assert list(model.explain_layers) == [6, 7, 8, 9, 10]
    assert list(mmzoo.create_model("vilt-b32", device="meta").explain_layers) == list(range(11))


@pytest.mark.parametrize("name", ["albef-tiny", "vilt-tiny"])
def test_words_have_no_map_in_the_last_layer(name):
    """Why it is not offered: only the first token's attention there reaches the head."""
    model, images = _model(name)
    last = len(model.text.blocks if name == "albef-tiny" else model.vision.blocks) - 1
    with pytest.raises(UsageError, match=f"layer {last} has no map of words: this model has layers from"):
        model.explain(images, IDS, KEEP, last)
    block = model.text.blocks[last].cross if name == "albef-tiny" else model.vision.blocks[last].attn
    plain = {"packed": False} if name == "albef-tiny" else {}
    found = explaining.grad_cam(block, lambda: model.match(images, IDS, KEEP, **plain)[:, 1])
    assert found[:, 0].sum() > 0
    assert not found[:, 1:6].any()


def _writer():
    torch.manual_seed(0)
    model = mmzoo.create_model("blip-tiny").double()
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return model, torch.randn(3, 3, 24, 24, dtype=torch.float64)


def test_maps_of_captions_do_not_depend_on_the_batch():
    model, images = _writer()
    assert isinstance(model, ExplainsCaptions)
    assert (list(model.caption_layers), model.caption_layer) == ([0, 1], 1)
    for layer in model.caption_layers:
        maps = model.explain_caption(images, IDS, KEEP, layer)
        assert maps.shape == (3, 6, 4, 4)
        assert (maps >= 0).all()
        assert not maps[~KEEP].any()
        assert not maps[:, 0].any()  # nobody writes the begin token
        assert (maps.flatten(2).sum(-1)[:, 1:][KEEP[:, 1:]] > 0).all()
        for row, length in enumerate((6, 3, 4)):
            alone = model.explain_caption(
                images[row : row + 1], IDS[row : row + 1, :length], KEEP[row : row + 1, :length], layer
            )
            torch.testing.assert_close(maps[row, :length], alone[0], rtol=1e-9, atol=1e-12)
    # what comes after a word changes nothing of its map, nor does the first token's id, for [DEC] takes its place
    other = IDS.clone()
    other[:, 0], other[:, 4:] = 2, 77
    torch.testing.assert_close(
        model.explain_caption(images, other, KEEP)[:, :4], maps[:, :4], rtol=1e-9, atol=1e-12
    )
    assert all(p.grad is None for p in model.parameters())
    with torch.inference_mode():  # the loop's last layer is the one taken unless told otherwise
        torch.testing.assert_close(model.explain_caption(images, IDS, KEEP), maps, rtol=1e-9, atol=1e-12)
    with pytest.raises(UsageError, match="layer 2 has no map of words: this model has layers from 0 to 1"):
        model.explain_caption(images, IDS, KEEP, 2)


def test_maps_of_captions_by_hand():
    """The slope of a word's logit by finite differences, at the first layer, whose other rows are left alone."""
    model, images = _writer()
    cross: CrossAttention = model.decoder.blocks[0].cross
    found = model.explain_caption(images, IDS, KEEP, 0)
    with torch.no_grad():
        kv = model.project_images(images)
        values = kv.layers[0].v
        for text, place, patch in ((0, 1, 3), (0, 5, 7), (1, 2, 0), (2, 3, 15)):
            before, word = IDS[:, :place], IDS[text, place]
            inputs = {}
            hook = cross.register_forward_hook(
                lambda module, given, out, seen=inputs: seen.update(x=given[0])
            )
            model.write_states(kv, before)
            hook.remove()
            q = cross.q(inputs["x"]).unflatten(2, (cross.heads, -1)).transpose(1, 2)
            weights = attend_weights(q, kv.layers[0].k)

            def logit(changed, before=before, text=text, word=word):
                mixed = cross.out((changed @ values).transpose(1, 2).flatten(2))
                swap = cross.register_forward_hook(lambda module, given, out: mixed)
                states = model.write_states(kv, before)[text, -1]
                swap.remove()
                return model.lm.logits(states)[word]

            expected = 0.0
            for head in range(cross.heads):
                step = torch.zeros_like(weights)
                step[text, head, -1, patch] = 1e-5
                slope = (logit(weights + step) - logit(weights - step)) / 2e-5
                expected += float(weights[text, head, -1, patch] * slope.clamp(min=0)) / cross.heads
            torch.testing.assert_close(
                float(found[text, place].flatten()[patch]), expected, rtol=1e-5, atol=1e-11
            )


def test_refusals():
    model, images = _model("albef-tiny")
    with pytest.raises(ZooError, match="3 texts need one image for all or one each, found 2"):
        model.explain(images[:2], IDS, KEEP)
    vilt, images = _model("vilt-tiny")
    padded = images.clone()
    padded[1, :, 32:] = 0
    with pytest.raises(ZooError, match="one at a time"):
        vilt.explain(padded, IDS, KEEP)
