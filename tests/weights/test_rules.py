"""The closed set of operations and the strictness of the tables."""

from __future__ import annotations

import pytest
import torch

from mmzoo.errors import ZooError
from mmzoo.ops.rope import permute_channels
from mmzoo.weights.read import DictSource
from mmzoo.weights.rules import (
    HWIO,
    Absent,
    Arange,
    Drop,
    Fuse,
    FuseWithoutKeyBias,
    HeadsBias,
    HeadsIn,
    HeadsOut,
    Lead,
    LogInverse,
    RotaryPairs,
    Rule,
    Same,
    Scalar,
    Tie,
    Transpose,
    apply,
    invert,
)


@pytest.mark.parametrize(
    ("op", "parts"),
    [
        (Same(), [(3, 4)]),
        (Transpose(), [(3, 4)]),
        (Lead(2), [(5,)]),
        (Fuse(), [(2, 3)] * 3),
        (Fuse(sizes=(4, 2, 2)), [(4, 3), (2, 3), (2, 3)]),
        (Fuse(each=HeadsIn(2)), [(3, 2, 4)] * 3),
        (HWIO(), [(2, 3, 4, 5)]),
        (HeadsIn(2), [(3, 2, 4)]),
        (HeadsBias(2), [(2, 4)]),
        (HeadsOut(2), [(2, 4, 3)]),
        (FuseWithoutKeyBias(), [(4,)] * 2),
        (RotaryPairs(2), [(8, 3)]),
        (Tie(), [(2, 2)]),
        (Tie(Fuse()), [(2, 3)] * 2),
    ],
    ids=lambda v: str(v),
)
def test_operations_are_inverse(op, parts):
    tensors = [torch.randn(shape) for shape in parts]
    back = op.split(op.join(tensors), len(parts))
    for a, b in zip(tensors, back, strict=True):
        assert torch.equal(a, b)


def test_operations_mean_what_they_say():
    x = torch.randn(5, 3, dtype=torch.float64)  # five inputs of width 3
    kernel = torch.randn(3, 2, 4, dtype=torch.float64)
    torch.testing.assert_close(
        x @ HeadsIn(2).join([kernel]).T, torch.einsum("nd,dhk->nhk", x, kernel).flatten(1)
    )
    out = torch.randn(2, 4, 3, dtype=torch.float64)
    y = torch.randn(5, 2, 4, dtype=torch.float64)
    torch.testing.assert_close(y.flatten(1) @ HeadsOut(2).join([out]).T, torch.einsum("nhk,hkd->nd", y, out))
    temperature = torch.tensor(0.07, dtype=torch.float64)
    assert LogInverse().join([temperature]).exp().item() == pytest.approx(1 / 0.07)
    torch.testing.assert_close(LogInverse().split(LogInverse().join([temperature]), 1)[0], temperature)
    q, v = torch.ones(2), torch.full((2,), 3.0)
    assert FuseWithoutKeyBias().join([q, v]).tolist() == [1, 1, 0, 0, 3, 3]
    weight = torch.randn(8, 3)
    assert torch.equal(RotaryPairs(2).join([weight]), permute_channels(weight, 2, to="half"))


RULES = [
    Rule("a.{i}.w", "b.{i}.weight", Transpose()),
    Rule(("q.{i}", "k.{i}"), "qk.{i}", Fuse()),
    Rule("emb", "tok"),
    Rule("decoder", "tok", Tie()),
    Rule("ids", None, Arange(4)),
    Rule("size", None, Scalar(7)),
    Rule("teacher.{*}", None, Drop("teachers stay at home")),
]
WANTED = {"b.0.weight": (3, 2), "b.1.weight": (3, 2), "qk.0": (4, 5), "tok": (6, 2)}


def _source() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    emb = torch.randn(6, 2)
    return {
        "a.0.w": torch.randn(2, 3), "a.1.w": torch.randn(2, 3), "q.0": torch.randn(2, 5), "k.0": torch.randn(2, 5),
        "emb": emb, "decoder": emb.clone(), "ids": torch.arange(4)[None], "size": torch.tensor(7),
        "teacher.x.y": torch.zeros(1),
    }  # fmt: skip


