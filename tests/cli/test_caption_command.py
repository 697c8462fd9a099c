"""`mmzoo caption` as typed: what goes to stdout and what to stderr, lists on stdin, Ctrl-C, wrong calls."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hand_copy import shake
from PIL import Image

import mmzoo
from mmzoo.apps import caption as app
from mmzoo.cli.main import main


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("blip") / "saved"
    mmzoo.save(shake(mmzoo.create_model("blip-tiny"), seed=2), folder)
    return str(folder)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        Image.new("RGB", (40, 30), (50 * i, 255 - 50 * i, 90)).save(folder / f"{i}.png")
    return folder


def lines(file):
    return Path(file).read_text().splitlines()


def run(saved, *words):
    return main(["caption", "--model", saved, "--max-new-tokens", "4", *words])


def test_text_and_json_lines(saved, photos, capsys):
    (photos / "broken.png").write_bytes(b"no picture")
    assert run(saved, "photos", "--num-captions", "2") == 0
    out, err = capsys.readouterr()
    rows = [line.split("\t") for line in out.splitlines()]
    assert [key for key, _ in rows] == [f"photos/{i}.png" for i in range(5) for _ in range(2)]
    assert "mmzoo: 1 unreadable picture, left out:\n  photos/broken.png: " in err
    assert "10 captions were cut at 4 tokens" in err
    assert "5 pictures in " in err
    assert " tokens a second\n" in err
    assert run(saved, "photos/[0-2].png", "--num-captions", "2", "--json") == 0
    out, err = capsys.readouterr()
    told = [json.loads(line) for line in out.splitlines()]
    assert [line["image"] for line in told] == [f"photos/{i}.png" for i in range(3)]
    assert [tuple(line["captions"]) for line in told] == [
        (rows[2 * i][1], rows[2 * i + 1][1]) for i in range(3)
    ]
    assert set(told[0]) == {"image", "captions", "scores", "finished", "by"}


def test_a_list_on_stdin(saved, photos, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("photos/1.png\n\nphotos/3.png\n"))
    assert run(saved, "-", "photos/0.png") == 0
    out = capsys.readouterr().out
    assert [line.split("\t")[0] for line in out.splitlines()] == [f"photos/{i}.png" for i in (1, 3, 0)]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert run(saved, "-") == 2
    assert "standard input is empty" in capsys.readouterr().err


def test_ctrl_c_keeps_what_is_written_and_the_same_command_goes_on(saved, photos, capsys, monkeypatch):
    words = ("photos", "--out", "said.jsonl", "--batch-size", "1")
    whole, calls = app._write, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(app, "_write", interrupted)
    assert run(saved, *words) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "mmzoo: what was written stays in said.jsonl; the same command goes on from there.",
        "mmzoo: interrupted.",
    ]
    assert [json.loads(line)["image"] for line in lines("said.jsonl")] == ["photos/0.png", "photos/1.png"]
    monkeypatch.undo()
    os.chdir(photos.parent)
    assert run(saved, *words) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "2 of 5 pictures were described already" in err
    assert "3 pictures in " in err
    assert "captions: said.jsonl\n" in err
    assert [json.loads(line)["image"] for line in lines("said.jsonl")] == [
        f"photos/{i}.png" for i in range(5)
    ]
    assert sorted(p.name for p in photos.parent.iterdir()) == ["photos", "said.jsonl"]  # no lock is left


def test_an_empty_prompt_and_random_weights_are_mentioned(photos, capsys):
    assert run("blip-tiny", "photos/0.png", "--prompt", "") == 0
    err = capsys.readouterr().err
    assert "the prompt is empty, so captions begin with their first word" in err
    assert "blip-tiny has random weights" in err


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        ([], 2, "name pictures to describe"),
        (["nowhere.png"], 1, "none of 1 pictures could be read; the first, nowhere.png"),
        (["empty"], 2, "no pictures in empty"),
        (["photos", "--prompt", "cat " * 60], 2, "the prompt is longer than the 29 tokens"),
        (["photos", "--prompt", "cat " * 29], 2, "do not fit the decoder's context of 32"),
        (["photos", "--min-new-tokens", "5"], 2, "min_new_tokens=5 is more than max_new_tokens=4"),
        (["photos", "--beams", "4000"], 2, "4000 beams cannot begin with different words"),
        (["photos", "--beams", "0"], 2, "'0' is not a whole number of at least 1"),
        (["photos", "--top-k", "-1"], 2, "'-1' is not a whole number from 0 on"),
        (["photos", "--sample", "--beams", "2"], 2, "leave one out"),
        (["photos", "--seeds", "2"], 2, "caption has no option '--seeds'. Did you mean --seed"),
        (["photos", "--out", "said.json"], 2, "ends in .jsonl"),
        (["photos", "--model", "blip-teeny"], 2, "Did you mean blip-tiny"),
        (
            ["photos", "--model", "clip-tiny"],
            1,
            "clip-tiny cannot write captions (it embeds pairs). Models that can: ",
        ),
    ],
)
def test_wrong_calls_get_one_sentence(words, status, told, saved, photos, capsys):
    (photos.parent / "empty").mkdir()
    model = [] if "--model" in words else ["--model", saved]
    assert main(["caption", "--max-new-tokens", "4", *model, *words]) == status
    out, err = capsys.readouterr()
    assert told in err
    assert out == ""
    assert err.count("\n") == 1


def test_results_stay_on_stdout_while_a_bar_is_drawn(tmp_path):
    """A terminal on stderr, and stdout in a file: rich would send what is printed to the terminal."""
    pty = pytest.importorskip("pty")
    code = (
        "from mmzoo.cli.render import progress_bar\n"
        "with progress_bar('working') as progress:\n"
        "    assert progress is not None\n"
        "    progress(1, 2)\n"
        "    print('a result')\n"
    )
    screen, terminal = pty.openpty()
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=terminal, timeout=60)
    os.close(terminal)
    os.close(screen)
    assert (done.returncode, done.stdout) == (0, b"a result\n")
