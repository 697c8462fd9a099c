"""RandAugment: what is drawn how often, and that the operations have the strength of the released code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mmzoo.data.reader import Changed
from mmzoo.errors import UsageError
from mmzoo.processing.image import TrainTransform
from mmzoo.processing.randaugment import OPERATIONS, POLICIES, RandAugment
from mmzoo.spec import ImageSpec

COLOURS = {"color", "contrast", "posterize", "solarize", "solarize_add"}


def noise(size=40, seed=0):
    return torch.randint(
        0, 256, (3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def done(name, pixels, policy, level, sign=1.0):
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    made = OPERATIONS[name](image, level / POLICIES[policy].levels, sign, POLICIES[policy])
    return np.asarray(made).astype(int).transpose(2, 0, 1)


def test_the_operations_are_those_of_the_released_code():
    assert len(POLICIES["albef"].operations) == 10
    assert not COLOURS & set(POLICIES["albef"].operations)
    assert len(POLICIES["vilt"].operations) == 14
    assert set(POLICIES["vilt"].operations) >= COLOURS
    assert all(set(policy.operations) <= set(OPERATIONS) for policy in POLICIES.values())


def test_strengths():
    """Level 7 of ALBEF's 10 and 9 of ViLT's 30."""
    pixels = noise()
    x = pixels.numpy().astype(int)
    assert np.abs(done("brightness", pixels, "albef", 7) - np.clip(x * 1.36, 0, 255)).max() <= 1
    assert np.abs(done("brightness", pixels, "vilt", 9) - x * 0.64).max() <= 1
    right = done("translate_x", pixels, "albef", 7)
    assert (right[:, :, :-7] == x[:, :, 7:]).all()
    assert (right[:, :, -7:] == 128).all()
    down = done("translate_y", pixels, "vilt", 9, sign=-1.0)
    assert (down[:, 30:] == x[:, :-30]).all()
    assert (down[:, :30] == 0).all()
    assert set(np.unique(done("posterize", pixels, "vilt", 9))) == {0, 128}
    assert (done("solarize", pixels, "vilt", 9) == np.where(x < 76, x, 255 - x)).all()
    more = np.clip(x + 33, 0, 255)
    assert (done("solarize_add", pixels, "vilt", 9) == np.where(more < 128, more, 255 - more)).all()
    # row r of a sheared picture moves by 0.3 * 0.9 * r to either side: 10 rows move 2.7 pixels
    bar = torch.zeros(3, 40, 40, dtype=torch.uint8)
    bar[:, :, 20] = 255
    sheared = done("shear_x", bar, "vilt", 27)
    assert abs(int(sheared[0, 0].argmax()) - int(sheared[0, 30].argmax()) - 30 * 0.27) <= 1
    turned, back = (done("rotate", bar, "vilt", 30, sign=sign)[0] for sign in (1.0, -1.0))
    assert turned[10].argmax() != back[10].argmax()
    rows = np.array([turned[r].argmax() for r in range(8, 32)])
    slope = np.polyfit(range(8, 32), rows, 1)[0]
    assert abs(abs(slope) - np.tan(np.radians(30))) < 0.05


def test_half_of_albefs_operations_are_carried_out_and_all_of_vilts(monkeypatch):
    told = []

    def noted(name):
        def operation(image, *rest):
            told.append(name)
            return image

        return operation

    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, noted(name))
    generator = torch.Generator().manual_seed(0)
    for policy, level, expected in (("albef", 7, 0.5), ("vilt", 9, 1.0)):
        told.clear()
        for _ in range(500):
            RandAugment(policy, level)(noise(4), generator)
        assert len(told) / 1000 == pytest.approx(expected, abs=0.05)
        shares = [told.count(name) / len(told) for name in POLICIES[policy].operations]
        assert min(shares) > 0.5 / len(shares)
        assert max(shares) < 1.6 / len(shares)


def test_a_generators_state_decides_and_the_same_number_is_drawn_every_time():
    change, pixels = RandAugment("albef", 7), noise()
    one, two = (torch.Generator().manual_seed(3) for _ in range(2))
    for _ in range(20):
        made = change(pixels, one)
        assert torch.equal(made, change(pixels, two))
        assert made.shape == pixels.shape
        assert made.dtype == torch.uint8
        assert torch.equal(one.get_state(), two.get_state())
    fresh = torch.Generator().manual_seed(3)
    torch.rand(20 * 6, generator=fresh)
    assert torch.equal(torch.rand(1, generator=fresh), torch.rand(1, generator=one))


def test_it_follows_the_crop():
    picture = Image.fromarray(noise(64).permute(1, 2, 0).numpy())
    cut = TrainTransform(ImageSpec(32), scale=(0.2, 1.0), flip=True)
    generator = torch.Generator().manual_seed(0)
    made = Changed(cut, RandAugment("albef", 7, count=8))(picture, generator)
    assert made.shape == (3, 32, 32)
    assert not torch.equal(made, cut(picture, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("simclr", 1), "no policy 'simclr'; there are albef, vilt"),
        (("albef", 11), r"level of albef lies in 0\.\.10, not 11"),
        (("vilt", -1), r"level of vilt lies in 0\.\.30"),
        (("vilt", 9, 0), "count is 0"),
    ],
)
def test_what_is_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        RandAugment(*settings)
