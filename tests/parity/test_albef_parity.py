"""ALBEF's models against an oracle of timm's and transformers' layers: float64, outputs and gradients."""

from __future__ import annotations

import dataclasses

import albef_oracle as o
import pytest
import torch
from hand_copy import shake

from mmzoo.errors import UsageError, ZooError
from mmzoo.models.albef import (
    ALBEF,
    ALBEFNLVR2,
    ALBEFVE,
    ALBEFVQA,
    ALBEFConfig,
    ALBEFNLVR2Config,
    ALBEFVEConfig,
    ALBEFVQAConfig,
)
from mmzoo.start import grown

pytestmark = pytest.mark.filterwarnings("ignore")
TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def _pair(config, kind, **switches):
    torch.manual_seed(0)
    oracle = shake(o.Oracle(**switches).double().eval())
    ours = kind(config).double().eval()
    o.copy_oracle(ours, oracle)
    return ours, oracle


def _inputs(count=4, length=7):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, o.IMAGE, o.IMAGE, generator=generator, dtype=torch.float64)
    ids = torch.randint(1, o.VOCAB, (count, length), generator=generator)  # 0 pads, and has no gradient there
    keep = torch.arange(length) < torch.tensor([7, 3, 5, 1])[:count, None]
    return images, ids, keep


def _same_gradients(ours, oracle, mine, theirs, seed=2):
    """The gradients of one random weighting of two equal outputs agree at every tower and head that both have."""
    weight = torch.randn(mine.shape, generator=torch.Generator().manual_seed(seed), dtype=mine.dtype)
    torch.testing.assert_close(mine, theirs, **TIGHT)
    (mine * weight).sum().backward()
    (theirs * weight).sum().backward()
    same = torch.zeros_like(ours.vision.patch.proj.weight)
    theirs_patch = oracle.visual_encoder.patch_embed.proj.weight.grad
    pairs = [
        (ours.text.embed.tok.weight, oracle.text_encoder.embeddings.word_embeddings.weight),
        (ours.text.blocks[0].mlp.fc1.weight, oracle.text_encoder.layer[0].intermediate.dense.weight),
    ]
    if theirs_patch is not None:
        assert not torch.equal(theirs_patch, same)
        pairs += [(ours.vision.patch.proj.weight, oracle.visual_encoder.patch_embed.proj.weight)]
    for i, layer in enumerate(oracle.text_encoder.layer[2:], 2):
        if layer.crossattention.self.query.weight.grad is None:
            continue
        pairs.append((ours.text.blocks[i].cross.q.weight, layer.crossattention.self.query.weight))
        s, kv = layer.crossattention.self, ours.text.blocks[i].cross.kv
        both = torch.cat([s.key.weight.grad, s.value.weight.grad])
        torch.testing.assert_close(kv.weight.grad, both, **TIGHT)
    for a, b in pairs:
        assert b.grad.abs().max() > 0
        torch.testing.assert_close(a.grad, b.grad, **TIGHT)


@pytest.fixture
def albef():
    return _pair(ALBEFConfig(**o.towers(), embed=o.EMBED), ALBEF)


def test_embeddings(albef):
    ours, oracle = albef
    images, ids, keep = _inputs()
    image, text = (
        oracle.image_feat(oracle.tokens(images)),
        oracle.text_feat(oracle.text_encoder.text(ids, keep)),
    )
    mine = ours.similarity(ours.encode_image(images), ours.encode_text(ids, keep)) * ours.scale
    _same_gradients(ours, oracle, mine, image @ text.T / oracle.temp)
    # d(1/temp) = -d(temp)/temp^2, and the log-scale's is scale times that of the scale
    torch.testing.assert_close(ours.logit_scale.grad, -oracle.temp.grad * oracle.temp.detach(), **TIGHT)


@pytest.mark.parametrize("packed", [False, True])
def test_text_half_and_fusion_half(albef, packed):
    ours, oracle = albef
    images, ids, keep = _inputs()
    tokens = oracle.tokens(images)
    states = oracle.text_encoder.text(ids, keep)
    mine = ours.text_states(ids, keep, packed=packed)
    torch.testing.assert_close(mine[keep], states[keep], **TIGHT)
    theirs = oracle.text_encoder.fusion(states, o.additive(keep), tokens)
    fused = ours.fuse(mine, keep, ours.project(ours.image_tokens(images)), packed=packed)
    real = keep[..., None].to(fused)
    _same_gradients(ours, oracle, fused * real, theirs * real)


