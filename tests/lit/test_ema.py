"""The moving average: its numbers, its loan to the model, its way through a checkpoint."""

import pytest
import torch
from torch import nn

from mmzoo.errors import ZooError
from mmzoo.lit.ema import Ema


def toy(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).to(dtype)
    model[0].bias.requires_grad_(False)
    return model


def walk(model, ema, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=generator).to(p.dtype))
        ema.update()


def test_the_average_follows_the_formula():
    model = toy()
    ema = Ema(model, 0.5)
    expected = model[2].weight.detach().double().clone()
    generator = torch.Generator().manual_seed(1)
    for update in range(1, 20):
        with torch.no_grad():
            model[2].weight.copy_(torch.randn(2, 4, generator=generator))
        ema.update()
        rate = min(0.5, (1 + update) / (10 + update))
        expected = expected * rate + model[2].weight.detach().double() * (1 - rate)
    average = ema.state_dict()["average"]["2.weight"]
    torch.testing.assert_close(average.double(), expected, rtol=1e-5, atol=1e-6)


def test_frozen_parameters_are_not_averaged():
    assert "0.bias" not in Ema(toy(), 0.9).state_dict()["average"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lending_is_exact_both_ways(dtype):
    model = toy(dtype)
    ema = Ema(model, 0.9)
    walk(model, ema, 5, 1)
    live = {k: v.clone() for k, v in model.state_dict().items()}
    average = {k: v.clone() for k, v in ema.state_dict()["average"].items()}
    with ema.applied():
        assert torch.equal(model[2].weight, average["2.weight"].to(dtype))
        assert not torch.equal(model[2].weight, live["2.weight"])
    assert all(torch.equal(v, live[k]) for k, v in model.state_dict().items())
    assert all(
        torch.equal(v, average[k]) and v.dtype == torch.float32
        for k, v in ema.state_dict()["average"].items()
    )
    ema.take_back()  # not lent: nothing happens
    assert all(torch.equal(v, live[k]) for k, v in model.state_dict().items())


def test_an_error_while_lent_gives_the_weights_back():
    model = toy()
    ema = Ema(model, 0.9)
    walk(model, ema, 3, 1)
    live = model[2].weight.detach().clone()
    with pytest.raises(RuntimeError, match="stop"), ema.applied():
        raise RuntimeError("stop")
    assert torch.equal(model[2].weight, live)


def test_interrupted_equals_uninterrupted(tmp_path):
    whole, ema = toy(), None
    ema = Ema(whole, 0.99)
    walk(whole, ema, 4, 1)
    torch.save({"model": whole.state_dict(), "ema": ema.state_dict()}, tmp_path / "a.ckpt")
    walk(whole, ema, 4, 2)
    part = toy()
    resumed = Ema(part, 0.99)
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)
    part.load_state_dict(state["model"])
    resumed.load_state_dict(state["ema"])
    walk(part, resumed, 4, 2)
    assert resumed.updates == ema.updates == 8
    for name, average in ema.state_dict()["average"].items():
        assert torch.equal(average, resumed.state_dict()["average"][name])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ZooError, match=r"0\.999"):
        Ema(toy(), 1.0)
    other = toy()
    other[0].bias.requires_grad_(True)
    with pytest.raises(ZooError, match=r"0\.bias"):
        Ema(toy(), 0.9).load_state_dict(Ema(other, 0.9).state_dict())
