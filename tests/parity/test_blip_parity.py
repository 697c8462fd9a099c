"""BLIP's models against transformers' and an oracle for pairs of images: float64, outputs and every gradient."""

from __future__ import annotations

import copy

import blip_oracle as o
import pytest
import torch
from hand_copy import shake
from torch.nn import functional as F

import mmzoo
from mmzoo.errors import ZooError
from mmzoo.generation.protocol import Decoder
from mmzoo.models.blip import BLIP, BLIPNLVR2, BLIPVQA, BLIPReader, BLIPWriter
from mmzoo.start import grown

pytestmark = pytest.mark.filterwarnings("ignore")
TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def _hf(name: str, **settings):
    import transformers

    torch.manual_seed(0)
    return shake(getattr(transformers, name)(o.hf_config(**settings)).double().eval())


def _ours(kind, config, hf=None):
    torch.manual_seed(1)
    model = shake(kind(config).double().eval(), seed=9)
    if hf is not None:
        o.copy_hf(model, hf)
    return model


def _of_gradients(model):
    """A copy of a model whose parameters are its gradients."""
    found = copy.deepcopy(model)
    with torch.no_grad():
        for mine, theirs in zip(found.parameters(), model.parameters(), strict=True):
            mine.copy_(torch.zeros_like(theirs) if theirs.grad is None else theirs.grad)
    return found


def _same_gradients(ours, hf, mine, theirs, copy_all=o.copy_hf):
    """One random weighting of two equal outputs has the same gradient at every parameter that both have."""
    torch.testing.assert_close(mine, theirs, **TIGHT)
    weight = torch.randn(mine.shape, generator=torch.Generator().manual_seed(2), dtype=mine.dtype)
    (mine * weight).sum().backward()
    (theirs * weight).sum().backward()
    expected = copy.deepcopy(ours)
    with torch.no_grad():
        for p in expected.parameters():
            p.fill_(torch.nan)
    copy_all(expected, _of_gradients(hf))
    compared = 0
    for (name, p), grad in zip(ours.named_parameters(), expected.parameters(), strict=True):
        if not grad.isnan().all():
            found = torch.zeros_like(p) if p.grad is None else p.grad
            torch.testing.assert_close(found, grad, msg=lambda m, name=name: f"{name}: {m}", **TIGHT)
            compared += bool(grad.abs().max() > 0)
    assert compared > 30


# -- reading --------------------------------------------------------------------------------------------------------


@pytest.fixture
def reader():
    hf = _hf("BlipForImageTextRetrieval")
    return _ours(BLIPReader, o.config(writes=False), hf), hf


def test_embeddings(reader):
    ours, hf = reader
    images, ids, keep = o.inputs()
    theirs = hf(ids, images, use_itm_head=False, attention_mask=keep.long()).itm_score
    mine = ours.similarity(ours.encode_image(images), ours.encode_text(ids, keep))
    _same_gradients(ours, hf, mine, theirs)
    torch.testing.assert_close(ours.encode_text(ids, keep, packed=True), ours.encode_text(ids, keep), **TIGHT)


@pytest.mark.parametrize("packed", [False, True])
def test_matching_reads_enc_whatever_the_tokenizer_put_first(reader, packed):
    """P1: transformers feeds [CLS], with which matching was not trained; so it is given [ENC] here."""
    ours, hf = reader
    images, ids, keep = o.inputs()
    theirs = hf(o.led_by("encode", ids), images, attention_mask=keep.long()).itm_score
    _same_gradients(ours, hf, ours.match(images, ids, keep, packed=packed), theirs)
    as_shipped = hf(ids, images, attention_mask=keep.long()).itm_score
    assert (as_shipped - theirs).abs().max() > 1e-3


