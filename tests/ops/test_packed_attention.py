"""Segments laid end to end: equal to attending to each alone, on every backend that takes them."""

import inspect

import pytest
import torch

from mmzoo.errors import ZooError
from mmzoo.ops.attention import AttnMask, Packed, attend, explain_choice
from mmzoo.ops.backends import packed as packed_backend
from mmzoo.ops.packing import cross, pack, segment_runs, unpack


def offsets(*lengths):
    return torch.tensor([0, *lengths]).cumsum(0)


SELF = offsets(3, 1, 4, 4)
PACKINGS = {
    "self": Packed(SELF, SELF),
    "cross": Packed(SELF, offsets(2, 5, 1, 1)),
    "more queries than keys": Packed(offsets(4, 4, 1), offsets(2, 2, 3)),
    "empty queries": Packed(offsets(0, 3, 0, 2, 0), offsets(2, 3, 1, 4, 0)),
    "empty keys": Packed(offsets(2, 3, 2), offsets(0, 4, 0)),
    "one": Packed(offsets(4), offsets(6)),
}
# Torch calls the strided nested tensors under the jagged ones a prototype.
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
BACKENDS = ("reference", "sdpa", "jagged", "varlen")


def fake_varlen(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa):
    """Obey the signature and the alignment of torch's CUDA kernel, and leave NaN in rows that see nothing."""
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert max_q >= int(cu_q.diff().max())
    assert max_k >= int(cu_k.diff().max())
    assert q.shape[0] == cu_q[-1]
    assert k.shape[:2] == v.shape[:2]
    assert k.shape[0] == cu_k[-1]
    assert enable_gqa == (q.shape[1] != k.shape[1])
    assert window_size in ((-1, -1), (-1, 0))
    outs = []
    for start, stop, first, last in zip(cu_q[:-1], cu_q[1:], cu_k[:-1], cu_k[1:], strict=True):
        group = q.shape[1] // k.shape[1]
        keys, values = (x[first:last].repeat_interleave(group, dim=1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q[start:stop], keys) * scale
        if window_size == (-1, 0):
            lq, lk = scores.shape[1:]
            hidden = torch.ones(lq, lk, dtype=torch.bool).triu(lk - lq + 1)
            scores = scores.masked_fill(hidden, -torch.inf)
        out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
        outs.append(torch.full_like(out, torch.nan) if last == first else out)
    return torch.cat(outs)


@pytest.fixture
def attend_on(monkeypatch):
    """`attend` on a backend; `varlen` runs through the stand-in above, since its kernel needs a GPU."""

    def call(backend, q, k, v, *, mask, dropout_p=0.0):
        if backend != "varlen":
            return attend(q, k, v, mask=mask, backend=backend, dropout_p=dropout_p)
        monkeypatch.setattr(packed_backend, "_varlen_attn", lambda: fake_varlen)
        return packed_backend.Varlen()(q, k, v, mask=mask, dropout_p=0.0, scale=q.shape[-1] ** -0.5)

    return call


def takes(backend, causal, grouped, offset=None):
    return {
        "reference": True,
        "sdpa": True,
        "jagged": not causal and not grouped,
        "varlen": offset is None,
    }[backend]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PACKINGS)