def test_multimodal_mode_is_both_halves(albef):
    ours, oracle = albef
    images, ids, keep = _inputs()
    theirs = oracle.text_encoder.multimodal(ids, keep, oracle.tokens(images))
    torch.testing.assert_close(ours(images, ids, keep)[keep], theirs[keep], **TIGHT)


@pytest.mark.parametrize("packed", [False, True])
def test_matching_any_text_with_any_image(albef, packed):
    ours, oracle = albef
    images, ids, keep = _inputs()
    index = torch.tensor([2, 2, 0, 3])
    tokens = oracle.tokens(images)[index]
    theirs = oracle.itm_head(oracle.text_encoder.multimodal(ids, keep, tokens)[:, 0])
    kv = ours.project_images(images)
    mine = ours.match_states(ours.text_states(ids, keep), keep, kv, index, packed=packed)
    _same_gradients(ours, oracle, mine, theirs)
    torch.testing.assert_close(ours.match(images, ids, keep, index), theirs, **TIGHT)
    torch.testing.assert_close(ours.match(kv[index], ids, keep), theirs, **TIGHT)


def test_masked_words(albef):
    ours, oracle = albef
    images, ids, keep = _inputs()
    theirs = oracle.text_encoder.logits(oracle.text_encoder.multimodal(ids, keep, oracle.tokens(images)))
    mine = ours.mlm.logits(ours(images, ids, keep))
    real = keep[..., None].to(mine)
    _same_gradients(ours, oracle, mine * real, theirs * real)
    torch.testing.assert_close(ours.mlm.bias.grad, oracle.text_encoder.bias.grad, **TIGHT)


@pytest.mark.parametrize("mistake", ["norm_eps", "act"])
def test_the_tolerance_sees_a_ports_mistake(mistake):
    change = {"norm_eps": {"norm_eps": 1e-5}, "act": {"act": "gelu_tanh"}}[mistake]
    towers = o.towers()
    towers["text"] = dataclasses.replace(towers["text"], **change)
    ours, oracle = _pair(ALBEFConfig(**towers, embed=o.EMBED), ALBEF)
    images, ids, keep = _inputs()
    theirs = oracle.text_encoder.multimodal(ids, keep, oracle.tokens(images))
    assert (ours(images, ids, keep) - theirs)[keep].abs().max() > 1e-7


# -- visual entailment, NLVR2 ---------------------------------------------------------------------------------------


def test_entailment():
    ours, oracle = _pair(ALBEFVEConfig(**o.towers()), ALBEFVE)
    images, ids, keep = _inputs()
    theirs = oracle.cls_head(oracle.text_encoder.multimodal(ids, keep, oracle.tokens(images))[:, 0])
    _same_gradients(ours, oracle, ours.entail(images, ids, keep), theirs)


@pytest.mark.parametrize("task", ["compare", "assign"])
def test_twin_layers_read_two_images(task):
    config = ALBEFNLVR2Config(**o.towers(twin=True), task=task, embed=o.EMBED)
    ours, oracle = _pair(config, ALBEFNLVR2, twin=True)
    images, ids, keep = _inputs()
    second = images.flip(0) + 0.5
    both = [oracle.tokens(images), oracle.tokens(second)]
    head = oracle.cls_head if task == "compare" else oracle.ta_head
    theirs = head(oracle.text_encoder.multimodal(ids, keep, both)[:, 0])
    call = getattr(ours, task)
    _same_gradients(ours, oracle, call(images, second, ids, keep), theirs)
    # an image projected once may be either of the two
    kv = ours.project_images(torch.cat([images, second]))
    torch.testing.assert_close(call(kv[:4], kv[4:], ids, keep), theirs, **TIGHT)
    torch.testing.assert_close(call(kv[:4], second, ids, keep), theirs, **TIGHT)
    assert (call(second, images, ids, keep) - theirs).abs().max() > 1e-3  # which is first matters
    blocks = ours.text.blocks
    assert blocks[2].cross.kv is blocks[3].cross.kv is not blocks[4].cross.kv


