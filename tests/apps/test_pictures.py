"""Files, folders and patterns; broken pictures are named and do not end a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmzoo.apps.pictures import Files, find_pictures, read_batches
from mmzoo.errors import UsageError, ZooError


def test_files_folders_and_patterns_each_file_once(photos, tmp_path):
    (photos / "notes.txt").write_text("no picture")
    (photos / ".cache").mkdir()
    (photos / ".cache" / "x.png").write_bytes((photos / "red" / "0.png").read_bytes())
    everything = find_pictures([photos])
    assert [str(path.relative_to(photos)) for path in everything] == [
        "blue/0.png",
        "green/0.png",
        "green/1.png",
        "red/0.png",
        "red/1.png",
        "red/2.png",
        "red/odd.png",
    ]
    assert find_pictures([str(photos / "red" / "?.png")]) == everything[3:6]
    assert find_pictures([str(photos / "**" / "0.png")]) == [everything[0], everything[1], everything[3]]
    assert find_pictures([everything[6], photos / "red"]) == [everything[6], *everything[3:6]]


def test_a_file_is_taken_by_name_even_if_it_looks_like_a_pattern(photos):
    odd = photos / "a[1].png"
    odd.write_bytes((photos / "red" / "0.png").read_bytes())
    assert find_pictures([str(odd)]) == [odd]


def test_nothing_found_is_a_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no pictures in .*empty"):
        find_pictures([tmp_path / "empty"])
    with pytest.raises(UsageError, match=r"no file matches '.*nope\*\.png'"):
        find_pictures([str(tmp_path / "nope*.png")])


def test_broken_pictures_are_named_and_passed_over(photos):
    (photos / "cut.png").write_bytes((photos / "red" / "0.png").read_bytes()[:40])
    (photos / "text.jpg").write_text("hello")
    (photos / "empty.jpg").touch()
    paths = [
        photos / "cut.png",
        photos / "red" / "0.png",
        photos / "text.jpg",
        photos / "empty.jpg",
        Path("gone.png"),
    ]
    broken = []
    batches = list(read_batches(Files([*paths, photos / "blue" / "0.png"]), 2, broken))
    assert [batch.places for batch in batches] == [[1], [5]]
    assert [Path(item.key).name for item in broken] == ["cut.png", "text.jpg", "empty.jpg", "gone.png"]
    assert [bool(item.reason) for item in broken] == [True] * 4
    assert broken[2].reason == "is empty (0 bytes)"
    assert broken[3].reason == "No such file or directory"


def test_no_readable_picture_at_all_is_a_failure(photos):
    (photos / "text.jpg").write_text("hello")
    with pytest.raises(
        ZooError, match=r"none of 2 pictures could be read; the first, .*text\.jpg: .*\."
    ) as caught:
        list(read_batches(Files([photos / "text.jpg", photos / "gone.png"]), 8, []))
    assert not isinstance(caught.value, UsageError)