def test_values_and_gradients_equal_the_definition(name, backend, attend_on, exact, draw):
    packed = PACKINGS[name]
    tokens = int(packed.q_offsets[-1]), int(packed.k_offsets[-1])
    ran = 0
    for causal, offset in ((False, None), (True, None), (True, 1), (True, -1)):
        for kv_heads in (4, 2):
            if not takes(backend, causal, kv_heads != 4, offset):
                continue
            mask = AttnMask(causal=causal, offset=offset, packed=packed)
            ran += 1
            q, k, v = draw(1, 4, kv_heads, *tokens, seed=ran)
            out, truth = attend_on(backend, q, k, v, mask=mask), exact(q, k, v, mask)
            torch.testing.assert_close(out, truth, rtol=0, atol=1e-12)
            upstream = torch.randn(truth.shape, dtype=torch.float64)
            blank = truth.detach().abs().sum(-1) == 0
            if backend == "varlen" and blank.any():
                assert (out[blank] == 0).all()
                continue  # its stand-in leaves NaN on purpose, which only a kernel's own backward is free of
            for ours, theirs in zip(
                torch.autograd.grad(out, [q, k, v], upstream),
                torch.autograd.grad(truth, [q, k, v], upstream),
                strict=True,
            ):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert ran


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_packed_combines_with_key_masks_and_bias(backend, exact, draw):
    packed = PACKINGS["cross"]
    tq, tk = 12, 9
    keep = torch.tensor([[1, 0, 0, 1, 1, 0, 1, 0, 1]], dtype=torch.bool)
    bias = torch.randn(1, 4, tq, tk, dtype=torch.float64, requires_grad=True)
    for mask in (
        AttnMask(packed=packed, keep=keep),
        AttnMask(packed=packed, lengths=torch.tensor([6]), causal=True),
        AttnMask(packed=packed, bias=bias),
        AttnMask(packed=packed, bias=bias, keep=keep, causal=True),
    ):
        q, k, v = draw(1, 4, 2, tq, tk)
        leaves = [q, k, v] if mask.bias is None else [q, k, v, bias]
        out, truth = attend(q, k, v, mask=mask, backend=backend), exact(q, k, v, mask)
        torch.testing.assert_close(out, truth, rtol=0, atol=1e-12)
        upstream = torch.randn(truth.shape, dtype=torch.float64)
        for ours, theirs in zip(
            torch.autograd.grad(out, leaves, upstream),
            torch.autograd.grad(truth, leaves, upstream),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["reference", "sdpa", "jagged"])
def test_rows_without_keys_are_zero_in_every_precision(backend, dtype, draw):
    q, k, v = draw(1, 4, 4, 7, 4, dtype=dtype)
    out = attend(q, k, v, mask=AttnMask(packed=PACKINGS["empty keys"]), backend=backend)
    blank = torch.tensor([True, True, False, False, False, True, True])
    assert out.dtype == dtype
    assert (out[:, :, blank] == 0).all()
    assert (out[:, :, ~blank] != 0).all()
    for grad in torch.autograd.grad(out[:, :, blank].sum(), [q, k, v], retain_graph=True):
        assert (grad == 0).all()
    for grad in torch.autograd.grad(out.sum(), [q, k, v]):
        assert grad.isfinite().all()


@pytest.mark.parametrize("backend", ["reference", "sdpa", "jagged"])
def test_segments_do_not_leak(backend, draw):
    q, k, v = (x.detach() for x in draw(1, 4, 4, 12, 12))
    mask = AttnMask(packed=PACKINGS["self"])
    before = attend(q, k, v, mask=mask, backend=backend)
    k[:, :, 3:4] += 100
    v[:, :, 3:4] -= 100
    after = attend(q, k, v, mask=mask, backend=backend)
    others = [i for i in range(12) if i != 3]
    assert torch.equal(after[:, :, others], before[:, :, others])
    assert not torch.equal(after[:, :, 3], before[:, :, 3])


@pytest.mark.parametrize("backend", ["reference", "sdpa", "jagged"])
def test_dropout_stays_within_segments(backend, draw):
    n, length = 6, 20
    q, k, _ = draw(1, 4, 4, n * length, n * length, dtype=torch.float32)
    v = torch.eye(length).repeat(n, 1).expand(1, 4, -1, -1)  # shows each segment's own weights
    each = offsets(*[length] * n)
    mask = AttnMask(packed=Packed(each, each))
    weights = attend(q, k, v, mask=mask, backend="reference").detach()
    torch.manual_seed(0)
    out = attend(q, k, v, mask=mask, backend=backend, dropout_p=0.5).detach()
    dropped = out == 0
    assert abs(int(dropped.sum()) - out.numel() / 2) < 4 * (out.numel() / 4) ** 0.5
    torch.testing.assert_close(out[~dropped], 2 * weights[~dropped], rtol=1e-4, atol=1e-6)