def test_twins_stay_twins_when_loaded_and_cannot_part():
    ours = ALBEFNLVR2(ALBEFNLVR2Config(**o.towers(twin=True)))
    state = {name: tensor + 0.25 for name, tensor in ours.state_dict().items()}
    ours.load_state_dict(ours.fit_state(state), assign=True)
    assert ours.text.blocks[2].cross.kv is ours.text.blocks[3].cross.kv
    assert torch.equal(ours.text.blocks[2].cross.kv.weight, state["text.blocks.3.cross.kv.weight"])
    state["text.blocks.4.cross.kv.bias"] = state["text.blocks.4.cross.kv.bias"] + 1
    with pytest.raises(ZooError, match="layers 4 and 5 are twins"):
        ours.fit_state(state)


def test_nlvr2_with_an_image_missing():
    ours = ALBEFNLVR2(ALBEFNLVR2Config(**o.towers(twin=True)))
    images, ids, keep = _inputs()
    with pytest.raises(ZooError, match="4 first and 3 second images"):
        ours.compare(images.float(), images[:3].float(), ids, keep)


# -- answers --------------------------------------------------------------------------------------------------------

BEGIN, END = 2, 3


def _answers():
    words = [[11], [12, 13], [11, 14], [11, 14, 15], [16], [12, 13, 17, 18], [19]]
    rows = [[BEGIN, *w, END] for w in words]
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    return ids, torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]


@pytest.fixture
def vqa():
    return _pair(ALBEFVQAConfig(**o.towers(), decoder=o.decoder_config()), ALBEFVQA)


def test_answer_decoder(vqa):
    ours, oracle = vqa
    images, ids, keep = _inputs(3)
    answer, real = _answers()
    rows = torch.tensor([0, 0, 1, 1, 1, 2, 0])
    question = oracle.text_encoder.multimodal(ids, keep, oracle.tokens(images))
    theirs = oracle.decode(answer, real, question[rows], keep[rows])
    mine = ours.lm.logits(ours.answer_states(ours.read_question(images, ids, keep), answer, rows))
    shown = real[..., None].to(mine)
    _same_gradients(ours, oracle, mine * shown, theirs * shown)
    table, peer = ours.decoder.embed.tok.weight, oracle.text_decoder.embeddings.word_embeddings.weight
    # id 0 pads, and transformers gives it no gradient as an input; as a word of the table it has one
    torch.testing.assert_close(table.grad[1:], peer.grad[1:], **TIGHT)


def _reference_ranking(oracle, images, ids, keep, answer, real, k, twice):
    """The two steps of the reference, question by question, answer by answer."""
    question = oracle.text_encoder.multimodal(ids, keep, oracle.tokens(images))
    scores = torch.full((len(ids), len(answer)), -torch.inf, dtype=torch.float64)
    for b in range(len(ids)):
        here = {"question": question[b : b + 1], "question_keep": keep[b : b + 1]}
        start = oracle.decode(answer[:1, :1], real[:1, :1], **here)[0, 0].log_softmax(-1)
        first = start[answer[:, 1]]
        for a in sorted(range(len(answer)), key=lambda a: -float(first[a]))[:k]:
            logits = oracle.decode(answer[a : a + 1], real[a : a + 1], **here)[0].log_softmax(-1)
            total = sum(logits[t, answer[a, t + 1]] for t in range(int(real[a].sum()) - 1))
            scores[b, a] = total + (first[a] if twice else 0)
    return scores


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("k", [1, 3, 7, 128])
def test_ranking_answers(vqa, k, twice):
    ours, oracle = vqa
    images, ids, keep = _inputs(3)
    answers = _answers()
    with torch.no_grad():
        theirs = _reference_ranking(oracle, images, ids, keep, *answers, k, twice)
    mine = ours.rank_answers(images, ids, keep, answers, k, first_token_twice=twice)
    torch.testing.assert_close(mine, theirs, **TIGHT)
    assert (mine > -torch.inf).sum(1).tolist() == [min(k, 7)] * 3
    torch.testing.assert_close(
        ours.rank_answers(ours.project_images(images), ids, keep, answers, k, first_token_twice=twice),
        mine,
        **TIGHT,
    )


