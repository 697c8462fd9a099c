"""Rotary positions against transformers and timm, and against the complex numbers that they stand for."""

import pytest
import torch
from timm.layers import apply_rot_embed, build_rotary_pos_embed
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from mmzoo.errors import UsageError, ZooError
from mmzoo.ops.attention import attend_weights
from mmzoo.ops.rope import permute_channels, rope_table, rope_table_2d, rotate


def tokens(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("base", [10000.0, 500000.0])
def test_half_equals_llama(base):
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, rope_parameters={"rope_type": "default", "rope_theta": base}
    )
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 8, 100, 4000, 2]])
    q, k = tokens(2, 4, 5, 16), tokens(2, 2, 5, 16, seed=1)
    cos2, sin2 = LlamaRotaryEmbedding(config)(q, positions)
    cos, sin = rope_table(positions, 16, base=base)
    assert cos.dtype == torch.float32
    assert torch.equal(torch.cat([cos, cos], -1).double(), cos2)
    assert torch.equal(torch.cat([sin, sin], -1).double(), sin2)
    for ours, theirs in zip(
        (rotate(q, cos, sin), rotate(k, cos, sin)), apply_rotary_pos_emb(q, k, cos2, sin2), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reference", [None, (7, 7)])
def test_interleaved_2d_equals_timm(reference):
    grid, x = (3, 5), tokens(2, 4, 15, 24)
    sin2, cos2 = build_rotary_pos_embed(
        list(grid), dim=24, in_pixels=False, temperature=100.0, ref_feat_shape=reference
    )
    cos, sin = rope_table_2d(grid, 24, base=100.0, reference=reference)
    assert cos.shape == (15, 12)
    torch.testing.assert_close(cos.repeat_interleave(2, -1), cos2, rtol=0, atol=1e-6)
    ours = rotate(x, cos, sin, convention="interleaved")
    theirs = apply_rot_embed(x, sin.repeat_interleave(2, -1).double(), cos.repeat_interleave(2, -1).double())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    whole = apply_rot_embed(x, sin2.double(), cos2.double())
    torch.testing.assert_close(ours, whole, rtol=0, atol=1e-5)


def test_half_2d_equals_timm():
    x = tokens(2, 4, 6, 16)
    sin2, cos2 = build_rotary_pos_embed([2, 3], dim=16, in_pixels=False, rotate_half=True)
    ours = rotate(x, *rope_table_2d((2, 3), 16))
    theirs = apply_rot_embed(x, sin2.double(), cos2.double(), half=True)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_interleaved_is_multiplication_by_a_unit_complex_number():
    x, (cos, sin) = tokens(2, 4, 5, 16), rope_table(torch.arange(5), 16)
    turn = torch.complex(cos.double(), sin.double())
    theirs = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (8, 2))) * turn).flatten(-2)
    torch.testing.assert_close(rotate(x, cos, sin, convention="interleaved"), theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("convention", ["half", "interleaved"])
def test_scores_depend_on_distance_only(convention):
    q, k = tokens(1, 1, 1, 16).expand(1, 1, 6, 16), tokens(1, 1, 1, 16, seed=1).expand(1, 1, 6, 16)
    for shift in (0, 1000):
        table = rope_table(torch.arange(6) + shift, 16)
        scores = rotate(q, *table, convention=convention) @ rotate(k, *table, convention=convention).mT
        for distance in range(-5, 6):
            diagonal = scores[0, 0].diagonal(distance)
            torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=2e-3)


