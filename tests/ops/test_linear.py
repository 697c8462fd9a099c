from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mmzoo.layers.linear import Linear
from mmzoo.ops import linear as module
from mmzoo.ops.linear import linear


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 6, 40])
@pytest.mark.parametrize("out", [8, 100, module.MANY + 3])
@pytest.mark.parametrize("bias", [True, False])
def test_few_rows_are_multiplied_as_torch_does(rows: int, out: int, bias: bool) -> None:
    g = torch.Generator().manual_seed(rows)
    x, weight = torch.randn(rows, 24, generator=g), torch.randn(out, 24, generator=g)
    b = torch.randn(out, generator=g) if bias else None
    with torch.no_grad():
        mine = linear(x, weight, b)
    torch.testing.assert_close(mine, F.linear(x, weight, b), rtol=1e-5, atol=1e-5)
    assert mine.is_contiguous()
    with torch.no_grad():
        torch.testing.assert_close(linear(x[None, :, None], weight, b), mine[None, :, None])
        exact = linear(x.double(), weight.double(), None if b is None else b.double())
    assert exact.dtype == torch.float64


def test_gradients_and_autocast_go_torchs_way(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Linear(4, 9), torch.randn(3, 4)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_no_rows_are_no_rows() -> None:
    with torch.no_grad():
        assert linear(torch.zeros(0, 4), torch.zeros(9, 4)).shape == (0, 9)


def test_a_quantized_weight_keeps_its_own_product() -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layer, x = Linear(32, 64), torch.randn(3, 32)
    plain = layer(x)
    quantize_(layer, Int8WeightOnlyConfig())
    with torch.no_grad():
        torch.testing.assert_close(layer(x), plain, rtol=0, atol=0.05)
        assert type(layer.weight) not in (torch.Tensor, torch.nn.Parameter)
