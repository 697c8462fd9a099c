"""Batch augmentation against torchvision's functions, and its dependence on the generator alone."""

import math
import time

import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V

from mmzoo.errors import UsageError
from mmzoo.processing.augment import BatchAugment, _uniform

EVERYTHING = BatchAugment(
    rotate=15,
    scale=(0.8, 1.2),
    translate=0.1,
    shear=8,
    flip=0.5,
    brightness=0.3,
    contrast=0.3,
    saturation=0.4,
    hue=20,
    grey=0.1,
    blur=0.3,
    erase=0.3,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(count: int, height: int = 40, width: int = 40) -> torch.Tensor:
    """Soft pictures in 0.2..0.8, so that resampling differences and clamping stay out of the way."""
    coarse = torch.rand(count, 3, 5, 5, generator=seeded(0)) * 0.6 + 0.2
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0.2, 0.8)


def test_defaults_change_nothing():
    images = smooth(4)
    assert torch.equal(BatchAugment()(images, seeded(0)), images)


def test_only_the_generator_decides():
    images = smooth(6)
    before = images.clone()
    torch.manual_seed(1)
    first = EVERYTHING(images, seeded(3))
    torch.manual_seed(2)
    assert torch.equal(EVERYTHING(images, seeded(3)), first)
    assert not torch.equal(EVERYTHING(images, seeded(4)), first)
    assert torch.equal(images, before)
    assert first.shape == images.shape
    assert first.dtype == torch.float32
    assert first.min() >= 0
    assert first.max() <= 1


def test_every_picture_gets_its_own_change():
    same = smooth(1).expand(16, -1, -1, -1)
    for augment in (
        BatchAugment(rotate=20),
        BatchAugment(scale=(0.5, 2.0)),
        BatchAugment(translate=0.2),
        BatchAugment(shear=20),
        BatchAugment(brightness=0.4),
        BatchAugment(contrast=0.4),
        BatchAugment(saturation=0.4),
        BatchAugment(hue=40),
    ):
        out = augment(same, seeded(0))
        assert len({picture.numpy().tobytes() for picture in out}) == 16, augment


def test_uint8_and_unit_floats_are_the_same():
    pixels = torch.randint(0, 256, (4, 3, 20, 20), dtype=torch.uint8, generator=seeded(0))
    assert torch.equal(EVERYTHING(pixels, seeded(1)), EVERYTHING(pixels.float() / 255, seeded(1)))


@pytest.mark.parametrize("shape", [(40, 40), (30, 50)])
def test_geometry_equals_torchvision(shape):
    height, width = shape
    images = smooth(8, height, width)
    cases = {
        "rotate": BatchAugment(rotate=30),
        "scale": BatchAugment(scale=(0.6, 1.5)),
        "both": BatchAugment(rotate=25, scale=(0.7, 1.4)),
        "translate": BatchAugment(translate=0.2),
    }
    for name, augment in cases.items():
        out = augment(images, seeded(5))
        draw = _uniform(8, 8, images, seeded(5))
        for i, image in enumerate(images):
            low, high = (math.log(s) for s in augment.scale)
            angle = -augment.rotate * (2 * draw[1, i] - 1)  # torchvision turns the other way round
            shift = [-augment.translate * (2 * draw[j, i] - 1) * n for j, n in ((5, width), (6, height))]
            # A fourth channel marks the picture less its rim, where the two blend with the fill differently.
            rim = torch.zeros(1, height, width)
            rim[:, 2:-2, 2:-2] = 1
            expected = V.affine(
                torch.cat([image, rim]),
                angle=float(angle),
                translate=[float(s) for s in shift],
                scale=math.exp(low + (high - low) * float(draw[2, i])),
                shear=[0.0, 0.0],
                interpolation=InterpolationMode.BILINEAR,
                fill=[0.0] * 4,
            )
            inside = expected[3] > 0.999
            assert inside.float().mean() > 0.2, name
            assert (out[i] - expected[:3])[:, inside].abs().max() < 1e-5, name


