"""Decoding of good and bad files, and the transforms against open_clip's and PIL's own resizing."""

import io
import math
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from mmzoo.errors import UsageError, ZooError
from mmzoo.processing import decode
from mmzoo.processing import image as image_module
from mmzoo.processing.image import BadImage, ImageTransform, TrainTransform, decode_image, normalize
from mmzoo.spec import HALF, ImageSpec

FILTER = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
SHAPES = [(640, 480), (481, 641), (33, 57), (1, 1), (224, 224), (225, 224), (3, 2), (72, 72), (301, 2000)]
LONG = [(2000, 10), (10, 3000), (100, 900), (301, 3401), (3401, 301)]


def photo(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Soft colours under fine noise: as hard to resize as a photograph, and as large as a JPEG."""
    draw = np.random.default_rng(seed)
    coarse = draw.normal(size=(max(height // 16, 2), max(width // 16, 2), 3)) * 70 + 128
    soft = Image.fromarray(coarse.clip(0, 255).astype(np.uint8)).resize((width, height), FILTER["bicubic"])
    noisy = np.asarray(soft).astype(float) + draw.normal(size=(height, width, 3)) * 12
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def two_pass(image: Image.Image, spec: ImageSpec) -> torch.Tensor:
    """PIL's resize, rows first (as Pillow did until 12), then the centre crop: (3, S, S) int."""
    width, height = image.size
    size = spec.size
    if spec.fit == "squash":
        new = (size, size)
    else:
        short = math.floor(size / spec.crop_pct)
        new = (
            (int(short * width / height), short) if height <= width else (short, int(short * height / width))
        )
    resample = FILTER[spec.interpolation]
    image = image.resize((new[0], height), resample).resize(new, resample)
    left, top = round((new[0] - size) / 2), round((new[1] - size) / 2)
    return torch.from_numpy(np.array(image.crop((left, top, left + size, top + size)))).permute(2, 0, 1).int()


# ---------------------------------------------------------------------------------------------- evaluation


@pytest.fixture(scope="module")
def peer():
    from open_clip.transform import image_transform

    def make(spec: ImageSpec):
        mode = "squash" if spec.fit == "squash" else "shortest"
        return image_transform(
            spec.size, False, spec.mean, spec.std, resize_mode=mode, interpolation=spec.interpolation
        )

    return make


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [32, 224])
def test_pixels_are_within_a_grey_level_of_pil(size, interpolation, fit):
    """On average 1e-3 after normalisation (in truth 6e-5 for photographs) and two levels at the very most."""
    spec = ImageSpec(size, fit=fit, interpolation=interpolation)
    transform = ImageTransform(spec)
    for shape in SHAPES:
        image = photo(*shape)
        expected = two_pass(image, spec)
        assert (transform.pixels(image).int() - expected).abs().max() <= 2, shape
        difference = normalize(transform.pixels(image), spec) - normalize(expected.to(torch.uint8), spec)
        assert difference.abs().mean() <= 1e-3, shape


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_photographs_equal_open_clip(peer, interpolation, fit):
    spec = ImageSpec(224, fit=fit, interpolation=interpolation)
    for shape in [(640, 480), (500, 375), (768, 1024)]:
        image = photo(*shape)
        difference = (ImageTransform(spec)([image])[0] - peer(spec)(image)).abs()
        if fit == "crop":
            assert difference.max() <= 1.001 / 255 / min(spec.std), shape  # one grey level
            assert difference.mean() <= 2e-4, shape
        exact = ImageTransform(spec, exact=True)([image])[0]
        assert (exact - peer(spec)(image)).abs().max() <= 1e-6, shape


def test_exact_equals_open_clip_in_every_shape(peer):
    for size in (32, 224):
        for fit in ("crop", "squash"):
            spec = ImageSpec(size, mean=HALF, std=HALF, fit=fit)
            for shape in SHAPES:
                image = photo(*shape)
                exact = ImageTransform(spec, exact=True)([image])[0]
                assert (exact - peer(spec)(image)).abs().max() <= 1e-6, (size, fit, shape)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK"])
def test_other_modes_become_rgb_first(mode):
    spec = ImageSpec(64)
    image = photo(100, 80, mode)
    assert torch.equal(ImageTransform(spec)([image]), ImageTransform(spec)([image.convert("RGB")]))


