"""How a model starts from a related one: which of its tensors are which of the other's. Names and shapes alone.

A published file becomes a model by a layout, one to one. What is here is the step after: a model for a task grows out
of a pre-trained one of its family, with layers copied, renumbered or doubled, and heads that are new. A family says how
in `GROWS`: names of the two config classes to a function of the two configs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from mmzoo.errors import ZooError, nearest

__all__ = ["Grows", "Growth", "Plan", "Shapes", "plan"]

Shapes = Mapping[str, tuple[int, ...]]


class Growth(NamedTuple):
    """What a model takes over from another one. Parts are called by their names in the model: `text.blocks.6`.

    Attributes:
        moves: Parts of the other model with the parts that start as they are; one may start several. Everything that
            stands in none keeps its name.
        heads: Parts that either may lack: kept where both have one of the same shape; else a new one starts as built,
            and an old one stays behind.
        fresh: Parts that start as built whatever the other model has.
        rows: Names of tensors that take only some rows of theirs, or take some twice.
    """

    moves: tuple[tuple[str, str], ...] = ()
    heads: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    rows: Mapping[str, tuple[int, ...]] = {}


Grows = dict[tuple[str, str], Callable[[Any, Any], Growth]]
"""Names of the config classes, the pre-trained one's and the new one's, to what grows by the two configs."""


class Plan(NamedTuple):
    """What a growth comes to for two models.

    Attributes:
        sources: Name of each tensor that is taken over to its name in the other model.
        fresh: Names of the tensors that start as built.
    """

    sources: dict[str, str]
    fresh: tuple[str, ...]


def plan(growth: Growth, have: Shapes, want: Shapes, where: str) -> Plan:
    """Find a source for every tensor of the new model, and a use for every tensor of the other.

    Shapes are compared for heads alone: what else differs may be a table that the new model resamples.

    Args:
        growth: What it takes over.
        have: Names and shapes of the other model.
        want: Names and shapes of the new one.
        where: What to call the two in a message.

    Raises:
        ZooError: A tensor has no source, or one of the other model no use; both sides are listed.
    """
    sources = {name: _origin(growth, name) for name in want if _part(name, growth.fresh) is None}
    new_heads = {
        part
        for name, source in sources.items()
        if (part := _part(name, growth.heads)) is not None
        and want[name] != _taken(have.get(source), growth.rows.get(name))
    }
    sources = {name: source for name, source in sources.items() if _part(name, new_heads) is None}
    missing = sorted(name for name, source in sources.items() if source not in have)
    used = set(sources.values())
    left = sorted(name for name in have if name not in used and _part(name, growth.heads) is None)
    # where a new part stands in for the old one of the same name, the old one stays behind
    left = [name for name in left if _part(name, growth.fresh) is None]
    if missing or left:
        sides = []
        if left:
            sides.append(f"{_listed(left, 'without a place')}{nearest(left[0], missing).rstrip('?')}")
        if missing:
            sides.append(_listed(missing, "without a source"))
        raise ZooError(f"{where}: {'; '.join(sides)}.")
    return Plan(sources, tuple(name for name in want if name not in sources))


def _part(name: str, parts: Iterable[str]) -> str | None:
    """The innermost of `parts` that a tensor belongs to."""
    return max((part for part in parts if f"{name}.".startswith(f"{part}.")), key=len, default=None)


def _origin(growth: Growth, name: str) -> str:
    part = _part(name, (new for _, new in growth.moves))
    if part is None:
        return name
    return next(old for old, new in growth.moves if new == part) + name[len(part) :]


def _taken(shape: tuple[int, ...] | None, rows: tuple[int, ...] | None) -> tuple[int, ...] | None:
    return shape if shape is None or rows is None else (len(rows), *shape[1:])


def _listed(names: list[str], what: str, count: int = 4) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return f"{len(names)} {what} ({', '.join(names[:count])}{more})"