@pytest.mark.parametrize("packed", [False, True])
def test_any_text_with_any_image(reader, packed):
    ours, hf = reader
    images, ids, keep = o.inputs()
    index = torch.tensor([2, 2, 0, 3])
    theirs = hf(o.led_by("encode", ids), images[index], attention_mask=keep.long()).itm_score
    kv = ours.project_images(images)
    states = ours.text_states(ids, keep)
    _same_gradients(ours, hf, ours.match_states(states, keep, kv, index, packed=packed), theirs)
    torch.testing.assert_close(ours.match(images, ids, keep, index), theirs, **TIGHT)
    torch.testing.assert_close(ours.match(kv[index], ids, keep), theirs, **TIGHT)


@pytest.mark.parametrize("mistake", ["heads", "text_eps", "vision_eps"])
def test_the_tolerance_sees_transformers_wrong_defaults(mistake):
    """P3, P4: 8 heads fit where 12 belong, as 2 fit here where 4 do; so does another epsilon."""
    settings = {"text_eps": {"text_eps": 1e-5}, "vision_eps": {"vision_eps": 1e-5}, "heads": {}}[mistake]
    hf = _hf("BlipForImageTextRetrieval", **settings)
    if mistake == "heads":
        for layer in hf.text_encoder.encoder.layer:
            for attention in (layer.attention.self, layer.crossattention.self):
                attention.num_attention_heads, attention.attention_head_size = 2, o.WIDTH // 2
    ours = _ours(BLIPReader, o.config(writes=False), hf)
    images, ids, keep = o.inputs()
    theirs = hf(o.led_by("encode", ids), images, attention_mask=keep.long()).itm_score
    assert (ours.match(images, ids, keep) - theirs).abs().max() > 1e-7


def test_the_layer_that_is_looked_at():
    assert mmzoo.create_model("blip-base", device="meta").explain_layer == 7
    assert mmzoo.create_model("blip-tiny", device="meta").explain_layer == 0  # the last has no map of words


# -- writing --------------------------------------------------------------------------------------------------------


def _labels(ids, keep):
    return o.led_by("begin", ids).masked_fill(~keep, -100)


@pytest.fixture
def writer():
    hf = _hf("BlipForConditionalGeneration", smoothing=0.1)
    return _ours(BLIPWriter, o.config(reads=False), hf), hf


@pytest.mark.parametrize("packed", [False, True])
def test_next_words(writer, packed):
    ours, hf = writer
    images, ids, keep = o.inputs()
    theirs = hf(images, o.led_by("begin", ids), keep.long()).logits
    kv = ours.project_images(images)
    mine = ours.lm.logits(ours.write_states(kv, ids, keep=keep if packed else None))
    real = keep[..., None].to(mine)
    _same_gradients(ours, hf, mine * real, theirs * real)


def test_the_loss_of_writing(writer):
    """With label smoothing 0.1, the authors' (transformers' default is 0)."""
    from mmzoo.losses.words import word_loss

    ours, hf = writer
    images, ids, keep = o.inputs()
    theirs = hf(images, o.led_by("begin", ids), keep.long(), labels=_labels(ids, keep)).loss
    states = ours.write_states(ours.project_images(images), ids, keep=keep)[:, :-1]
    labels = _labels(ids, keep)[:, 1:].flatten()
    mine = word_loss(
        ours.lm(states.flatten(0, 1)), ours.lm.weight, ours.lm.bias, labels, soft=None, label_smoothing=0.1
    ).loss
    _same_gradients(ours, hf, mine, theirs)


def test_several_captions_of_an_image(writer):
    ours, hf = writer
    images, ids, keep = o.inputs()
    index = torch.tensor([1, 1, 1, 0])
    theirs = hf(images[index], o.led_by("begin", ids), keep.long()).logits
    for some in (None, keep):
        mine = ours.lm.logits(ours.write_states(ours.project_images(images[:2]), ids, index, keep=some))
        torch.testing.assert_close(mine[keep], theirs[keep], **TIGHT)


