"""The independent truth that attention is tested against: one row at a time, over the keys it may see, in float64."""

import pytest
import torch


def _segment(offsets, position):
    return max(s for s in range(len(offsets) - 1) if offsets[s] <= position < offsets[s + 1])


def _sees(mask, b, i, j, lq, lk):
    if mask.keep is not None and not mask.keep[b, j]:
        return False
    if mask.lengths is not None and j >= int(mask.lengths[b]):
        return False
    if mask.packed is not None:
        qo, ko = mask.packed.q_offsets.tolist(), mask.packed.k_offsets.tolist()
        s = _segment(qo, i)
        if not ko[s] <= j < ko[s + 1]:
            return False
        i, j, lq, lk = i - qo[s], j - ko[s], qo[s + 1] - qo[s], ko[s + 1] - ko[s]
    return not mask.causal or j <= i + (lk - lq if mask.offset is None else mask.offset)


def exact_attention(q, k, v, mask, scale=None):
    """Attend by the definition of the mask's words. Slow, differentiable, float64."""
    q, k, v = q.double(), k.double(), v.double()
    batch, heads, lq, dim = q.shape
    lk, group = k.shape[2], heads // k.shape[1]
    scale = dim**-0.5 if scale is None else scale
    rows = []
    for b in range(batch):
        for h in range(heads):
            for i in range(lq):
                seen = [j for j in range(lk) if _sees(mask, b, i, j, lq, lk)]
                bias = None
                if mask.bias is not None:
                    bias = mask.bias.double().expand(batch, heads, lq, lk)[b, h, i]
                    seen = [j for j in seen if bias[j] > -torch.inf]
                if not seen:
                    rows.append(v.new_zeros(v.shape[-1]))
                    continue
                scores = k[b, h // group, seen] @ q[b, h, i] * scale
                scores = scores if bias is None else scores + bias[seen]
                exponentials = (scores - scores.max().detach()).exp()
                rows.append((exponentials / exponentials.sum()) @ v[b, h // group, seen])
    if not rows:
        return v.new_zeros(batch, heads, lq, v.shape[-1])
    return torch.stack(rows).view(batch, heads, lq, -1)


@pytest.fixture(scope="session")
def exact():
    return exact_attention


@pytest.fixture(scope="session")
def draw():
    """Make (q, k, v) leaves of a shape from a seed."""

    def make(batch, heads, kv_heads, lq, lk, dim=8, v_dim=None, dtype=torch.float64, seed=0):
        generator = torch.Generator().manual_seed(seed)
        shapes = ((heads, lq, dim), (kv_heads, lk, dim), (kv_heads, lk, v_dim or dim))
        return tuple(
            torch.randn(batch, *shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
            for shape in shapes
        )

    return make
