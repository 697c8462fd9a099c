"""easy-VQA: captions agree with the package's questions and the pixels, and left-out pairs are really left out."""

import json

import numpy as np
import pytest

from mmzoo.data.open import list_splits, open_source
from mmzoo.data.sources.easyvqa import SPLITS, EasyVQASource
from mmzoo.data.sources.easyvqa_tasks import MATCH_SPLITS
from mmzoo.errors import UsageError, ZooError
from mmzoo.paths import find_data

FOLDER = find_data("data/easyvqa")


@pytest.fixture(scope="module")
def index():
    return json.loads((FOLDER / "easyvqa.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def sources():
    return {split: EasyVQASource(split=split) for split in SPLITS}


def pairs(source):
    return {source[i].texts[0].removeprefix("a ") for i in range(len(source))}


def test_splits_have_the_stated_sizes(sources):
    assert len(sources["all"]) == 3578
    assert len(sources["val"]) + len(sources["left-out"]) == 888
    assert {s: len(pairs(source)) for s, source in sources.items()} == {
        "train": 18,
        "val": 18,
        "left-out": 6,
        "all": 24,
    }


def test_left_out_pairs_are_never_trained_on_but_their_words_are(sources, index):
    train, left_out = pairs(sources["train"]), pairs(sources["left-out"])
    assert left_out == set(index["left_out"])
    assert not train & left_out
    assert {w for p in left_out for w in p.split()} <= {w for p in train for w in p.split()}
    assert sources["left-out"].classes == sources["train"].classes
    assert len(sources["left-out"].classes) == 24


def test_captions_do_not_contradict_the_packages_answers(index):
    easy_vqa = pytest.importorskip("easy_vqa", reason="needs the extra 'easyvqa'")
    for part in ("train", "test"):
        pictures = index["pictures"][part]
        wrong = total = 0
        for question, answer, image in zip(*getattr(easy_vqa, f"get_{part}_questions")(), strict=True):
            if pictures[image] is None:
                continue
            truth = pictures[image].split()
            words = question.rstrip("?").split()
            named = [w for w in words if w in index["shapes"] + index["colours"]]
            if answer in ("yes", "no"):
                negated = bool({"not", "no"} & set(words))
                said = ((named[0] in truth) != negated) == (answer == "yes")
            else:
                said = answer in truth and all(w in truth for w in named)
            wrong += not said
            total += 1
        assert wrong == 0
        assert total > 8000


def test_colours_agree_with_the_pixels(sources):
    source = sources["all"]
    for i in range(0, len(source), 100):
        sample = source[i]
        pixels = np.asarray(sample.image, dtype=float).reshape(-1, 3)
        ink = pixels[np.abs(pixels - np.median(pixels[:64], axis=0)).sum(1) > 60]
        if "red" in sample.texts[0] and len(ink):
            assert ink[:, 0].mean() > ink[:, 1:].mean(), sample.key


def test_labels_by_pair_colour_and_shape(sources):
    source = sources["val"]
    assert all(f"a {source.classes[source[i].label]}" == source[i].texts[0] for i in range(len(source)))
    for by, count in (("colour", 8), ("shape", 3)):
        other = EasyVQASource(split="val", by=by)
        assert len(other.classes) == count
        assert all(other.classes[other[i].label] in other[i].texts[0].split() for i in range(len(other)))


def test_two_pictures_of_one_pair_are_not_negatives(sources):
    source = sources["train"]
    first = source[0]
    twin = next(source[i] for i in range(1, len(source)) if source[i].texts == first.texts)
    other = next(source[i] for i in range(1, len(source)) if source[i].texts[0] != first.texts[0])
    assert first.text_ids[0] in twin.image_ids
    assert first.text_ids[0] not in other.image_ids


def test_every_picture_has_the_one_caption_of_its_pair(sources):
    for source in sources.values():
        for i in range(0, len(source), 50):
            assert source[i].texts == (f"a {source.classes[source[i].label]}",)
            assert source[i].text_ids == source[i].image_ids == (source[i].label,)


def test_source_is_found_by_its_folder_and_by_its_name():
    for path in ("data/easyvqa", "easy-vqa"):
        assert open_source(path, split="val", by="colour").name == "easyvqa:val"
        assert list_splits(path) == (*SPLITS, *MATCH_SPLITS)


def test_licence_and_readme_travel_along():
    assert "Victor Zhou" in (FOLDER / "LICENSE.txt").read_text(encoding="utf-8")
    assert "easyvqa/train.webp" in (FOLDER.parent / "README.md").read_text(encoding="utf-8")


def test_wrong_names_and_missing_files_are_named(tmp_path):
    with pytest.raises(UsageError, match="left-out"):
        EasyVQASource(split="leftout")
    with pytest.raises(UsageError, match="pair, colour, shape"):
        EasyVQASource(by="color")
    with pytest.raises(ZooError, match=r"easyvqa\.json"):
        EasyVQASource(tmp_path)
