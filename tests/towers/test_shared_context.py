"""Texts that share their images' keys and values compute what texts with copies of them compute."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mmzoo.errors import ZooError
from mmzoo.layers.cache import KVCache
from mmzoo.layers.image_kv import ImageKV
from mmzoo.ops import folding
from mmzoo.towers.text import TextBackbone, bert_text, llama_text

WIDTH, CROSS, IMAGES, TOKENS = 24, 10, 4, 5
INDICES = {
    "random": [2, 0, 2, 2, 0, 3],  # nobody reads image 1
    "one image": [0, 0, 0, 0, 0, 0],
    "equal": [0, 0, 0, 3, 3, 3],
    "each its own": [3, 1, 0, 2],
    "one text": [2],
    "none": [],
}


def _text(make=bert_text, **changes):
    torch.manual_seed(0)
    sizes = {"vocab": 30, "context": 12, "width": WIDTH, "depth": 4, "heads": 3, "hidden": 48}
    model = TextBackbone(make(**sizes, cross_layers=(2, 3), cross_width=CROSS, **changes)).double().eval()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model


def _case(index, length=7):
    generator = torch.Generator().manual_seed(1)
    index = torch.tensor(index, dtype=torch.long)
    ids = torch.randint(0, 30, (len(index), length), generator=generator)
    lengths = torch.randint(1, length + 1, (len(index), 1), generator=generator)
    context = torch.randn(IMAGES, TOKENS, CROSS, generator=generator, dtype=torch.float64)
    seen = torch.rand(IMAGES, TOKENS, generator=generator) < 0.6
    return index, ids, torch.arange(length) < lengths, context, seen


def _results(model, context, run):
    """States at real tokens, and the gradients of a weighted sum of them."""
    context = context.clone().requires_grad_()
    model.zero_grad()
    states = run(context)
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (states * weights).sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return states, {**gradients, "context": context.grad}


def _assert_same(found, expected):
    assert found[1].keys() == expected[1].keys()
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-12)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-12, atol=1e-12, msg=name)


@pytest.fixture(params=["filled", "segments"])
def form(request, monkeypatch):
    """Both forms of the fold, whatever is chosen for so small a case."""
    monkeypatch.setattr(folding, "RUN_COST", 0 if request.param == "segments" else 10**12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
@pytest.mark.usefixtures("form")
def test_sharing_equals_copying(index, packed, masked):
    model = _text()
    index, ids, keep, context, seen = _case(index)
    seen = seen if masked else None
    copied_seen = None if seen is None else seen[index]
    copied = _results(
        model,
        context,
        lambda x: model(ids, keep=keep, context=x[index], context_keep=copied_seen).tokens[keep],
    )

    def shared(x):
        kv = model.project_context(x, keep=seen)
        return model(ids, keep=keep, context=kv, context_index=index, packed=packed).tokens[keep]

    def tokens(x):
        out = model(ids, keep=keep, context=x, context_index=index, context_keep=seen, packed=packed)
        return out.tokens[keep]

    _assert_same(_results(model, context, shared), copied)
    _assert_same(_results(model, context, tokens), copied)


@pytest.mark.parametrize("make", [bert_text, llama_text])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.usefixtures("form")
def test_other_backbones_share_too(make, causal):
    """Causal and rotary, whose packed form looks up positions; grouped key heads with Llama."""
    model = _text(make)
    index, ids, keep, context, _ = _case(INDICES["random"])
    expected = model(ids, keep=keep, causal=causal, context=context[index]).tokens[keep]
    for packed in (False, True):
        found = model(ids, keep=keep, causal=causal, context=context, context_index=index, packed=packed)
        torch.testing.assert_close(found.tokens[keep], expected, rtol=0, atol=1e-12)


def test_packed_texts_with_a_context_each_need_no_index():
    model = _text()
    _, ids, keep, context, _ = _case(INDICES["each its own"])
    padded = model(ids, keep=keep, context=context)
    packed = model(ids, keep=keep, context=context, packed=True)
    torch.testing.assert_close(packed.tokens[keep], padded.tokens[keep], rtol=0, atol=1e-12)
    torch.testing.assert_close(packed.pooled, padded.pooled, rtol=0, atol=1e-12)


def test_texts_without_words_pack():
    model = _text()
    index, ids, keep, context, _ = _case(INDICES["random"])
    keep[1] = False
    out = model(ids, keep=keep, context=context, context_index=index, packed=True).tokens
    whole = model(ids, keep=keep, context=context[index]).tokens
    torch.testing.assert_close(out[keep], whole[keep], rtol=0, atol=1e-12)
    assert not out[1].any()
    assert (
        model(ids, keep=keep & False, context=context, context_index=index, packed=True).tokens.shape
        == out.shape
    )


@pytest.mark.usefixtures("form")
def test_checkpointing_shares_too():
    model = _text(dropout=0.0, attn_dropout=0.0).train()
    index, ids, keep, context, _ = _case(INDICES["random"])

    def run(x):
        kv = model.project_context(x)
        return model(ids, keep=keep, context=kv, context_index=index, packed=True).tokens[keep]

    plain = _results(model, context, run)
    model.set_checkpointing(True)
    _assert_same(_results(model, context, run), plain)


def test_negatives_index_the_projections_of_the_batch():
    """One projection serves positives and negatives; its gradient is the sum of all uses'."""
    model = _text()
    index, ids, keep, context, _ = _case([0, 1, 2, 3, 1, 2, 3, 0, 2, 3, 1, 1])
    projected = []
    hook = model.blocks[2].cross.kv.register_forward_hook(lambda *call: projected.append(call[1][0].shape[0]))
    _results(
        model,
        context,
        lambda x: model(ids, keep=keep, context=model.project_context(x), context_index=index).tokens,
    )
    hook.remove()
    assert projected == [IMAGES]


