"""Attention on every backend, against rows computed one by one in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from mmzoo.errors import UsageError, ZooError
from mmzoo.ops.attention import (
    BACKENDS,
    CAUSAL,
    FULL,
    AttnMask,
    Packed,
    attend,
    attend_weights,
    explain_choice,
)
from mmzoo.ops.backends import sdpa

B, H = 2, 4
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LENGTHS = [(5, 5), (3, 6), (6, 3), (1, 5)]


@pytest.fixture(params=["reference", "sdpa", "sdpa, rows zeroed by us"])
def backend(request, monkeypatch):
    """Each backend for unpacked calls; the last is what SDPA does on devices whose kernels are not trusted."""
    if "zeroed" in request.param:
        monkeypatch.setattr(sdpa, "ZERO_ROWS", frozenset())
    return request.param.split(",")[0]


def random_bias(batch, heads, lq, lk, *, holes):
    generator = torch.Generator().manual_seed(lq * 10 + lk)
    bias = torch.randn(batch, heads, lq, lk, generator=generator, dtype=torch.float64)
    if holes:
        bias = bias.masked_fill(torch.rand(bias.shape, generator=generator) < 0.3, -torch.inf)
        bias[..., 0, :] = -torch.inf  # a whole row hidden by the bias alone
    return bias.requires_grad_()


def make_mask(kind, lq, lk):
    keep = torch.arange(lk)[None] % 3 != torch.tensor([[0], [1]])
    blank = torch.stack([keep[0], torch.zeros(lk, dtype=torch.bool)])
    lengths = torch.tensor([lk - 1, 0])
    return {
        "full": lambda: FULL,
        "causal": lambda: CAUSAL,
        "causal, offset 1": lambda: AttnMask(causal=True, offset=1),
        "causal, offset 0": lambda: AttnMask(causal=True, offset=0),
        "causal, offset -2": lambda: AttnMask(causal=True, offset=-2),
        "keep": lambda: AttnMask(keep=keep),
        "keep, one text empty": lambda: AttnMask(keep=blank),
        "lengths": lambda: AttnMask(lengths=lengths),
        "keep and lengths": lambda: AttnMask(keep=keep, lengths=torch.tensor([2, lk])),
        "bias": lambda: AttnMask(bias=random_bias(1, 1, lq, lk, holes=False)),
        "bias per head": lambda: AttnMask(bias=random_bias(1, H, lq, lk, holes=False)),
        "bias with holes": lambda: AttnMask(bias=random_bias(B, H, lq, lk, holes=True)),
        "causal and keep": lambda: AttnMask(causal=True, keep=blank),
        "causal and bias": lambda: AttnMask(causal=True, bias=random_bias(B, 1, lq, lk, holes=False)),
        "everything": lambda: AttnMask(
            causal=True,
            offset=1,
            keep=keep,
            lengths=lengths,
            bias=random_bias(1, H, lq, lk, holes=True),
        ),
    }[kind]()


KINDS = (
    "full",
    "causal",
    "causal, offset 1",
    "causal, offset 0",
    "causal, offset -2",
    "keep",
    "keep, one text empty",
    "lengths",
    "keep and lengths",
    "bias",
    "bias per head",
    "bias with holes",
    "causal and keep",
    "causal and bias",
    "everything",
)


def gradients(out, upstream, leaves):
    return torch.autograd.grad(out, leaves, upstream.to(out.dtype), materialize_grads=True)


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_equal_the_definition(kind, backend, exact, draw):
    for (lq, lk), kv_heads in itertools.product(LENGTHS, (4, 2, 1)):
        q, k, v = draw(B, H, kv_heads, lq, lk, seed=lq + lk + kv_heads)
        mask = make_mask(kind, lq, lk)
        leaves = [q, k, v] if mask.bias is None else [q, k, v, mask.bias]
        out, truth = attend(q, k, v, mask=mask, backend=backend), exact(q, k, v, mask)
        assert out.shape == truth.shape
        torch.testing.assert_close(out, truth, rtol=0, atol=1e-12)
        upstream = torch.randn(truth.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
        if truth.requires_grad:
            pairs = zip(gradients(out, upstream, leaves), gradients(truth, upstream, leaves), strict=True)
            for ours, theirs in pairs:
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 6e-2), (torch.float16, 8e-3)]
)
@pytest.mark.parametrize("kind", ["full", "causal", "keep, one text empty", "everything"])
def test_low_precision_stays_close(kind, dtype, tolerance, backend, exact, draw):
    for lq, lk in ((5, 5), (3, 6)):
        q, k, v = draw(B, H, 2, lq, lk, dtype=dtype)
        mask = make_mask(kind, lq, lk)
        out, truth = attend(q, k, v, mask=mask, backend=backend), exact(q, k, v, mask)
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), truth, rtol=0, atol=tolerance)
        upstream = torch.ones_like(truth)
        for ours, theirs in zip(
            gradients(out, upstream, [q, k, v]), gradients(truth, upstream, [q, k, v]), strict=True
        ):
            assert ours.dtype == dtype
            torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=4 * tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["causal, offset -2", "keep, one text empty", "lengths", "bias with holes"])
def test_a_row_that_sees_nothing_is_zero_forward_and_backward(kind, dropout_p, dtype, backend, draw):
    q, k, v = draw(B, H, 2, 5, 5, dtype=dtype)
    mask = make_mask(kind, 5, 5)
    if mask.bias is not None:
        mask = mask._replace(bias=mask.bias.detach().to(dtype).requires_grad_())
    weights = attend_weights(q, k, mask=mask)
    blank = weights.sum(-1) == 0
    assert 0 < blank.sum() < blank.numel()
    out = attend(q, k, v, mask=mask, dropout_p=dropout_p, backend=backend)
    assert (out[blank] == 0).all()
    assert out.isfinite().all()
    # Gradients of the blank rows alone: all of them are zero. Of all rows: none is NaN.
    leaves = [q, k, v] if mask.bias is None else [q, k, v, mask.bias]
    for grad in torch.autograd.grad(out[blank].sum(), leaves, retain_graph=True):
        assert (grad == 0).all()
    for grad in torch.autograd.grad(out.float().square().sum(), leaves):
        assert grad.isfinite().all()
    assert (weights[blank] == 0).all()
    assert all(
        grad.isfinite().all() for grad in torch.autograd.grad(attend_weights(q, k, mask=mask).sum(), [q, k])
    )


@pytest.mark.parametrize(("lq", "lk", "batch"), [(3, 0, 2), (0, 3, 2), (0, 0, 2), (3, 3, 0)])
def test_empty_sides_work(lq, lk, batch, backend, draw):
    q, k, v = draw(batch, H, 2, lq, lk)
    out = attend(q, k, v, backend=backend)
    assert out.shape == (batch, H, lq, 8)
    assert (out == 0).all()
    for grad in gradients(out, torch.ones_like(out), [q, k, v]):
        assert (grad == 0).all()


def test_one_new_query_sees_every_cached_key(backend, draw):
    """The trap of torch's is_causal: aligned to the top left, the last query would see key 0 only."""
    q, k, v = draw(B, H, H, 1, 6)
    torch.testing.assert_close(
        attend(q, k, v, mask=CAUSAL, backend=backend), attend(q, k, v, backend=backend), rtol=0, atol=0
    )


