"""A watched layer computes what the fused one does, and keeps its weights with their gradient."""

from __future__ import annotations

import pytest
import torch

from mmzoo.errors import ZooError
from mmzoo.layers.watch import watch
from mmzoo.ops.attention import AttnMask
from mmzoo.towers.text import TextBackbone, bert_text, llama_text

IDS = torch.randint(0, 30, (3, 7), generator=torch.Generator().manual_seed(0))
KEEP = torch.arange(7) < torch.tensor([[7], [4], [2]])


def _text(make=bert_text, **changes):
    torch.manual_seed(0)
    sizes = {"vocab": 30, "context": 12, "width": 24, "depth": 3, "heads": 3, "hidden": 48}
    return TextBackbone(make(**sizes, cross_layers=(1, 2), cross_width=10, **changes)).double().eval()


@pytest.mark.parametrize("make", [bert_text, llama_text])
@pytest.mark.parametrize("part", ["attn", "cross"])
def test_outputs_equal_the_fused_path(make, part):
    model, image = _text(make), torch.randn(3, 5, 10, dtype=torch.float64)
    seen_image = torch.rand(3, 5) < 0.7
    seen_image[1] = False  # a text that sees nothing
    call = {"keep": KEEP, "context": image, "context_keep": seen_image}
    fused = model(IDS, **call).tokens
    with watch(getattr(model.blocks[1], part)) as seen:
        watched = model(IDS, **call).tokens
    torch.testing.assert_close(watched, fused, rtol=0, atol=1e-12)
    assert torch.equal(model(IDS, **call).tokens, fused)  # and afterwards all is as before
    assert seen.weights.shape == (3, 3, 7, 7 if part == "attn" else 5)
    sums = seen.weights.sum(-1)
    blank = torch.zeros(3, 3, 7, dtype=torch.bool)
    blank[1] = part == "cross"
    torch.testing.assert_close(sums, (~blank).double(), rtol=0, atol=1e-12)


def test_gradient_equals_the_one_by_hand():
    """The layers after the watched one, written as a function of its weights."""
    model, image = _text(), torch.randn(3, 5, 10, dtype=torch.float64)
    block = model.blocks[2]
    with watch(block.cross) as seen:
        model(IDS, keep=KEEP, context=image).tokens[:, 0].pow(3).sum().backward()
    parameters = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    with torch.no_grad():
        x = model(IDS, keep=KEEP, context=image, layers=slice(0, 2)).tokens
        x = block.attn_norm(x + block.attn(x, mask=AttnMask(keep=KEEP)))
        values = block.cross.project(image).v
    weights = seen.weights.detach().requires_grad_()
    y = block.cross.out((weights @ values).transpose(1, 2).flatten(2))
    y = block.cross_norm(x + y)
    y = block.mlp_norm(y + block.mlp(y))
    y[:, 0].pow(3).sum().backward()
    torch.testing.assert_close(seen.weights.grad, weights.grad, rtol=0, atol=1e-12)
    assert seen.weights.grad.abs().max() > 1e-6

    model.zero_grad()
    model(IDS, keep=KEEP, context=image).tokens[:, 0].pow(3).sum().backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(parameters[name], p.grad, rtol=1e-10, atol=1e-12)


def test_frozen_models_are_watched_too():
    model, image = _text().requires_grad_(False), torch.randn(3, 5, 10, dtype=torch.float64)
    with watch(model.blocks[1].cross) as seen:
        model(IDS, keep=KEEP, context=image).tokens.pow(3).sum().backward()
    assert seen.weights.grad.abs().max() > 0
    with torch.no_grad(), watch(model.blocks[1].cross) as seen:
        model(IDS, keep=KEEP, context=image)
    assert not seen.weights.requires_grad


def test_dropout_is_applied_but_not_shown():
    model, image = _text(attn_dropout=0.5, dropout=0.0).train(), torch.randn(3, 5, 10, dtype=torch.float64)
    torch.manual_seed(0)
    with watch(model.blocks[1].cross) as seen:
        one = model(IDS, context=image).tokens
    assert (one - model.eval()(IDS, context=image).tokens).abs().max() > 1e-3
    torch.testing.assert_close(seen.weights.sum(-1), torch.ones(3, 3, 7).double(), rtol=0, atol=1e-12)


def test_what_cannot_be_watched_is_said():
    model, image = _text(), torch.randn(1, 5, 10, dtype=torch.float64)
    index = torch.zeros(3, dtype=torch.long)
    with watch(model.blocks[1].cross) as seen:
        with pytest.raises(ZooError, match="has not been called"):
            _ = seen.weights
        with pytest.raises(ZooError, match=r"shared contexts cannot be watched"):
            model(IDS, context=image, context_index=index)
    with watch(model.blocks[1].attn), pytest.raises(ZooError, match="packed texts cannot be watched"):
        model(IDS, keep=KEEP, context=image, context_index=index, packed=True)
    assert model.blocks[1].cross.seen is None  # also after a failure
    assert model.blocks[1].attn.seen is None