def test_the_decoder_steps_as_the_whole_text_is_read(writer):
    ours, hf = writer
    images, ids, _ = o.inputs()
    ids = o.led_by("begin", ids)
    decoder = ours.caption_decoder(images)
    assert isinstance(decoder, Decoder)
    assert (len(decoder), decoder.vocab, decoder.context) == (4, o.VOCAB, o.CONTEXT)
    assert (decoder.bos_id, decoder.eos_id, decoder.pad_id) == (57, 3, 0)
    reads = torch.tensor([0, 2, 2, 3])
    with torch.no_grad():
        theirs = hf(images[reads], ids).logits
    decoder.start(reads)
    torch.testing.assert_close(decoder.step(ids[:, :3]), theirs[:, 2], **TIGHT)
    torch.testing.assert_close(decoder.step(ids[:, 3:4]), theirs[:, 3], **TIGHT)
    rows = torch.tensor([0, 2, 2, 1])
    decoder.reorder(rows)
    with torch.no_grad():
        theirs = hf(images[reads[rows]], torch.cat([ids[rows, :4], ids[:, 4:5]], 1)).logits
    torch.testing.assert_close(decoder.step(ids[:, 4:5]), theirs[:, 4], **TIGHT)
    decoder.start(torch.tensor([3]))  # begins anew
    with torch.no_grad():
        theirs = hf(images[3:], ids[:1, :1]).logits[:, 0]
    torch.testing.assert_close(decoder.step(ids[:1, :1]), theirs, **TIGHT)


# -- both over one set of weights ------------------------------------------------------------------------------------


def _tie(encoder, decoder):
    """What the reference does when it builds the model: everything but self-attention is the encoder's."""
    decoder.embeddings = encoder.embeddings
    for a, b in zip(encoder.encoder.layer, decoder.encoder.layer, strict=True):
        b.crossattention, b.intermediate, b.output = a.crossattention, a.intermediate, a.output


def test_three_faces_over_one_set_of_weights():
    """One step of pre-training's kinds: every gradient is the sum over the faces, as of transformers' models tied."""
    reads, writes = _hf("BlipForImageTextRetrieval"), _hf("BlipForConditionalGeneration")
    writes.vision_model = reads.vision_model
    _tie(reads.text_encoder, writes.text_decoder.bert)
    writes.text_decoder.cls.predictions.decoder.weight = reads.text_encoder.embeddings.word_embeddings.weight
    both = torch.nn.Module()
    both.vision_model, both.text_encoder = reads.vision_model, reads.text_encoder
    both.text_decoder, both.itm_head = writes.text_decoder, reads.itm_head
    both.vision_proj, both.text_proj = reads.vision_proj, reads.text_proj
    ours = _ours(BLIP, o.config(), both)
    images, ids, keep = o.inputs()
    theirs = [
        reads(ids, images, use_itm_head=False, attention_mask=keep.long()).itm_score,
        reads(o.led_by("encode", ids), images, attention_mask=keep.long()).itm_score,
        writes(images, o.led_by("begin", ids), keep.long()).logits[keep],
    ]
    tokens = ours.image_tokens(images)
    kv = ours.project(tokens)
    mine = [
        ours.embed_image(tokens) @ ours.encode_text(ids, keep).T,
        ours.match(kv, ids, keep),
        ours.lm.logits(ours.write_states(kv, ids)[keep]),
    ]
    flat = [torch.cat([x.flatten() for x in some]) for some in (mine, theirs)]
    _same_gradients(ours, both, *flat)


def test_encoder_and_decoder_are_one_but_for_self_attention():
    ours = _ours(BLIP, o.config())
    a, b = dict(ours.text.named_modules()), dict(ours.decoder.named_modules())
    own = ("attn", "attn_norm")
    for name, module in a.items():
        parts = name.split(".")
        if list(module.parameters(recurse=False)):
            assert (b[name] is module) == (len(parts) < 3 or parts[2] not in own), name
    assert ours.lm.weight is ours.text.embed.tok.weight
    assert ours.decoder.config.causal
    assert not ours.text.config.causal


