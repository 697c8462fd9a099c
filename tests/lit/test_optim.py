"""Parameter groups, fused optimizers, clipping under every precision, and the rate of every step."""

import math
from typing import ClassVar

import pytest
import torch
from torch import nn

from mmzoo.errors import UsageError, ZooError
from mmzoo.lit.optim import build_optimizer, build_schedule, clip_gradients, layer_factors, parameter_groups


class Tower(nn.Module):
    def __init__(self, width=8, depth=3):
        super().__init__()
        self.patch = nn.Linear(width, width)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.pos = nn.Parameter(torch.zeros(1, 5, width))
        self.registers = nn.Parameter(torch.zeros(1, 2, width))
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(width), "fc": nn.Linear(width, width)}) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision = Tower(depth=3)
        self.text = Tower(depth=2)
        self.project = nn.Linear(8, 4, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(1.0))


def by_name(groups):
    return {name: group for group in groups for name in group["names"]}


def test_vectors_scales_and_tokens_are_not_decayed_and_nothing_is_lost():
    model = Pair()
    groups = parameter_groups(model)
    found = by_name(groups)
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    free = {name for name, group in found.items() if group.get("weight_decay") == 0.0}
    expected_decayed = {n for n in found if n.endswith(("patch.weight", "fc.weight", "project.weight"))}
    assert set(found) - free == expected_decayed
    for name in ("vision.cls", "vision.pos", "text.registers", "logit_scale", "vision.blocks.0.norm.weight"):
        assert name in free


def test_frozen_parameters_get_no_group_and_all_frozen_is_refused():
    model = Pair()
    model.text.requires_grad_(False)
    assert not any(name.startswith("text.") for name in by_name(parameter_groups(model)))
    model.requires_grad_(False)
    with pytest.raises(ZooError, match="nothing to train"):
        parameter_groups(model)


def test_layer_decay_counts_layers_of_each_tower():
    scale = layer_factors([name for name, _ in Pair().named_parameters()], 0.5)
    assert scale["vision.norm.weight"] == scale["project.weight"] == scale["logit_scale"] == 1
    assert [scale[f"vision.blocks.{i}.fc.weight"] for i in range(3)] == [0.5**3, 0.5**2, 0.5]
    assert [scale[f"text.blocks.{i}.fc.weight"] for i in range(2)] == [0.5**2, 0.5]
    assert scale["vision.patch.weight"] == scale["vision.cls"] == scale["vision.pos"] == 0.5**4
    assert scale["text.pos"] == 0.5**3
    model = Tower(depth=2)  # a tower at the root, as in a plain ViT
    root = layer_factors([name for name, _ in model.named_parameters()], 0.5)
    assert (root["pos"], root["blocks.0.fc.weight"], root["norm.weight"]) == (0.125, 0.25, 1)


def test_layer_decay_holds_at_every_step_of_warmup_and_cosine():
    model = Pair()
    optimizer = build_optimizer(
        model, lambda g: torch.optim.AdamW(g, lr=1.0, weight_decay=0.1), layer_decay=0.5
    )
    schedule = build_schedule(optimizer, warmup=4, total=12, floor=0.1)
    names = [set(group["names"]) for group in optimizer.param_groups]
    assert {round(g["lr_scale"], 6) for g in optimizer.param_groups} == {1, 0.5, 0.25, 0.125, 0.0625}
    for step in range(13):
        if step < 4:
            factor = (step + 1) / 5
        else:
            factor = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 4) / 8))
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(group["lr_scale"] * factor, abs=1e-12), (step, group["name"])
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        schedule.step()
    assert names == [set(group["names"]) for group in optimizer.param_groups]
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, 0.1}


def test_layer_decay_changes_what_a_step_does():
    """The update itself, not only the number in the group: SGD's first step is lr * gradient."""
    model = Pair()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, lambda g: torch.optim.SGD(g, lr=0.1), layer_decay=0.5)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    moved = {name: (before[name] - p.detach()).mean().item() for name, p in model.named_parameters()}
    assert moved["project.weight"] == pytest.approx(0.1, rel=1e-5)
    assert moved["vision.blocks.0.fc.weight"] == pytest.approx(0.0125, rel=1e-5)
    assert moved["vision.pos"] == pytest.approx(0.00625, rel=1e-5)


class Single(nn.Module):
    """One stack that reads words and pictures, as ViLT does: what feeds it stands outside."""

    input_parts: ClassVar[dict[str, str]] = {"text_embed": "vision", "modality": "vision"}

    def __init__(self):
        super().__init__()
        self.vision = Tower(depth=3)
        self.text_embed = nn.Embedding(9, 8)
        self.modality = nn.Parameter(torch.zeros(2, 8))
        self.modality_free = nn.Linear(8, 8)
        self.vqa_head = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3))


def test_what_feeds_a_tower_from_outside_is_its_input():
    rates = {
        name: group["lr_scale"]
        for group in parameter_groups(Single(), layer_decay=0.5)
        for name in group["names"]
    }
    assert rates["text_embed.weight"] == rates["modality"] == rates["vision.patch.weight"] == 0.5**4
    assert rates["modality_free.weight"] == rates["vqa_head.0.weight"] == rates["vision.norm.weight"] == 1
    assert rates["vision.blocks.2.fc.weight"] == 0.5


