"""`mmzoo show`: everything about one model: config, parameters of each part, preprocessing, citation."""

from __future__ import annotations

from typing import Any, NamedTuple

from mmzoo import zoo
from mmzoo.apps.list import origin
from mmzoo.config import to_dict
from mmzoo.weights.catalog import CATALOG

__all__ = ["Shown", "Weights", "show"]


class Weights(NamedTuple):
    """Published weights.

    Attributes:
        tag: What `create_model(name, pretrained=TAG)` takes.
        layout: Layout of the file.
        licence: Licence.
        size: Bytes of the file, None if unknown.
        verified: `"real"`: loaded here and gave the published numbers; `"synthetic"`: the layout was proven with
            random weights at this size; `"no"`: neither.
        source: Where it is published.
        numbers: Published results by what was measured, in the source's units.
        note: What a user should know.
    """

    tag: str
    layout: str
    licence: str
    size: int | None
    verified: str
    source: str
    numbers: dict[str, float]
    note: str


class Shown(NamedTuple):
    """What there is to know about a model.

    Attributes:
        name: As `create_model` takes it.
        family: Its family.
        capabilities: What it can do.
        params: Number of parameters, all told.
        parts: Parameters of each top-level part, in the order of the model.
        config: The configuration as plain data; `mmzoo.config.from_dict` turns it back.
        preprocessing: What it expects of pictures (`"image"`) and, where it reads text, of texts (`"text"`).
        licence: Licences of the weights published for it.
        weights: The weights published for it.
        citation: The paper.
    """

    name: str
    family: str
    capabilities: tuple[str, ...]
    params: int
    parts: dict[str, int]
    config: dict[str, Any]
    preprocessing: dict[str, dict[str, Any]]
    licence: str
    weights: tuple[Weights, ...]
    citation: str


def show(name: str) -> Shown:
    """Describe a model of the zoo. It is built on the meta device, so no memory is needed for its weights.

    Args:
        name: A name of the zoo.

    Raises:
        UsageError: No such model; the message suggests near names.
    """
    config = zoo.get_config(name)
    entry = zoo.MODELS[name]
    family = zoo.FAMILIES[entry.family]
    model = zoo.create_model(name, device="meta")
    parts = {part: sum(p.numel() for p in child.parameters()) for part, child in model.named_children()}
    parts |= {part: p.numel() for part, p in model.named_parameters(recurse=False)}
    specs = {"image": getattr(config, "image", None), "text": getattr(config, "text_input", None)}
    return Shown(
        name=name,
        family=entry.family,
        capabilities=entry.capabilities,
        params=sum(parts.values()),
        parts=parts,
        config=to_dict(config),
        preprocessing={kind: to_dict(spec) for kind, spec in specs.items() if spec is not None},
        licence=origin(name)[1],
        weights=tuple(
            Weights(
                tag=record.tag,
                layout=record.layout,
                licence=record.licence,
                size=record.size,
                verified=record.verified,
                source=record.source,
                numbers={number.what: number.value for number in record.numbers},
                note=record.note,
            )
            for record in CATALOG
            if record.model == name
        ),
        citation=family.paper,
    )