def test_shared_weights_are_saved_once_and_stay_shared(tmp_path):
    ours = _ours(BLIP, o.config()).float()
    state = ours.state_dict()
    assert {name.split(".")[3] for name in state if name.startswith("decoder.")} == {"attn", "attn_norm"}
    assert sum(t.numel() for t in state.values()) == sum(p.numel() for p in ours.parameters())
    again = BLIP(o.config())
    again.load_state_dict({name: t + 1 for name, t in state.items()}, assign=True)
    assert again.decoder.blocks[1].mlp is again.text.blocks[1].mlp
    assert torch.equal(again.decoder.embed.tok.weight, state["text.embed.tok.weight"] + 1)
    twin = copy.deepcopy(again)
    assert twin.decoder.blocks[0].cross is twin.text.blocks[0].cross is not again.text.blocks[0].cross
    assert twin.state_dict().keys() == state.keys()
    nested = torch.nn.ModuleDict({"model": twin})
    assert nested.state_dict().keys() == {f"model.{name}" for name in state}
    nested.load_state_dict({f"model.{name}": t for name, t in state.items()})
    assert torch.equal(twin.decoder.blocks[0].cross.q.weight, state["text.blocks.0.cross.q.weight"])
    del twin.decoder  # a momentum teacher needs none
    twin.load_state_dict({name: t for name, t in state.items() if not name.startswith("decoder.")})


def test_both_faces_begin_alike():
    torch.manual_seed(0)
    ours = BLIP(o.config())
    for a, b in zip(ours.text.blocks, ours.decoder.blocks, strict=True):
        assert torch.equal(a.attn.qkv.weight, b.attn.qkv.weight)
        assert a.attn.qkv.weight is not b.attn.qkv.weight


# -- answers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def vqa():
    hf = _hf("BlipForQuestionAnswering", vision=o.WIDTH - 2)
    # transformers builds the decoder for the image's width; the reference for the question's
    for layer in hf.text_decoder.bert.encoder.layer:
        for name in ("key", "value"):
            setattr(layer.crossattention.self, name, torch.nn.Linear(o.WIDTH, o.WIDTH).double())
    shake(hf.text_decoder, seed=4)
    return _ours(BLIPVQA, o.config("blip-base-vqa", vision=o.WIDTH - 2), hf), hf


def _answers():
    rows = [[2, *words, 3] for words in ([11], [12, 13], [11, 14], [11, 14, 15], [16], [12, 13, 17, 18])]
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    return ids, torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]


def _hf_answer(hf, images, ids, keep, answer, real):
    """transformers' logits, question by question, [ENC] before the question and [DEC] before the answer.

    transformers 5.23 computes a mask over the question and then does not use it in cross-attention, so each question is
    given without its padding.
    """
    found = []
    for b in range(len(ids)):
        tokens = hf.vision_model(images[b : b + 1]).last_hidden_state
        asked = o.led_by("encode", ids[b : b + 1, : int(keep[b].sum())])
        question = hf.text_encoder(asked, encoder_hidden_states=tokens).last_hidden_state
        found.append(
            hf.text_decoder(
                o.led_by("begin", answer[b : b + 1]),
                attention_mask=real[b : b + 1].long(),
                encoder_hidden_states=question,
            ).logits
        )
    return torch.cat(found)


def _log_likelihood(logits, answer, real):
    log = logits.log_softmax(-1)[:, :-1].gather(2, answer[:, 1:, None])[..., 0]
    return log.masked_fill(~real[:, 1:], 0.0).sum(1)


def test_answers_begin_with_dec_and_questions_with_enc(vqa):
    """P1, P5: transformers' own forward takes both as they come, [CLS] first; given the right tokens, it agrees."""
    ours, hf = vqa
    images, ids, keep = o.inputs()
    answer, real = (x[:4] for x in _answers())
    theirs = _hf_answer(hf, images, ids, keep, answer, real)
    mine = ours.lm.logits(ours.answer_states(ours.read_question(images, ids, keep), answer))
    shown = real[..., None].to(mine)
    _same_gradients(ours, hf, mine * shown, theirs * shown)


