"""Turns jsonargparse's complaints into one sentence: the innermost cause first, with the nearest names."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import typing
from collections.abc import Iterator

from mmzoo.errors import nearest

__all__ = ["options_of", "sentence"]

_CLASS = re.compile(r"Problem with given class_path '([\w.]+)'")
_UNKNOWN = re.compile(
    r"Option '([\w.]+)' is not accepted|unrecognized arguments: --([\w.]+)|does not accept option '([\w.]+)'"
)
_VALUE = re.compile(r'Parser key "([\w.]+)":\s*\n?\s*(Expected .*)')
_NO_CLASS = re.compile(
    r"(?:Expected a dot import path string|unable to import|No module named)[^\n]*", re.IGNORECASE
)
_SUBCLASS = re.compile(r"Given value: (?:\{'class_path': )?'?([\w.]+)")


def options_of(cls: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of everything that a class can be given, dataclasses inside it included."""
    hints = typing.get_type_hints(cls if dataclasses.is_dataclass(cls) else cls.__init__)
    for name in inspect.signature(cls).parameters:
        yield prefix + name
        for kind in (hints.get(name), *typing.get_args(hints.get(name))):
            if dataclasses.is_dataclass(kind) and isinstance(kind, type):
                yield from options_of(kind, f"{prefix}{name}.")


def _load(path: str) -> type | None:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        return None
    return found if isinstance(found, type) else None


def sentence(message: str, known: list[str], classes: list[str]) -> str:
    """Say what is wrong in one sentence.

    Args:
        message: What jsonargparse said, often many lines in which the cause stands in the middle.
        known: Dotted names of the command's own options.
        classes: Short names of the classes that a config may name.

    Returns:
        A sentence that names the option, its nearest relatives and what to do.
    """
    unknown = [next(filter(None, m.groups())) for m in _UNKNOWN.finditer(message)]
    owners = _CLASS.findall(message)
    if unknown:
        name = unknown[-1]
        owner = _load(owners[-1]) if owners else None
        options = list(options_of(owner)) if owner else known
        last = name.rsplit(".", 1)[-1]
        close = nearest(name, options) or nearest(last, [o.rsplit(".", 1)[-1] for o in options])
        where = f"{owner.__name__} has no option" if owner else "no option"
        return f"{where} {name!r}.{close} Print everything with --print_config."
    if "arguments are required" in message:
        missing = message.rsplit(":", 1)[1].replace("fit.", "").strip()
        return f"{missing} must be given, most simply by a config: mmzoo fit -c clip/tiny"
    if "Problems parsing config" in message or "while parsing" in message:
        return f"the config is not valid YAML: {' '.join(message.split())}"
    if _NO_CLASS.search(message):
        given = _SUBCLASS.findall(message)
        name = given[-1] if given else "?"
        return f"no class {name!r}.{nearest(name, classes)} There are {', '.join(classes)}."
    values = _VALUE.findall(message)
    if values:
        key, complaint = values[-1]
        return f"{key}: {_plain(complaint)}"
    return _plain(_innermost(message))


def _innermost(message: str) -> str:
    """The most deeply indented line that tells something."""
    skip = ("Given value", "Subtypes:", "Errors:", "Does not validate", "- Expected a <class 'NoneType'>")
    lines = [line for line in message.splitlines() if line.strip() and not line.strip().startswith(skip)]
    return max(lines, key=lambda line: len(line) - len(line.lstrip()), default=message).strip(" -")


def _plain(text: str) -> str:
    text = re.sub(r"<class '([\w.]+)'>", r"\1", " ".join(text.split()))
    return text if text.endswith((".", "?", "!")) else f"{text}."
