"""From a published checkpoint to mmzoo's tensors and back: recognise, describe, apply, lay out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmzoo.errors import UsageError, ZooError
from mmzoo.weights.layout import Layout, Plain, fill
from mmzoo.weights.maps import LAYOUTS, get_layout
from mmzoo.weights.read import side_files
from mmzoo.weights.rules import Arange, Drop, Rule, Scalar, TensorSource, Tie, apply, invert, unmatched

__all__ = ["Checkpoint", "Dropped", "Outlet", "Rest", "lay_out", "recognise", "rest_of", "told_by"]


class _Prefixed:
    """A source whose names lack the leading part that the layout's table has."""

    def __init__(self, source: TensorSource, prefix: str):
        self._source, self._prefix = source, prefix

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {self._prefix + name: shape for name, shape in self._source.shapes().items()}

    def tensor(self, name: str) -> Tensor:
        return self._source.tensor(name.removeprefix(self._prefix))


class _Modern:
    """A source whose names end as they did in the layout's older files."""

    def __init__(self, source: TensorSource, endings: tuple[tuple[str, str], ...]):
        self._source = source
        self._old = {_renewed(name, endings): name for name in source.shapes()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = self._source.shapes()
        return {new: shapes[old] for new, old in self._old.items()}

    def tensor(self, name: str) -> Tensor:
        return self._source.tensor(self._old[name])


def _renewed(name: str, endings: tuple[tuple[str, str], ...]) -> str:
    return next((name.removesuffix(old) + new for old, new in endings if name.endswith(old)), name)


class Checkpoint(NamedTuple):
    """A published checkpoint that is recognised but not yet read.

    Attributes:
        where: Its path, for messages.
        source: Its tensors.
        layout: Its layout.
        side: The JSON files beside it, and what the file itself tells.
    """

    where: str
    source: TensorSource
    layout: Layout
    side: dict[str, Any]

    def told(self) -> Plain:
        """The plain data of the model's config, with `Unknown` where the file does not tell.

        Raises:
            ZooError: A tensor that gives a size is missing or has another number of axes.
        """
        try:
            return self.layout.describe(
                _Named(self.source.shapes(), f"{self.where} ({self.layout.name})"), self.side
            )
        except (IndexError, ZeroDivisionError) as error:
            raise ZooError(f"{self.where}: its shapes are not those of {self.layout.name}.") from error

    def describe(self, known: Plain | None) -> Plain:
        """The plain data of the model's config; what the file does not tell is taken from `known`.

        Raises:
            ZooError: Something stays unknown, or a tensor that gives a size is missing.
        """
        return fill(self.told(), known, self.where)

    def tensors(
        self, config: Plain, wanted: Mapping[str, tuple[int, ...]], hint: str = ""
    ) -> Iterator[tuple[str, Tensor]]:
        """Our names with their tensors, one at a time, in the file's dtype.

        Args:
            config: The plain data of the model's config.
            wanted: Names and shapes of the model to fill.
            hint: What an error ends with.

        Raises:
            ZooError: The file does not fit; both sides are listed.
        """
        rules = self.layout.rules(config)
        return apply(rules, self.source, wanted, f"{self.where} ({self.layout.name})", hint)


class _Named(dict[str, tuple[int, ...]]):
    """Shapes by name, where asking for a missing name is an error for a person."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], where: str):
        super().__init__(shapes)
        self._where = where

    def __missing__(self, name: str) -> tuple[int, ...]:
        raise ZooError(f"{self._where} does not fit: 1 missing: {name}.")


# enough of a config to write down any table; sizes do not change which names a table claims
_PROBE: Plain = {
    "vision": {"image_size": 32, "patch": 16, "heads": 1},
    "text": {"context": 1, "vocab": 1, "heads": 1, "kv_heads": 1},
}
# a file of which a table leaves more than this share unclaimed is not of its layout
_STRANGE = 0.5


class _Fit(NamedTuple):
    unclaimed: int
    unsigned: int
    layout: Layout
    source: TensorSource


def _fit(layout: Layout, source: TensorSource) -> _Fit:
    """How well a layout's table claims the names, with its prefix put in front of them where that fits better."""
    rules = layout.rules(_PROBE | layout.probe)
    found = []
    if any(name.endswith(old) for name in source.shapes() for old, _ in layout.old_names):
        source = _Modern(source, layout.old_names)
    for candidate in [source, *([_Prefixed(source, layout.prefix)] if layout.prefix else [])]:
        names = list(candidate.shapes())
        unsigned = sum(s not in names for s in layout.signature) + (not layout.apart(candidate.shapes()))
        found.append(_Fit(unmatched(rules, names), unsigned, layout, candidate))
    return min(found, key=lambda fit: fit[:2])


def recognise(
    path: str | Path, source: TensorSource, layout: str | None = None, family: str | None = None
) -> Checkpoint:
    """Find the layout whose table claims a checkpoint's names best.

    Args:
        path: Where it lies.
        source: What `open_checkpoint` made of it.
        layout: The layout's name where the names cannot tell, or to insist.
        family: The family that is wanted; a file of another one is refused by name.

    Raises:
        ZooError: It is of no known layout, of several, or of another family.
        UsageError: No such layout.
    """
    names = list(source.shapes())
    fits = sorted((_fit(entry, source) for entry in LAYOUTS.values()), key=lambda fit: fit[:2])
    if layout is not None:
        asked = _fit(get_layout(layout), source)
        hint = f" Its names fit {fits[0].layout.name}." if fits[0].unclaimed <= _STRANGE * len(names) else ""
        if asked.unclaimed > _STRANGE * len(names):
            raise ZooError(
                f"{path} has not the layout {layout} (its first names: {', '.join(names[:4])}).{hint}"
            )
        fits = [asked]
    elif fits[0].unclaimed > _STRANGE * len(names):
        raise ZooError(
            f"{path} has no layout that mmzoo knows (its first names: {', '.join(names[:4])}). "
            f"Layouts: mmzoo, {', '.join(LAYOUTS)}."
        )
    best = [fit for fit in fits if fit[:2] == fits[0][:2]]
    if len(best) > 1:
        raise ZooError(
            f"{path} fits {' and '.join(fit.layout.name for fit in best)} alike: say which with layout= "
            "(to convert: source_layout=, --source-layout)."
        )
    entry = best[0].layout
    if family is not None and entry.family != family:
        raise ZooError(
            f"{path} is a {entry.family} checkpoint ({entry.name}), not one of the family {family}."
        )
    # a file that describes itself needs nothing beside it
    return Checkpoint(str(path), best[0].source, entry, side_files(path) | getattr(source, "side", {}))


class Dropped(NamedTuple):
    """A tensor that a model of mmzoo does not hold, and why."""

    name: str
    why: str


class Rest(NamedTuple):
    """Tensors of a file that do not become tensors of the model, by what happens to them.

    Attributes:
        dropped: Left out, each with the reason.
        copies: Second copies of a tensor, compared and found equal.
        constants: Numbers that a layout repeats as tensors, checked.
    """

    dropped: tuple[Dropped, ...] = ()
    copies: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()


def rest_of(rules: list[Rule], names: list[str]) -> Rest:
    """What a table does with the names that make no tensor of the model."""
    claimed: dict[type, list[tuple[str, Rule]]] = {Drop: [], Tie: [], Arange: [], Scalar: []}
    for rule in rules:
        if type(rule.op) in claimed:
            claimed[type(rule.op)] += [(name, rule) for name in names if not unmatched([rule], [name])]
    return Rest(
        tuple(Dropped(name, rule.op.why) for name, rule in claimed[Drop] if isinstance(rule.op, Drop)),
        tuple(name for name, _ in claimed[Tie]),
        tuple(name for kind in (Arange, Scalar) for name, _ in claimed[kind]),
    )


class Outlet(NamedTuple):
    """A model about to be written in a published layout.

    Attributes:
        rules: The layout's table for this model.
        shapes: The layout's names with their shapes.
        side: The JSON files beside the weights.
    """

    rules: list[Rule]
    shapes: dict[str, tuple[int, ...]]
    side: dict[str, Any]


def lay_out(layout: Layout, config: Plain, shapes: Mapping[str, tuple[int, ...]]) -> Outlet:
    """What writing a model in a layout will give, from shapes alone.

    Args:
        layout: The layout.
        config: The plain data of the model's config.
        shapes: Our names with their shapes.

    Raises:
        ZooError: The layout has no place for one of the tensors.
    """
    if layout.read_only:
        raise UsageError(f"mmzoo reads the layout {layout.name} and does not write it: {layout.read_only}.")
    rules = layout.rules(config)
    empty = ((name, torch.empty(shape, device="meta")) for name, shape in shapes.items())
    foreign = {name: tuple(t.shape) for name, t in invert(rules, empty)}
    return Outlet(rules, foreign, layout.side(config))


def told_by(layout: Layout, outlet: Outlet, config: Plain) -> Plain:
    """The config that a reader of the written files would take the model for, as far as the files tell.

    Raises:
        ZooError: The layout has tensors that this model lacks.
    """
    where = f"this model, written as {layout.name},"
    return fill(layout.describe(_Named(outlet.shapes, where), outlet.side), config, where)
