"""Pictures that keep their shape: sizes, padding, and what training does with them."""

from __future__ import annotations

import io
import itertools

import pytest
import torch
from PIL import Image

from mmzoo.data.cached import CachedReader
from mmzoo.data.collate import ClassCollate
from mmzoo.data.reader import BatchReader, Normalise, Prepare, Step, Whole
from mmzoo.data.sample import Sample
from mmzoo.errors import UsageError, ZooError
from mmzoo.processing.augment import BatchAugment
from mmzoo.processing.image import ImageTransform, TrainTransform
from mmzoo.spec import HALF, ImageSpec

VILT = ImageSpec(384, HALF, HALF, fit="aspect", longest=639, multiple=32)
SMALL = ImageSpec(64, HALF, HALF, fit="aspect", longest=106, multiple=8)
SIZES = [
    (640, 480),
    (480, 640),
    (333, 500),
    (500, 333),
    (1, 1),
    (10_000, 10),
    (10, 10_000),
    (384, 384),
    (97, 211),
]


def _photo(width: int, height: int) -> Image.Image:
    noise = torch.randint(
        0, 256, (height, width, 3), generator=torch.Generator().manual_seed(width), dtype=torch.uint8
    )
    return Image.fromarray(noise.numpy())


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_sizes_are_those_of_transformers(width, height):
    """An independent reading of ViLT's rule; strips have no picture at all there, and one row of patches here."""
    from transformers import ViltImageProcessor

    rows, columns = VILT.aspect_size(height, width)
    assert rows % 32 == columns % 32 == 0
    assert 32 <= min(rows, columns) <= 384
    assert max(rows, columns) <= 608
    if max(width, height) > 20 * min(width, height):
        assert sorted((rows, columns)) == [32, 608]
        return
    theirs = ViltImageProcessor()(_photo(width, height), return_tensors="pt")["pixel_values"]
    assert tuple(theirs.shape[2:]) == (rows, columns)


def test_a_batch_is_that_of_transformers():
    """Same sizes, same padding; pixels up to the 16-bit weights of torchvision's uint8 filter."""
    from transformers import ViltImageProcessor

    photos = [_photo(60, 40), _photo(33, 77), _photo(50, 50)]
    theirs = ViltImageProcessor()(photos, return_tensors="pt")
    ours = ImageTransform(VILT)(photos)
    torch.testing.assert_close(ours, theirs["pixel_values"], rtol=0, atol=1.01 / 127.5)
    assert torch.equal((ours != 0).any(1), theirs["pixel_mask"].bool())


def test_padding_is_exactly_zero_and_no_real_pixel_is():
    grey = [Image.new("RGB", (50, 40), (level,) * 3) for level in (0, 127, 128, 255)]
    images = ImageTransform(SMALL)([*grey, _photo(40, 60)])
    assert images.shape == (5, 3, 96, 80)
    assert (images[:4, :, :64, :80] != 0).all()
    assert (images[:4, :, 64:] == 0).all()
    assert (images[4, :, :, 64:] == 0).all()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (10_000, 10), (10, 10_000)])
def test_extreme_pictures_have_a_result(width, height):
    images = ImageTransform(VILT)([_photo(width, height)])
    assert torch.isfinite(images).all()
    assert images.shape[2] * images.shape[3] <= 384 * 608


def test_spec_refuses_half_of_it():
    with pytest.raises(ZooError, match="longest and multiple"):
        ImageSpec(384, fit="aspect")
    with pytest.raises(ZooError, match="longest and multiple"):
        ImageSpec(384, longest=639, multiple=32)


def test_training_sees_whole_pictures():
    with pytest.raises(UsageError, match="whole pictures"):
        TrainTransform(SMALL)
    photo = _photo(90, 60)
    draw = torch.Generator().manual_seed(0)
    plain = TrainTransform(SMALL, scale=(1, 1))(photo, draw)
    assert torch.equal(plain, ImageTransform(SMALL).pixels(photo))
    flips = {TrainTransform(SMALL, scale=(1, 1), flip=True)(photo, draw)[0, 0, 0].item() for _ in range(20)}
    assert flips == {plain[0, 0, 0].item(), plain[0, 0, -1].item()}


def test_fast_decode_keeps_the_size():
    data = io.BytesIO()
    _photo(900, 600).save(data, "JPEG")
    fast = TrainTransform(SMALL, scale=(1, 1), fast_decode=True)(data.getvalue(), torch.Generator())
    assert fast.shape == (3, *SMALL.aspect_size(600, 900))


class _Photos:
    name, classes = "photos", ("a", "b")

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Sample:
        photo = (_photo(90, 60), _photo(60, 90), _photo(64, 64), _photo(80, 60))[i]
        return Sample(str(i), photo, (), (), (i,), i % 2)


@pytest.mark.parametrize("augment", [None, BatchAugment(translate=0.2, fill=0.5, brightness=0.2)])
def test_readers_pad_after_augmenting(augment):
    """Also a fill colour that equals the mean is no padding afterwards."""
    prepare = Prepare(
        Whole(ImageTransform(SMALL)),
        Normalise(SMALL, augment),
        ClassCollate(),
        seed=0,
        train=augment is not None,
    )
    step = Step(0, 0, [0, 1, 2, 3])
    read = BatchReader(_Photos(), prepare)[step].batch
    cached = CachedReader(_Photos(), prepare, SMALL.size)[step].batch
    assert torch.equal(read.images, cached.images)
    assert read.images.shape == (4, 3, 96, 96)
    for image, index in zip(read.images, itertools.count(), strict=False):
        width, height = _Photos()[index].image.size
        rows, columns = SMALL.aspect_size(height, width)
        assert (image[:, :rows, :columns] != 0).all()
        assert (image[:, rows:] == 0).all()
        assert (image[:, :, columns:] == 0).all()


def test_one_size_for_all_needs_no_padding():
    same = [_photo(64, 64), _photo(128, 128)]
    assert ImageTransform(SMALL)(same).shape == (2, 3, 64, 64)
