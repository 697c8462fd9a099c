import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmzoo.errors import ZooError
from mmzoo.losses.accumulate import cached_step, refuse_batch_statistics
from mmzoo.losses.contrastive import clip_loss
from mmzoo.losses.sigmoid import siglip_loss


class Towers(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 8))
        self.text = nn.Sequential(nn.Linear(5, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 8))
        self.log_scale, self.bias = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(-2.0))

    def embed(self, batch):
        return tuple(F.normalize(t(x), dim=1) for t, x in zip((self.image, self.text), batch, strict=True))

    def softmax(self, image, text):
        return clip_loss(image, text, self.log_scale.exp())

    def sigmoid(self, image, text):
        return siglip_loss(image, text, self.log_scale.exp(), self.bias)

    def gradients(self):
        return {name: p.grad.clone() for name, p in self.named_parameters() if p.grad is not None}


def batch(n=10, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(n, width, generator=generator, dtype=dtype) for width in (6, 5))


def chunked(inputs, size):
    return list(zip(*(x.split(size) for x in inputs), strict=True))


def check(gradients, expected, tolerance):
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
@pytest.mark.parametrize("size", [1, 4, 10])
def test_gradients_are_those_of_the_whole_batch(name, size):
    whole, towers = Towers().double(), Towers().double()
    expected = getattr(whole, name)(*whole.embed(batch()))
    expected.loss.backward()
    result = cached_step(towers.embed, chunked(batch(), size), getattr(towers, name))
    check(towers.gradients(), whole.gradients(), 1e-12)
    torch.testing.assert_close(list(result), [x.detach() for x in expected], rtol=1e-12, atol=1e-12)
    assert not result.loss.requires_grad


def test_gradients_add_to_those_already_there():
    once, twice = Towers().double(), Towers().double()
    cached_step(once.embed, chunked(batch(), 4), once.softmax)
    for _ in range(2):
        cached_step(twice.embed, chunked(batch(), 4), twice.softmax)
    check(twice.gradients(), {name: 2 * grad for name, grad in once.gradients().items()}, 1e-12)


def test_dropout_drops_the_same_both_times():
    towers = Towers(dropout=0.5).double()
    masks = []
    for part in (towers.image[2], towers.text[2]):
        part.register_forward_hook(lambda _, inputs, output: masks.append((output == 0) & (inputs[0] != 0)))
    torch.manual_seed(5)
    cached_step(towers.embed, chunked(batch(), 4), towers.softmax)
    after = torch.rand(4)
    first, second = masks[:6], masks[6:]
    assert len(masks) == 12, "two towers, three chunks, twice"
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
        assert a.any()
    assert not torch.equal(first[0], first[2]), "chunks have masks of their own"

    # The same numbers drawn in one ordinary pass over the chunks give the same gradient and leave the same generator.
    plain = Towers(dropout=0.5).double()
    torch.manual_seed(5)
    embedded = [plain.embed(chunk) for chunk in chunked(batch(), 4)]
    plain.softmax(*(torch.cat(parts) for parts in zip(*embedded, strict=True))).loss.backward()
    check(towers.gradients(), plain.gradients(), 1e-12)
    assert torch.equal(after, torch.rand(4))


def test_each_chunk_is_embedded_twice_and_only_once_with_a_graph():
    towers = Towers()
    graphs = []

    def embed(chunk):
        out = towers.embed(chunk)
        graphs.append(out[0].requires_grad)
        return out

    cached_step(embed, chunked(batch(dtype=torch.float32), 3), towers.softmax)
    assert graphs == [False] * 4 + [True] * 4


def test_a_backward_that_scales_scales_once():
    # What a gradient scaler does under float16.
    plain, scaled = Towers().double(), Towers().double()
    cached_step(plain.embed, chunked(batch(), 4), plain.sigmoid)
    calls = []

    def backward(loss):
        calls.append(loss)
        (loss * 1024).backward()

    cached_step(scaled.embed, chunked(batch(), 4), scaled.sigmoid, backward=backward)
    check(scaled.gradients(), {name: 1024 * grad for name, grad in plain.gradients().items()}, 1e-9)
    assert len(calls) == 4


def test_under_autocast_every_weight_gets_its_gradient():
    # Autocast keeps the bfloat16 copies of weights: those made without a graph must not serve the second pass.
    whole, towers = Towers(), Towers()
    inputs = batch(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        whole.softmax(*whole.embed(inputs)).loss.backward()
        cached_step(towers.embed, chunked(inputs, 5), towers.softmax)
    expected, found = whole.gradients(), towers.gradients()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert F.cosine_similarity(found[name].flatten(), gradient.flatten(), dim=0) > 0.99, name


def test_texts_may_outnumber_images():
    whole, towers = Towers().double(), Towers().double()
    images, texts = batch(4)[0], batch(8)[1]
    ids = {"image_ids": torch.arange(4), "text_ids": torch.arange(8) // 2}

    def loss_of(model):
        return lambda image, text: clip_loss(image, text, model.log_scale.exp(), **ids)

    loss_of(whole)(*whole.embed((images, texts))).loss.backward()
    cached_step(towers.embed, [(images[:1], texts[:2]), (images[1:], texts[2:])], loss_of(towers))
    check(towers.gradients(), whole.gradients(), 1e-12)


def test_batch_norm_is_refused_while_it_trains():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(ZooError, match="cannot run 1: a BatchNorm1d in training mode"):
        refuse_batch_statistics(module)
    refuse_batch_statistics(module.eval())
    refuse_batch_statistics(nn.LayerNorm(2))
