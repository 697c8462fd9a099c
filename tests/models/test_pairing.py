"""What ALBEF's and BLIP's models share: one rule for packing, one way to compare pairs, image sides that are whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmzoo.models import albef, blip, pairing
from mmzoo.models.capabilities import ComparesImages, SharesImages
from mmzoo.models.writing import WritesByDecoder
from mmzoo.ops import packing
from mmzoo.towers import text as towers_text
from mmzoo.towers.reader import ImageSide

TEXTS, LENGTH = 3, 9
KEEP = torch.arange(LENGTH) < torch.tensor([[9], [4], [2]])


def _model(kind):
    """A model of a task at the size of its family's tiny one, in float64."""
    torch.manual_seed(0)
    c = albef.VARIANTS["albef-tiny"] if kind.startswith("ALBEF") else blip.VARIANTS["blip-tiny"]
    parts = c.vision, c.text, c.image, c.text_input
    depth, width = c.text.depth, c.text.width
    answers = replace(c.text, causal=True, cross_layers=tuple(range(depth)), cross_width=width)
    tokens = {} if kind.startswith("ALBEF") else {"tokens": c.tokens}
    made = {
        "ALBEF": lambda: albef.ALBEF(c),
        "ALBEFVE": lambda: albef.ALBEFVE(albef.ALBEFVEConfig(*parts)),
        "ALBEFVQA": lambda: albef.ALBEFVQA(albef.ALBEFVQAConfig(*parts, answers)),
        "ALBEFNLVR2": lambda: albef.ALBEFNLVR2(albef.ALBEFNLVR2Config(*parts)),
        "ALBEFNLVR2assign": lambda: albef.ALBEFNLVR2(albef.ALBEFNLVR2Config(*parts, task="assign")),
        "BLIP": lambda: blip.BLIPReader(replace(c, writes=False)),
        "BLIPVQA": lambda: blip.BLIPVQA(blip.BLIPVQAConfig(*parts, answers, **tokens)),
        "BLIPNLVR2": lambda: blip.BLIPNLVR2(blip.BLIPNLVR2Config(*parts, merge_from=1, **tokens)),
    }
    return made[kind]().double().eval()


def _asked(model, **packed):
    """What a model says of texts with images, by the method of its task."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, TEXTS, 3, 24, 24, generator=generator, dtype=torch.float64)
    ids = torch.randint(7, model.config.text.vocab, (TEXTS, LENGTH), generator=generator)
    if hasattr(model, "match_head"):
        return model.match(images[0], ids, KEEP, **packed)
    if hasattr(model, "entail_head"):
        return model.entail(images[0], ids, KEEP, **packed)
    if hasattr(model, "decoder"):
        question = model.read_question(images[0], ids, KEEP, **packed)
        return model.answer_states(question, ids[:, :4])
    ask = model.compare if hasattr(model, "compare_head") else model.assign
    return ask(*images, ids, KEEP, **packed)


@pytest.fixture
def packs(monkeypatch):
    """The number of texts of each packing."""
    seen = []

    def pack(x, keep, **options):
        seen.append(len(x))
        return packing.pack(x, keep, **options)

    monkeypatch.setattr(towers_text, "pack", pack)
    return seen


@pytest.mark.parametrize(
    "kind", ["ALBEF", "ALBEFVE", "ALBEFVQA", "ALBEFNLVR2", "ALBEFNLVR2assign", "BLIP", "BLIPVQA", "BLIPNLVR2"]
)
def test_what_reads_real_tokens_alone_computes_no_padding(kind, packs):
    model = _model(kind)
    found = _asked(model)
    # both halves of the text; BLIP has one, and its pairs of images are read row by row
    assert packs == [TEXTS] * {"ALBEF": 2, "BLIPN": 0}.get(kind[:5], 1)
    packs.clear()
    padded = _asked(model, packed=False)
    assert packs == []
    torch.testing.assert_close(found, padded, rtol=1e-11, atol=1e-11)


def test_states_are_packed_only_if_told(packs):
    model, ids = _model("ALBEF"), torch.randint(7, 50, (TEXTS, LENGTH))
    kv = model.project_images(torch.randn(TEXTS, 3, 24, 24, dtype=torch.float64))
    whole = model(kv, ids, KEEP)
    model.encode_text(ids, KEEP)
    assert packs == []
    assert whole[~KEEP].abs().min() > 0
    real = model(kv, ids, KEEP, packed=True)
    assert packs == [TEXTS] * 2
    torch.testing.assert_close(real[KEEP], whole[KEEP], rtol=1e-11, atol=1e-11)
    assert not real[~KEEP].any()
    model.match_states(model.text_states(ids, KEEP), KEEP, kv)
    assert packs == [TEXTS] * 3


@pytest.mark.parametrize("kind", ["ALBEFNLVR2", "BLIPNLVR2"])
def test_two_pictures_are_seen_in_one_pass_and_projected_once(kind):
    model, passes = _model(kind), []
    hook = model.vision.register_forward_hook(lambda *call: passes.append(len(call[1][0])))
    images = torch.randn(2, TEXTS, 3, 24, 24, dtype=torch.float64)
    pair = model.pair(*images)
    hook.remove()
    assert passes == [2 * TEXTS]
    alone = model.pair(model.project_images(images[0]), images[1])
    assert pair.layers.keys() == alone.layers.keys() == set(model.config.text.cross_layers)
    for i, (k, v) in pair.layers.items():
        torch.testing.assert_close(k, alone.layers[i].k, rtol=0, atol=1e-12)
        torch.testing.assert_close(v, alone.layers[i].v, rtol=0, atol=1e-12)
    assert isinstance(model, ComparesImages)


def test_what_cannot_project_is_not_there_to_share_images():
    config = albef.VARIANTS["albef-tiny"]
    for part in (ImageSide, WritesByDecoder):
        with pytest.raises(TypeError, match="project"):
            part(config)
    for part in (pairing.PairReader, pairing.PairComparer):
        with pytest.raises(TypeError, match=r"encode_text|join"):
            part(config)
    assert isinstance(_model("ALBEFVE"), SharesImages)


def test_both_families_have_one_reader_of_pairs():
    """The steps of embedding and matching are written once."""
    for step in ("scale", "similarity", "embed_image", "encode_image", "match", "match_states"):
        assert getattr(albef.ALBEF, step) is getattr(blip.BLIPReader, step) is getattr(blip.BLIP, step)
