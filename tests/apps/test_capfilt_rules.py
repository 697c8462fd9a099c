"""The rules of selection against a slow, plain account of them, and what counts as the same text or picture."""

import io
import random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mmzoo.apps.capfilt.likeness import normal_text, perceptual_hash, text_hash
from mmzoo.apps.capfilt.rules import REASONS, Columns, Rules, decide
from mmzoo.errors import UsageError

NAN = float("nan")


def columns(rows):
    """Columns of rows of image, source, words, chars, text, file, phash, itm, itc, clip."""
    kinds = (np.int64, np.uint8, np.int32, np.int32, np.uint64, np.uint64, np.uint64, *[np.float32] * 3)
    return Columns(*(np.array(column, kind) for column, kind in zip(zip(*rows), kinds, strict=True)))


def reasons(rows, **rules):
    return [REASONS[code] for code in decide(columns(rows), Rules(**rules)).codes]


def row(image=0, source=0, words=3, chars=12, text=1, file=None, phash=None, itm=0.9, itc=0.1, clip=0.2):
    file = image if file is None else file
    return (image, source, words, chars, text, file, file if phash is None else phash, itm, itc, clip)


def test_the_threshold_keeps_what_reaches_it_and_people_are_not_judged():
    rows = [
        row(text=1, itm=0.5),
        row(text=2, itm=0.49999),
        row(text=3, source=2, itm=0.0),
        row(text=4, itm=NAN),
    ]
    assert reasons(rows, threshold=0.5) == [None, "below threshold", None, "unscored"]


def test_lengths():
    rows = [row(text=0), row(text=1, words=1), row(text=2, words=9), row(text=3, chars=5000), row(text=4)]
    assert reasons(rows, min_words=2, max_words=8) == ["empty", "too short", "too long", "too long", None]
    assert reasons(rows, max_chars=0)[3] is None


def test_a_picture_holds_a_text_once_and_files_a_pair_once():
    rows = [
        row(0, text=1),
        row(0, text=1, source=1),
        row(1, text=1),
        row(2, file=0, text=1),
        row(2, file=0, text=2),
    ]
    assert reasons(rows) == [None, "repeated", None, "duplicate", None]
    assert reasons(rows, dedup="none") == [None, "repeated", None, None, None]


def test_what_was_rejected_is_nobodys_first():
    rows = [row(0, text=1, file=7, itm=0.1), row(1, text=1, file=7, itm=0.9)]
    assert reasons(rows, threshold=0.5) == ["below threshold", None]


def test_the_best_of_each_picture_by_clip_ties_to_the_first():
    rows = [row(0, text=i, clip=c) for i, c in enumerate((0.1, 0.3, 0.3, 0.2), 1)] + [
        row(1, text=9, clip=0.0)
    ]
    low = "below top k"
    assert reasons(rows, top_k=2, by="clip") == [low, None, None, low, None]
    assert reasons(rows, top_k=1, by="clip") == [low, None, low, low, None]


def test_a_text_there_twice_does_not_take_two_of_the_best_places():
    rows = [row(text=1, clip=0.9), row(text=1, clip=0.9), row(text=2, clip=0.1)]
    assert reasons(rows, top_k=2, by="clip") == [None, "repeated", None]


def test_the_percentile_is_of_all_that_may_still_be_chosen():
    rows = [row(i, text=i + 1, itm=i / 10) for i in range(10)] + [row(99, text=0, itm=1.0)]
    found = decide(columns(rows), Rules(percentile=50))
    assert found.cut == pytest.approx(0.45, abs=1e-6)
    assert (found.codes[:10] == 0).tolist() == [i >= 5 for i in range(10)]


def test_near_duplicates_against_all_pairs():
    chance = random.Random(3)
    bases = [chance.getrandbits(64) for _ in range(6)]
    rows = []
    for i in range(300):
        bits = chance.choice(bases)
        for _ in range(chance.randrange(6)):
            bits ^= 1 << chance.randrange(64)
        rows.append(row(i, text=chance.randrange(1, 4), file=1000 + i, phash=bits))
    stays: list[tuple[int, int]] = []
    expected = []
    for r in rows:
        near = any(r[4] == text and (r[6] ^ bits).bit_count() <= 3 for text, bits in stays)
        expected.append("near duplicate" if near else None)
        if not near:
            stays.append((r[4], r[6]))
    assert reasons(rows, dedup="near", distance=3) == expected
    assert 20 < expected.count(None) < 280
    assert reasons(rows, dedup="exact") == [None] * 300


def test_rules_that_go_by_what_nobody_scored_are_refused():
    rows = [row(itm=NAN, clip=NAN)]
    with pytest.raises(UsageError, match="no candidate has a itm score: run the stage score with --filter"):
        reasons(rows, threshold=0.5)
    with pytest.raises(UsageError, match="--clip"):
        reasons(rows, top_k=2, by="clip")
    for wrong in ({"threshold": 2}, {"percentile": 101}, {"by": "luck"}, {"dedup": "all"}, {"distance": 16}):
        with pytest.raises(UsageError):
            Rules(**wrong)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A Dog, on a sofa!", "a dog on a sofa"),
        ("STRASSE", "straße"),
        ("ｗｉｄｅ　ｔｅｘｔ", "wide text"),
        ("\u202bשלום\u202c  עולם", "שלום עולם"),
        ("cafe\u0301", "café"),
        ("a\u200bb", "ab"),
    ],
)
def test_texts_that_are_the_same(one, other):
    assert normal_text(one) == normal_text(other)


def test_texts_that_are_not_the_same_or_nothing():
    assert normal_text("❤️ 🐶") != normal_text("❤️ 🐱")
    assert normal_text("日本語") == "日本語"
    assert normal_text(" ... \u200b— ") == ""
    assert text_hash("a") != text_hash("b")


def drawing(shift=0, size=96):
    image = Image.new("RGB", (size, size), (240, 240, 240))
    pen = ImageDraw.Draw(image)
    pen.ellipse((10 + shift, 20, 60 + shift, 80), fill=(200, 30, 30))
    pen.rectangle((50, 5 + shift, 90, 40 + shift), fill=(20, 60, 160))
    return image


def test_pictures_that_look_the_same():
    base = perceptual_hash(drawing(), b"12345678")
    buffer = io.BytesIO()
    drawing().save(buffer, "jpeg", quality=40)
    again = perceptual_hash(Image.open(buffer), b"")
    small = perceptual_hash(drawing().resize((70, 70), Image.Resampling.BICUBIC), b"")
    other = perceptual_hash(drawing().transpose(Image.Transpose.FLIP_LEFT_RIGHT), b"")
    assert (base ^ again).bit_count() <= 3
    assert (base ^ small).bit_count() <= 3
    assert (base ^ other).bit_count() > 16


def test_flat_pictures_are_alike_only_if_they_are_one_file():
    red, blue = (Image.new("RGB", (9, 9), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    assert perceptual_hash(red, b"\0" * 7 + b"\1") == 1
    assert perceptual_hash(blue, b"\0" * 7 + b"\2") == 2