def test_the_loss_of_answers(vqa):
    ours, hf = vqa
    images, ids, _ = o.inputs()
    ids, keep = ids.masked_fill(ids == 0, 7), torch.ones_like(ids, dtype=torch.bool)  # see _hf_answer
    answer, real = (x[:4] for x in _answers())
    given = {"attention_mask": keep.long(), "decoder_attention_mask": real.long()}
    labels = answer.masked_fill(~real, -100)
    theirs = hf(
        o.led_by("encode", ids), images, decoder_input_ids=o.led_by("begin", answer), labels=labels, **given
    ).loss
    states = ours.answer_states(ours.read_question(images, ids, keep), answer)
    mine = -_log_likelihood(ours.lm.logits(states), answer, real).sum() / real[:, 1:].sum()
    _same_gradients(ours, hf, mine, theirs)
    shipped = hf(ids, images, labels=answer, **given).loss
    assert (shipped - theirs).abs() > 1e-3


@pytest.mark.parametrize("k", [2, 6])
def test_ranking_is_by_the_plain_likelihood(vqa, k):
    """P12: LAVIS ranks by the smoothed training loss; here it is the sum of the log-probabilities."""
    ours, hf = vqa
    images, ids, keep = o.inputs(3)
    answer, real = _answers()
    mine = ours.rank_answers(images, ids, keep, (answer, real), k)
    with torch.no_grad():
        for b in range(3):
            here = [x[b : b + 1].expand(len(answer), *x.shape[1:]) for x in (images, ids, keep)]
            logits = _hf_answer(hf, *here, answer, real)
            first = logits[:, 0].log_softmax(-1).gather(1, answer[:, 1:2])[:, 0]
            kept = first.sort(descending=True, stable=True).indices[:k]
            plain = _log_likelihood(logits, answer, real)
            torch.testing.assert_close(mine[b, kept], plain[kept], **TIGHT)
            assert (mine[b] > -torch.inf).sum() == k
            labels = answer[:, 1:].masked_fill(~real[:, 1:], -100)
            smoothed = -F.cross_entropy(
                logits[:, :-1].transpose(1, 2), labels, label_smoothing=0.1, reduction="none"
            ).sum(1)
            assert (smoothed - plain).abs().max() > 1e-2


def test_writing_answers_reads_no_padding_of_the_question(vqa):
    """G9: the reference attends to padded positions of the question when it writes, but not when it ranks."""
    ours, hf = vqa
    images, ids, keep = o.inputs()
    decoder = ours.answer_decoder(images, ids, keep)
    rows = torch.tensor([1, 1, 3])
    decoder.start(rows)
    answer = torch.tensor([[57, 11], [57, 12], [57, 13]])
    with torch.no_grad():
        theirs = _hf_answer(hf, images[rows], ids[rows], keep[rows], answer, torch.ones_like(answer) > 0)
    torch.testing.assert_close(decoder.step(answer[:, :1]), theirs[:, 0], **TIGHT)
    torch.testing.assert_close(decoder.step(answer[:, 1:]), theirs[:, 1], **TIGHT)


# -- pairs of images ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merge_from", [0, 2, 3])
def test_pairs_of_images(merge_from):
    torch.manual_seed(0)
    oracle = shake(o.Pairs(merge_from).double().eval())
    ours = _ours(BLIPNLVR2, o.config("blip-base-nlvr2", merge_from=merge_from))
    o.copy_pairs(ours, oracle)
    images, ids, keep = o.inputs()
    second = images.flip(0) + 0.5
    theirs = oracle(images, second, ids, keep)
    _same_gradients(ours, oracle, ours.compare(images, second, ids, keep), theirs, o.copy_pairs)
    kv = ours.project_images(torch.cat([images, second]))
    torch.testing.assert_close(ours.compare(kv[:4], kv[4:], ids, keep), theirs, **TIGHT)
    torch.testing.assert_close(ours.compare(images, kv[4:], ids, keep), theirs, **TIGHT)
    assert (ours.compare(second, images, ids, keep) - theirs).abs().max() > 1e-4  # which is first matters
    with pytest.raises(ZooError, match="4 first and 3 second images"):
        ours.compare(images, second[:3], ids, keep)
    with pytest.raises(ZooError, match="one by one"):
        ours(ours.pair(images, second), ids, keep, torch.arange(4))


