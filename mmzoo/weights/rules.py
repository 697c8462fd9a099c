"""Weight maps as tables of rules that go both ways, strictly.

A rule says which tensors of a published layout make one tensor of mmzoo. `{i}` stands for a block number on both sides.
What may happen between the two sides is a closed set of operations, each with its inverse, so that a table read from
left to right loads a file and read from right to left writes one.

Every source name must be claimed by exactly one rule, and every tensor of the model must be filled, or the error
lists both sides. There is no other mode.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mmzoo.errors import ZooError, nearest
from mmzoo.weights.operations import (
    HWIO,
    Absent,
    Arange,
    Drop,
    Fuse,
    FuseWithoutKeyBias,
    HeadsBias,
    HeadsIn,
    HeadsOut,
    Lead,
    LogInverse,
    Op,
    RotaryPairs,
    Same,
    Scalar,
    Tie,
    Transpose,
)

__all__ = [
    "HWIO",
    "Absent",
    "Arange",
    "Drop",
    "Fuse",
    "FuseWithoutKeyBias",
    "HeadsBias",
    "HeadsIn",
    "HeadsOut",
    "Lead",
    "LogInverse",
    "Op",
    "RotaryPairs",
    "Rule",
    "Same",
    "Scalar",
    "TensorSource",
    "Tie",
    "Transpose",
    "apply",
    "invert",
    "unmatched",
]


class TensorSource(Protocol):
    """Named tensors that are read one at a time, so that a file larger than memory can be walked."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every name with its shape, without reading a tensor."""
        ...

    def tensor(self, name: str) -> Tensor:
        """Read one tensor."""
        ...


class Rule(NamedTuple):
    """One row of a weight map.

    Attributes:
        source: A name in the layout, or several that make one tensor, or none (`Absent`); `{i}` is a block number.
        target: The name in mmzoo's `state_dict`, or None for `Drop`, `Arange` and `Scalar`.
        op: What happens between the two.
    """

    source: str | tuple[str, ...]
    target: str | None
    op: Op | Drop | Arange | Scalar = Same()

    @property
    def sources(self) -> tuple[str, ...]:
        """The source names as a tuple."""
        return (self.source,) if isinstance(self.source, str) else self.source


def _pattern(template: str) -> re.Pattern[str]:
    # `{*}` in a Drop rule swallows any rest of a name
    escaped = re.escape(template).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{\*\}", r".*")
    return re.compile(escaped + r"\Z")


class _Claim(NamedTuple):
    rule: Rule
    part: int
    block: str | None


def _claims(rules: list[Rule], names: list[str]) -> tuple[dict[str, _Claim], list[str]]:
    """Which rule claims which name; and the names that none claims."""
    patterns = [(rule, part, _pattern(source)) for rule in rules for part, source in enumerate(rule.sources)]
    claimed: dict[str, _Claim] = {}
    orphans = []
    for name in names:
        hits = []
        for rule, part, pattern in patterns:
            if match := pattern.match(name):
                hits.append(_Claim(rule, part, match.groupdict().get("i")))
        assert len(hits) <= 1, f"the map claims {name} twice: {[h.rule for h in hits]}"
        if hits:
            claimed[name] = hits[0]
        else:
            orphans.append(name)
    return claimed, orphans


def _fill(template: str, block: str | None) -> str:
    return template if block is None else template.replace("{i}", block)


def unmatched(rules: list[Rule], names: list[str]) -> int:
    """How many of `names` no rule claims: the smaller, the better the layout fits."""
    return len(_claims(rules, names)[1])


def _listing(title: str, names: list[str], count: int = 5) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return f"{len(names)} {title}: {', '.join(names[:count])}{more}"