def test_one_convention_with_permuted_weights_is_the_other():
    heads, kv_heads, dim, width = 4, 2, 16, 32
    x, table = tokens(2, 5, width), rope_table(torch.arange(5), dim)
    w_q, w_k = tokens(heads * dim, width, seed=1), tokens(kv_heads * dim, width, seed=2)
    b_q = tokens(heads * dim, seed=3)

    def weights(w_q, b_q, w_k, convention):
        q = (x @ w_q.T + b_q).unflatten(2, (heads, dim)).transpose(1, 2)
        k = (x @ w_k.T).unflatten(2, (kv_heads, dim)).transpose(1, 2)
        return attend_weights(
            rotate(q, *table, convention=convention), rotate(k, *table, convention=convention)
        )

    def move(to):
        return (
            permute_channels(w_q, heads, to=to),
            permute_channels(b_q, heads, to=to),
            permute_channels(w_k, kv_heads, to=to),
        )

    torch.testing.assert_close(
        weights(*move("half"), "half"), weights(w_q, b_q, w_k, "interleaved"), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        weights(*move("interleaved"), "interleaved"), weights(w_q, b_q, w_k, "half"), rtol=0, atol=1e-12
    )
    assert not torch.equal(permute_channels(w_q, heads, to="half"), w_q)
    assert torch.equal(
        permute_channels(permute_channels(w_q, heads, to="half"), heads, to="interleaved"), w_q
    )


def test_prefix_tokens_are_not_turned():
    x, table = tokens(2, 4, 8, 16), rope_table_2d((2, 3), 16)
    out = rotate(x, *table, prefix=2)
    assert torch.equal(out[:, :, :2], x[:, :, :2])
    assert torch.equal(out[:, :, 2:], rotate(x[:, :, 2:], *table))


@pytest.mark.parametrize("convention", ["half", "interleaved"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_rounded_once(convention, dtype):
    x, table = tokens(2, 4, 5, 16, dtype=torch.float32).to(dtype), rope_table(torch.arange(5) + 300, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = rotate(x, *table, convention=convention)
    assert out.dtype == dtype
    assert torch.equal(out, rotate(x.float(), *table, convention=convention).to(dtype))


def test_gradients_turn_back():
    x, table = tokens(1, 2, 5, 16).requires_grad_(), rope_table(torch.arange(5), 16)
    upstream = tokens(1, 2, 5, 16, seed=1)
    (grad,) = torch.autograd.grad(rotate(x, *table), x, upstream)
    torch.testing.assert_close(grad, rotate(upstream, table[0], -table[1]), rtol=0, atol=1e-12)


def test_tables_are_built_outside_autocast_and_on_any_device():
    with torch.autocast("cpu", torch.bfloat16):
        inside = rope_table(torch.arange(5), 16)
    for ours, theirs in zip(inside, rope_table(torch.arange(5), 16), strict=True):
        assert torch.equal(ours, theirs)
    cos, sin = rope_table(torch.arange(5, device="meta"), 16)
    assert cos.device.type == "meta"
    assert rotate(torch.empty(1, 2, 5, 16, device="meta"), cos, sin).shape == (1, 2, 5, 16)
    assert rope_table_2d((2, 3), 16, device=torch.device("meta"))[0].shape == (6, 8)


def test_misfits_are_one_clear_sentence():
    x, table = tokens(1, 2, 5, 16), rope_table(torch.arange(5), 16)
    with pytest.raises(ZooError, match="must be even, got 7"):
        rope_table(torch.arange(5), 7)
    with pytest.raises(ZooError, match="divisible by 4, got 6"):
        rope_table_2d((2, 2), 6)
    with pytest.raises(ZooError, match=r"for 5 tokens of 16 channels is \(5, 8\).*got cos \(4, 8\)"):
        rotate(x, *rope_table(torch.arange(4), 16))
    with pytest.raises(ZooError, match=r"for 4 tokens of 16 channels"):
        rotate(x, *table, prefix=1)
    with pytest.raises(UsageError, match="no rotary convention 'quarter'"):
        rotate(x, *table, convention="quarter")
    with pytest.raises(UsageError, match="no rotary convention"):
        permute_channels(torch.zeros(8, 2), 2, to="quarter")
    with pytest.raises(ZooError, match="6 rows are not 2 heads"):
        permute_channels(torch.zeros(6, 2), 2, to="half")
