"""emoji-850: 850 objects in three drawing styles, with Unicode CLDR names and keywords (`data/emoji`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmzoo.data.sample import Sample
from mmzoo.data.sources.atlas import cut_atlas
from mmzoo.data.sources.common import choose_split
from mmzoo.errors import UsageError, ZooError, nearest
from mmzoo.paths import find_data

__all__ = ["GROUP_ID", "SPLITS", "WORD_ID", "EmojiSource"]

GROUP_ID, WORD_ID = 1000, 2000
"""Group g has the id `GROUP_ID + g`, word w of all names and keywords `WORD_ID + w`; concepts have 0 to 849."""

# Ten folds of 85 concepts, by a hash of the name. Fold 0 is the test; fold 1 plays its part while settings
# are chosen.
_ALL, _SEEN, _TUNE = range(10), range(1, 10), range(2, 10)
_SPLITS: dict[str, tuple[tuple[str, ...], range]] = {  # split -> drawing styles, folds
    "train": (("noto", "fluent"), _SEEN),
    "unseen-style": (("twemoji",), _SEEN),
    "unseen-concepts": (("twemoji",), range(1)),
    "tune-train": (("noto",), _TUNE),
    "tune-style": (("fluent",), _TUNE),
    "tune-concepts": (("fluent",), range(1, 2)),
    "all": (("noto", "fluent", "twemoji"), _ALL),
}
SPLITS = tuple(_SPLITS)
"""`train`; the two held-out tests; and three `tune-` splits to choose settings by without looking at the tests."""
_TRAINED = frozenset({"train", "tune-train", "all"})


class EmojiSource:
    """Drawings of objects with names, keywords and one of five groups.

    One concept in ten is kept out of training in every style, and one style (Twemoji) is never trained on.
    In the splits to train on, each picture has several texts: its name, the name in a sentence, with
    keywords, with its group, its group alone, and single words that fit it. In the others it has exactly one, its name.

    Attributes:
        classes: Names that labels index: the split's concepts (`by="name"`) or the five groups
            (`by="group"`).
        tiles: (N, 48, 48, 3) uint8 RGB, the split's pictures in order.
    """

    def __init__(self, path: str | Path = "data/emoji", *, split: str | None = None, by: str | None = None):
        """Read the index and cut the atlases of the split's styles.

        Args:
            path: Folder with `emoji.json` and one `<style>.webp` each.
            split: One of `SPLITS`; `train` if left out.
            by: `"name"` (default) or `"group"`: what a label is.

        Raises:
            ZooError: The folder or a file of it is missing or altered.
            UsageError: Unknown split or `by`.
        """
        split = choose_split(split or "train", SPLITS, path)
        if by not in (None, "name", "group"):
            raise UsageError(
                f"emoji classes are by 'name' or 'group', not {by!r}.{nearest(str(by), ('name', 'group'))}"
            )
        folder = find_data(path)
        if not (folder / "emoji.json").is_file():
            raise ZooError(f"{path} holds no emoji.json; the emoji set lies in data/emoji of the repository.")
        index = json.loads((folder / "emoji.json").read_text(encoding="utf-8"))
        concepts: list[dict[str, Any]] = index["concepts"]
        styles, folds = _SPLITS[split]
        chosen = [i for i, c in enumerate(concepts) if c["fold"] in folds]
        groups: list[str] = index["groups"]
        self.name = f"emoji:{split}"
        self.classes: tuple[str, ...] = tuple(
            map(_group_words, groups) if by == "group" else (concepts[i]["name"] for i in chosen)
        )
        self._rows: list[tuple[str, int, int, int]] = []  # key, concept, group, label
        parts = []
        for style in styles:
            tiles = cut_atlas(
                folder / f"{style}.webp",
                tile=index["tile"],
                columns=index["columns"],
                count=len(concepts),
                pixels=index["pixels"][style],
            )
            parts.append(tiles[chosen])
            for position, i in enumerate(chosen):
                group = groups.index(concepts[i]["group"])
                label = group if by == "group" else position
                self._rows.append((f"{style}/{concepts[i]['slug']}", i, group, label))
        self.tiles = np.concatenate(parts)
        texts = _training_texts if split in _TRAINED else _test_texts
        every = sorted({word for c in concepts for word in _words(c)})
        word_ids = {word: WORD_ID + position for position, word in enumerate(every)}
        self._words = {i: tuple(word_ids[word] for word in _words(concepts[i])) for i in chosen}
        self._texts = {i: texts(concepts[i], i, groups.index(concepts[i]["group"]), word_ids) for i in chosen}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        key, concept, group, label = self._rows[index]
        texts, text_ids = self._texts[concept]
        image = Image.fromarray(self.tiles[index])
        return Sample(key, image, texts, text_ids, (concept, GROUP_ID + group, *self._words[concept]), label)


def _group_words(group: str) -> str:
    """`"Food & Drink"` as one would write it in a sentence."""
    return group.lower().replace("&", "and")


def _words(concept: dict[str, Any]) -> list[str]:
    """The words that fit a concept: its keywords, and those of a name of several words."""
    name = concept["name"].split()
    return list(dict.fromkeys([*concept["keywords"], *(name if len(name) > 1 else ())]))


Texts = tuple[tuple[str, ...], tuple[int, ...]]


def _test_texts(concept: dict[str, Any], concept_id: int, group: int, word_ids: dict[str, int]) -> Texts:
    return (concept["name"],), (concept_id,)


def _training_texts(concept: dict[str, Any], concept_id: int, group: int, word_ids: dict[str, int]) -> Texts:
    """Captions to draw from evenly (the plain ones stand several times), and what each is about.

    About one in thirteen names the group alone: without such captions a model never learns what a group's name looks
    like, and with many more the members of a group, all of which such a caption fits, are drawn together and names get
    lost. About one in four is a single word, which fits every picture that has it: so words are learnt that objects
    share.
    """
    name, kind = concept["name"], _group_words(concept["group"])
    words = [word for word in concept["keywords"] if word not in name.split()]
    plain = [name, f"a picture of {name}"]
    about = [
        *plain,
        *plain,
        *(", ".join((name, *words[i : i + 3])) for i in (0, 2, 4)),
        *(f"{text}, {kind}" for text in plain),
    ]
    alone = _words(concept)[:6]
    texts = (*about, *about, kind, f"a picture of {kind}", *alone)
    ids = (concept_id,) * (2 * len(about)) + (GROUP_ID + group,) * 2 + tuple(word_ids[word] for word in alone)
    return texts, ids
