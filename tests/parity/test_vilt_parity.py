"""ViLT against transformers, which shares no code with mmzoo: float64, outputs and gradients, pictures of all shapes.

transformers has one epsilon for everything; here it is set to the release's two (1e-6 in the stack, 1e-12 in the text
embedding and the word head) after building. It shuffles the patches of the largest picture of a batch at random, which
changes nothing but the order of the image tokens, so these are compared by sums.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hand_copy import _pair, copy_hf_classifier, copy_hf_vilt, copy_hf_word_head, shake
from torch import nn
from torch.nn import functional as F

import mmzoo
from mmzoo.models.vilt import VARIANTS, ViLT, ViLTNLVR2, ViLTNLVR2Config, ViLTVQA, ViLTVQAConfig
from mmzoo.spec import HALF, ImageSpec, TextSpec
from mmzoo.start import grown
from mmzoo.towers.vision import PaddedTokens

pytestmark = pytest.mark.filterwarnings("ignore")

VOCAB, CONTEXT, WIDTH, PATCH, SIDE, ANSWERS = 50, 10, 24, 4, 16, 7
SIZES = [(16, 24), (20, 16), (8, 28), (24, 24)]
TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def _config(kind=None, **changes):
    base = VARIANTS["vilt-b32"]
    vision = replace(
        base.vision,
        image_size=SIDE,
        patch=PATCH,
        width=WIDTH,
        depth=3,
        heads=3,
        hidden=4 * WIDTH,
        dropout=0.0,
    )
    text = replace(base.text, vocab=VOCAB, context=CONTEXT, width=WIDTH, dropout=0.0)
    image = ImageSpec(SIDE, HALF, HALF, fit="aspect", longest=28, multiple=PATCH)
    words = TextSpec("bert", CONTEXT, VOCAB)
    kind = kind or type(base)
    return kind(vision, text, image, words, **changes)


def _theirs(kind: str, **changes):
    import transformers

    torch.manual_seed(0)
    config = transformers.ViltConfig(
        vocab_size=VOCAB, max_position_embeddings=CONTEXT, hidden_size=WIDTH, num_hidden_layers=3,
        num_attention_heads=3, intermediate_size=4 * WIDTH, image_size=SIDE, patch_size=PATCH, layer_norm_eps=1e-6,
        **changes,
    )  # fmt: skip
    model = getattr(transformers, kind)(config).double().eval()
    if kind == "ViltForMaskedLM":  # untied, as the paper's and as the published files
        model.mlm_score.decoder.weight = nn.Parameter(model.mlm_score.decoder.weight.detach().clone())
        model.mlm_score.transform.LayerNorm.eps = 1e-12
    model.vilt.embeddings.text_embeddings.LayerNorm.eps = 1e-12
    return shake(model)


def _images(sizes=SIZES, seed: int = 1, batch: tuple[int, int] | None = None):
    """Pictures of those sizes, padded with zeros to the largest (or to `batch`), and the mask of real pixels."""
    draw = torch.Generator().manual_seed(seed)
    height, width = batch or (max(h for h, _ in sizes), max(w for _, w in sizes))
    images = torch.zeros(len(sizes), 3, height, width, dtype=torch.float64)
    mask = torch.zeros(len(sizes), height, width, dtype=torch.long)
    for image, real, (h, w) in zip(images, mask, sizes, strict=True):
        image[:, :h, :w] = torch.randn(3, h, w, dtype=torch.float64, generator=draw)
        real[:h, :w] = 1
    return images, mask


def _texts(count: int = 4, seed: int = 2):
    ids = torch.randint(1, VOCAB, (count, 8), generator=torch.Generator().manual_seed(seed))
    lengths = torch.tensor([8, 3, 6, 2] * (count // 4 + 1))[:count]
    keep = torch.arange(8) < lengths[:, None]
    return ids * keep, keep


def _inputs(sizes=SIZES):
    images, mask = _images(sizes)
    ids, keep = _texts(len(sizes))
    theirs = {"input_ids": ids, "attention_mask": keep.long(), "pixel_values": images, "pixel_mask": mask}
    return (images, ids, keep), theirs


def _gradients_agree(a, b, pairs):
    weight = torch.randn(a.shape, dtype=a.dtype, generator=torch.Generator().manual_seed(3))
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    for ours, theirs in pairs:
        assert theirs.grad.abs().max() > 1e-6
        torch.testing.assert_close(ours.grad, theirs.grad, **TIGHT)


def _stack_pairs(ours, vilt):
    e, layer = vilt.embeddings, vilt.encoder.layer
    return [
        (ours.vision.pos, e.position_embeddings),
        (ours.vision.cls, e.cls_token),
        (ours.vision.patch.proj.weight, e.patch_embeddings.projection.weight),
        (ours.vision.blocks[0].attn.out.weight, layer[0].attention.output.dense.weight),
        (ours.vision.blocks[2].mlp.fc1.bias, layer[2].intermediate.dense.bias),
        (ours.text.embed.tok.weight, e.text_embeddings.word_embeddings.weight),
        (ours.text.embed.pos.weight, e.text_embeddings.position_embeddings.weight),
        (ours.text.embed.norm.weight, e.text_embeddings.LayerNorm.weight),
        (ours.modality.weight, e.token_type_embeddings.weight),
    ]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("sizes", [SIZES, [(16, 16)] * 4], ids=["ragged", "square"])
def test_stack_equals_transformers(sizes, packed):
    theirs = _theirs("ViltForImageAndTextRetrieval")
    ours = ViLT(_config(match=False, words=False, rank=True)).double().eval()
    copy_hf_vilt(ours, theirs.vilt)
    _pair(ours.rank_head, theirs.rank_output)
    (images, ids, keep), inputs = _inputs(sizes)
    a = ours(images, ids, keep, packed=packed)
    b = theirs.vilt(**inputs)
    torch.testing.assert_close(a.pooled, b.pooler_output, **TIGHT)
    length = ids.shape[1]
    torch.testing.assert_close(a.text[keep], b.last_hidden_state[:, :length][keep], **TIGHT)
    torch.testing.assert_close(a.image[:, 0], b.last_hidden_state[:, length], **TIGHT)
    if len(set(sizes)) == 1:
        torch.testing.assert_close(a.image.sum(1), b.last_hidden_state[:, length:].sum(1), **TIGHT)
    scores = ours.rank_head(a.pooled)
    torch.testing.assert_close(scores, theirs(**inputs).logits, **TIGHT)
    # the model matches by the head that retrieval trained
    torch.testing.assert_close(ours.match(images, ids, keep), F.pad(scores, (1, 0)), **TIGHT)
    pairs = [*_stack_pairs(ours, theirs.vilt), (ours.rank_head.weight, theirs.rank_output.weight)]
    _gradients_agree(scores, theirs(**inputs).logits, pairs)


@pytest.mark.parametrize(
    ("part", "eps"), [("text.embed.norm", 1e-6), ("vision.norm", 1e-12), ("vision.blocks.1.mlp_norm", 1e-12)]
)
def test_another_epsilon_would_be_seen(part, eps):
    theirs = _theirs("ViltForImageAndTextRetrieval")
    ours = ViLT(_config(match=False, words=False, rank=True)).double().eval()
    copy_hf_vilt(ours, theirs.vilt)
    (images, ids, keep), inputs = _inputs()
    ours.get_submodule(part).eps = eps
    difference = (ours(images, ids, keep).pooled - theirs.vilt(**inputs).pooler_output).abs().max()
    assert difference > 1e-8


def test_masked_words_equal_transformers_and_their_table_is_their_own():
    """P8: a model that transformers builds from a config ties the decoder to the word table; the paper's does not."""
    import transformers

    tied = transformers.ViltForMaskedLM(
        transformers.ViltConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=3)
    )
    assert tied.mlm_score.decoder.weight is tied.vilt.embeddings.text_embeddings.word_embeddings.weight
    theirs = _theirs("ViltForMaskedLM")
    ours = ViLT(_config(match=False)).double().eval()
    copy_hf_vilt(ours, theirs.vilt)
    copy_hf_word_head(ours.mlm, theirs.mlm_score)
    (images, ids, keep), inputs = _inputs()
    a, b = ours.word_logits(images, ids, keep)[keep], theirs(**inputs).logits[keep]
    torch.testing.assert_close(a, b, **TIGHT)
    decoder = theirs.mlm_score.decoder
    words = theirs.vilt.embeddings.text_embeddings.word_embeddings
    _gradients_agree(a, b, [(ours.mlm.weight, decoder.weight), (ours.mlm.bias, decoder.bias),
                            (ours.text.embed.tok.weight, words.weight),
                            (ours.mlm.dense.weight, theirs.mlm_score.transform.dense.weight)])  # fmt: skip
    assert ours.mlm.weight.data_ptr() != ours.text.embed.tok.weight.data_ptr()
    ours.mlm.norm.eps = 1e-6
    assert (ours.word_logits(images, ids, keep)[keep] - b).abs().max() > 1e-8