def test_layers_may_read_different_images():
    """NLVR2: even layers read the first image of a pair, odd ones the second."""
    model = _text()
    index, ids, keep, context, _ = _case(INDICES["random"])
    other = context.flip(0) + 1
    kv = model.project_context(context, (2,)).union(model.project_context(other, (3,)))
    found = model(ids, keep=keep, context=kv, context_index=index).tokens
    half = model(ids, keep=keep, context=context[index], layers=slice(0, 3)).tokens
    whole = model(embeds=half, keep=keep, context=other[index], layers=slice(3, 4)).tokens
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)
    with pytest.raises(ZooError, match=r"layers \[0\] have no cross-attention"):
        model.project_context(context, (0, 2))


def test_a_layer_without_its_keys_is_an_error():
    """A forgotten half of a union must not become a transformer that looks at no image there."""
    model = _text()
    _, ids, keep, context, _ = _case(INDICES["each its own"])
    half = model.project_context(context, (2,))
    with pytest.raises(ZooError, match=r"layer 3 attends to a context, .* only the layers \[2\]: .*by union"):
        model(ids, keep=keep, context=half)
    whole = model.project_context(context)
    to_three = model(ids, keep=keep, context=half, layers=slice(0, 3)).tokens  # layer 3 is not asked
    assert torch.equal(to_three, model(ids, keep=keep, context=whole, layers=slice(0, 3)).tokens)


def test_a_context_has_one_mask():
    model = _text()
    _, ids, keep, context, seen = _case(INDICES["each its own"])
    masked, bare = model.project_context(context, keep=seen), model.project_context(context)
    with pytest.raises(ZooError, match="mask of its own: leave context_keep out"):
        model(ids, keep=keep, context=masked, context_keep=seen)
    found = model(ids, keep=keep, context=bare, context_keep=seen).tokens
    assert torch.equal(found, model(ids, keep=keep, context=masked).tokens)


@pytest.mark.parametrize("index", [[0, 0, 2, 2, 3, 3], [2, 0, 2, 2, 0, 3]], ids=["beams", "random"])
def test_decoding_with_a_cache_shares_the_context(index):
    model = _text(causal=True)
    index, ids, _, context, seen = _case(index)
    whole = model(ids, context=context[index], context_keep=seen[index]).tokens
    cache, kv, steps = KVCache(4), model.project_context(context, keep=seen), []
    with torch.no_grad():
        for piece in ids.split([3, 1, 1, 2], dim=1):
            steps.append(model(piece, context=kv, context_index=index, cache=cache).tokens)
        torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=0, atol=1e-12)
        # beams change places: rows of the cache move, the images' keys and values do not
        order = torch.tensor([1, 1, 0, 3, 5, 4])
        cache.reorder(order)
        words = ids[:, :1]
        again = model(words, context=kv, context_index=index[order], cache=cache).tokens
        longer = model(
            torch.cat([ids[order], words], 1), context=context[index[order]], context_keep=seen[index[order]]
        )
    torch.testing.assert_close(again[:, 0], longer.tokens[:, -1], rtol=0, atol=1e-12)


def test_keys_are_not_copied(monkeypatch):
    """Sixty texts of one image, or beams of several: attention is handed the projections themselves."""
    handed = []
    fused = F.scaled_dot_product_attention

    def spy(q, k, v, **options):
        handed.append((k.untyped_storage().data_ptr(), tuple(k.shape)))
        return fused(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    model = _text()
    generator = torch.Generator().manual_seed(0)
    ids, keep = (
        torch.randint(0, 30, (60, 7)),
        torch.arange(7) < torch.randint(1, 8, (60, 1), generator=generator),
    )
    context = torch.randn(IMAGES, TOKENS, CROSS, dtype=torch.float64)
    for index in (torch.zeros(60, dtype=torch.long), torch.randint(0, 4, (60,), generator=generator)):
        for packed in (False, True):
            kv = model.project_context(context)
            handed.clear()
            model(ids, keep=keep, context=kv, context_index=index, packed=packed)
            own = {kv.layers[i].k.untyped_storage().data_ptr() for i in (2, 3)}
            crossings = [shape for where, shape in handed if where in own]
            assert len(crossings) >= 2
            assert all(shape[2] == TOKENS for shape in crossings)
            assert sum(shape[0] for shape in crossings) <= 2 * IMAGES


def test_refusals_name_the_remedy():
    model = _text()
    index, ids, keep, context, _ = _case(INDICES["random"])
    with pytest.raises(ZooError, match="6 texts cannot read 4 contexts one by one: say with context_index"):
        model(ids, context=context)
    with pytest.raises(ZooError, match=r"6 int64 numbers, one per text, got torch\.int64"):
        model(ids, context=context, context_index=index[:3])
    with pytest.raises(ZooError, match=r"one per text, got torch\.int32"):
        model(ids, context=context, context_index=index.int())
    with pytest.raises(ZooError, match="between 0 and 3, one of 4 contexts, got 1 to 4"):
        model(ids, context=context, context_index=index + 1)
    with pytest.raises(ZooError, match="packed=True needs keep"):
        model(ids, keep=keep, context=context, context_index=index, packed=True, cache=KVCache(4))
    assert isinstance(model.project_context(context), ImageKV)