def test_parts_have_rates_of_their_own():
    model = Single()
    factors = {"vqa_head": 10.0, "vqa_head.2": 3.0, "modality": 2.0, "vision.blocks.0-1": 0.1}
    optimizer = build_optimizer(
        model, lambda g: torch.optim.AdamW(g, lr=1e-2, weight_decay=0.1), layer_decay=0.5, lr_factors=factors
    )
    schedule = build_schedule(optimizer, warmup=4, total=8)
    for step in range(4):
        rates = {name: g["lr"] for g in optimizer.param_groups for name in g["names"]}
        assert len(rates) == len(list(model.parameters()))
        full = 1e-2 * (step + 1) / 5
        assert rates["vqa_head.0.weight"] == rates["vqa_head.1.bias"] == pytest.approx(10 * full)
        assert rates["vqa_head.2.weight"] == pytest.approx(3 * full)  # the inner part's own
        assert rates["modality"] == pytest.approx(2 * 0.5**4 * full)
        assert rates["vision.blocks.1.fc.weight"] == pytest.approx(0.1 * 0.5**2 * full)
        assert rates["vision.blocks.2.fc.weight"] == pytest.approx(0.5 * full)
        assert rates["modality_free.weight"] == pytest.approx(full)
        optimizer.step()
        schedule.step()
    decays = {name: g["weight_decay"] for g in optimizer.param_groups for name in g["names"]}
    assert (decays["vqa_head.0.weight"], decays["vqa_head.0.bias"], decays["modality"]) == (0.1, 0.0, 0.0)
    with pytest.raises(UsageError, match=r"no part 'vqa'.*vqa_head"):
        parameter_groups(model, lr_factors={"vqa": 10.0})
    with pytest.raises(UsageError, match="factor of vqa_head is 0"):
        parameter_groups(model, lr_factors={"vqa_head": 0})


def test_a_straight_line_down_and_a_warmup_from_a_share():
    model = nn.Linear(2, 2)

    def rates(**settings):
        optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
        schedule = build_schedule(optimizer, **settings)
        found = []
        for _ in range(settings["total"] + 1):
            found.append(optimizer.param_groups[0]["lr"] / 2)
            optimizer.step()
            schedule.step()
        return found

    # transformers' get_polynomial_decay_schedule_with_warmup(power=1, lr_end=0.2 * lr), from its first full step on
    assert rates(warmup=2, total=6, shape="linear", floor=0.2)[2:] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    # ALBEF: from 1e-5 to 1e-4, a tenth of it, in equal steps
    assert rates(warmup=3, total=5, warmup_floor=0.1)[:4] == pytest.approx([0.1, 0.4, 0.7, 1])
    assert rates(warmup=0, total=4, shape="linear") == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    # BLIP's: by the same factor at every step
    assert rates(warmup=2, total=6, shape="exponential", floor=0.81**2)[2:] == pytest.approx(
        [1, 0.9, 0.81, 0.9**3, 0.9**4]
    )


def test_fused_is_the_default_unless_somebody_chose():
    model = Pair()
    fused = build_optimizer(model, lambda g: torch.optim.AdamW(g, lr=1e-3, betas=(0.9, 0.98), eps=1e-6))
    assert fused.defaults["fused"] is True
    assert fused._step_supports_amp_scaling
    assert all(g["fused"] and g["betas"] == (0.9, 0.98) and g["eps"] == 1e-6 for g in fused.param_groups)
    for setting in ({"fused": False}, {"foreach": True}, {"foreach": False}):
        chosen = build_optimizer(model, lambda g, s=setting: torch.optim.AdamW(g, lr=1e-3, **s))
        assert not chosen.defaults["fused"]
    assert isinstance(build_optimizer(model, lambda g: torch.optim.Adagrad(g, lr=1e-3)), torch.optim.Adagrad)
    assert isinstance(build_optimizer(model, lambda g: torch.optim.Rprop(g, lr=1e-3)), torch.optim.Rprop)


def test_fused_and_default_optimizer_agree():
    torch.manual_seed(0)
    one, two = Pair(), Pair()
    two.load_state_dict(one.state_dict())
    optimizers = [
        build_optimizer(
            m, lambda g, f=f: torch.optim.AdamW(g, lr=1e-2, weight_decay=0.2, fused=f), layer_decay=0.7
        )
        for m, f in ((one, None), (two, False))
    ]
    for _ in range(5):
        for p, q in zip(one.parameters(), two.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_clipping_with_a_loss_scaler_sees_the_true_gradients(fused):
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x = torch.randn(3, 4)
    model(x).sum().backward()
    true = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    scaler.scale(model(x).sum()).backward()
    if not fused:
        scaler.unscale_(optimizer)  # what Lightning does for it
    norm = clip_gradients(optimizer, 0.5, "norm", scaler)
    scaler.step(optimizer)
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(norm, true.norm())
    torch.testing.assert_close(before - after, true * 0.5 / true.norm(), rtol=1e-4, atol=1e-6)


def test_clipping_by_value():
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.weight.grad = torch.tensor([[3.0, -0.2]])
    assert clip_gradients(optimizer, 0.5, "value", None) is None
    assert model.weight.grad.tolist() == [[0.5, pytest.approx(-0.2)]]


def test_the_schedule_resumes():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    schedule = build_schedule(optimizer, warmup=2, total=9)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    fresh = torch.optim.SGD(model.parameters(), lr=0.3)
    resumed = build_schedule(fresh, warmup=2, total=9)
    fresh.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    for _ in range(4):
        for o, s in ((optimizer, schedule), (fresh, resumed)):
            o.step()
            s.step()
        assert optimizer.param_groups[0]["lr"] == fresh.param_groups[0]["lr"]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