def test_ranking_in_small_pieces(vqa, monkeypatch):
    ours, _ = vqa
    images, ids, keep = _inputs(3)
    whole = ours.rank_answers(images, ids, keep, _answers())
    monkeypatch.setattr("mmzoo.models.ranking._ROWS", 4)
    torch.testing.assert_close(ours.rank_answers(images, ids, keep, _answers()), whole, **TIGHT)


def test_what_cannot_be_ranked(vqa):
    ours, _ = vqa
    images, ids, keep = _inputs(1)
    with pytest.raises(UsageError, match="number of answers, at least 1"):
        ours.rank_answers(images, ids, keep, _answers(), 0)
    with pytest.raises(UsageError, match=r"Processor\.framed"):
        ours.rank_answers(images, ids, keep, (torch.tensor([[BEGIN]]), torch.tensor([[True]])))


# -- starting a task from pre-training ------------------------------------------------------------------------------


def _pretrained(towers=None):
    torch.manual_seed(3)
    return shake(ALBEF(ALBEFConfig(**(towers or o.towers()), embed=o.EMBED))).eval()


def _as_wide_as_words():
    towers = o.towers()
    towers["vision"] = dataclasses.replace(towers["vision"], width=o.WIDTH, heads=4)
    towers["text"] = dataclasses.replace(towers["text"], cross_width=o.WIDTH)
    return towers


@pytest.mark.parametrize("towers", [o.towers, _as_wide_as_words])
def test_the_decoder_starts_as_the_fusion_half(towers):
    source = _pretrained(towers())
    model = grown(source, ALBEFVQAConfig(**towers(), decoder=o.decoder_config()))
    for i in (0, 1):
        old, new = source.text.blocks[2 + i].state_dict(), model.decoder.blocks[i].state_dict()
        differ = {
            name
            for name in old
            if old[name].shape != new[name].shape or not torch.equal(old[name], new[name])
        }
        assert old.keys() == new.keys()
        assert differ == (set() if towers is _as_wide_as_words else {"cross.kv.weight", "cross.kv.bias"})
    assert torch.equal(model.decoder.embed.tok.weight, source.text.embed.tok.weight)
    assert torch.equal(model.lm.dense.weight, source.mlm.dense.weight)
    assert model.lm.weight is model.decoder.embed.tok.weight
    assert torch.equal(model.text.blocks[3].cross.kv.weight, source.text.blocks[3].cross.kv.weight)


def test_twin_layers_start_as_two_copies():
    source = _pretrained()
    model = grown(source, ALBEFNLVR2Config(**o.towers(twin=True), task="assign", embed=o.EMBED))
    for new, old in enumerate([0, 1, 2, 2, 3, 3]):
        a, b = model.text.blocks[new].state_dict(), source.text.blocks[old].state_dict()
        assert all(torch.equal(a[name], b[name]) for name in b)
    assert torch.equal(model.vision_proj.weight, source.vision_proj.weight)
    # then from text assignment to comparing: all layers as they are
    torch.manual_seed(4)
    shake(model, seed=5)
    compare = grown(model, ALBEFNLVR2Config(**o.towers(twin=True)))
    assert torch.equal(compare.text.blocks[4].mlp.fc1.weight, model.text.blocks[4].mlp.fc1.weight)
    assert torch.equal(compare.text.blocks[5].mlp.fc1.weight, model.text.blocks[5].mlp.fc1.weight)


def test_a_task_may_see_larger_images():
    source, towers = _pretrained(), o.towers()
    towers["vision"] = dataclasses.replace(towers["vision"], image_size=32)
    model = grown(source, ALBEFVEConfig(**towers))
    assert model.vision.pos.shape == (1, 17, o.VISION)
    assert torch.equal(model.vision.pos[:, :1], source.vision.pos[:, :1])
    assert not model.training


def test_a_task_of_other_towers_is_refused():
    towers = o.towers()
    towers["text"] = dataclasses.replace(towers["text"], hidden=64)
    with pytest.raises(ZooError, match=r"does not fit ALBEFVE: .*of another shape \(text"):
        grown(_pretrained(), ALBEFVEConfig(**towers))
    deeper = dataclasses.replace(o.decoder_config(), depth=3, cross_layers=(0, 1, 2))
    with pytest.raises(ZooError, match=r"decoder\.blocks\.2"):
        grown(_pretrained(), ALBEFVQAConfig(**o.towers(), decoder=deeper))