def test_decoding_in_steps_equals_decoding_at_once(backend, draw):
    q, k, v = draw(B, H, 2, 6, 6)
    whole = attend(q, k, v, mask=CAUSAL, backend=backend)
    for start, stop in ((0, 3), (3, 5), (5, 6)):
        step = q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop]
        aligned = attend(*step, mask=CAUSAL, backend=backend)
        torch.testing.assert_close(aligned, whole[:, :, start:stop], rtol=0, atol=1e-12)
        # A cache allocated beyond what is filled: only the offset says where the queries stand.
        shifted = attend(q[:, :, start:stop], k, v, mask=AttnMask(True, start), backend=backend)
        torch.testing.assert_close(shifted, whole[:, :, start:stop], rtol=0, atol=1e-12)


def test_grouped_heads_equal_repeated_heads(backend, draw):
    q, k, v = draw(B, H, 2, 4, 5)
    repeated = (x.repeat_interleave(2, dim=1) for x in (k, v))
    torch.testing.assert_close(
        attend(q, k, v, backend=backend), attend(q, *repeated, backend=backend), rtol=0, atol=1e-12
    )


def test_what_padded_keys_hold_changes_nothing(backend, draw):
    q, k, v = draw(B, H, H, 4, 6, dtype=torch.float32)
    keep = torch.tensor([[1, 1, 0, 1, 0, 0], [0, 1, 1, 1, 1, 0]], dtype=torch.bool)
    garbage = torch.where(keep[:, None, :, None], 0.0, 1000.0)
    mask = AttnMask(keep=keep)
    before = attend(q, k, v, mask=mask, backend=backend)
    after = attend(q, k + garbage, v - garbage, mask=mask, backend=backend)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    order = torch.tensor([0, 1, 5, 3, 2, 4])  # the padding of the first text, shuffled
    one = AttnMask(keep=keep[:1])
    torch.testing.assert_close(
        attend(q[:1], k[:1, :, order], v[:1, :, order], mask=one, backend=backend),
        attend(q[:1], k[:1], v[:1], mask=one, backend=backend),
        rtol=0,
        atol=0,
    )


