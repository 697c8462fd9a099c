"""Norms, MLPs, caches, patches and blocks."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mmzoo.errors import ZooError
from mmzoo.layers.attention import KV
from mmzoo.layers.block import BlockConfig, BlockStack, DropPath, TransformerBlock
from mmzoo.layers.cache import LayerCache
from mmzoo.layers.heads import UnitProjection
from mmzoo.layers.mlp import ACTIVATIONS, MLP
from mmzoo.layers.norm import LayerNorm, RMSNorm
from mmzoo.layers.patch import PatchEmbed, drop_patches
from mmzoo.ops.attention import AttnMask


def _config(**changes) -> BlockConfig:
    return BlockConfig(
        **({"width": 16, "heads": 4, "hidden": 32, "norm": "pre", "norm_eps": 1e-6, "act": "gelu"} | changes)
    )


@pytest.mark.parametrize("kind", [LayerNorm, RMSNorm])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_reduce_in_float32(kind, dtype):
    """With an epsilon that the low precision cannot hold, a tiny constant row still gives a finite result."""
    norm = kind(8, eps=1e-12).to(dtype)
    x = torch.full((1, 8), 1e-3).to(dtype)
    x[0, 0] = 2e-3
    wide = kind(8, eps=1e-12)(x.float())
    assert norm(x).dtype == dtype
    torch.testing.assert_close(norm(x).float(), wide.to(dtype).float(), rtol=0, atol=0)


def test_rms_norm_formula():
    x = torch.randn(3, 8, dtype=torch.float64)
    norm = RMSNorm(8, eps=1e-5).double()
    torch.testing.assert_close(norm(x), x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt())


def test_activations():
    x = torch.linspace(-4, 4, 33, dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS["quick_gelu"](x), x / (1 + torch.exp(-1.702 * x)))
    torch.testing.assert_close(ACTIVATIONS["gelu"](x), 0.5 * x * (1 + torch.erf(x / 2**0.5)))
    inner = (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)
    torch.testing.assert_close(ACTIVATIONS["gelu_tanh"](x), 0.5 * x * (1 + torch.tanh(inner)))
    gate, value = torch.randn(2, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(
        ACTIVATIONS["swiglu"](torch.cat([gate, value], -1)), gate * torch.sigmoid(gate) * value
    )
    assert MLP(8, 12, "swiglu").fc1.out_features == 24


def test_unit_projection_is_exact_under_autocast():
    proj = UnitProjection(8, 4, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        out = proj(torch.randn(5, 8))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.norm(dim=-1), torch.ones(5), rtol=0, atol=1e-6)


def test_cache_grows_and_reorders():
    cache = LayerCache()
    parts = [torch.randn(3, 2, n, 4) for n in (1, 20, 3, 40)]
    for part in parts:
        k, v = cache.append(part, -part)
    whole = torch.cat(parts, 2)
    assert torch.equal(k, whole)
    assert torch.equal(v, -whole)
    assert cache.length == 64
    index = torch.tensor([2, 2, 0, 1])
    cache.reorder(index)
    k, _ = cache.append(torch.zeros(4, 2, 1, 4), torch.zeros(4, 2, 1, 4))
    assert torch.equal(k[:, :, :64], whole[index])


def test_patches_are_row_major_and_refuse_odd_sizes():
    patch = PatchEmbed(2, 5, bias=True)
    images = torch.randn(1, 3, 4, 6)
    tokens, grid = patch(images)
    assert grid == (2, 3)
    expected = F.linear(images[0, :, 0:2, 4:6].flatten(), patch.proj.weight.flatten(1), patch.proj.bias)
    torch.testing.assert_close(tokens[0, 2], expected)
    with pytest.raises(ZooError, match="do not divide"):
        patch(torch.randn(1, 3, 5, 6))
    with pytest.raises(ZooError, match="must be"):
        patch(torch.randn(1, 1, 4, 6))


def test_drop_patches_keeps_order_and_content():
    x = torch.arange(10.0).view(1, 10, 1).expand(4, 10, 2)
    kept, index = drop_patches(x, 0.6)
    assert kept.shape == (4, 4, 2)
    assert torch.equal(kept[..., 0], index.float())
    assert (index.diff(dim=1) > 0).all()
    assert drop_patches(x, 0.99)[0].shape[1] == 1


def test_drop_path_keeps_the_mean():
    drop = DropPath(0.25).train()
    torch.manual_seed(0)
    out = drop(torch.ones(4000, 1, 1))
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(torch.ones(3, 1, 1)), torch.ones(3, 1, 1))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_block_wiring(norm):
    """The residual and norm order, written out."""
    block = TransformerBlock(_config(norm=norm, cross_width=10)).double().eval()
    x, context = torch.randn(2, 5, 16, dtype=torch.float64), torch.randn(2, 3, 10, dtype=torch.float64)
    if norm == "pre":
        y = x + block.attn(block.attn_norm(x))
        y = y + block.cross(block.cross_norm(y), context)
        y = y + block.mlp(block.mlp_norm(y))
    else:
        y = block.attn_norm(x + block.attn(x))
        y = block.cross_norm(y + block.cross(y, context))
        y = block.mlp_norm(y + block.mlp(y))
    torch.testing.assert_close(block(x, context=context), y, rtol=0, atol=1e-12)
    assert not torch.allclose(block(x), y)  # without a context the cross-attention is left out


def test_projected_context_equals_tokens():
    block = TransformerBlock(_config(cross_width=10)).double().eval()
    x, context = torch.randn(2, 5, 16, dtype=torch.float64), torch.randn(2, 3, 10, dtype=torch.float64)
    kv = block.cross.project(context)
    assert isinstance(kv, KV)
    torch.testing.assert_close(block(x, context=kv), block(x, context=context), rtol=0, atol=0)


def test_grouped_heads_equal_repeated_heads():
    grouped = TransformerBlock(_config(kv_heads=2)).double().eval()
    full = TransformerBlock(_config()).double().eval()
    state = grouped.state_dict()
    for name in ("attn.qkv.weight", "attn.qkv.bias"):
        q, k, v = state[name].split([16, 8, 8])
        repeat = [t.unflatten(0, (2, 4)).repeat_interleave(2, 0).flatten(0, 1) for t in (k, v)]
        state[name] = torch.cat([q, *repeat])
    full.load_state_dict(state)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(grouped(x), full(x), rtol=0, atol=1e-12)


def test_checkpointing_changes_nothing_but_memory():
    configs = [_config(dropout=0.3, attn_dropout=0.2, drop_path=0.2) for _ in range(3)]
    stack = BlockStack(configs).double().train()
    x = torch.randn(4, 6, 16, dtype=torch.float64, requires_grad=True)
    grads = []
    for on in (False, True):
        stack.checkpointing = on
        torch.manual_seed(3)
        stack(x, mask=AttnMask(causal=True)).square().sum().backward()
        grads.append([x.grad.clone(), *(p.grad.clone() for p in stack.parameters())])
        stack.zero_grad()
        x.grad = None
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_config_says_what_does_not_fit():
    with pytest.raises(ZooError, match="does not divide into 3 heads"):
        _config(heads=3)
    with pytest.raises(ZooError, match="evenly"):
        _config(kv_heads=3)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_layer_scale_weighs_each_branch(norm):
    torch.manual_seed(0)
    block = TransformerBlock(_config(norm=norm, layer_scale=0.5)).double().eval()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    assert torch.equal(block.attn_scale, torch.full((16,), 0.5, dtype=torch.float64))
    torch.nn.init.normal_(block.attn_scale)
    torch.nn.init.normal_(block.mlp_scale)
    plain = TransformerBlock(_config(norm=norm)).double().eval()
    assert {name for name, _ in block.named_parameters()} - {
        name for name, _ in plain.named_parameters()
    } == {
        "attn_scale",
        "mlp_scale",
    }
    # a gain per channel on a branch is the same as that gain on the rows of the branch's last map
    state = {name: t for name, t in block.state_dict().items() if not name.endswith("_scale")}
    for name, scale in (("attn.out", block.attn_scale), ("mlp.fc2", block.mlp_scale)):
        state[f"{name}.weight"] = state[f"{name}.weight"] * scale[:, None]
        state[f"{name}.bias"] = state[f"{name}.bias"] * scale
    plain.load_state_dict(state)
    torch.testing.assert_close(block(x), plain(x), rtol=1e-10, atol=1e-10)
    with pytest.raises(ZooError, match="layer_scale"):
        _config(layer_scale=0.1, cross_width=8)