def test_matching_equals_a_linear_map_of_transformers_pooler():
    """transformers dropped the matching head, so it is put on its pooled output here."""
    theirs, head = _theirs("ViltForImageAndTextRetrieval"), shake(nn.Linear(WIDTH, 2).double())
    ours = ViLT(_config(words=False)).double().eval()
    copy_hf_vilt(ours, theirs.vilt)
    _pair(ours.match_head, head)
    (images, ids, keep), inputs = _inputs()
    torch.testing.assert_close(
        ours.match(images, ids, keep), head(theirs.vilt(**inputs).pooler_output), **TIGHT
    )


def test_answers_equal_transformers():
    theirs = _theirs("ViltForQuestionAnswering", num_labels=ANSWERS)
    ours = ViLTVQA(_config(ViLTVQAConfig, answers=ANSWERS)).double().eval()
    copy_hf_vilt(ours, theirs.vilt)
    copy_hf_classifier(ours.answer_head, theirs.classifier)
    (images, ids, keep), inputs = _inputs()
    a, b = ours.answer_logits(images, ids, keep), theirs(**inputs).logits
    torch.testing.assert_close(a, b, **TIGHT)
    _gradients_agree(
        a, b, [*_stack_pairs(ours, theirs.vilt), (ours.answer_head.norm.weight, theirs.classifier[1].weight)]
    )
    ours.answer_head.norm.eps = 1e-6
    assert (ours.answer_logits(images, ids, keep) - b).abs().max() > 1e-8