def test_shear_moves_rows_and_columns_by_the_tangent():
    images = torch.zeros(16, 3, 41, 41)
    images[..., 20, :] = 1.0  # a horizontal and
    images[..., :, 20] = 1.0  # a vertical line through the centre
    augment = BatchAugment(shear=30, fill=0.0)
    out = augment(images, seeded(2))
    draw = _uniform(8, 16, images, seeded(2))
    for i in range(16):
        along_x, along_y = (math.tan(math.radians(30) * (2 * float(draw[j, i]) - 1)) for j in (3, 4))
        grid_y, grid_x = torch.meshgrid(torch.arange(-20.0, 21), torch.arange(-20.0, 21), indexing="ij")
        source_x, source_y = grid_x + along_x * grid_y, along_y * grid_x + grid_y
        near = (source_x.abs() < 0.4) | (source_y.abs() < 0.4)
        far = (
            ((source_x.abs() > 1.1) & (source_y.abs() > 1.1)) | (source_x.abs() > 21) | (source_y.abs() > 21)
        )
        near &= (source_x.abs() < 19) & (source_y.abs() < 19)
        assert out[i, 0][near].min() > 0.5
        assert out[i, 0][far].max() < 1e-3


def test_what_comes_from_outside_has_the_fill_colour():
    for fill in (0.0, 0.5, 1.0):
        out = BatchAugment(scale=(0.25, 0.25), fill=fill)(torch.full((2, 3, 40, 40), 0.3), seeded(0))
        assert (out[..., :10, :] - fill).abs().max() < 1e-6
        assert (out[..., 18:22, 18:22] - 0.3).abs().max() < 1e-5


def test_flip_is_an_exact_mirror():
    images = torch.rand(200, 3, 9, 9, generator=seeded(0))
    for augment in (BatchAugment(flip=0.3), BatchAugment(flip=0.3, rotate=1e-7)):
        out = augment(images, seeded(1))
        flipped = ((out - images.flip(-1)).abs().amax((1, 2, 3)) < 1e-5).sum()
        kept = ((out - images).abs().amax((1, 2, 3)) < 1e-5).sum()
        assert flipped + kept == 200
        assert 35 < flipped < 85
    assert torch.equal(BatchAugment(flip=1.0)(images, seeded(0)), images.flip(-1))


@pytest.mark.parametrize(
    ("name", "row", "function"),
    [
        ("brightness", 0, V.adjust_brightness),
        ("contrast", 1, V.adjust_contrast),
        ("saturation", 2, V.adjust_saturation),
    ],
)
def test_colour_equals_torchvision(name, row, function):
    images = smooth(12)
    out = BatchAugment(**{name: 0.9})(images, seeded(7))
    factors = 1 + 0.9 * (2 * _uniform(5, 12, images, seeded(7))[row] - 1)
    assert factors.max() - factors.min() > 0.5
    for picture, image, factor in zip(out, images, factors):
        # torchvision weighs grey with 0.2989, 0.587, 0.114, whose sum is 0.9999
        assert (picture - function(image, float(factor))).abs().max() < 5e-4


def test_combined_colour_is_saturation_then_brightness_then_contrast():
    images = smooth(12) * 0.5 + 0.2
    out = BatchAugment(brightness=0.3, contrast=0.3, saturation=0.3)(images, seeded(7))
    draw = _uniform(5, 12, images, seeded(7))
    for i, image in enumerate(images):
        bright, contrast, colour = (float(1 + 0.3 * (2 * draw[j, i] - 1)) for j in range(3))
        expected = V.adjust_contrast(
            V.adjust_brightness(V.adjust_saturation(image, colour), bright), contrast
        )
        assert (out[i] - expected).abs().max() < 1e-3


