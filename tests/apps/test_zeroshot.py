"""`mmzoo zeroshot`: predictions, numbers reckoned by hand, the gallery it writes, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import mmzoo
from mmzoo.apps.report.gallery import ClassRow, Pair
from mmzoo.apps.zeroshot import zeroshot
from mmzoo.cli.main import main
from mmzoo.errors import UsageError, ZooError

LABELS = ["red", "green", "blue"]


def numbers(result) -> dict[str, tuple[float, float | None]]:
    return {number.name: (number.value, number.chance) for number in result.numbers}


def test_names_pictures_with_shares_that_sum_to_one(colours, photos):
    seen = []
    result = zeroshot(
        colours,
        [photos / "red", photos / "blue" / "0.png"],
        labels="blue,red,green",
        templates="plain",
        batch_size=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [Path(p.key).name for p in result.predictions] == ["0.png", "1.png", "2.png", "odd.png", "0.png"]
    assert [p.guesses[0].label for p in result.predictions] == ["red", "red", "red", "green", "blue"]
    for p in result.predictions:
        assert len(p.guesses) == 3
        assert math.isclose(sum(guess.score for guess in p.guesses), 1, abs_tol=1e-6)
        assert p.truth is None
    # pure red: cosines 1, 0, 0 times a scale of exp(3)
    scale = math.exp(3)
    assert math.isclose(result.predictions[0].guesses[0].score, 1 / (1 + 2 * math.exp(-scale)), rel_tol=1e-6)
    assert result.numbers == []
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_top_k_bounds_the_labels(colours, photos):
    result = zeroshot(colours, [photos / "red"], labels=LABELS, templates="plain", top_k=1)
    assert {len(p.guesses) for p in result.predictions} == {1}


def test_measures_class_folders(colours, photos):
    result = zeroshot(colours, data=photos, templates="plain", batch_size=3)
    assert result.labels == ["blue", "green", "red"]
    assert numbers(result) == {
        "top-1 accuracy": (6 / 7, 1 / 3),
        "mean recall of classes": (pytest.approx((1 + 1 + 3 / 4) / 3), 1 / 3),
    }
    assert result.numbers[0].note == "always 'red': 57.1 %"
    assert result.classes == [
        ClassRow("blue", 1, 1.0, 1.0, ""),
        ClassRow("green", 2, 1.0, 2 / 3, ""),
        ClassRow("red", 4, 3 / 4, 1.0, "green"),
    ]
    assert result.confused == [Pair("red", "green", 1, 0.25)]
    odd = next(p for p in result.predictions if p.key.endswith("odd.png"))
    assert (odd.truth, odd.guesses[0].label) == ("red", "green")
    assert odd.truth_score == dict(odd.guesses)["red"]


def test_labels_may_rename_classes_and_add_others(colours, photos, tmp_path):
    for old, new in (("red", "n1"), ("green", "n2"), ("blue", "n3")):
        (photos / old).rename(photos / new)
    names = tmp_path / "names.txt"
    names.write_text("n1\tred\nn2\tgreen\nn3\tblue\n")
    renamed = zeroshot(colours, data=photos, labels=names, templates="plain")
    assert numbers(renamed)["top-1 accuracy"] == (6 / 7, 1 / 3)
    alone = zeroshot(colours, [photos / "n1" / "2.png"], labels=names, templates="plain")
    assert alone.labels == ["red", "green", "blue"]
    assert (
        alone.predictions[0].guesses
        == zeroshot(colours, [photos / "n1" / "2.png"], labels="red,green,blue", templates="plain")
        .predictions[0]
        .guesses
    )
    with pytest.raises(UsageError, match="no label for the class 'n1', 'n2', 'n3' of"):
        zeroshot(colours, data=photos, labels="red,green", templates="plain")


def test_top_5_counts_only_where_there_are_more_than_5_labels(colours, photos):
    labels = [*LABELS, "a thing", "another thing", "one more thing"]
    found = numbers(zeroshot(colours, data=photos, labels=labels, templates="plain", top_k=1))
    assert found["top-5 accuracy"] == (1.0, 5 / 6)
    assert found["top-1 accuracy"][1] == 1 / 6


def captions(folder: Path, rows: list[tuple[tuple[int, int, int], str]]) -> Path:
    folder.mkdir()
    lines = []
    for i, (colour, text) in enumerate(rows):
        Image.new("RGB", (16, 16), colour).save(folder / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "captions": [text, "something else"]}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


def test_measures_retrieval_by_the_first_text(colours, tmp_path):
    data = captions(
        tmp_path / "captioned",
        [
            ((255, 0, 0), "red"),
            ((0, 255, 0), "green"),
            ((0, 0, 255), "green green blue"),
            ((200, 200, 0), "red green"),
        ],
    )
    result = zeroshot(colours, data=data, labels=LABELS)
    # the blue picture and its text "green green blue" miss each other: blue is nearest to that text anyway,
    # but the text is nearest to the green picture
    assert numbers(result) == {
        "image to text R@1": (1.0, 0.25),
        "image to text R@5": (1.0, 1.0),
        "image to text R@10": (1.0, 1.0),
        "text to image R@1": (0.75, 0.25),
        "text to image R@5": (1.0, 1.0),
        "text to image R@10": (1.0, 1.0),
    }
    assert result.classes == []


def test_texts_that_repeat_the_classes_are_no_retrieval(colours, photos):
    assert not [name for name in numbers(zeroshot(colours, data=photos)) if "R@" in name]


def test_templates_change_the_classifier(colours, photos):
    plain = zeroshot(colours, [photos / "red" / "2.png"], labels=LABELS, templates="plain")
    wordy = zeroshot(colours, [photos / "red" / "2.png"], labels=LABELS, templates=["a b c {}"])
    assert plain.templates == ("{}",)
    assert wordy.predictions[0].guesses[0].score < plain.predictions[0].guesses[0].score


def test_underscores_of_folder_names_are_spoken_as_spaces(colours, photos):
    (photos / "red").rename(photos / "red_thing")
    result = zeroshot(colours, data=photos, templates="plain")
    assert result.labels == ["blue", "green", "red_thing"]
    assert numbers(result)["top-1 accuracy"][0] == 6 / 7


def test_broken_pictures_are_counted_and_named(colours, photos):
    (photos / "blue" / "torn.png").write_bytes((photos / "blue" / "0.png").read_bytes()[:50])
    result = zeroshot(colours, data=photos, templates="plain")
    assert len(result.predictions) == 7
    assert [Path(item.key).name for item in result.broken] == ["torn.png"]


def test_gallery_shows_the_worst_first(colours, photos, tmp_path):
    result = zeroshot(colours, data=photos, templates="plain", html=tmp_path / "out")
    assert result.html == tmp_path / "out" / "index.html"
    text = result.html.read_text()
    assert text.index("odd.png") < text.index("red/0.png")
    assert text.count("data:image/") == 7
    for words in (
        result.weights_sha256[:16],
        "mmzoo zeroshot",
        "85.7 %",
        "chance 33.3 %",
        f"mmzoo {mmzoo.__version__}",
    ):
        assert words in text


def test_gallery_is_bounded_and_samples_the_rest(colours, photos, tmp_path, monkeypatch):
    from mmzoo.apps.report import zeroshot as page

    monkeypatch.setattr(page, "WORST", 2)
    monkeypatch.setattr(page, "REST", 2)
    text = zeroshot(colours, data=photos, templates="plain", html=tmp_path / "x.html").html.read_text()
    assert text.count("data:image/") == 4
    assert "4 of 7 pictures: the 2 that went worst and 2 of the others" in text
    assert "odd.png" in text


def test_many_classes_get_pairs_instead_of_a_matrix(colours, photos, tmp_path):
    shutil.copy(photos / "red" / "odd.png", photos / "red" / "odd2.png")
    labels = [*LABELS, *(f"{'thing ' * (i % 7)}{i}" for i in range(40))]
    text = zeroshot(
        colours, data=photos, labels=labels, templates="plain", html=tmp_path / "x.html"
    ).html.read_text()
    assert "Most confused pairs" in text
    assert 'class="matrix' not in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "name pictures to look at, or a data set with --data."),
        ({"images": ["a.png"]}, "pictures need --labels"),
        ({"images": ["a.png"], "data": "photos"}, "give pictures or --data, not both."),
        ({"images": ["a.png"], "labels": "cat,dog", "by": "group"}, "--split and --by belong to --data."),
        ({"images": ["a.png"], "labels": "cat"}, "labels: only 'cat' leaves nothing to choose from"),
        ({"data": "photos", "split": "val"}, "has no splits"),
        ({"data": "photos", "templates": "simpel"}, "no templates named 'simpel'. Did you mean simple?"),
    ],
)
def test_what_cannot_be_meant(arguments, sentence, colours, photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    with pytest.raises(UsageError) as caught:
        zeroshot(colours, **arguments)
    assert sentence in str(caught.value)


def test_one_class_only(colours, photos):
    shutil.rmtree(photos / "red")
    shutil.rmtree(photos / "blue")
    with pytest.raises(UsageError, match=r"has one class only \(green\)"):
        zeroshot(colours, data=photos)
    found = numbers(zeroshot(colours, data=photos, labels="green,red", templates="plain"))
    assert found == {"top-1 accuracy": (1.0, 0.5)}


def test_missing_and_empty_data(colours, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ZooError, match=r"empty is empty\."):
        zeroshot(colours, data=tmp_path / "empty")
    with pytest.raises(ZooError, match="no data at"):
        zeroshot(colours, data=tmp_path / "gone")


def test_a_classifier_cannot(photos):
    with pytest.raises(
        ZooError, match=r"vit-tiny cannot compare pictures with words \(it classifies\)\. Models that can: "
    ):
        zeroshot("vit-tiny", [photos / "red"], labels=LABELS, device="cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "clip"
    torch.manual_seed(1)
    mmzoo.save(mmzoo.create_model("clip-tiny"), folder)
    return folder


def test_command_with_a_saved_model(saved, photos, capsys):
    words = [
        "zeroshot",
        "--model",
        str(saved),
        "--device",
        "cpu",
        "--labels",
        "cat,dog",
        str(photos / "red"),
        "--json",
    ]
    assert main(words) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    assert found["weights"] == str(saved)
    assert found["weights_sha256"] in (saved / "README.md").read_text()
    assert len(found["predictions"]) == 4
    assert main(words[:-1]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    best = found["predictions"][0]["guesses"][0]
    assert f"{best['label']} {100 * best['score']:.1f} %" in lines[0]


def test_command_prints_a_table_a_matrix_and_where_the_gallery_is(saved, photos, tmp_path, capsys):
    (photos / "red" / "bad.png").write_text("no picture")
    page = tmp_path / "page.html"
    words = ["zeroshot", "--model", str(saved), "--device", "cpu", "--data", str(photos), "--html", str(page)]
    assert main(words) == 0
    out, err = capsys.readouterr()
    for text in ("top-1 accuracy", "chance", "most often taken for", "is \\ taken for", "[3] red"):
        assert text in out
    assert "mmzoo: 1 unreadable picture, left out:" in err
    assert f"gallery: {page}" in err
    assert page.is_file()


def test_command_warns_of_random_weights(photos, capsys):
    words = [
        "zeroshot",
        "--model",
        "clip-tiny",
        "--device",
        "cpu",
        "--labels",
        "cat,dog",
        str(photos / "red" / "0.png"),
    ]
    assert main(words) == 0
    first, err = capsys.readouterr()
    assert "clip-tiny has random weights" in err
    assert main(words) == 0
    assert capsys.readouterr().out == first  # the same random weights each time


def test_command_fails_where_nothing_can_be_read(saved, tmp_path, capsys):
    (tmp_path / "bad.png").write_text("no picture")
    words = [
        "zeroshot",
        "--model",
        str(saved),
        "--labels",
        "cat,dog",
        "--device",
        "cpu",
        str(tmp_path / "bad.png"),
    ]
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mmzoo: none of 1 pictures could be read; the first, ")
    assert err.count("\n") == 1


def test_a_full_disk_costs_the_page_and_not_the_numbers(saved, photos, tmp_path, capsys, monkeypatch):
    words = [
        "zeroshot",
        "--model",
        str(saved),
        "--device",
        "cpu",
        "--data",
        str(photos),
        "--html",
        str(tmp_path / "p.html"),
    ]

    def full(path, text, **_):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", full)
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert "top-1 accuracy" in out
    assert err.splitlines()[-1].startswith("mmzoo: the disk is full (")
    assert not list(tmp_path.glob("*p.html*"))


@pytest.mark.parametrize("page", ["report.pdf", "photos/red/0.png", "photos/red/0.png/page.html"])
def test_a_page_goes_nowhere_else(page, colours, photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    before = (photos / "red" / "0.png").read_bytes()
    with pytest.raises(UsageError, match=r"a page is an \.html file|nothing may be written in"):
        zeroshot(colours, data=photos, html=page)
    assert (photos / "red" / "0.png").read_bytes() == before


def test_damaged_weights_are_a_sentence(colours, photos, monkeypatch):
    model, processor = colours
    monkeypatch.setattr(model, "encode_image", lambda images: torch.full((len(images), 3), torch.nan))
    with pytest.raises(ZooError, match="ColourModel gives numbers that are not finite"):
        zeroshot((model, processor), data=photos)


def test_pictures_may_stand_before_the_options(saved, photos, capsys):
    picture = str(photos / "red" / "0.png")
    words = [
        "zeroshot",
        picture,
        "--model",
        str(saved),
        picture,
        "--labels",
        "cat,dog",
        str(photos / "blue"),
        "--json",
    ]
    assert main(words) == 0
    assert len(json.loads(capsys.readouterr().out)["predictions"]) == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--labels", "cat,dog", "a.png"], "the following arguments are required: --model"),
        (
            ["--model", "clip-tiny", "--label", "cat,dog", "a.png"],
            "zeroshot has no option '--label'. Did you mean --labels",
        ),
        (["--model", "clip-tiny", "--top-k", "0", "a.png"], "'0' is not a whole number of at least 1"),
        (["--model", "clip-tiny", "--labels"], "argument --labels: expected one argument"),
        (["--model", "clip-tinny", "--labels", "a,b", "a.png"], "Did you mean clip-tiny"),
        (
            ["--model", "clip-tiny", "--labels", "a,b", "--device", "tpu9", "a.png"],
            "device 'tpu9' cannot be used here",
        ),
    ],
)
def test_command_used_wrongly(words, sentence, capsys):
    assert main(["zeroshot", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert sentence in err


def test_the_clone_has_a_door_to_it():
    door = Path(__file__).resolve().parents[2] / "tools" / "zeroshot.py"
    done = subprocess.run([sys.executable, str(door), "--help"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.splitlines()[0][:21]) == (0, "usage: mmzoo zeroshot")


def test_imagenet_folders_get_the_names_of_clip(monkeypatch):
    """Folders of WordNet ids in their order are the classes in the order of CLIP's names."""
    from types import SimpleNamespace

    from mmzoo.apps import zeroshot as module

    source = SimpleNamespace(name="val", classes=tuple(f"n{i:08d}" for i in range(1000)))
    monkeypatch.setattr(module, "open_source", lambda *args, **rest: source)
    _, names, label_of = module._task((), "imagenet", "data/imagenet/val", None, None)
    assert (names[0], names[207], names[999]) == ("tench", "Golden Retriever", "toilet paper")
    assert label_of == list(range(1000))
    source.classes = source.classes[:10]
    with pytest.raises(UsageError, match="val has 10"):
        module._task((), "imagenet", "data/imagenet/val", None, None)