@pytest.mark.parametrize("shape", LONG)
def test_long_strips_equal_the_crop_of_the_whole(monkeypatch, shape):
    """Without ever resizing the whole: what would be the largest allocation is not made."""
    spec = ImageSpec(64)
    image = photo(*shape)
    monkeypatch.setattr(image_module, "resize", None)  # the ordinary way is not taken
    assert (ImageTransform(spec).pixels(image).int() - two_pass(image, spec)).abs().max() <= 1


def test_strip_of_a_single_row_is_bounded():
    """A million pixels side by side: whole, it would become 224 x 224,000,000."""
    strip = Image.new("RGB", (1_000_000, 1), (10, 20, 30))
    for image in (strip, strip.transpose(Image.Transpose.ROTATE_90)):
        pixels = ImageTransform(ImageSpec(224)).pixels(image)
        assert pixels.shape == (3, 224, 224)
        assert pixels.flatten(1).unique(dim=1).flatten().tolist() == [10, 20, 30]


def test_crop_share_as_timm():
    from timm.data import create_transform

    image = photo(500, 375)
    spec = ImageSpec(224, HALF, HALF, crop_pct=0.9)
    theirs = create_transform(
        224, is_training=False, interpolation="bicubic", crop_pct=0.9, mean=HALF, std=HALF
    )
    assert (ImageTransform(spec, exact=True)([image])[0] - theirs(image)).abs().max() <= 1e-6
    assert (ImageTransform(spec)([image])[0] - theirs(image)).abs().mean() <= 2e-4


def test_normalize_is_the_textbook_formula():
    spec = ImageSpec(8)
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (spec.mean, spec.std))
    expected = (pixels.double() / 255 - mean) / std
    assert normalize(pixels, spec).dtype == torch.float32
    assert (normalize(pixels, spec) - expected).abs().max() < 1e-6
    unit = pixels.float() / 255
    before = unit.clone()
    assert (normalize(unit, spec) - expected).abs().max() < 1e-6
    assert torch.equal(unit, before)


# ---------------------------------------------------------------------------------------------- JPEG


@pytest.mark.parametrize(
    "options",
    [{"quality": 85}, {"quality": 95, "subsampling": 0}, {"quality": 60, "progressive": True}, {"mode": "L"}],
    ids=["4:2:0", "4:4:4", "progressive", "grey"],
)
def test_fast_jpeg_gives_pils_pixels(monkeypatch, options):
    image = photo(321, 241, options.pop("mode", "RGB"))
    data = encoded(image, "JPEG", **options)
    expected = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)
    monkeypatch.setattr(decode, "to_pixels", None)  # PIL's way is not taken
    assert torch.equal(decode.decode_pixels(data, 10**6), expected)


