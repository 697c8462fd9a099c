"""Labels and templates as people write them, and the sentences for what cannot be meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmzoo.apps.labels import keys_and_names, match_classes, read_labels, read_templates, words
from mmzoo.errors import UsageError
from mmzoo.processing.templates import TEMPLATES
from mmzoo.spec import TextSpec

TINY, CLIP = TextSpec("tiny", 32, 4096), TextSpec("clip", 77, 49408)


def write(folder: Path, text: str) -> str:
    path = folder / "labels.txt"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_labels_between_commas_in_a_list_and_in_a_file(tmp_path):
    assert read_labels(" cat, dog ,red panda") == ["cat", "dog", "red panda"]
    assert read_labels(["cat", "dog"]) == ["cat", "dog"]
    path = write(tmp_path, "\ufeffcat, the animal\n\n  dog \n")
    assert read_labels(path) == read_labels(Path(path)) == ["cat, the animal", "dog"]


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ("cat", "labels: only 'cat' leaves nothing to choose from; give at least two labels."),
        ([], "labels: none leaves nothing to choose from"),
        ("cat,,dog", "labels: entry 2 is empty."),
        ("", "labels: entry 1 is empty."),
        ("cat,dog,Cat", "labels: 'Cat' stands twice (entries 1 and 3)."),
        (
            "golden_retriever,golden retriever,cat",  # one prompt
            "labels: 'golden retriever' stands twice (entries 1 and 2), first as 'golden_retriever'.",
        ),
        ("no/such/file", "no file no/such/file to read labels from; labels themselves go between commas"),
        ("names.txt", "no file names.txt"),
        (Path("gone.txt"), "no file gone.txt."),
    ],
)
def test_labels_that_cannot_be_meant(labels, sentence):
    with pytest.raises(UsageError) as caught:
        read_labels(labels)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty; expected one entry per line."),
        (" \n\n", "is empty; expected one entry per line."),
        ("cat\n", "only 'cat' leaves nothing to choose from"),
        ("cat\ndog\ncat\n", "'cat' stands twice (entries 1 and 3)."),
        ("n01\tcat\nn01\tdog\n", "'n01' stands twice (entries 1 and 2)."),
        (
            "n01\tred_crane\nn02\tred crane\n",
            "'red crane' stands twice (entries 1 and 2), first as 'red_crane'.",
        ),
    ],
)
def test_label_files_that_cannot_be_meant(tmp_path, text, sentence):
    with pytest.raises(UsageError) as caught:
        read_labels(write(tmp_path, text))
    assert str(tmp_path / "labels.txt") in str(caught.value)
    assert sentence in str(caught.value)


def test_a_binary_file_and_a_folder_are_no_label_files(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UsageError, match="is not a UTF-8 text file"):
        read_labels(str(tmp_path / "weights.bin"))
    with pytest.raises(UsageError, match="is a folder; expected a text file"):
        read_labels(tmp_path)


def test_words_of_a_folder_name():
    assert words("golden_retriever") == "golden retriever"
    assert words(" red  apple ") == "red apple"


def test_classes_are_found_among_labels_in_any_order_and_case():
    names, places = match_classes(
        ["dog", "Golden Retriever", "cat"], ["cat", "dog", "golden_retriever"], "photos"
    )
    assert names == ["dog", "Golden Retriever", "cat"]
    assert places == [2, 0, 1]


def test_classes_can_be_renamed():
    names, places = match_classes(["n02\tgolden retriever", "n01\ttench"], ["n01", "n02"], "imagenet")
    assert names == ["golden retriever", "tench"]
    assert places == [1, 0]
    assert keys_and_names(["n02\tgolden retriever", "n01\t tench "]) == (
        ["n02", "n01"],
        ["golden retriever", "tench"],
    )
    assert keys_and_names(["a\tb", "c"]) == (["a\tb", "c"],) * 2


def test_a_class_without_a_label_is_named():
    with pytest.raises(UsageError, match=r"no label for the class 'cat' of photos\. Did you mean cats\?"):
        match_classes(["cats", "dog"], ["cat", "dog"], "photos")
    with pytest.raises(UsageError, match=r"'n0', 'n1', 'n2' and 2 more of photos"):
        match_classes(["cat", "dog"], [f"n{i}" for i in range(5)], "photos")


def test_templates_by_name_file_sentence_and_list(tmp_path):
    assert read_templates("auto", TINY) == TEMPLATES["emoji"]
    assert read_templates("auto", CLIP) == TEMPLATES["imagenet"]
    assert len(TEMPLATES["imagenet"]) == 80
    assert read_templates("simple", TINY) == TEMPLATES["simple"]
    assert read_templates("a {}", CLIP) == ("a {}",)
    assert read_templates(["a {}", "the {}"], CLIP) == ("a {}", "the {}")
    assert read_templates(write(tmp_path, "a {}\nthe {}\n"), CLIP) == ("a {}", "the {}")


@pytest.mark.parametrize(
    ("templates", "sentence"),
    [
        ("simpel", "no templates named 'simpel'. Did you mean simple?"),
        (["a {}", "a photo"], "template 'a photo' has no {} where the label goes."),
        ([], "templates: none given"),
    ],
)
def test_templates_that_cannot_be_meant(templates, sentence):
    with pytest.raises(UsageError) as caught:
        read_templates(templates, CLIP)
    assert str(caught.value).startswith(sentence)
