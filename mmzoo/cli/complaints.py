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

_UNKNOWN = re.compile(
    r"Option '([\w.]+)' is not accepted|unrecognized arguments: --([\w.-]+)|does not accept option '([\w.]+)'"
)
_MISSING = re.compile(r"arguments are required: (.+)$", re.MULTILINE)
_OWNER = re.compile(r"Problem with given class_path '([\w.]+)'")
_MAKER = re.compile(r"\. Got value: Namespace\(class_path='([\w.]+)'")  # stands after the option it owns
_KEY = re.compile(r'Parser key "([\w.]+)"')
_EXPECTED = re.compile(r"Expected an? (.+?)(?:\. Got value: (.*))?$", re.MULTILINE)
_GIVEN = re.compile(r"Given value: (.*?)(?:\. Got value.*)?$", re.MULTILINE)
_CLASS = re.compile(r"Expected a dot import path string: ([\w.]+)")
_WORDS = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'str'>": "a word",
    "<class 'list'>": "a list",
}


def options_of(cls: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of everything that a class can be given, dataclasses inside it included."""
    signed = cls if dataclasses.is_dataclass(cls) else cls.__init__  # type: ignore[misc]
    hints = typing.get_type_hints(signed)
    for name in inspect.signature(cls).parameters:
        yield prefix + name
        for kind in (hints.get(name), *typing.get_args(hints.get(name))):
            if dataclasses.is_dataclass(kind) and isinstance(kind, type):
                yield from options_of(kind, f"{prefix}{name}.")


def sentence(message: str, known: list[str], classes: list[str]) -> str:
    """Say what is wrong in one sentence.

    Args:
        message: What jsonargparse said, often many lines in which the cause stands in the middle.
        known: Dotted names of the command's own options.
        classes: Short names of the classes that a config may name.

    Returns:
        A sentence that names the option, its nearest relatives and what to do.
    """
    unknown, keys = list(_UNKNOWN.finditer(message)), list(_KEY.finditer(message))
    if unknown:  # of two classes that could be meant, one may know the option and refuse its value
        name = next(filter(None, unknown[-1].groups()))
        told = next(
            (key for key in keys if key[1] == name and "Got value" in message[key.end() : key.end() + 200]),
            None,
        )
        if told is None:
            return _unknown_option(message, name, unknown[-1], known)
        return _unfit_value(name, message[told.end() : unknown[-1].start()])
    if missing := _MISSING.search(message):
        if keys:
            return f"{keys[0][1]}: written out, it must be whole; {missing[1]} are missing (mmzoo show NAME --yaml)."
        names = re.sub(r"\b\w+\.(?=\w)", "", missing[1])
        return f"{names} must be given, most simply by a config: mmzoo fit -c clip/tiny"
    if "while parsing" in message or "Problems parsing config" in message:
        return f"the config is not valid YAML: {' '.join(message.replace('Problems parsing config:', '').split())}"
    if not keys:
        return " ".join(message.split())
    key, rest = keys[-1][1], message[keys[-1].end() :]
    if found := _CLASS.search(rest):
        numbers = any(word in rest for word in ("<class 'int'>", "<class 'float'>"))
        if not numbers:
            choices = _optimizers() if key.endswith("optimizer") else classes
            listed = f" There are {', '.join(classes)}." if key in ("model", "data") else ""
            return f"{key}: no class {found[1]!r}.{nearest(found[1], choices)}{listed}"
    return _unfit_value(key, rest)


def _unknown_option(message: str, name: str, found: re.Match[str], known: list[str]) -> str:
    maker, owners = _MAKER.match(message, found.end()), _OWNER.findall(message[: found.start()])
    owner = _load(maker[1] if maker else owners[-1]) if maker or owners else None
    options = list(options_of(owner)) if owner else known
    close = nearest(name, options) or nearest(
        name.rsplit(".", 1)[-1], [o.rsplit(".", 1)[-1] for o in options]
    )
    subject = f"{owner.__name__} has no option" if owner else "no option"
    return f"{subject} {name!r}.{close} Print everything with --print_config."


def _unfit_value(key: str, complaint: str) -> str:
    words: list[str] = []
    choices: list[str] = []
    value = None
    for expected, got in _EXPECTED.findall(complaint):
        value = value or got
        expected = expected.strip().rstrip(".")
        if expected.startswith("typing.Literal["):
            choices += expected[len("typing.Literal[") : -1].replace("'", "").split(", ")
        elif "NoneType" not in expected and "path" not in expected:
            word = _WORDS.get(expected, re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", expected))
            words += [word] if word not in words else []
    given = _GIVEN.search(complaint)
    value = value or (given[1] if given else "something else")
    if choices:  # what jsonargparse says beside them is only the type of some of them
        words = [f"one of {', '.join(choices)}"]
    if not words:
        return f"{key}: {' '.join(complaint.strip(': ').split())}"
    return f"{key}: expected {' or '.join(words)}, found {value.strip()}."


def _load(path: str) -> type | None:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        return None
    return found if isinstance(found, type) else None


def _optimizers() -> list[str]:
    from torch import optim

    return [n for n, c in vars(optim).items() if isinstance(c, type) and issubclass(c, optim.Optimizer)]