def test_scale_and_value_width_are_free(backend, exact, draw):
    q, k, v = draw(B, H, 2, 4, 5, v_dim=3)
    out = attend(q, k, v, scale=0.7, backend=backend)
    torch.testing.assert_close(out, exact(q, k, v, FULL, scale=0.7), rtol=0, atol=1e-12)


def test_huge_scores_do_not_overflow(backend, draw):
    q, k, v = draw(B, H, H, 4, 5, dtype=torch.float32)
    out = attend(1e4 * q, 1e4 * k, v, mask=AttnMask(bias=torch.full((1, 1, 4, 5), 1e30)), backend=backend)
    assert out.isfinite().all()


def test_dropout_drops_weights_and_rescales_the_rest(backend, draw):
    q, k, _ = draw(B, H, H, 40, 30, dtype=torch.float32)
    weights = attend_weights(q, k).detach()
    v = torch.eye(30).expand(B, H, 30, 30)  # so that the output is the matrix of weights itself
    torch.manual_seed(0)
    out = attend(q, k, v, dropout_p=0.5, backend=backend).detach()
    dropped = out == 0
    expected = weights.numel() / 2
    assert abs(int(dropped.sum()) - expected) < 4 * (weights.numel() * 0.25) ** 0.5
    torch.testing.assert_close(out[~dropped], 2 * weights[~dropped], rtol=1e-4, atol=1e-6)
    again = attend(q, k, v, dropout_p=0.5, backend=backend)
    assert not torch.equal(out, again)
    for _ in range(2):
        plain = attend(q, k, v, backend=backend)
        torch.testing.assert_close(plain, weights, rtol=1e-4, atol=1e-6)


def test_weights_are_what_attention_uses(draw):
    q, k, v = draw(B, H, 2, 4, 5)
    for kind in KINDS:
        mask = make_mask(kind, 4, 5)
        weights = attend_weights(q, k, mask=mask)
        assert weights.shape == (B, H, 4, 5)
        total = weights.sum(-1)
        assert ((total - 1).abs().le(1e-12) | total.eq(0)).all()
        by_hand = weights @ v.repeat_interleave(2, dim=1)
        torch.testing.assert_close(by_hand, attend(q, k, v, mask=mask), rtol=0, atol=1e-12)
    assert attend_weights(q.bfloat16(), k.bfloat16()).dtype == torch.float32


# What the kernel is given: the trap is an Lq x Lk mask where none is needed, or the wrong alignment of is_causal.
KEYS = torch.tensor([[True, True, False, False, False], [True] * 5])


