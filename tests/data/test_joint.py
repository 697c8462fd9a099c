"""Several sources as one: ids never meet, splits are found per part, and what cannot be joined is said."""

from __future__ import annotations

import json

import pytest

from mmzoo.data.open import list_splits, open_source
from mmzoo.data.sources.joint import ID_BITS
from mmzoo.errors import UsageError, ZooError

BOTH = "data/emoji+data/easyvqa"


def test_parts_follow_each_other_with_ids_of_their_own() -> None:
    both, emoji, easy = open_source(BOTH), open_source("data/emoji"), open_source("data/easyvqa")
    assert len(both) == len(emoji) + len(easy)
    first, last = both[len(emoji) - 1], both[len(emoji)]
    assert first.texts == emoji[len(emoji) - 1].texts
    assert first.image_ids == emoji[len(emoji) - 1].image_ids
    assert last.texts == easy[0].texts
    assert last.key.startswith("easyvqa:train/")
    of_emoji = {i for k in range(len(emoji)) for i in (*both[k].image_ids, *both[k].text_ids)}
    of_easy = {i for k in range(len(emoji), len(both)) for i in (*both[k].image_ids, *both[k].text_ids)}
    assert not of_emoji & of_easy
    assert both.classes is None
    assert first.label is None
    with pytest.raises(IndexError):
        both[len(both)]


def test_splits_of_the_whole_and_of_a_part() -> None:
    splits = list_splits(BOTH)
    assert splits[0] == "train"
    assert {"emoji:unseen-style", "easyvqa:left-out"} <= set(splits)
    assert "unseen-style" not in splits
    part = open_source(BOTH, split="emoji:unseen-style", by="group")
    alone = open_source("data/emoji", split="unseen-style", by="group")
    assert (part.name, len(part), part.classes) == (alone.name, len(alone), alone.classes)


def test_a_source_counts_as_often_as_it_is_named() -> None:
    twice, emoji = open_source(f"data/emoji+{BOTH}"), open_source("data/emoji")
    assert len(twice) == len(emoji) + len(open_source(BOTH))
    assert twice[3] == twice[len(emoji) + 3], "the same sample, with the same ids"
    assert "emoji:unseen-style" in list_splits(f"data/emoji+{BOTH}")


@pytest.mark.parametrize(
    ("path", "split", "by", "says"),
    [
        (BOTH, "emojis:val", None, "emoji"),
        (BOTH, "emoji:nothing", None, "unseen-style"),
        (BOTH, "train", "group", "no classes in common"),
        ("data/emoji+./data/emoji", None, None, "told apart"),
        ("data/emoji+data/nowhere", None, None, "no data at data/nowhere"),
        ("data/emoji+", None, None, "told apart"),
    ],
)
def test_what_cannot_be_joined_is_said(path: str, split: str | None, by: str | None, says: str) -> None:
    with pytest.raises((UsageError, ZooError), match=says):
        open_source(path, split=split, by=by)


def test_ids_made_from_names_never_meet_those_of_another_part(make_jsonl) -> None:
    """Names become ids near the end of an int64, where a plain shift would run into the next part, or over."""
    folders = []
    for name in ("one", "two"):
        folder = make_jsonl(3, name=name)
        lines = (folder / "captions.jsonl").read_text().splitlines()
        rows = [json.loads(line) | ({"id": "same name"} if i < 2 else {}) for i, line in enumerate(lines)]
        (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
        folders.append(str(folder))
    both = open_source("+".join(folders))
    ids = [both[i].image_ids[0] for i in range(6)]
    assert ids[0] == ids[1] != ids[2]
    assert ids[3] == ids[4] != ids[5]
    assert not set(ids[:3]) & set(ids[3:])
    assert max(ids) < 2**63
    assert [i >> ID_BITS for i in ids] == [0, 0, 0, 1, 1, 1]