def test_batches_of_any_source_are_equal(tmp_path):
    image = photo(100, 80)
    for kind, mode in (("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("WEBP", "RGB")):
        data = encoded(image.convert(mode), kind)
        path = tmp_path / f"{mode}.{kind}"
        path.write_bytes(data)
        transform = ImageTransform(ImageSpec(64))
        batch = transform.load_batch([data, path, str(path), io.BytesIO(data), decode_image(data)])
        assert batch.shape == (5, 3, 64, 64)
        assert batch.dtype == torch.float32
        assert all(torch.equal(other, batch[0]) for other in batch)


# ---------------------------------------------------------------------------------------------- decoding


def test_every_mode_becomes_rgb_without_warnings():
    image = photo(40, 30)
    with_palette = image.quantize(16)
    files = {
        "L": encoded(image.convert("L"), "PNG"),
        "1": encoded(image.convert("1"), "PNG"),
        "LA": encoded(image.convert("LA"), "PNG"),
        "RGBA": encoded(image.convert("RGBA"), "PNG"),
        "P": encoded(with_palette, "PNG"),
        "P, clear": encoded(with_palette, "PNG", transparency=bytes(range(16))),
        "P, one clear": encoded(with_palette, "PNG", transparency=3),
        "CMYK": encoded(image.convert("CMYK"), "JPEG"),
        "YCbCr": encoded(image.convert("YCbCr"), "JPEG"),
        "GIF": encoded(image, "GIF"),
        "I": encoded(image.convert("L").convert("I"), "TIFF"),
        "F": encoded(image.convert("L").convert("F"), "TIFF"),
        "BMP": encoded(image, "BMP"),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, data in files.items():
            decoded = decode_image(data)
            assert decoded.mode == "RGB", name
            assert decoded.size == (40, 30), name
            # The picture is still there (dots, for two levels), not black or white.
            assert abs(np.asarray(decoded).mean() - np.asarray(image).mean()) < 20, name
    clear = np.asarray(decode_image(files["P, clear"]))
    assert np.array_equal(clear, np.asarray(decode_image(files["P"])))


def test_16_bit_grey_is_scaled():
    ramp = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
    decoded = np.asarray(decode_image(encoded(Image.fromarray(ramp), "PNG")))
    assert np.array_equal(decoded, np.repeat((ramp >> 8).astype(np.uint8)[..., None], 3, axis=-1))


def test_transparency_is_dropped_not_blended():
    image = Image.new("RGBA", (4, 4), (200, 100, 50, 0))
    assert decode_image(encoded(image, "PNG")).getpixel((0, 0)) == (200, 100, 50)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data).getpixel((3, 3)) == (255, 0, 0)


def test_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded(photo(40, 30), "JPEG", exif=exif)).size == (40, 30)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header names a size and whose body does not hold it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def damaged_png() -> bytes:
    data = bytearray(encoded(photo(60, 60), "PNG"))
    data[200:260] = bytes(60)
    return bytes(data)


BROKEN = {
    "empty": (b"", "is empty"),
    "text": (b"hello, this is no picture at all", "not a picture in a known format"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture in a known format"),
    "half a JPEG": (encoded(photo(60, 60), "JPEG")[:900], "cannot be decoded"),
    "JPEG header": (encoded(photo(60, 60), "JPEG")[:30], "known format|damaged header|cannot be decoded"),
    "half a PNG": (encoded(photo(60, 60), "PNG")[:3000], "cannot be decoded"),
    "damaged PNG": (damaged_png(), "cannot be decoded"),
    "PNG without body": (png_claiming(50, 50), "cannot be decoded"),
    "bomb": (png_claiming(60_000, 60_000), "too large|more than the"),
    "large": (png_claiming(9_000, 8_000), "9000 x 8000 pixels, more than the 64,000,000 allowed"),
    "no width": (png_claiming(0, 10), "no pixels|not a picture|damaged header"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_say_what_is_wrong(tmp_path, name):
    data, message = BROKEN[name]
    path = tmp_path / "picture.bin"
    path.write_bytes(data)
    generator = torch.Generator()
    for use in (
        decode_image,
        ImageTransform(ImageSpec(32)).pixels,
        lambda source: TrainTransform(ImageSpec(32))(source, generator),
        lambda source: TrainTransform(ImageSpec(32), fast_decode=True)(source, generator),
    ):
        with pytest.raises(BadImage, match=message):
            use(data)
        with pytest.raises(BadImage, match=r"picture\.bin"):
            use(path)


def test_a_bomb_is_refused_even_where_warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadImage, match="too large"):
            decode_image(png_claiming(10_000, 10_000))


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(BadImage, match=r"none.png cannot be read: No such file"):
        decode_image(tmp_path / "none.png")
    with pytest.raises(BadImage, match="cannot be read: Is a directory"):
        ImageTransform(ImageSpec(32)).load_batch([tmp_path])
    with pytest.raises(UsageError, match="not int"):
        decode_image(3)
    assert issubclass(BadImage, ZooError)


def test_max_pixels_can_be_set():
    data = encoded(photo(20, 20), "PNG")
    with pytest.raises(BadImage, match="20 x 20 pixels, more than the 100 allowed"):
        decode_image(data, max_pixels=100)
    with pytest.raises(BadImage, match="more than the 100 allowed"):
        decode_image(Image.new("RGB", (20, 20)), max_pixels=100)
    assert decode_image(data, max_pixels=400).size == (20, 20)


# ---------------------------------------------------------------------------------------------- training


def test_a_crop_depends_on_its_generator_alone():
    data = encoded(photo(90, 70), "JPEG")
    transform = TrainTransform(ImageSpec(32), scale=(0.2, 1.0), flip=True)

    def crop(seed: int) -> torch.Tensor:
        return transform(data, torch.Generator().manual_seed(seed))

    assert crop(1).shape == (3, 32, 32)
    assert crop(1).dtype == torch.uint8
    assert torch.equal(crop(1), crop(1))
    assert len({crop(seed).numpy().tobytes() for seed in range(20)}) == 20


def test_every_crop_takes_the_same_number_of_draws():
    after = set()
    for image in (photo(90, 70), photo(1, 1), photo(500, 4)):
        for transform in (TrainTransform(ImageSpec(16)), TrainTransform(ImageSpec(16), flip=True)):
            generator = torch.Generator().manual_seed(0)
            transform(image, generator)
            after.add(torch.rand((), generator=generator).item())
    assert len(after) == 1


def test_crops_keep_to_their_bounds_and_reach_everywhere():
    transform = TrainTransform(ImageSpec(32), scale=(0.3, 0.6), ratio=(0.5, 2.0))
    boxes = []
    for seed in range(400):
        draws = torch.rand(23, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
        boxes.append(transform._box(300, 400, draws))
    top, left, height, width = np.array(boxes).T
    area, ratio = height * width / (300 * 400), width / height
    assert 0.29 < area.min() < 0.32
    assert 0.58 < area.max() < 0.61
    assert ratio.min() >= 0.49
    assert ratio.max() <= 2.02
    assert top.min() == 0
    assert left.min() == 0
    assert (top + height).max() == 300
    assert (left + width).max() == 400


def test_whole_square_crop_is_the_plain_resize():
    image = photo(96, 96)
    spec = ImageSpec(32)
    transform = TrainTransform(spec, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert torch.equal(transform(image, torch.Generator()), ImageTransform(spec).pixels(image))


def test_impossible_ratio_falls_back_to_the_centre():
    image = Image.fromarray(
        np.tile(np.arange(400, dtype=np.uint16)[None, :, None] // 2, (10, 1, 3)).astype("u1")
    )
    pixels = TrainTransform(ImageSpec(16), scale=(0.9, 1.0))(image, torch.Generator())
    assert 96 < pixels.float().mean() < 104  # columns 193 to 206 of 400


def test_flip_mirrors_half():
    image = photo(64, 64)
    plain = TrainTransform(ImageSpec(32), scale=(1.0, 1.0), ratio=(1.0, 1.0))
    mirrored = TrainTransform(ImageSpec(32), scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=True)
    whole = plain(image, torch.Generator())
    flips = 0
    for seed in range(200):
        out = mirrored(image, torch.Generator().manual_seed(seed))
        flips += torch.equal(out, whole.flip(-1))
        assert torch.equal(out, whole) or torch.equal(out, whole.flip(-1))
    assert 70 < flips < 130


@pytest.mark.parametrize("shape", [(1601, 1203), (2048, 1536), (1023, 2047)])
def test_scaled_decoding_neither_shifts_nor_changes_much(shape):
    """Waves of 96 pixels rise by 8 grey levels a pixel: a drift of half a decoded pixel would show as 16."""
    width, height = shape
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    waves = np.stack(
        [np.sin(x / 96 * 2 * np.pi), np.sin(y / 96 * 2 * np.pi), np.sin((x + y) / 96 * np.pi)], -1
    )
    data = encoded(Image.fromarray((128 + 120 * waves).astype(np.uint8)), "JPEG", quality=95, subsampling=0)
    spec = ImageSpec(160)
    for seed in range(4):
        slow = TrainTransform(spec, scale=(0.5, 1.0))(data, torch.Generator().manual_seed(seed)).float()
        fast = TrainTransform(spec, scale=(0.5, 1.0), fast_decode=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(image_module, "decode_bytes", None)  # the scaled way is taken
            quick = fast(data, torch.Generator().manual_seed(seed)).float()
        assert (slow - quick).abs().mean() < 1.5


def test_scaled_decoding_leaves_small_pictures_and_other_formats_alone():
    spec = ImageSpec(64)
    for data in (encoded(photo(100, 90), "JPEG"), encoded(photo(600, 500), "PNG")):
        slow, fast = TrainTransform(spec), TrainTransform(spec, fast_decode=True)
        a, b = (t(data, torch.Generator().manual_seed(3)) for t in (slow, fast))
        assert torch.equal(a, b)


def test_bad_bounds_of_a_crop():
    for scale in ((0.0, 1.0), (0.9, 0.5), (0.5, 1.5)):
        with pytest.raises(UsageError, match="scale must be"):
            TrainTransform(ImageSpec(32), scale=scale)
    with pytest.raises(UsageError, match="ratio must be"):
        TrainTransform(ImageSpec(32), ratio=(2.0, 1.0))
