"""The catalog: every published checkpoint that the zoo knows, and how to find one.

Plain data without torch, so that names can be listed at once. The tables stand in `weights/published/`, one file a
family, where each field's origin is said. Nothing was downloaded to write them: addresses, names and numbers were read
in the sources' own code and documentation. A hub commit, hash or size is given only where at least two independent
public projects, or MTEB's model registry, state it alike; where none is, it is left open and the first download is
pinned by its hash instead.
"""

from __future__ import annotations

import dataclasses
import fnmatch

from mmzoo.errors import UsageError, nearest
from mmzoo.weights.published import albef, blip, blip2, carried, clip, vilt, vit
from mmzoo.weights.record import LAYOUTS, Number, Record

__all__ = ["CATALOG", "LAYOUTS", "Number", "Record", "find", "records", "tags"]

# what tests/parity/test_published_sizes.py loads, random weights that the publishing library itself built and saved
_PROVEN = {
    ("vit-b16-224", "vit/timm"),
    ("vit-b16-224", "vit/transformers"),
    ("clip-vit-b32", "clip/open_clip"),
    ("clip-vit-b32-laion", "clip/open_clip"),
    ("clip-vit-b32", "clip/transformers"),
}


def _judged(record: Record) -> Record:
    proven = (record.model, record.layout) in _PROVEN and "representation" not in record.settings
    return dataclasses.replace(record, verified="synthetic") if proven else record


CATALOG: tuple[Record, ...] = tuple(
    _judged(record) for family in (vit, clip, vilt, albef, blip, blip2, carried) for record in family.RECORDS
)


def tags(model: str) -> list[str]:
    """Tags published for a model name, in the catalog's order; empty where there are none."""
    return [record.tag for record in CATALOG if record.model == model]


def find(model: str, tag: str) -> Record:
    """The record of a tag.

    Example:
        >>> find("clip-vit-b32", "openai").file
        'ViT-B-32.pt'

    Raises:
        UsageError: No such tag for this model; the message lists those that there are.
    """
    for record in CATALOG:
        if record.model == model and record.tag == tag:
            return record
    known = tags(model)
    if not known:
        published = sorted({record.model for record in CATALOG})
        raise UsageError(
            f"no weights are published for {model!r}.{nearest(model, published)} Give a path to a file or folder "
            "instead, or train it."
        )
    raise UsageError(
        f"{model} has no weights {tag!r}.{nearest(tag, known)} There are: {', '.join(known)}; or give a path to a "
        "file or folder."
    )


def records(pattern: str = "*") -> list[Record]:
    """Records whose model name, or full name `model.tag`, matches a shell pattern, in the catalog's order.

    Example:
        >>> [record.name for record in records("clip-vit-l14-336.openai")]
        ['clip-vit-l14-336.openai']
    """
    return [
        record
        for record in CATALOG
        if fnmatch.fnmatchcase(record.model, pattern) or fnmatch.fnmatchcase(record.name, pattern)
    ]