@pytest.mark.parametrize(
    ("lq", "mask", "mask_shape", "is_causal"),
    [
        (5, FULL, None, False),
        (3, FULL, None, False),
        (5, CAUSAL, None, True),
        (1, CAUSAL, None, False),
        (3, CAUSAL, (1, 1, 3, 5), False),
        (3, AttnMask(causal=True, offset=0), None, True),
        (3, AttnMask(causal=True, offset=9), None, False),
        (5, AttnMask(keep=KEYS), (2, 1, 1, 5), False),
        (3, AttnMask(lengths=torch.tensor([2, 5])), (2, 1, 1, 5), False),
        (1, AttnMask(causal=True, keep=KEYS), (2, 1, 1, 5), False),
        (5, AttnMask(causal=True, keep=KEYS), (2, 1, 5, 5), False),
        (5, AttnMask(bias=torch.zeros(1, 4, 5, 5)), (1, 4, 5, 5), False),
    ],
)
def test_the_kernel_gets_the_smallest_mask(lq, mask, mask_shape, is_causal, monkeypatch, draw):
    calls = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *args, **kw: calls.append(kw) or kernel(*args, **kw)
    )
    attend(*draw(2, 4, 2, lq, 5, dtype=torch.float32), mask=mask, backend="sdpa")
    (call,) = calls
    assert (None if call["attn_mask"] is None else tuple(call["attn_mask"].shape)) == mask_shape
    assert call["is_causal"] is is_causal


@pytest.mark.parametrize(
    "kind", ["causal, offset -2", "keep, one text empty", "bias with holes", "everything"]
)
def test_a_kernel_that_is_not_trusted_never_gets_a_row_without_keys(kind, monkeypatch, draw):
    """The CPU's kernel gives zeros for one, so that only what it is handed shows what another would be."""
    monkeypatch.setattr(sdpa, "ZERO_ROWS", frozenset())
    masks = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda *args, **kw: masks.append(kw["attn_mask"]) or kernel(*args, **kw),
    )
    attend(*draw(B, H, 2, 5, 5), mask=make_mask(kind, 5, 5), backend="sdpa")
    seen = masks[0] if masks[0].dtype == torch.bool else masks[0] > -torch.inf
    assert seen.any(-1).all()


def test_key_masks_and_grouped_heads_stay_on_the_fused_kernel(draw):
    q, k, v = draw(2, 4, 2, 3, 5, dtype=torch.float32)
    out = attend(q, k, v, mask=AttnMask(keep=KEYS))
    assert "Flash" in out.grad_fn.name()


