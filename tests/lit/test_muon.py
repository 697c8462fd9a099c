"""Muon: hidden matrices move orthogonally, everything else is AdamW's, a restored run goes on bit for bit."""

import copy

import pytest
import torch
from torch import nn

from mmzoo.lit.muon import Muon, orthogonal
from mmzoo.lit.optim import build_optimizer, build_schedule
from mmzoo.zoo import create_model


def tiny():
    torch.manual_seed(0)
    return create_model("clip-tiny").train()


def gradients(model, seed):
    torch.manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 1e-2


def test_singular_values_come_near_one():
    torch.manual_seed(0)
    for shape in ((3, 32, 32), (2, 32, 96), (2, 96, 32)):
        u, s, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
        spread = torch.linspace(0.1, 1.0, s.shape[-1])
        values = torch.linalg.svdvals(orthogonal(1e-3 * u * spread @ v, 5))
        assert values.min() > 0.6
        assert values.max() < 1.25
    # The nearest orthogonal matrix has the same singular vectors: it is not just any orthogonal matrix.
    x = torch.randn(1, 16, 16)
    u, _, v = torch.linalg.svd(x)
    made = u.mT @ orthogonal(x, 5) @ v.mT
    torch.testing.assert_close(made, torch.diag_embed(made.diagonal(dim1=1, dim2=2)), atol=1e-4, rtol=0)
    assert (made.diagonal(dim1=1, dim2=2) > 0).all()


def test_query_key_and_value_are_made_orthogonal_each_for_itself():
    model = tiny()
    weight = model.vision.blocks[0].attn.qkv.weight
    before = weight.detach().clone()
    optimizer = build_optimizer(model, lambda groups: Muon(groups, lr=1e-3, ratio=10.0, weight_decay=0.0))
    gradients(model, 1)
    optimizer.step()
    width = weight.shape[1]
    for square in (before - weight.detach()).split(width):
        values = torch.linalg.svdvals(square / 1e-2)
        assert values.max() < 1.3
        assert values.median() > 0.6


def test_everything_outside_the_blocks_is_adamws():
    ours, theirs = tiny(), tiny()
    settings = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1}
    muon = build_optimizer(ours, lambda groups: Muon(groups, **settings))
    adamw = build_optimizer(theirs, lambda groups: torch.optim.AdamW(groups, **settings))
    for seed in range(3):
        gradients(ours, seed)
        gradients(theirs, seed)
        muon.step()
        adamw.step()
    other = dict(theirs.named_parameters())
    same = {name for name, p in ours.named_parameters() if torch.equal(p, other[name])}
    hidden = {name for name, p in ours.named_parameters() if ".blocks." in name and p.ndim == 2}
    assert len(hidden) == 4 * (len(ours.vision.blocks) + len(ours.text.blocks))
    assert same == set(other) - hidden


def test_rate_follows_the_schedule_and_decay_shrinks():
    model = tiny()
    weight = model.vision.blocks[0].attn.out.weight
    optimizer = build_optimizer(model, lambda groups: Muon(groups, lr=1e-3, ratio=10.0, weight_decay=0.5))
    build_schedule(optimizer, warmup=9, total=100)  # the first step has a tenth of the rate
    before = weight.detach().clone()
    gradients(model, 0)
    weight.grad.zero_()
    optimizer.step()
    torch.testing.assert_close(weight.detach(), before * (1 - 1e-3 * 0.5))


def test_gradients_stand_after_the_step_as_before():
    model = tiny()
    optimizer = build_optimizer(model, lambda groups: Muon(groups))
    gradients(model, 0)
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step()
    assert all(torch.equal(p.grad, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("fused", [True, False])
def test_restored_state_goes_on_bit_for_bit(fused):
    def make(model):
        return build_optimizer(model, lambda groups: Muon(groups, fused=fused))

    model = tiny()
    optimizer = make(model)
    gradients(model, 0)
    optimizer.step()
    twin = tiny()
    twin.load_state_dict(model.state_dict())
    restored = make(twin)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for m, o in ((model, optimizer), (twin, restored)):
        gradients(m, 1)
        o.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_frozen_and_unused_parameters_stay():
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])})
    group = {
        "params": [p for _, p in model.named_parameters()],
        "names": [n for n, _ in model.named_parameters()],
    }
    optimizer = Muon([group])
    model["blocks"][0](torch.ones(1, 4)).sum().backward()
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"blocks.0.weight", "blocks.0.bias"}


def test_an_overflow_under_a_loss_scaler_leaves_every_weight_alone():
    """fp16 training meets infinite gradients regularly; the scaler then skips the step, also Muon's part of it."""
    model = tiny()
    optimizer = build_optimizer(model, lambda groups: Muon(groups, lr=1e-3, fused=True))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    scaler.scale(torch.zeros(())).item()  # the scaler begins
    for p in model.parameters():
        p.grad = torch.full_like(p, torch.inf)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 512.0
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]), name
    gradients(model, 3)
    true = {p: p.grad.clone() for p in model.parameters()}
    for p in model.parameters():
        p.grad = p.grad * scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    for p in model.parameters():
        torch.testing.assert_close(p.grad, true[p])  # unscaled before Muon saw them
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters() if "blocks." in name)
