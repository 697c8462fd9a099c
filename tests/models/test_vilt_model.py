"""ViLT's promises: no pair's result depends on its batch, padding is never read, patches are capped in training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mmzoo
from mmzoo.errors import ZooError
from mmzoo.layers.patch import real_grids, sample_patches
from mmzoo.models.capabilities import AnswersFromList, ScoresPairs
from mmzoo.models.vilt import VARIANTS, ViLT, ViLTConfig, ViLTVQA, ViLTVQAConfig
from mmzoo.spec import ImageSpec
from mmzoo.start import grown

SIZES = [(64, 80), (40, 96), (64, 64), (8, 24)]
PATCH = 8


@pytest.fixture
def model() -> ViLT:
    torch.manual_seed(0)
    return ViLT(VARIANTS["vilt-tiny"]).double().eval()


def _pad(pictures, height: int | None = None, width: int | None = None) -> torch.Tensor:
    height = height or max(p.shape[1] for p in pictures)
    width = width or max(p.shape[2] for p in pictures)
    out = torch.zeros(len(pictures), 3, height, width, dtype=torch.float64)
    for row, picture in zip(out, pictures, strict=True):
        row[:, : picture.shape[1], : picture.shape[2]] = picture
    return out


@pytest.fixture
def pictures() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(3, h, w, dtype=torch.float64, generator=draw) for h, w in SIZES]


@pytest.fixture
def texts() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(5, 200, (4, 9), generator=torch.Generator().manual_seed(2))
    return ids, torch.arange(9) < torch.tensor([9, 2, 5, 7])[:, None]


@pytest.mark.parametrize("packed", [None, False, True])
def test_a_pair_does_not_depend_on_its_batch(model, pictures, texts, packed):
    """P9: the reference's result changes with whatever else is in the batch, and from call to call."""
    ids, keep = texts
    together = model(_pad(pictures, 104, 96), ids, keep, packed=packed)
    again = model(_pad(pictures, 104, 96), ids, keep, packed=packed)
    assert torch.equal(together.pooled, again.pooled)
    for i, picture in enumerate(pictures):
        real = int(keep[i].sum())
        alone = model(picture[None], ids[i : i + 1, :real], keep[i : i + 1, :real])
        torch.testing.assert_close(together.pooled[i], alone.pooled[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(together.text[i, :real], alone.text[0], rtol=1e-10, atol=1e-10)
        patches = together.image[i][together.image_keep[i]]
        torch.testing.assert_close(patches, alone.image[0], rtol=1e-10, atol=1e-10)


def test_packed_equals_masked_with_gradients(model, pictures, texts):
    ids, keep = texts
    images = _pad(pictures)
    grads = []
    for packed in (False, True):
        model.zero_grad()
        out = model(images, ids, keep, packed=packed)
        (
            out.pooled.sum() + out.text[keep].square().sum() + out.image[out.image_keep].square().sum()
        ).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_padding_is_never_read(model, pictures, texts):
    """What stands in padded texts and pictures gets no gradient and changes nothing."""
    ids, keep = texts
    images = _pad(pictures).requires_grad_()
    sizes = [(p.shape[1], p.shape[2]) for p in pictures]
    out = model(model.embed_images(images, sizes), ids, keep)
    out.pooled.square().sum().backward()
    for grad, (h, w) in zip(images.grad, sizes, strict=True):
        assert grad[:, :h, :w].abs().max() > 0
        assert grad[:, h:].abs().sum() == grad[:, :, w:].abs().sum() == 0
    other = model(images, ids.masked_fill(~keep, 7), keep)
    torch.testing.assert_close(other.pooled, out.pooled, rtol=1e-12, atol=1e-12)


def test_sizes_told_equal_sizes_found(model, pictures):
    sizes = [(p.shape[1], p.shape[2]) for p in pictures]
    found, told = model.embed_images(_pad(pictures)), model.embed_images(_pad(pictures), sizes)
    assert torch.equal(found.tokens, told.tokens)
    assert torch.equal(found.keep, told.keep)
    assert found.keep.sum(1).tolist() == [1 + h * w // PATCH**2 for h, w in sizes]
    for wrong in (sizes[:3], [(64, 81), *sizes[1:]], [(72, 80), *sizes[1:]], [(0, 8), *sizes[1:]]):
        with pytest.raises(ZooError, match="sizes must be 4 heights and widths"):
            model.embed_images(_pad(pictures), wrong)


def test_texts_index_images(model, pictures, texts):
    ids, keep = texts
    index = torch.tensor([2, 0, 0, 3])
    patches = model.embed_images(_pad(pictures))
    indexed = model.match(patches, ids, keep, index)
    torch.testing.assert_close(indexed, model.match(_pad(pictures)[index], ids, keep), rtol=1e-12, atol=1e-12)
    with pytest.raises(ZooError, match="give image_index"):
        model.match(patches, ids[:2], keep[:2])


def test_an_erased_corner_is_no_padding():
    """A hole of zeros inside a picture leaves its size alone; only what lies beyond all real pixels is padding."""
    image = torch.ones(1, 3, 32, 40)
    image[:, :, :8, :8] = 0
    image[:, :, 24:] = 0
    assert real_grids(image, 8) == [(3, 5)]
    one_channel = torch.zeros(1, 3, 16, 16)
    one_channel[:, 1] = -0.5
    assert real_grids(one_channel, 8) == [(2, 2)]


def test_zero_pictures_are_refused(model, texts):
    ids, keep = texts
    with pytest.raises(ZooError, match="picture 1 of the batch is zero all over"):
        model.match(torch.stack([torch.ones(3, 64, 64), torch.zeros(3, 64, 64)]).double(), ids[:2], keep[:2])
    with pytest.raises(ZooError, match="do not divide into patches of 8"):
        model.match(torch.ones(2, 3, 60, 64).double(), ids[:2], keep[:2])


def test_training_caps_patches_and_evaluation_does_not(pictures, texts):
    torch.manual_seed(0)
    model = ViLT(replace(VARIANTS["vilt-tiny"], max_patches=20)).double()
    images = _pad(pictures)
    assert model.eval().embed_images(images).keep.sum(1).tolist() == [81, 61, 65, 4]
    model.train()
    first, second = model.embed_images(images), model.embed_images(images)
    assert first.keep.sum(1).tolist() == [21, 21, 21, 4]
    assert first.tokens.shape[1] == 21
    assert not torch.equal(first.tokens, second.tokens)
    whole = model.eval().embed_images(images)
    for row, real, all_patches in zip(first.tokens, first.keep, whole.tokens, strict=True):
        for token in row[real]:  # each is one of the picture's own, with its own position
            assert (all_patches - token).abs().amax(1).min() < 1e-12
    ids, keep = texts
    assert model.train().match(images, ids, keep).isfinite().all()


def test_the_lottery_needs_its_flag(pictures, texts):
    ids, keep = texts
    torch.manual_seed(0)
    for flag in (False, True):
        model = ViLT(replace(VARIANTS["vilt-tiny"], max_patches=20, sample_in_eval=flag)).double().eval()
        images = _pad(pictures)
        assert torch.equal(model.match(images, ids, keep), model.match(images, ids, keep)) is not flag


def test_sampled_patches_are_even():
    """Every real patch has the same chance, no padded one has any while there are real ones, and order is kept."""
    keep = torch.arange(12) < torch.tensor([12, 9, 3])[:, None]
    torch.manual_seed(0)
    counts = torch.zeros(3, 12)
    for _ in range(2000):
        index, real = sample_patches(keep, 6)
        assert (index.diff(dim=1) > 0).all()
        assert torch.equal(real, keep.gather(1, index))
        counts.scatter_add_(1, index, real.float())
    assert (counts[0] / 2000 - 6 / 12).abs().max() < 0.05
    assert (counts[1, :9] / 2000 - 6 / 9).abs().max() < 0.05
    assert counts[2].tolist() == [2000.0] * 3 + [0.0] * 9


def test_heads_decide_what_a_model_can_do(model, pictures, texts):
    answering = grown(model, ViLTVQAConfig(*_stack(), answers=5))
    assert isinstance(model, ScoresPairs)
    assert not isinstance(model, AnswersFromList)
    assert isinstance(answering, AnswersFromList)
    assert not isinstance(answering, ScoresPairs)
    assert answering.answer_logits(_pad(pictures), *texts).shape == (4, 5)
    bare = ViLT(ViLTConfig(*_stack(), match=False, words=False)).double().eval()
    with pytest.raises(ZooError, match="no head that matches"):
        bare.match(_pad(pictures), *texts)
    with pytest.raises(ZooError, match="no head for masked words"):
        bare.word_logits(_pad(pictures), *texts)
    vision, *inputs = _stack()
    narrow = ViLTVQAConfig(replace(vision, hidden=96), *inputs)
    with pytest.raises(ZooError, match=r"does not fit ViLTVQA.*vision\."):
        grown(model, narrow)


def _stack():
    c = VARIANTS["vilt-tiny"]
    return c.vision, c.text, c.image, c.text_input


def test_configs_that_cannot_be_are_refused():
    c = VARIANTS["vilt-tiny"]
    with pytest.raises(ZooError, match="without blocks of their own"):
        replace(c, text=replace(c.text, depth=2))
    with pytest.raises(ZooError, match="make them equal"):
        replace(c, text_input=replace(c.text_input, vocab=7))
    with pytest.raises(ZooError, match="makes a pixel exactly 0"):
        replace(c, image=ImageSpec(64, (0.0,) * 3, (1.0,) * 3, fit="aspect", longest=106, multiple=8))


def test_another_image_size_resamples_the_table(tmp_path):
    model = mmzoo.create_model("vilt-tiny")
    mmzoo.save(model, tmp_path / "m")
    c = model.config
    larger = replace(c, vision=replace(c.vision, image_size=96), image=replace(c.image, size=96, longest=160))
    filled = mmzoo.create_model("vilt-tiny", config=larger, pretrained=tmp_path / "m")
    assert filled.vision.pos.shape == (1, 145, 64)
    corners = [1, 12, 133, 144]  # of 12 x 12: corners stay where they are when corners are aligned
    torch.testing.assert_close(filled.vision.pos[0, corners], model.vision.pos[0, [1, 8, 57, 64]])


@pytest.mark.parametrize("size", [(1, 1), (10_000, 10), (10, 10_000)])
def test_extreme_pictures_are_read(size):
    from PIL import Image

    processor = mmzoo.create_processor("vilt-tiny")
    model = mmzoo.create_model("vilt-tiny")
    images = processor.images([Image.new("RGB", size, "red"), Image.new("RGB", (64, 64), "blue")])
    assert model.match(images, *processor.texts(["a red line", "blue"])).isfinite().all()


def test_bfloat16_runs(model, pictures, texts):
    half = ViLT(VARIANTS["vilt-tiny"]).to(torch.bfloat16).eval()
    assert half.match(_pad(pictures).to(torch.bfloat16), *texts).isfinite().all()


def test_vqa_is_told_from_a_config():
    assert isinstance(mmzoo.create_model("vilt-b32-vqa", device="meta"), ViLTVQA)