def apply(
    rules: list[Rule], source: TensorSource, wanted: Mapping[str, tuple[int, ...]], where: str, hint: str = ""
) -> Iterator[tuple[str, Tensor]]:
    """Turn a published checkpoint into mmzoo's tensors, one at a time.

    Everything that shapes and names can tell is checked before the first tensor is read.

    Args:
        rules: The layout's table.
        source: The checkpoint.
        wanted: Names and shapes of the model to fill.
        where: What to call the checkpoint in a message.
        hint: A sentence to end an error with, such as the layout that fits better.

    Yields:
        Names of the model, sorted, with their tensors in the source's dtype.

    Raises:
        ZooError: A source name is unclaimed, a tensor of the model is not filled, a shape differs, a tied copy is not
            equal; the message lists both sides.
    """
    shapes = source.shapes()
    claimed, orphans = _claims(rules, list(shapes))
    made: dict[str, dict[int, str]] = {}
    ops: dict[str, Op] = {}
    ties: dict[tuple[str, int], dict[int, str]] = {}  # by target and rule
    constants: list[tuple[str, Arange | Scalar]] = []
    for name, claim in claimed.items():
        op = claim.rule.op
        if isinstance(op, Drop):
            continue
        if isinstance(op, (Arange, Scalar)):
            constants.append((name, op))
            continue
        assert claim.rule.target is not None
        target = _fill(claim.rule.target, claim.block)
        if isinstance(op, Tie):
            ties.setdefault((target, rules.index(claim.rule)), {})[claim.part] = name
            continue
        made.setdefault(target, {})[claim.part] = name
        ops[target] = op
    for rule in rules:
        if isinstance(rule.op, Absent) and rule.target is not None and rule.target in wanted:
            made[rule.target], ops[rule.target] = {}, rule.op
    parts_missing = []
    for number, rule in enumerate(rules):
        if rule.target is None or isinstance(rule.op, (Drop, Arange, Scalar)) or len(rule.sources) == 1:
            continue
        found = {t: p for (t, n), p in ties.items() if n == number} if isinstance(rule.op, Tie) else made
        for target, parts in found.items():
            match = _pattern(rule.target).match(target)
            if match and len(parts) < len(rule.sources):
                block = match.groupdict().get("i")
                parts_missing += [_fill(s, block) for p, s in enumerate(rule.sources) if p not in parts]
    missing = sorted(wanted.keys() - made.keys())
    unknown = sorted(made.keys() - wanted.keys())
    # a tensor whose parts are incomplete is named by its missing parts; the others by the source that would fill them
    lacking = sorted({*parts_missing, *(name for target in missing for name in _sources_of(rules, target))})
    beyond = sorted(orphans + [name for target in unknown for name in made[target].values()])
    if lacking or beyond or missing:
        sides = []
        if beyond:
            sides.append(_listing("not claimed", beyond) + nearest(beyond[0], lacking))
        if lacking or missing:
            sides.append(_listing("missing", lacking or missing))
        raise ZooError(f"{where} does not fit: {'; '.join(sides)}.{hint}")
    wrong = [
        f"{_stored(parts, shapes)} does not make {target} {wanted[target]}"
        for target, parts in made.items()
        if _joined(ops[target], parts, shapes) != wanted[target]
    ]
    wrong += [
        f"{_stored(parts, shapes)} is no copy of {target} {wanted.get(target)}"
        for (target, number), parts in ties.items()
        if _joined(_op(rules[number]), parts, shapes) != wanted.get(target)
    ]
    if wrong:
        raise ZooError(f"{where} does not fit: {_listing('of another shape', sorted(wrong), 3)}.{hint}")
    for name, constant in constants:
        if not torch.equal(source.tensor(name).reshape(-1).long().cpu(), constant.make().reshape(-1)):
            raise ZooError(f"{where}: {name} should hold {constant} and does not.{hint}")
    copies: dict[str, list[int]] = {}
    for target, number in ties:
        copies.setdefault(target, []).append(number)
    for target, parts in sorted(made.items()):
        tensor = ops[target].join([source.tensor(parts[p]) for p in range(len(parts))])
        for number in copies.get(target, []):
            copy = ties[target, number]
            if not torch.equal(
                _op(rules[number]).join([source.tensor(copy[p]) for p in range(len(copy))]), tensor
            ):
                raise ZooError(
                    f"{where}: {', '.join(copy.values())} should equal {', '.join(parts.values())}, as the two are one "
                    "tensor in the model, and does not: the file was edited, or trained untied."
                )
        yield target, tensor


def _op(rule: Rule) -> Op:
    assert not isinstance(rule.op, (Drop, Arange, Scalar))
    return rule.op


def _joined(op: Op, parts: dict[int, str], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """The shape that these parts make, or None: meta tensors run the operation on shapes alone."""
    try:
        return tuple(op.join([torch.empty(shapes[parts[p]], device="meta") for p in range(len(parts))]).shape)
    except (RuntimeError, IndexError, ValueError):
        return None


def _stored(parts: dict[int, str], shapes: Mapping[str, tuple[int, ...]]) -> str:
    return " + ".join(f"{parts[p]} {shapes[parts[p]]}" for p in range(len(parts)))


def _sources_of(rules: list[Rule], target: str) -> list[str]:
    """The layout's names that would fill `target`."""
    for rule in rules:
        if rule.target is None or isinstance(rule.op, Tie):
            continue
        if match := _pattern(rule.target).match(target):
            return [_fill(source, match.groupdict().get("i")) for source in rule.sources]
    return [target]


def invert(rules: list[Rule], tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Turn mmzoo's tensors into a published layout's, one at a time.

    Args:
        rules: The layout's table.
        tensors: The model's names with their tensors.

    Yields:
        The layout's names with contiguous tensors in the dtype they came in.

    Raises:
        ZooError: The layout has no place for one of the tensors.
    """
    patterns = [(rule, _pattern(rule.target)) for rule in rules if rule.target is not None]
    for name, tensor in tensors:
        hits = [(rule, match) for rule, pattern in patterns if (match := pattern.match(name))]
        if not any(not isinstance(rule.op, Tie) for rule, _ in hits):
            raise ZooError(
                f"this layout has no place for {name}.{nearest(name, [r.target or '' for r in rules])}"
            )
        for rule, match in hits:
            assert not isinstance(rule.op, (Drop, Arange, Scalar))
            block = match.groupdict().get("i")
            for source, part in zip(rule.sources, rule.op.split(tensor, len(rule.sources)), strict=True):
                yield _fill(source, block), part.contiguous()
    for rule in rules:
        if isinstance(rule.op, Scalar) or (isinstance(rule.op, Arange) and not rule.op.optional):
            yield rule.sources[0], rule.op.make()
