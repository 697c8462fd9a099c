"""The emoji set: git holds what was drawn, splits share nothing they must not, texts say what they are about."""

import json
import pickle
import shutil

import numpy as np
import pytest

from mmzoo.data.open import list_splits, open_source
from mmzoo.data.sources.atlas import cut_atlas
from mmzoo.data.sources.emoji import GROUP_ID, SPLITS, WORD_ID, EmojiSource
from mmzoo.errors import UsageError, ZooError
from mmzoo.paths import find_data

FOLDER = find_data("data/emoji")


@pytest.fixture(scope="module")
def index():
    return json.loads((FOLDER / "emoji.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def sources():
    return {split: EmojiSource(split=split) for split in SPLITS}


def slugs(source):
    return {source[i].key.split("/")[1] for i in range(len(source))}


def styles(source):
    return {source[i].key.split("/")[0] for i in range(len(source))}


def test_carried_atlases_hold_the_recorded_pixels(index):
    # The hashes themselves: a new drawing must be a decision, not an accident.
    assert {style: digest[:12] for style, digest in index["pixels"].items()} == {
        "noto": "c6fa1a85a486",
        "fluent": "4118bcf9e5d8",
        "twemoji": "ca5d4056a358",
    }
    for style, digest in index["pixels"].items():
        tiles = cut_atlas(FOLDER / f"{style}.webp", tile=48, columns=34, count=850, pixels=digest)
        assert tiles.shape == (850, 48, 48, 3)
        blank = (tiles.reshape(850, -1) == 255).all(1)
        assert not blank.any(), f"{style} has empty tiles"


def test_every_file_has_its_licence():
    said = {
        "noto": "Apache License",
        "fluent": "MIT License",
        "twemoji": "Changed: drawn at 48 px",
        "cldr": "UNICODE LICENSE V3",
    }
    for name, words in said.items():
        assert words in (FOLDER / f"LICENSE-{name}.txt").read_text(encoding="utf-8")
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    for file in [*FOLDER.glob("*.webp"), *FOLDER.glob("*.json"), *FOLDER.glob("LICENSE*")]:
        assert f"emoji/{file.name}" in readme


def test_index_is_sorted_unique_and_in_equal_folds(index):
    concepts = index["concepts"]
    assert [c["slug"] for c in concepts] == sorted({c["slug"] for c in concepts})
    assert len({c["name"] for c in concepts}) == 850
    assert [sum(c["fold"] == f for c in concepts) for f in range(10)] == [85] * 10
    assert {c["group"] for c in concepts} == set(index["groups"])


@pytest.mark.parametrize(
    ("slug", "name", "keyword", "group"),
    [
        ("red-apple", "red apple", "fruit", "Food & Drink"),
        ("t-rex", "T-Rex", "dinosaur", "Animals & Nature"),
        ("violin", "violin", "instrument", "Objects"),
        ("volcano", "volcano", "eruption", "Travel & Places"),
        ("soccer-ball", "soccer ball", "football", "Activities"),
    ],
)
def test_names_and_keywords_are_those_of_cldr(index, slug, name, keyword, group):
    (concept,) = [c for c in index["concepts"] if c["slug"] == slug]
    assert (concept["name"], concept["group"]) == (name, group)
    assert keyword in concept["keywords"]


def test_a_red_apple_is_red_in_every_style():
    source = EmojiSource(split="all")
    for i in range(len(source)):
        if source[i].key.endswith("/red-apple"):
            pixels = np.asarray(source[i].image, dtype=float)
            inked = pixels[pixels.min(-1) < 200]
            assert inked[:, 0].mean() > inked[:, 1:].mean() + 60, source[i].key


def test_splits_have_the_stated_sizes_styles_and_concepts(sources):
    sizes = {split: (len(s), len(slugs(s)), sorted(styles(s))) for split, s in sources.items()}
    assert sizes == {
        "train": (1530, 765, ["fluent", "noto"]),
        "unseen-style": (765, 765, ["twemoji"]),
        "unseen-concepts": (85, 85, ["twemoji"]),
        "tune-train": (680, 680, ["noto"]),
        "tune-style": (680, 680, ["fluent"]),
        "tune-concepts": (85, 85, ["fluent"]),
        "all": (2550, 850, ["fluent", "noto", "twemoji"]),
    }
    train, test = slugs(sources["train"]), slugs(sources["unseen-concepts"])
    assert not train & test
    assert slugs(sources["unseen-style"]) == train
    # Choosing settings must not look at the tests: neither at Twemoji nor at the concepts of fold 0.
    for split in ("tune-train", "tune-style", "tune-concepts"):
        assert not slugs(sources[split]) & test
        assert "twemoji" not in styles(sources[split])
    assert not slugs(sources["tune-train"]) & slugs(sources["tune-concepts"])


def test_tile_is_the_picture_of_its_key(index):
    source = EmojiSource(split="unseen-style")
    place = {c["slug"]: i for i, c in enumerate(index["concepts"])}
    whole = cut_atlas(
        FOLDER / "twemoji.webp", tile=48, columns=34, count=850, pixels=index["pixels"]["twemoji"]
    )
    for i in (0, 400, 764):
        sample = source[i]
        np.testing.assert_array_equal(np.asarray(sample.image), whole[place[sample.key.split("/")[1]]])
        np.testing.assert_array_equal(np.asarray(sample.image), source.tiles[i])


def test_texts_fit_exactly_the_pictures_they_are_about(sources):
    train = sources["train"]
    by_name = {train[i].texts[0]: train[i] for i in range(len(train))}
    apple, pear, dog = by_name["red apple"], by_name["pear"], by_name["dog"]

    def fits(text_id, sample):
        return text_id in sample.image_ids

    for sample in (apple, pear, dog):
        assert len(sample.texts) == len(sample.text_ids)
        assert all(fits(text_id, sample) for text_id in sample.text_ids)
    named = [t for t, about in zip(apple.texts, apple.text_ids, strict=True) if about < GROUP_ID]
    grouped = [t for t, about in zip(apple.texts, apple.text_ids, strict=True) if GROUP_ID <= about < WORD_ID]
    alone = {t: about for t, about in zip(apple.texts, apple.text_ids, strict=True) if about >= WORD_ID}
    assert all("red apple" in t for t in named)
    assert grouped == ["food and drink", "a picture of food and drink"]
    assert {"fruit", "food"} <= alone.keys()
    assert fits(alone["fruit"], pear)  # a word alone fits every picture that has it, and no other
    assert not fits(alone["fruit"], dog)
    for text_id in apple.text_ids:
        if text_id < WORD_ID:
            assert fits(text_id, pear) is (text_id >= GROUP_ID)
            assert not fits(text_id, dog)


def test_both_styles_of_an_object_share_id_label_and_texts(sources):
    train = sources["train"]
    a, b = train[10], train[10 + 765]
    assert a.key.split("/")[1] == b.key.split("/")[1]
    assert a.key != b.key
    assert a[2:] == b[2:]


@pytest.mark.parametrize("split", ["unseen-style", "unseen-concepts", "tune-style", "tune-concepts"])
def test_held_out_splits_have_one_text_per_concept(sources, split):
    source = sources[split]
    samples = [source[i] for i in range(len(source))]
    assert all(len(s.texts) == len(s.text_ids) == 1 for s in samples)
    assert len({s.text_ids[0] for s in samples}) == len(samples)


def test_labels_index_classes(sources):
    train = sources["train"]
    assert all(train.classes[train[i].label] == train[i].texts[0] for i in range(0, len(train), 50))
    assert (
        train.classes == sources["unseen-style"].classes
    )  # so that a classifier can be tested in the other style
    groups = EmojiSource(split="unseen-style", by="group")
    assert groups.classes == (
        "animals and nature",
        "food and drink",
        "objects",
        "travel and places",
        "activities",
    )
    labels = np.bincount([groups[i].label for i in range(len(groups))], minlength=5)
    assert labels.min() > 50
    assert 0.30 < labels.max() / labels.sum() < 0.32  # the majority that README states


def test_source_is_found_by_its_folder_and_pickles(sources):
    source = open_source("data/emoji", split="unseen-concepts", by="group")
    assert (len(source), source.name) == (85, "emoji:unseen-concepts")
    assert list_splits("data/emoji") == SPLITS
    copy = pickle.loads(pickle.dumps(source))
    assert copy[7][2:] == source[7][2:]
    assert copy[7].image.tobytes() == source[7].image.tobytes()


def test_wrong_names_are_answered_with_the_right_ones():
    with pytest.raises(UsageError, match="unseen-style"):
        EmojiSource(split="unseen-styl")
    with pytest.raises(UsageError, match="'name' or 'group'"):
        EmojiSource(by="groups")


def test_missing_or_altered_files_are_named(tmp_path):
    with pytest.raises(ZooError, match=r"emoji\.json"):
        EmojiSource(tmp_path)
    shutil.copy(FOLDER / "emoji.json", tmp_path)
    with pytest.raises(ZooError, match=r"twemoji\.webp is missing"):
        EmojiSource(tmp_path, split="unseen-style")
    shutil.copy(FOLDER / "noto.webp", tmp_path / "twemoji.webp")
    with pytest.raises(ZooError, match="does not hold the pixels"):
        EmojiSource(tmp_path, split="unseen-style")