def test_padded_and_packed_texts_agree(draw):
    keep = torch.tensor(
        [[1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool
    )
    x = torch.randn(4, 5, 32, dtype=torch.float64)

    def heads(tokens):
        return tokens.unflatten(2, (4, 8)).transpose(1, 2)

    for causal in (False, True):
        padded = attend(*[heads(x)] * 3, mask=AttnMask(causal=causal, keep=keep))
        flat, packed, index = pack(x, keep)
        out = attend(*[heads(flat)] * 3, mask=AttnMask(causal=causal, packed=packed))
        back = unpack(out.transpose(1, 2).flatten(2), index, (4, 5))
        torch.testing.assert_close(back[keep], padded.transpose(1, 2).flatten(2)[keep], rtol=0, atol=1e-12)
        assert (back[~keep] == 0).all()


def test_cross_attention_between_two_packings(draw):
    text_keep = torch.tensor([[1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    image_keep = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0]], dtype=torch.bool)
    text, image = torch.randn(2, 3, 8, dtype=torch.float64), torch.randn(2, 4, 8, dtype=torch.float64)
    padded = attend(text[:, None], image[:, None], image[:, None], mask=AttnMask(keep=image_keep))
    queries, text_packed, index = pack(text, text_keep)
    keys, image_packed, _ = pack(image, image_keep)
    joint = cross(text_packed, image_packed)
    assert (joint.max_q, joint.max_k) == (3, 4)
    out = attend(queries[:, None], keys[:, None], keys[:, None], mask=AttnMask(packed=joint))
    back = unpack(out[:, 0], index, (2, 3))
    torch.testing.assert_close(back[text_keep], padded[:, 0][text_keep], rtol=0, atol=1e-12)


def test_packing_goes_there_and_back_with_its_gradient():
    keep = torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 1]], dtype=torch.bool)
    x = torch.randn(3, 3, 2, requires_grad=True)
    flat, packed, index = pack(x, keep)
    assert torch.equal(flat[0], x[keep])
    assert packed.q_offsets.tolist() == [0, 2, 2, 4]
    assert packed.k_offsets is packed.q_offsets
    assert (packed.max_q, packed.max_k) == (2, 2)
    assert (index % 3).tolist() == [1, 2, 0, 2]
    back = unpack(flat, index, (3, 3))
    assert torch.equal(back, x * keep[:, :, None])
    back.sum().backward()
    assert torch.equal(x.grad, keep[:, :, None].expand(3, 3, 2).float())
    flat, packed, index = pack(torch.zeros(0, 3, 2), torch.zeros(0, 3, dtype=torch.bool))
    assert flat.shape == (1, 0, 2)
    assert unpack(flat, index, (0, 3)).shape == (0, 3, 2)
    q = flat[:, None]
    assert attend(q, q, q, mask=AttnMask(packed=packed)).shape == (1, 1, 0, 2)


def test_neighbours_of_equal_lengths_run_together():
    packed = Packed(offsets(3, 3, 3, 2, 3), offsets(1, 1, 2, 2, 2))
    assert segment_runs(packed, 14, 8) == [(2, 3, 1), (1, 3, 2), (1, 2, 2), (1, 3, 2)]


def test_misfits_are_one_clear_sentence(draw):
    q, k, v = draw(1, 4, 4, 5, 5)
    for ends, message in (
        (torch.tensor([0, 2, 4]), "q_offsets must run from 0 up to 5"),
        (torch.tensor([1, 2, 5]), "q_offsets must run from 0 up to 5"),
        (torch.tensor([0, 4, 2, 5]), "without falling"),
        (torch.tensor([0.0, 5.0]), r"q_offsets must be \(S\+1,\) integers"),
        (torch.tensor([[0, 5]]), r"q_offsets must be \(S\+1,\) integers"),
    ):
        with pytest.raises(ZooError, match=message):
            attend(q, k, v, mask=AttnMask(packed=Packed(ends, ends)))
    with pytest.raises(ZooError, match="1 query segments but 2 key segments"):
        attend(q, k, v, mask=AttnMask(packed=Packed(offsets(5), offsets(2, 3))))
    with pytest.raises(ZooError, match=r"tokens \(B, L, D\) and a bool tensor keep"):
        pack(torch.zeros(2, 3, 4), torch.ones(2, 3))
    with pytest.raises(ZooError, match=r"unpacking 2 tokens takes \(1, 2, D\)"):
        unpack(torch.zeros(1, 3, 4), torch.tensor([0, 1]), (1, 4))


def reasons(q, k, v, mask, dropout_p=0.0):
    return dict(explain_choice(q, k, v, mask=mask, dropout_p=dropout_p))