def test_hue_turns_about_the_grey_axis():
    images = smooth(16) * 0.3 + 0.35
    out = BatchAugment(hue=90)(images, seeded(0))
    assert (out.mean(1) - images.mean(1)).abs().max() < 1e-5  # position on the axis
    assert (out.var(1) - images.var(1)).abs().max() < 1e-5  # distance from it
    assert (out - images).abs().max() > 0.02
    greys = images.mean(1, keepdim=True).expand_as(images)
    assert (BatchAugment(hue=90)(greys, seeded(0)) - greys).abs().max() < 1e-5
    # At its largest it leaves red near green or near blue: 120 degrees exchange the channels.
    angles = 120 * (2 * _uniform(5, 2000, images, seeded(1))[3] - 1)
    index = int(angles.argmax())
    assert angles[index] > 119
    red = torch.zeros(2000, 3, 1, 1)
    red[:, 0] = 1.0
    turned = BatchAugment(hue=120)(red, seeded(1))[index].flatten()
    assert turned.argmax() == 1
    assert turned[1] > 0.98


def test_grey_takes_all_colour_from_a_share():
    images = smooth(200)
    out = BatchAugment(grey=0.25)(images, seeded(0))
    colourless = (out - out[:, :1]).abs().amax((1, 2, 3)) < 1e-5
    assert 30 < colourless.sum() < 70
    assert (out - images)[~colourless].abs().max() < 1e-5
    expected = V.rgb_to_grayscale(images[colourless], num_output_channels=3)
    assert (out[colourless] - expected).abs().max() < 5e-4


def test_blur_is_the_binomial_kernel_on_a_share():
    images = torch.rand(100, 3, 12, 12, generator=seeded(0))
    out = BatchAugment(blur=0.5)(images, seeded(1))
    touched = (out - images).abs().amax((1, 2, 3)) > 0
    assert 30 < touched.sum() < 70
    line = torch.tensor([1.0, 2, 1]) / 4
    kernel = (line[:, None] * line).expand(3, 1, 3, 3)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    expected = torch.nn.functional.conv2d(padded, kernel, groups=3)
    assert (out - expected)[touched].abs().max() < 1e-6


def test_erasing_paints_one_rectangle_of_the_wanted_size():
    images = torch.full((300, 3, 50, 50), 0.25)
    out = BatchAugment(erase=0.5, erase_area=(0.1, 0.3), fill=0.75)(images, seeded(0))
    hidden = out[:, 0] == 0.75
    assert torch.equal(hidden, (out != 0.25).all(1))
    touched = hidden.flatten(1).any(1)
    assert 110 < touched.sum() < 190
    share = hidden[touched].float().mean((1, 2))
    assert 0.07 < share.min() < 0.15
    assert 0.25 < share.max() < 0.33
    for mask in hidden[touched]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns[None, :])


def test_extreme_settings_stay_finite():
    augment = BatchAugment(
        contrast=1.0, brightness=1.0, saturation=1.0, hue=180, grey=1.0, scale=(0.01, 100.0)
    )
    for seed in range(20):
        assert augment(smooth(8), seeded(seed)).isfinite().all()


def test_a_batch_of_small_pictures_takes_milliseconds():
    """Measured: 8 ms of one thread for 128 pictures of 48 pixels."""
    images = torch.randint(0, 256, (128, 3, 48, 48), dtype=torch.uint8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        best = float("inf")
        for _ in range(8):
            start = time.process_time()
            EVERYTHING(images, seeded(0))
            best = min(best, time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    assert best < 0.025


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flip": 1.5}, "flip must lie in 0..1"),
        ({"fill": -1}, "fill must lie in 0..1"),
        ({"rotate": -5}, "rotate must not be negative"),
        ({"shear": 90}, "shear must lie in 0..90"),
        ({"scale": (1.2, 0.8)}, "scale must be two numbers"),
        ({"erase_area": (0.0, 0.5)}, "erase_area must be two shares"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        BatchAugment(**settings)
