"""What a person writes for labels and templates, turned into lists or refused in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmzoo.errors import UsageError, nearest
from mmzoo.processing.templates import TEMPLATES
from mmzoo.spec import TextSpec

__all__ = ["keys_and_names", "match_classes", "read_labels", "read_lines", "read_templates", "words"]


def read_lines(path: str | Path) -> list[str]:
    """The lines of a UTF-8 text file without blank ones, stripped.

    Raises:
        UsageError: The file is missing, holds no text, or is not text.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UsageError(f"no file {path}.") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder; expected a text file with one entry per line.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a UTF-8 text file.") from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise UsageError(f"{path} is empty; expected one entry per line.")
    return found


def read_labels(labels: str | Path | Sequence[str]) -> list[str]:
    """Read labels from a list, a file with one per line, or words between commas.

    Args:
        labels: A list of labels; the path of a file; or `"cat,dog"`.

    Returns:
        The labels, stripped, in their order; two or more, no two the same words but for case. Where all hold a
        tab (see `match_classes`), that goes for each side of it.

    Raises:
        UsageError: No such file, an empty label, one that stands twice, or fewer than two.
    """
    if not isinstance(labels, (str, Path)):
        where, found = "labels", [str(label).strip() for label in labels]
    elif isinstance(labels, Path) or Path(labels).is_file():
        where, found = str(labels), read_lines(labels)
    elif "," not in labels and (Path(labels).suffix or "/" in labels):
        raise UsageError(
            f"no file {labels} to read labels from; labels themselves go between commas: cat,dog."
        )
    else:
        where, found = "labels", [label.strip() for label in labels.split(",")]
    for place, label in enumerate(found, 1):
        if not label:
            raise UsageError(f"{where}: entry {place} is empty.")
    for side in keys_and_names(found):
        _refuse_twins(side, where)
    if len(found) < 2:
        one = f"only {found[0]!r}" if found else "none"
        raise UsageError(f"{where}: {one} leaves nothing to choose from; give at least two labels.")
    return found


def _refuse_twins(labels: Sequence[str], where: str) -> None:
    """Refuse labels whose prompts would be the same, since nothing could tell them apart."""
    seen: dict[str, int] = {}
    for place, label in enumerate(labels):
        first = seen.setdefault(words(label).casefold(), place)
        if first != place:
            other = labels[first].casefold() != label.casefold()
            raise UsageError(
                f"{where}: {label!r} stands twice (entries {first + 1} and {place + 1})"
                + (f", first as {labels[first]!r}." if other else ".")
            )


def keys_and_names(labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """What a data set calls each class, and what a prompt does: the sides of a tab where all labels have one."""
    if not all("\t" in label for label in labels):
        return list(labels), list(labels)
    pairs = [label.split("\t", 1) for label in labels]
    return [key.strip() for key, _ in pairs], [name.strip() for _, name in pairs]


def words(label: str) -> str:
    """A label as it stands in a sentence: `"golden_retriever"` is a golden retriever."""
    return " ".join(label.replace("_", " ").split())


def match_classes(labels: Sequence[str], classes: Sequence[str], where: str) -> tuple[list[str], list[int]]:
    """Find each class of a data set among the labels.

    Labels may hold more than the classes (distractors). Where they are other words than the classes, as with
    ImageNet's folder names, each label is written behind its class and a tab: `n02099601<TAB>golden retriever`.

    Args:
        labels: As `read_labels` gives them.
        classes: The data set's classes.
        where: Name of the data set, for the message.

    Returns:
        The labels without the tab's left side, and for each class the index of its label.

    Raises:
        UsageError: A class has no label.
    """
    written, names = keys_and_names(labels)
    keys = [words(key).casefold() for key in written]
    place = {key: index for index, key in enumerate(keys)}
    lost = [name for name in classes if words(name).casefold() not in place]
    if lost:
        some = ", ".join(map(repr, lost[:3])) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
        raise UsageError(
            f"no label for the class {some} of {where}.{nearest(lost[0], keys)} Use the classes' own names, or a "
            "file with lines of class, tab, label."
        )
    return names, [place[words(name).casefold()] for name in classes]


def read_templates(templates: str | Path | Sequence[str], text_spec: TextSpec | None) -> tuple[str, ...]:
    """Find the prompt templates that a word, a file or a sentence means.

    Args:
        templates: A name of `TEMPLATES`; `"auto"`; a file with one template per line; a sentence with `{}`; or a
            list of such sentences. `"auto"` is `"emoji"` (the bare name and "a picture of ...") for mmzoo's tiny
            vocabulary, whose models are trained on such captions, and CLIP's 80 `"imagenet"` templates for others.
        text_spec: What the model expects of texts.

    Raises:
        UsageError: Unknown name, missing file, or a template without `{}`.
    """
    if not isinstance(templates, (str, Path)):
        found = tuple(templates)
    elif templates == "auto":
        found = TEMPLATES["emoji" if text_spec is not None and text_spec.kind == "tiny" else "imagenet"]
    elif str(templates) in TEMPLATES:
        found = TEMPLATES[str(templates)]
    elif "{}" in str(templates):
        found = (str(templates),)
    elif isinstance(templates, Path) or Path(templates).is_file():
        found = tuple(read_lines(templates))
    else:
        known = ["auto", *TEMPLATES]
        raise UsageError(
            f"no templates named {templates!r}.{nearest(templates, known)} There are {', '.join(known)}; a file with "
            "one per line; or a sentence with {} where the label goes."
        )
    if not found:
        raise UsageError("templates: none given; 'plain' is the set that changes nothing.")
    for template in found:
        if "{}" not in template:
            raise UsageError(f"template {template!r} has no {{}} where the label goes.")
    return found