def test_the_cpu_takes_sdpa_and_every_refusal_says_why(draw):
    mask = AttnMask(packed=PACKINGS["self"])
    q, k, v = draw(1, 4, 4, 12, 12)
    assert explain_choice(q, k, v, mask=mask) == [
        ("varlen", "it needs CUDA tensors, these are on cpu"),
        ("sdpa", None),
        ("jagged", None),
        ("reference", None),
    ]
    causal = mask._replace(causal=True)
    assert "no causal" in reasons(q, k, v, causal)["jagged"]
    grouped = draw(1, 4, 2, 12, 12)
    assert "no grouped heads" in reasons(*grouped, mask)["jagged"]
    padded = mask._replace(keep=torch.ones(1, 12, dtype=torch.bool))
    assert "key mask" in reasons(q, k, v, padded)["jagged"]
    biased = mask._replace(bias=torch.zeros(1, 1, 12, 12))
    assert "no additive bias" in reasons(q, k, v, biased)["jagged"]
    none = Packed(offsets(0, 0), offsets(0, 0))
    assert "at least one token" in reasons(*draw(1, 4, 4, 0, 0), AttnMask(packed=none))["jagged"]
    meta = [x.to("meta") for x in (q, k, v)]
    assert "for the CPU" in reasons(*meta, mask)["jagged"]


class OnCuda:
    """What `Varlen.refuses` reads of a tensor, for a machine without a GPU."""

    def __init__(self, *shape, dtype=torch.bfloat16):
        self.shape, self.dtype, self.device = shape, dtype, torch.device("cuda", 0)


def test_varlen_says_why_not(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    refuses = packed_backend.Varlen().refuses
    mask = AttnMask(causal=True, packed=PACKINGS["self"])

    def reason(mask=mask, dim=64, v_dim=64, dtype=torch.bfloat16, dropout_p=0.0):
        q, k, v = (OnCuda(1, 4, 12, d, dtype=dtype) for d in (dim, dim, v_dim))
        return refuses(q, k, v, mask, dropout_p)

    assert reason() is None
    assert "float16 and bfloat16, not torch.float32" in reason(dtype=torch.float32)
    assert "multiple of 8 up to 256, not 20" in reason(dim=20, v_dim=20)
    assert "one head width" in reason(v_dim=32)
    assert "no dropout" in reason(dropout_p=0.1)
    assert "bottom right" in reason(mask._replace(offset=0))
    assert "key mask" in reason(mask._replace(lengths=torch.tensor([3])))
    assert "no additive bias" in reason(mask._replace(bias=torch.zeros(1, 1, 12, 12)))
    monkeypatch.setattr(packed_backend, "_varlen_attn", lambda: None)
    assert "has no varlen_attn" in reason()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "compute capability 8.0" in reason()


def test_the_installed_torch_has_the_signature_that_varlen_calls():
    function = packed_backend._varlen_attn()
    assert function is not None
    inspect.signature(function).bind(
        *range(7), scale=1.0, window_size=(-1, 0), enable_gqa=True
    )  # raises if an argument is unknown


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", PACKINGS)
def test_varlen_on_a_gpu(name, exact, draw):
    packed = Packed(*(x.cuda() for x in PACKINGS[name][:2]))
    tokens = int(packed.q_offsets[-1]), int(packed.k_offsets[-1])
    for causal in (False, True):
        for kv_heads in (4, 2):
            q, k, v = draw(1, 4, kv_heads, *tokens, dim=64, dtype=torch.bfloat16)
            mask = AttnMask(causal=causal, packed=PACKINGS[name])
            truth = exact(q, k, v, mask)
            upstream = torch.randn(truth.shape, dtype=torch.float64)
            wanted = torch.autograd.grad(truth, [q, k, v], upstream)
            on_gpu = [x.detach().cuda().requires_grad_() for x in (q, k, v)]
            out = attend(*on_gpu, mask=mask._replace(packed=packed), backend="varlen")
            torch.testing.assert_close(out.cpu().double(), truth, rtol=0, atol=4e-2)
            for ours, theirs in zip(
                torch.autograd.grad(out, on_gpu, upstream.cuda().bfloat16()), wanted, strict=True
            ):
                torch.testing.assert_close(ours.cpu().double(), theirs.double(), rtol=0, atol=1e-1)
