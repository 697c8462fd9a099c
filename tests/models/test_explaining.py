"""The maps of words are attention times the positive part of its gradient, whoever else is in the batch."""

from __future__ import annotations

import pytest
import torch

import mmzoo
from mmzoo.errors import UsageError, ZooError
from mmzoo.layers.attention import CrossAttention
from mmzoo.models import explaining
from mmzoo.models.capabilities import Explains
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
    found = explaining.grad_cam(block, lambda: model.match(images, IDS, KEEP, **plain))
    assert found[:, 0].sum() > 0
    assert not found[:, 1:6].any()


def test_refusals():
    model, images = _model("albef-tiny")
    with pytest.raises(ZooError, match="3 texts need one image for all or one each, found 2"):
        model.explain(images[:2], IDS, KEEP)
    vilt, images = _model("vilt-tiny")
    padded = images.clone()
    padded[1, :, 32:] = 0
    with pytest.raises(ZooError, match="one at a time"):
        vilt.explain(padded, IDS, KEEP)
