"""Opens a data source by looking at what lies at a path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmzoo.data.sample import Source
from mmzoo.data.sources.annotations import expect, recognise, split_of
from mmzoo.data.sources.common import IMAGE_SUFFIXES, choose_split, subfolders
from mmzoo.errors import UsageError, ZooError
from mmzoo.paths import find_data

__all__ = ["list_splits", "open_joint", "open_source", "recognise_source"]

EASY_VQA = frozenset({"easy-vqa", "easy_vqa", "easyvqa"})
CAPTIONS = ("captions", "coco-captions")  # of `KINDS`
# Folder names that are splits rather than classes.
SPLIT_FOLDERS = ("train", "val", "valid", "validation", "test")


def open_source(path: str | Path, *, split: str | None = None, by: str | None = None) -> Source:
    """Open the data at a path, recognised by its content.

    | what lies there | source |
    | --- | --- |
    | a folder with `captions.jsonl`, or such a file itself | pictures with captions |
    | a folder of class folders | pictures with classes |
    | a Karpathy JSON file, or a folder with exactly one | pictures with captions and splits |
    | COCO's or NoCaps' captions (`captions_val2014.json`), or a folder of some | pictures with captions, splits |
    | ALBEF's or LAVIS's list of captions (`coco_train.json`), or a folder of some | pictures with captions, splits |
    | `*.tar`, a glob, braces (`{000..009}.tar`), or a folder of them | indexed shards |
    | a folder with `emoji.json` | the emoji set |
    | a folder with `easyvqa.json`, or the name `easy-vqa` | the shapes of easy-VQA |
    | several of these joined by `+` | all of them as one, see `open_joint` |

    Args:
        path: A file, folder, glob or name. Relative paths are also looked for among the data that mmzoo
            carries.
        split: A split's name. Folders may hold splits as subfolders (`train/`, `val/`).
        by: What classes are, where the source knows several answers (the emoji set: `"group"` or `"name"`).

    Raises:
        ZooError: Nothing lies there, or nothing that can be recognised.
        UsageError: Unknown split, or `by` given to a source with only one kind of class.
    """
    if len(parts := _parts(path)) > 1:
        return open_joint(parts, split=split, by=by)
    kind, found = _recognise(path)
    if kind == "easyvqa":
        from mmzoo.data.sources.easyvqa import EasyVQASource
        from mmzoo.data.sources.easyvqa_tasks import MATCH_SPLITS, EasyVQAMatches

        if split in MATCH_SPLITS and by is None:
            return EasyVQAMatches(found, split=split)
        return EasyVQASource(found, split=split, by=by)
    if kind == "emoji":
        from mmzoo.data.sources.emoji import EmojiSource

        return EmojiSource(found, split=split, by=by)
    if by is not None:
        raise UsageError(
            f"{path}: 'by' ({by}) has no meaning here; only the emoji set and easy-vqa know several."
        )
    if kind == "karpathy":
        from mmzoo.data.sources.karpathy import KarpathySource

        return KarpathySource(found, split=split)
    if kind == "splits":
        names = _split_folders(found)
        if split is None:
            raise UsageError(f"{path} holds the splits {', '.join(names)}; say which one.")
        return open_source(found / choose_split(split, names, path))
    if kind == "lists":
        lists = _list_files(found)
        if split is None:
            raise UsageError(f"{path} holds the splits {', '.join(lists)}; say which one.")
        return open_source(lists[choose_split(split, tuple(lists), path)])
    if split is not None:
        raise UsageError(
            f"{path} has no splits, so {split!r} cannot be opened; leave the split out to read all of it."
        )
    if kind == "jsonl":
        from mmzoo.data.sources.jsonl import JsonlSource

        return JsonlSource(found)
    if kind == "coco":
        from mmzoo.data.sources.coco_captions import CocoCaptionsSource

        return CocoCaptionsSource(found)
    if kind == "list":
        from mmzoo.data.sources.captions import CaptionListSource

        return CaptionListSource(found)
    if kind == "tar":
        from mmzoo.data.sources.tar import TarSource

        return TarSource(str(found))
    from mmzoo.data.sources.folder import ImageFolderSource

    return ImageFolderSource(found)


def recognise_source(path: str | Path, split: str | None = None) -> tuple[str, Path]:
    """Tell what lies at a path, and where: `"coco"`, `"karpathy"`, `"list"`, or what else `open_source` tells apart.

    Args:
        path: As for `open_source`.
        split: Chooses among the files of a folder.

    Raises:
        ZooError: As of `open_source`.
        UsageError: Unknown split.
    """
    if len(_parts(path)) > 1:
        return "joint", Path(path)
    kind, found = _recognise(path)
    if kind == "lists" and split is not None:
        lists = _list_files(found)
        return _recognise(lists[choose_split(split, tuple(lists), path)])
    return kind, found


def list_splits(path: str | Path) -> tuple[str, ...]:
    """Names of the splits that the data at a path has; empty where it is one undivided set."""
    if len(parts := _parts(path)) > 1:
        named = {name: list_splits(part) for name, part in _named(parts).items()}
        shared = [s for s in next(iter(named.values())) if all(s in known for known in named.values())]
        return (*shared, *(f"{name}:{split}" for name, known in named.items() for split in known))
    kind, found = _recognise(path)
    if kind == "easyvqa":
        from mmzoo.data.sources.easyvqa import SPLITS
        from mmzoo.data.sources.easyvqa_tasks import MATCH_SPLITS

        return (*SPLITS, *MATCH_SPLITS)
    if kind == "emoji":
        from mmzoo.data.sources.emoji import SPLITS as EMOJI_SPLITS

        return EMOJI_SPLITS
    if kind == "karpathy":
        from mmzoo.data.sources.karpathy import karpathy_splits

        return karpathy_splits(found)
    if kind == "lists":
        return tuple(_list_files(found))
    return _split_folders(found) if kind == "splits" else ()


def open_joint(parts: Sequence[str], *, split: str | None = None, by: str | None = None) -> Source:
    """Open several sources as one, or one of them.

    Args:
        parts: What lies at each is recognised as in `open_source`. A path that stands here several times is read that
            often each epoch, to give a small source more weight.
        split: `"train"`: that split of every source (all of one that has none). `"emoji:unseen-style"`: one split of
            the source at `.../emoji` alone.
        by: What classes are, for a single source.

    Raises:
        ZooError: As of `open_source`.
        UsageError: Unknown source or split, two sources of one name, or `by` for several.
    """
    named = _named(parts)
    if split is not None and ":" in split:
        name, _, inner = split.partition(":")
        return open_source(named[choose_split(name, tuple(named), "+".join(parts))], split=inner, by=by)
    if by is not None:
        raise UsageError(f"by: {by!r} says what a class is, and several sources have no classes in common.")
    from mmzoo.data.sources.joint import JointSource

    opened = {part: open_source(part, split=split if list_splits(part) else None) for part in named.values()}
    return JointSource([opened[part] for part in parts])


def _parts(path: str | Path) -> list[str]:
    """The sources that a path joins by `+`; one, if something lies there that is called so."""
    text = str(path)
    return [text] if "+" not in text or Path(text).exists() else text.split("+")


def _named(parts: Sequence[str]) -> dict[str, str]:
    """Each source by the last part of its path."""
    named = {Path(part).name: part for part in parts}
    if len(named) < len(set(parts)) or not all(named):
        raise UsageError(f"{'+'.join(parts)}: sources are told apart by the last part of their paths.")
    return named


def _recognise(path: str | Path) -> tuple[str, Path]:
    """Kind of source and the path it is at."""
    text = str(path)
    if "://" in text or text.startswith("pipe:"):
        raise UsageError(
            f"{path} is not local: stream it (data.stream of CaptionsData), or download it first."
        )
    if text in EASY_VQA and not Path(path).exists():
        return "easyvqa", find_data("data/easyvqa")
    if any(c in text for c in "*?{[") and not Path(path).exists():
        if not text.endswith(".tar"):
            raise ZooError(f"{path}: patterns name tar shards and end in .tar (data/train-{{000..009}}.tar).")
        found = find_data(Path(path).parent) / Path(path).name
        return "tar", found
    found = find_data(path)
    if not found.exists():
        where = "" if found.is_absolute() else f" (looked in {Path.cwd()} and in the data that mmzoo carries)"
        raise ZooError(f"no data at {path}{where}.")
    if found.is_file():
        kinds = {".jsonl": "jsonl", ".json": "karpathy", ".tar": "tar"}
        if found.suffix not in kinds:
            raise ZooError(
                f"{path} is a {found.suffix or 'nameless'} file; expected .jsonl, .json (a list of captions, COCO's "
                "or Karpathy's) or .tar."
            )
        if found.suffix == ".json" and recognise(found) is not None:
            if expect(found, CAPTIONS, "CaptionsData") == "coco-captions":
                return "coco", found
            return ("karpathy" if _looks_like_karpathy(found) else "list"), found
        return kinds[found.suffix], found
    return _recognise_folder(path, found)


def _recognise_folder(path: str | Path, found: Path) -> tuple[str, Path]:
    names = {p.name for p in found.iterdir() if not p.name.startswith(".")}
    if not names:
        raise ZooError(f"{path} is empty.")
    for file, kind in (("emoji.json", "emoji"), ("easyvqa.json", "easyvqa"), ("captions.jsonl", "jsonl")):
        if file in names:
            return kind, found
    if any(n.endswith(".tar") for n in names):
        return "tar", found / "*.tar"
    jsons = [found / n for n in names if n.endswith(".json") and _looks_like_karpathy(found / n)]
    if len(jsons) == 1:
        return "karpathy", jsons[0]
    if _list_files(found):
        return "lists", found
    folders = subfolders(found)
    if folders and all(f.name in SPLIT_FOLDERS for f in folders):
        return "splits", found
    if folders:
        return "folder", found
    pictures = sum(Path(n).suffix.lower() in IMAGE_SUFFIXES for n in names)
    there = f"{pictures} pictures without captions" if pictures else ", ".join(sorted(names)[:5])
    raise ZooError(
        f"{path}: nothing to recognise. Looked for captions.jsonl, class folders, *.tar shards, one Karpathy "
        f"*.json, lists of captions such as *_train.json, or emoji.json; found {there}."
    )


def _looks_like_karpathy(file: Path) -> bool:
    """Whether a JSON file opens like a list of pictures with sentences, rather than some settings."""
    with file.open("rb") as opened:
        head = opened.read(2**16)
    return (b'"images"' in head or b'"sentences"' in head) and recognise(file) != "coco-captions"


def _list_files(folder: Path) -> dict[str, Path]:
    """The folder's lists of captions, COCO's own layout included, by the split that their names tell."""
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.json")):
        split = split_of(file) if recognise(file) in CAPTIONS and not _looks_like_karpathy(file) else None
        if split in found:
            raise UsageError(
                f"{folder}: {found[split].name} and {file.name} are both {split}; give the file itself."
            )
        if split is not None:
            found[split] = file
    return found


def _split_folders(found: Path) -> tuple[str, ...]:
    return tuple(sorted((f.name for f in subfolders(found)), key=SPLIT_FOLDERS.index))