def _apply(source):
    return dict(apply(RULES, DictSource(source), WANTED, "the file"))


def test_there_and_back():
    source = _source()
    state = _apply(source)
    assert {name: tuple(t.shape) for name, t in state.items()} == WANTED
    back = dict(invert(RULES, state.items()))
    assert back.keys() == source.keys() - {"ids", "teacher.x.y"}  # old buffers and teachers are not written
    for name, tensor in back.items():
        assert torch.equal(tensor, source[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("k.0"), r"1 missing: k\.0"),
        (lambda s: s.pop("a.1.w"), r"missing: a\.1\.w"),
        (lambda s: s.update({"emb2": s.pop("emb")}), r"not claimed: emb2.*Did you mean emb.*missing: emb"),
        (lambda s: s.update({"extra": torch.zeros(1)}), r"1 not claimed: extra"),
        (lambda s: s.update({"a.2.w": torch.zeros(2, 3)}), r"not claimed: a\.2\.w"),
        (
            lambda s: s.update({"a.0.w": s["a.0.w"].T}),
            r"a\.0\.w \(3, 2\) does not make b\.0\.weight \(3, 2\)",
        ),
        (lambda s: s.update({"decoder": s["decoder"] + 1}), "decoder should equal emb"),
        (lambda s: s.update({"decoder": torch.zeros(3, 2)}), r"decoder \(3, 2\) is no copy"),
        (lambda s: s.update({"ids": torch.tensor([[0, 1, 3, 2]])}), "ids should hold 0..3"),
        (lambda s: s.update({"size": torch.tensor(8)}), "size should hold 7 and does not"),
    ],
)
def test_whatever_does_not_fit_is_named(change, message):
    source = _source()
    change(source)
    with pytest.raises(ZooError, match=message):
        _apply(source)


def test_what_has_no_place_is_named():
    with pytest.raises(ZooError, match=r"no place for b\.0\.bias"):
        dict(invert(RULES, {"b.0.bias": torch.zeros(1)}.items()))


PAIRED = [
    Rule(("k", "v"), "kv", Fuse()),
    Rule(("k2", "v2"), "kv", Tie(Fuse())),
    Rule((), "scale", Absent(2.5, "it is not kept")),
]


def _paired(**changes):
    k, v = torch.ones(2, 3), torch.zeros(2, 3)
    return {"k": k, "v": v, "k2": k.clone(), "v2": v.clone()} | changes


def _apply_paired(source):
    return dict(apply(PAIRED, DictSource(source), {"kv": (4, 3), "scale": ()}, "the file"))


def test_a_copy_may_lie_in_parts_too():
    state = _apply_paired(_paired())
    assert torch.equal(state["kv"], torch.cat([torch.ones(2, 3), torch.zeros(2, 3)]))
    assert dict(invert(PAIRED, state.items())).keys() == {"k", "v", "k2", "v2"}
    assert _apply_paired({name: t for name, t in _paired().items() if "2" not in name}).keys() == state.keys()
    with pytest.raises(ZooError, match="k2, v2 should equal k, v"):
        _apply_paired(_paired(v2=torch.ones(2, 3)))
    with pytest.raises(ZooError, match=r"1 missing: k2"):
        _apply_paired({name: t for name, t in _paired().items() if name != "k2"})
    with pytest.raises(ZooError, match=r"k2 \(2, 3\) \+ v2 \(3, 3\) is no copy of kv"):
        _apply_paired(_paired(v2=torch.zeros(3, 3)))


def test_what_a_layout_does_not_keep_is_made_and_left_out():
    state = _apply_paired(_paired())
    assert float(state["scale"]) == 2.5
    assert "scale" not in dict(invert(PAIRED, state.items()))
    # a model without it does not get it
    assert dict(apply(PAIRED, DictSource(_paired()), {"kv": (4, 3)}, "the file")).keys() == {"kv"}
