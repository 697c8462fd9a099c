"""Frozen dataclass configurations to plain data and back, strictly.

A union of dataclasses (an own vision tower or a timm guest) is told apart by a `"kind"` entry holding the class
name, written only where the annotation is a union, so that ordinary configs stay free of it.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from mmzoo.errors import ZooError, nearest

__all__ = ["UNKEPT", "from_dict", "paths_of", "to_dict"]

UNKEPT: Mapping[str, Any] = {"unkept": True}
"""Metadata of a field that says how a model is trained or started, which published files do not keep."""

T = TypeVar("T")


def _dataclasses_of(annotation: Any) -> list[type]:
    """The dataclass members of an annotation, through unions and optionals."""
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [c for arg in typing.get_args(annotation) for c in _dataclasses_of(arg)]
    return []


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a configuration into JSON-ready data.

    Args:
        config: A frozen dataclass, possibly nested.

    Returns:
        A dict of numbers, strings, lists and dicts that `from_dict` turns back into an equal config.
    """
    hints = typing.get_type_hints(type(config))
    out: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            members = _dataclasses_of(hints[field.name])
            out[field.name] = ({"kind": type(value).__name__} if len(members) > 1 else {}) | to_dict(value)
        else:
            out[field.name] = list(value) if isinstance(value, tuple) else value
    return out


def paths_of(config: Any, mark: str, path: str = "") -> set[str]:
    """Dotted places in a configuration, nested ones included, of the fields whose metadata holds `mark`."""
    found: set[str] = set()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if mark in field.metadata:
            found.add(path + field.name)
        elif dataclasses.is_dataclass(value):
            found |= paths_of(value, mark, f"{path}{field.name}.")
    return found


def from_dict(cls: type[T], data: dict[str, Any], where: str = "config") -> T:
    """Build a configuration from plain data; an unknown or missing key is an error that names it.

    Args:
        cls: The dataclass to build.
        data: What `to_dict` wrote, or the same by hand.
        where: How to call this piece in an error message.

    Raises:
        ZooError: A key is unknown or missing, or a value does not fit its field.
    """
    if not isinstance(data, dict):
        raise ZooError(f"{where}: expected a mapping, found {type(data).__name__}.")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    kwargs: dict[str, Any] = {}
    for key, value in data.items():
        if key not in fields:
            raise ZooError(f"{where} has no field {key!r}.{nearest(key, fields)}")
        members = _dataclasses_of(hints[key])
        if isinstance(value, dict) and members:
            by_name = {m.__name__: m for m in members}
            kind = value.get("kind", members[0].__name__) if len(members) > 1 else members[0].__name__
            if kind not in by_name:
                raise ZooError(f"{where}.{key}: kind {kind!r} is none of {', '.join(by_name)}.")
            rest = {k: v for k, v in value.items() if not (k == "kind" and len(members) > 1)}
            kwargs[key] = from_dict(by_name[kind], rest, f"{where}.{key}")
        else:
            kwargs[key] = tuple(value) if isinstance(value, list) else value
    missing = [
        f.name
        for f in fields.values()
        if f.name not in kwargs
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ZooError(f"{where} lacks {', '.join(missing)}.")
    return cls(**kwargs)
