"""Prompt templates: sentences with a `{}` where the name of a class goes.

CLIP's templates for ImageNet, all 80 and the few picked from them, and its 1,000 class names are read out of the
installed open_clip package, so that there is one source for them. Only that one file is executed: importing
open_clip whole costs seconds.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

from mmzoo.errors import UsageError, ZooError, nearest

__all__ = ["TEMPLATES", "expand", "imagenet_names", "open_clip_file"]

_OF_OPEN_CLIP = {"imagenet": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}

_OWN: dict[str, tuple[str, ...]] = {
    "plain": ("{}",),
    "article": ("a {}",),
    "general": (
        "a photo of a {}.",
        "a photo of the {}.",
        "a close photo of a {}.",
        "a photo of a small {}.",
        "a photo of a large {}.",
        "a drawing of a {}.",
        "a picture with a {} in it.",
    ),
    "drawing": ("{}", "a picture of {}", "a drawing of {}"),
    # The sentences that the bundled emoji set is trained with; see data/README.md.
    "emoji": ("{}", "a picture of {}"),
}


def open_clip_file(name: str) -> Path:
    """Find a file of the installed open_clip package without importing the package.

    Args:
        name: Path inside the package, `"zero_shot_metadata.py"`.

    Raises:
        ZooError: open_clip is not installed, or its version lacks the file.
    """
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise ZooError("CLIP's vocabulary and prompts come with open_clip: pip install open_clip_torch.")
    path = Path(next(iter(spec.submodule_search_locations))) / name
    if not path.is_file():
        raise ZooError(f"the installed open_clip has no file {name}: pip install -U 'open_clip_torch>=3.0'.")
    return path


@cache
def _metadata() -> ModuleType:
    path = open_clip_file("zero_shot_metadata.py")
    spec = importlib.util.spec_from_file_location("_open_clip_zero_shot_metadata", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def imagenet_names() -> tuple[str, ...]:
    """The 1,000 hand-cleaned ImageNet class names of CLIP, in the order of the labels."""
    return tuple(_metadata().IMAGENET_CLASSNAMES)


class _Templates(Mapping[str, tuple[str, ...]]):
    """Named sets of templates; those of open_clip are read from it when they are first asked for."""

    def __getitem__(self, name: str) -> tuple[str, ...]:
        if name in _OF_OPEN_CLIP:
            return tuple(template("{}") for template in getattr(_metadata(), _OF_OPEN_CLIP[name]))
        if name not in _OWN:
            raise UsageError(
                f"no templates named {name!r}.{nearest(name, self)} There are {', '.join(self)}."
            )
        return _OWN[name]

    def __contains__(self, name: object) -> bool:
        return name in _OF_OPEN_CLIP or name in _OWN

    def __iter__(self) -> Iterator[str]:
        return iter((*_OF_OPEN_CLIP, *_OWN))

    def __len__(self) -> int:
        return len(_OF_OPEN_CLIP) + len(_OWN)


TEMPLATES: Mapping[str, tuple[str, ...]] = _Templates()
"""`"imagenet"` (CLIP's 80), `"simple"` (7 that CLIP's authors picked from them), `"general"` (7 of mmzoo's own),
`"drawing"`, `"emoji"`, `"article"`, `"plain"` (only the name)."""


def expand(names: Sequence[str], templates: Iterable[str]) -> list[str]:
    """Put every name into every template.

    Args:
        names: C class names, taken as they are (braces in a name are harmless).
        templates: P sentences that each hold `{}`.

    Returns:
        C * P sentences: all of the first name, then all of the second.

    Raises:
        UsageError: A template has no `{}`, or there are no templates.
    """
    if isinstance(names, str) or isinstance(templates, str):
        raise UsageError("expand takes a list of names and a list of templates, not a bare string.")
    sentences = list(templates)
    if not sentences:
        raise UsageError("expand was given no templates; 'plain' is the set that changes nothing.")
    for template in sentences:
        if "{}" not in template:
            raise UsageError(f"template {template!r} has no {{}} where the class name goes.")
    return [template.replace("{}", name) for name in names for template in sentences]
