"""Tables, numbers and JSON as a terminal shows them; no bars and no colours where nobody watches."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from mmzoo.apps.report.shares import percent
from mmzoo.cli.render import plain, print_json, progress_bar, say_broken, size, table


class Point(NamedTuple):
    x: int
    where: Path


@dataclass(frozen=True)
class Holder:
    points: tuple[Point, ...]
    share: float


def test_plain_takes_results_apart():
    holder = Holder((Point(1, Path("a/b")),), float("nan"))
    assert plain({"h": holder}) == {"h": {"points": [{"x": 1, "where": "a/b"}], "share": None}}


def test_json_keeps_letters_of_all_scripts(capsys):
    print_json({"label": "Äpfel 🍎"})
    out = capsys.readouterr().out
    assert "Äpfel 🍎" in out
    assert json.loads(out) == {"label": "Äpfel 🍎"}


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (12, "12"),
        (358_373, "358 k"),
        (5_717_416, "5.72 M"),
        (86_567_656, "86.6 M"),
        (1_366_678_273, "1.37 B"),
    ],
)
def test_sizes_have_three_digits(count, text):
    assert size(count) == text


def test_table_aligns():
    assert table(("name", "n"), [("a", 5), ("long", 123)], right=(1,)) == "name    n\na       5\nlong  123"


def test_percent():
    assert percent(0.12345) == "12.3 %"
    assert (percent(0.00126), percent(0.0), percent(0.126, 0)) == ("0.13 %", "0.0 %", "13 %")
    assert percent(None) == "-"


def test_no_progress_bar_without_a_terminal(capsys):
    with progress_bar("working") as progress:
        assert progress is None
    assert capsys.readouterr() == ("", "")


def test_broken_pictures_are_named_up_to_a_bound(capsys):
    say_broken([(f"{i}.jpg", "truncated") for i in range(12)])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "mmzoo: 12 unreadable pictures, left out:"
    assert err.splitlines()[-1] == "  and 2 more"
    assert "  0.jpg: truncated\n" in err
    say_broken([])
    assert capsys.readouterr().err == ""
