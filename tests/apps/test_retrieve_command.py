"""`mmzoo retrieve` as typed: what it prints, and one sentence with a status for all that cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import mmzoo
from mmzoo.cli.main import main


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("saved") / "clip"
    torch.manual_seed(3)
    mmzoo.save(mmzoo.create_model("clip-tiny"), folder)
    return str(folder)


def run(*words: str) -> int:
    return main(["retrieve", "--device", "cpu", *words])


def test_command_reads_texts_from_a_file_and_lists_of_either_form(saved, photos, tmp_path, capsys):
    (tmp_path / "asked.txt").write_text("a cat\n\na dog\n")
    assert (
        run("--model", saved, "-t", str(tmp_path / "asked.txt"), "a boat", "-t", "x", "--images", str(photos))
        == 0
    )
    out, err = capsys.readouterr()
    assert err == ""
    blocks = out.strip().split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == ["a cat", "a dog", "a boat", "x"]
    assert blocks[0].splitlines()[1].split() == ["cosine", "picture"]
    assert [line.split()[0] for line in blocks[0].splitlines()[2:]] == ["1", "2", "3", "4", "5"]
    assert run("--model", saved, "-t", str(tmp_path / "gone.txt"), "--images", str(photos)) == 2
    assert capsys.readouterr().err == f"mmzoo: no file {tmp_path}/gone.txt.\n"


def test_command_tells_of_broken_pictures_and_cut_captions(saved, photos, tmp_path, capsys):
    (photos / "bad.png").write_text("no picture")
    (tmp_path / "c.txt").write_text("cat\n" + "cat " * 99)
    assert run("--model", saved, "--image", str(photos), "--captions", str(tmp_path / "c.txt"), "--json") == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert [len(entry["hits"]) for entry in told["found"]] == [2] * 7
    assert told["cut"] == 1
    assert "mmzoo: 1 unreadable picture, left out:" in err
    assert "bad.png" in err
    assert "1 caption is longer than" in err


def test_command_searches_what_embed_wrote(saved, photos, tmp_path, capsys):
    index = str(tmp_path / "x.safetensors")
    assert main(["embed", "--model", saved, "--device", "cpu", "--out", index, str(photos)]) == 0
    capsys.readouterr()
    assert run("--model", saved, "-t", "a cat", "--images", str(photos)) == 0
    direct = capsys.readouterr().out
    assert run("--model", saved, "-t", "a cat", "--images", index) == 0
    assert capsys.readouterr() == (direct, "")
    assert run("--model", "clip-tiny", "-t", "a cat", "--images", index) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "was made by" in err


def test_the_command(photos, tmp_path, capsys):
    page = tmp_path / "page.html"
    words = [
        "retrieve",
        "--model",
        "clip-tiny",
        "-t",
        "a red square",
        "--images",
        str(photos),
        "--top-k",
        "2",
    ]
    assert main([*words, "--json", "--html", str(page)]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert [len(entry["hits"]) for entry in told["found"]] == [2]
    assert "random weights" in err
    assert "a red square" in page.read_text(encoding="utf-8")
    assert main(words) == 0
    assert "a red square" in capsys.readouterr().out
    assert main([*words[:-1], "99"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["retrieve", "--model", "clip-tiny"]) == 2


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["-t", "", "--images", "photos"], 2, "texts: entry 1 is empty."),
        (["-t", "cat " * 50, "--images", "photos"], 2, "tokens); shorten it."),
        (["-t", "a", "--images", "empty"], 2, "no pictures in empty"),
        (["-t", "a", "--images", "photos", "--top-k", "8"], 2, "--top-k 8: there are 7 pictures in photos"),
        (["-t", "a", "--images", "photos", "--top-k", "0"], 2, "'0' is not a whole number of at least 1"),
        (
            ["-t", "a", "--images", "photos", "--text", "b"],
            2,
            "retrieve has no option '--text'. Did you mean --texts",
        ),
        (["-t", "a", "--images", "gone.safetensors"], 2, "no file gone.safetensors"),
        (["-t", "a", "--images", "cut.safetensors"], 1, "cut.safetensors cannot be read"),
        (["-t", "a", "--images", "photos", "--html", "x.pdf"], 2, "a page is an .html file"),
        (["-t", "a", "--data", "empty"], 1, "empty is empty."),
        (["-t", "a", "--captions", "empty.txt"], 2, "empty.txt is empty"),
        (["--image", "empty.txt", "--captions", "words.txt"], 1, "none of 1 pictures could be read"),
        (["--images", "photos"], 2, "nothing to search by"),
        (
            ["-t", "a", "--images", "photos", "--rerank"],
            1,
            "cannot re-rank (it embeds pairs). Models that can: ",
        ),
    ],
)
def test_command_refuses_in_one_sentence(words, status, sentence, saved, photos, monkeypatch, capsys):
    monkeypatch.chdir(photos.parent)
    Path("empty").mkdir()
    Path("empty.txt").touch()
    Path("words.txt").write_text("cat\n")
    Path("cut.safetensors").write_bytes(b"\x20\0\0\0\0\0\0\0{")
    assert run("--model", saved, *words) == status
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("mmzoo: ")
    assert sentence in err
    if "--rerank" in words:
        assert "vilt" not in err  # scores pairs, but cannot find the candidates


def test_a_full_disk_costs_the_page_and_not_the_hits(saved, photos, tmp_path, capsys, monkeypatch):
    def full(path, text, **_):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", full)
    page = str(tmp_path / "p.html")
    assert run("--model", saved, "-t", "a cat", "--images", str(photos), "--html", page) == 1
    out, err = capsys.readouterr()
    assert out.startswith("a cat\n")
    assert err.splitlines()[-1].startswith("mmzoo: the disk is full (")
    assert not list(tmp_path.glob("*p.html*"))