def test_two_pictures_equal_transformers():
    theirs = _theirs(
        "ViltForImagesAndTextClassification", num_labels=2, num_images=2, modality_type_vocab_size=3
    )
    ours = ViLTNLVR2(_config(ViLTNLVR2Config)).double().eval()
    copy_hf_vilt(ours, theirs.vilt)
    copy_hf_classifier(ours.compare_head, theirs.classifier)
    (first, ids, keep), inputs = _inputs()
    second, mask = _images(SIZES[::-1], seed=5)
    inputs["pixel_values"] = torch.stack([inputs["pixel_values"], second], 1)
    inputs["pixel_mask"] = torch.stack([inputs["pixel_mask"], mask], 1)
    a, b = ours.compare(first, second, ids, keep), theirs(**inputs).logits
    torch.testing.assert_close(a, b, **TIGHT)
    _gradients_agree(
        a, b, [*_stack_pairs(ours, theirs.vilt), (ours.compare_head.fc1.weight, theirs.classifier[0].weight)]
    )


def test_the_lottery_of_the_reference_given_its_draws():
    """With a cap transformers (and the release) read random patches in evaluation; the same ones give the same here."""
    theirs = _theirs("ViltForImageAndTextRetrieval", max_image_length=12)
    ours = ViLT(_config(match=False, words=False, rank=True)).double().eval()
    copy_hf_vilt(ours, theirs.vilt)
    (images, ids, keep), inputs = _inputs()
    embed, drawn = theirs.vilt.embeddings.visual_embed, []

    def told(*args, **kwargs):
        out = embed(*args, **kwargs)
        drawn.append((out[2][0], out[1][:, 1:].bool()))
        return out

    theirs.vilt.embeddings.visual_embed = told
    results = [theirs.vilt(**inputs).pooler_output for _ in range(2)]
    assert (results[0] - results[1]).abs().max() > 1e-4  # P9
    whole = ours.embed_images(images)
    for expected, (places, real) in zip(results, drawn, strict=True):
        index = 1 + places[..., 0] * (images.shape[3] // PATCH) + places[..., 1]
        chosen = whole.tokens.gather(1, index[..., None].expand(-1, -1, WIDTH))
        tokens = torch.cat([whole.tokens[:, :1], chosen], 1)
        patches = PaddedTokens(tokens, F.pad(real, (1, 0), value=True), ragged=True)
        torch.testing.assert_close(ours(patches, ids, keep).pooled, expected, **TIGHT)


def test_parameters_are_those_of_the_paper():
    counts = {
        name: sum(p.numel() for p in mmzoo.create_model(name, device="meta").parameters())
        for name in VARIANTS
    }
    head = sum(p.numel() for p in mmzoo.create_model("vilt-b32", device="meta").mlm.parameters())
    assert round((counts["vilt-b32"] - head) / 1e6, 1) == 111.6
    assert round(head / 1e6, 2) == 24.06


def test_fine_tuning_starts_as_in_the_release():
    model = shake(ViLT(_config()).double())
    ranking = grown(model, _config(words=False, rank=True))
    torch.testing.assert_close(ranking.rank_head.weight, model.match_head.weight[1:])
    torch.testing.assert_close(ranking.rank_head.bias, model.match_head.bias[1:])
    pairs = grown(model, _config(ViLTNLVR2Config))
    assert torch.equal(pairs.modality.weight, model.modality.weight[[0, 1, 1]])
    assert torch.equal(pairs.vision.blocks[1].mlp.fc1.weight, model.vision.blocks[1].mlp.fc1.weight)
    assert pairs.modality.weight.data_ptr() != model.modality.weight.data_ptr()