# -- starting one from another ---------------------------------------------------------------------------------------


def _equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_task_starts_from_pre_training():
    source = _ours(BLIP, o.config())
    writer = grown(source, o.config(reads=False))
    assert _equal(writer.decoder, source.decoder)
    assert _equal(writer.lm, source.lm)
    reader = grown(source, o.config(writes=False))
    assert _equal(reader.text, source.text)
    assert torch.equal(reader.match_head.weight, source.match_head.weight)
    images, ids, keep = o.inputs()
    kv = source.project_images(images)
    assert torch.equal(writer.write_states(kv, ids), source.write_states(kv, ids))
    pairs = grown(source, o.config("blip-base-nlvr2", merge_from=2))
    for i, block in enumerate(pairs.text.blocks):
        assert _equal(block.cross.first, source.text.blocks[i].cross)
        assert _equal(block.cross.second, source.text.blocks[i].cross)
    # before anything joins them, two equal images are read as one
    both = pairs.pair(images, images)
    one = source.text(embeds=source.text_states(ids, keep), keep=keep, context=kv, layers=slice(0, 2)).tokens
    two = pairs.text(embeds=pairs.text_states(ids, keep), keep=keep, context=both, layers=slice(0, 2)).tokens
    torch.testing.assert_close(one, two, **TIGHT)


@pytest.mark.parametrize("alike", [False, True])
def test_answers_start_from_pre_training(alike):
    vision = o.WIDTH - 2 if not alike else o.WIDTH + 1
    if alike:  # a width that three heads of the image tower and four of the text divide
        vision = 36
    source = _ours(BLIP, o.config(vision=vision))
    config = o.config("blip-base-vqa", vision=vision)
    model = grown(source, config)
    assert _equal(model.text, source.text)
    for ours, theirs in zip(model.decoder.blocks, source.decoder.blocks, strict=True):
        assert _equal(ours.attn, theirs.attn)
        assert _equal(ours.mlp, theirs.mlp)
        assert torch.equal(ours.cross.q.weight, theirs.cross.q.weight)
        assert ours.mlp is not theirs.mlp
    assert model.decoder.embed.tok.weight is not model.text.embed.tok.weight


def test_a_new_face_starts_as_the_old_one():
    writer, reader = _ours(BLIPWriter, o.config(reads=False)), _ours(BLIPReader, o.config(writes=False))
    from_writer, from_reader = grown(writer, o.config()), grown(reader, o.config())
    assert _equal(from_writer.text, writer.decoder)
    assert _equal(from_writer.decoder, writer.decoder)
    assert _equal(from_reader.text, reader.text)
    assert _equal(from_reader.decoder, reader.text)
    assert from_reader.decoder.blocks[0].mlp is from_reader.text.blocks[0].mlp


# -- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "face", "millions"),
    [
        ("blip-base", 384, {"reads": False}, 223.97),  # mmpretrain's metafile.yml, as the next three
        ("blip-base", 384, {"writes": False}, 223.74),
        ("blip-base-vqa", 480, {}, 361.48),
        ("blip-base-nlvr2", 384, {}, 259.37),
        ("blip-base", 224, {}, 252.44),
        ("blip-large", 384, {"reads": False}, 446.29),
        ("blip-large", 384, {"writes": False}, 446.13),
        ("blip-large-vqa", 480, {}, 583.88),
        ("blip-large-nlvr2", 384, {}, 486.41),
        ("blip-large", 224, {}, 474.73),
    ],
)
def test_parameters(name, size, face, millions):
    import dataclasses

    config = mmzoo.get_config(name)
    vision = dataclasses.replace(config.vision, image_size=size)
    model = mmzoo.create_model(name, config=dataclasses.replace(config, vision=vision, **face), device="meta")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions
    assert type(model).__name__ == {
        (): {"vqa": "BLIPVQA", "nlvr2": "BLIPNLVR2"}.get(name.split("-")[-1], "BLIP"),
        ("reads",): "BLIPWriter", ("writes",): "BLIPReader",
    }[tuple(face)]  # fmt: skip