def test_autocast_is_the_same_on_every_backend(exact, draw):
    q, k, v = draw(B, H, H, 4, 5, dtype=torch.float32)
    mask = make_mask("keep", 4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        for backend in ("reference", "sdpa"):
            out = attend(q, k.bfloat16(), v, mask=mask, backend=backend)
            assert out.dtype == torch.bfloat16
            torch.testing.assert_close(out.double(), exact(q, k, v, mask), rtol=0, atol=4e-2)
        weights = attend_weights(q, k.bfloat16(), mask=mask)
        assert weights.dtype == torch.float32
        assert (weights.sum(-1) - 1).abs().max() < 1e-6
        assert torch.equal(weights, attend_weights(q.bfloat16(), k.bfloat16(), mask=mask))
        assert attend(q.double(), k.double(), v.double()).dtype == torch.float64


def test_shapes_come_out_on_the_meta_device(backend):
    q, k, v = (torch.empty(2, h, n, 8, device="meta") for h, n in ((4, 3), (2, 5), (2, 5)))
    keep = torch.empty(2, 5, dtype=torch.bool, device="meta")
    assert attend(q, k, v, mask=AttnMask(causal=True, keep=keep), backend=backend).shape == (2, 4, 3, 8)


@pytest.mark.parametrize("kind", ["causal", "keep, one text empty", "causal and keep", "everything"])
def test_compiles_to_one_graph(kind, draw):
    q, k, v = draw(B, H, 2, 5, 5, dtype=torch.float32)
    mask = make_mask(kind, 5, 5)
    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    out, eager = compiled(q, k, v, mask=mask), attend(q, k, v, mask=mask)
    torch.testing.assert_close(out, eager, rtol=0, atol=1e-6)
    for ours, theirs in zip(
        gradients(out, torch.ones_like(out), [q, k, v]),
        gradients(eager, torch.ones_like(out), [q, k, v]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_exports_with_a_free_batch_and_length(draw):
    class Attends(torch.nn.Module):
        def forward(self, q, k, v, keep):
            return attend(q, k, v, mask=AttnMask(keep=keep)) + attend(q, k, v, mask=CAUSAL)

    def example(batch, length):
        q, k, v = (x.detach() for x in draw(batch, 4, 4, length, length, dtype=torch.float32))
        return q, k, v, torch.arange(length) < torch.arange(1, batch + 1)[:, None]

    batch, length = torch.export.Dim("batch", min=2), torch.export.Dim("length", min=3)
    shape = {0: batch, 2: length}
    program = torch.export.export(
        Attends(), example(2, 5), dynamic_shapes=(shape, shape, shape, {0: batch, 1: length})
    )
    for inputs in (example(2, 5), example(3, 7)):
        torch.testing.assert_close(program.module()(*inputs), Attends()(*inputs), rtol=0, atol=1e-6)


def test_auto_takes_the_first_that_does_not_refuse(draw):
    q, k, v = draw(B, H, H, 4, 5)
    choice = explain_choice(q, k, v, mask=CAUSAL)
    assert [name for name, _ in choice] == [backend.name for backend in BACKENDS]
    assert choice == [
        ("varlen", "nothing is packed"),
        ("sdpa", None),
        ("jagged", "nothing is packed"),
        ("reference", None),
    ]
    torch.testing.assert_close(
        attend(q, k, v, mask=CAUSAL), attend(q, k, v, mask=CAUSAL, backend="sdpa"), rtol=0, atol=0
    )


def test_a_refusal_says_why(draw):
    q, k, v = draw(B, H, H, 4, 5)
    with pytest.raises(ZooError, match=r"'jagged' cannot take this call: nothing is packed"):
        attend(q, k, v, backend="jagged")
    with pytest.raises(UsageError, match=r"'spda'. Did you mean sdpa\? Choose one of auto, varlen"):
        attend(q, k, v, backend="spda")


FINE = {"q": (2, 4, 3, 8), "k": (2, 2, 5, 8), "v": (2, 2, 5, 8)}
OFFSETS = torch.tensor([0, 3])


@pytest.mark.parametrize(
    ("changes", "mask", "message"),
    [
        ({"q": (4, 3, 8)}, FULL, r"q \(B, H, Lq, D\).*got \(4, 3, 8\)"),
        ({"q": (3, 4, 3, 8)}, FULL, "one batch size"),
        ({"q": (2, 4, 3, 16)}, FULL, "one head width"),
        ({"v": (2, 2, 6, 8)}, FULL, "one length"),
        ({"q": (2, 3, 3, 8)}, FULL, "3 query heads cannot share 2 key heads"),
        ({}, AttnMask(offset=1), "set causal=True"),
        ({}, AttnMask(keep=torch.ones(2, 5)), r"keep must be a bool tensor of shape \(2, 5\).*float32"),
        ({}, AttnMask(keep=torch.ones(2, 3, dtype=torch.bool)), r"keep must be .*\(2, 5\).*got .*\(2, 3\)"),
        ({}, AttnMask(keep=torch.ones(1, 5, dtype=torch.bool)), r"keep must be .*\(2, 5\)"),
        ({}, AttnMask(lengths=torch.ones(2)), "lengths must be 2 integers"),
        ({}, AttnMask(lengths=torch.ones(5, dtype=torch.long)), "lengths must be 2 integers"),
        ({}, AttnMask(bias=torch.ones(3, 5)), r"bias must be .*\(2\|1, 4\|1, 3, 5\)"),
        ({}, AttnMask(bias=torch.ones(2, 2, 3, 5)), r"bias must be .*got .*\(2, 2, 3, 5\)"),
        ({}, AttnMask(bias=torch.ones(1, 1, 3, 5, dtype=torch.bool)), r"bias must be .*torch.bool"),
        ({}, AttnMask(packed=Packed(OFFSETS, OFFSETS)), "got a batch of 2"),
    ],
)
def test_a_misfit_is_one_clear_sentence(changes, mask, message):
    q, k, v = (torch.zeros(shape) for shape in (FINE | changes).values())
    with pytest.raises(ZooError, match=message) as caught:
        attend(q, k, v, mask=mask)
    assert "\n" not in str(caught.value)
    with pytest.raises(ZooError):
        explain_choice(q, k, v, mask=mask)


def test_dtypes_and_probabilities_are_checked():
    q, k, v = (torch.zeros(shape) for shape in FINE.values())
    with pytest.raises(ZooError, match="share one floating-point dtype"):
        attend(q, k.double(), v)
    with pytest.raises(ZooError, match="dropout_p is a probability"):
        attend(q, k, v, dropout_p=1.5)
