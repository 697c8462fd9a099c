"""What a published layout is: how to recognise it, what it tells of the model, and its table of rules.

A layout knows names and shapes, nothing of classes: it describes a model as the plain data of its config, and the zoo
turns that into one. What a file cannot tell (the activation, the number of heads, an epsilon, the preprocessing) comes
from the config beside it or from a model name; it is never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mmzoo.errors import ZooError
from mmzoo.weights.rules import Rule

__all__ = ["Layout", "Plain", "Shapes", "Unknown", "count_blocks", "fill", "own_act", "transformers_act"]

Shapes = Mapping[str, tuple[int, ...]]
Plain = dict[str, Any]


class Unknown(NamedTuple):
    """A value that the file does not tell.

    Attributes:
        what: How to call it in a question.
        default: What it is if nobody tells, for a value that a model of this file does not use; None asks.
    """

    what: str
    default: Any = None


class Layout(NamedTuple):
    """A published layout of one family.

    Attributes:
        name: `"clip/openai"`.
        family: Family in the zoo, or `"text"` for a bare text backbone.
        signature: Names that a file of this layout has, `{i}` for a block number.
        describe: Shapes and the files beside the checkpoint (name to JSON content) to the plain data of a config, with
            `Unknown` where neither tells.
        rules: The plain data of a config to the table of rules.
        side: The plain data of a config to the files written beside the weights: name to JSON content.
        weights: Name of the weights file that the layout's own library writes.
        prefix: A leading part of all names that some files of the layout leave out.
        old_names: Endings of names in older files, each with today's.
        read_only: Why mmzoo does not write this layout; empty where it does.
        probe: Fields that the table reads of a config beyond those of every family's towers, with values for which it
            claims all names that a file of this layout may have.
        apart: Names and shapes to whether a file is of this layout, where that of another family claims its names
            too.
        words: The files beside the checkpoint to the words of a closed list, in the order of the model's outputs; None
            where they tell none.
    """

    name: str
    family: str
    signature: tuple[str, ...]
    describe: Callable[[Shapes, dict[str, Any]], Plain]
    rules: Callable[[Plain], list[Rule]]
    side: Callable[[Plain], dict[str, Any]]
    weights: str = "model.safetensors"
    prefix: str = ""
    old_names: tuple[tuple[str, str], ...] = ()
    read_only: str = ""
    probe: Plain = {}  # noqa: RUF012 - never written to
    apart: Callable[[Shapes], bool] = lambda shapes: True
    words: Callable[[dict[str, Any]], tuple[str, ...] | None] = lambda side: None


_ACTS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}


def own_act(name: str) -> str:
    """Our name of an activation that transformers names.

    Raises:
        ZooError: We have no such activation.
    """
    if name not in _ACTS:
        raise ZooError(f"the activation {name!r} is none of {', '.join(_ACTS)}.")
    return _ACTS[name]


def transformers_act(name: str) -> str:
    """What transformers calls our activation."""
    return {"gelu_tanh": "gelu_pytorch_tanh"}.get(name, name)


def count_blocks(shapes: Shapes, template: str) -> int:
    """How many block numbers 0, 1, ... occur in the names that `template` gives with its `{i}` filled."""
    count = 0
    while template.replace("{i}", str(count)) in shapes:
        count += 1
    return count


def fill(described: Plain, known: Plain | None, where: str, path: str = "") -> Plain:
    """Fill what a file does not tell from what is known otherwise.

    Args:
        described: A layout's description, with `Unknown` values.
        known: The plain data of a named config, or None.
        where: What to call the file in a message.
        path: Where in the config this is.

    Raises:
        ZooError: Something stays unknown; the message asks for it.
    """
    out: Plain = {}
    for key, value in described.items():
        other = None if known is None else known.get(key)
        if isinstance(value, Unknown):
            if known is None or key not in known:
                if value.default is not None:
                    out[key] = value.default
                    continue
                raise ZooError(
                    f"{where} does not tell {value.what} ({path}{key}), and no config.json beside it does: "
                    "name the model that it is, as in model='clip-vit-b32' (--model)."
                )
            out[key] = other
        elif isinstance(value, dict):
            out[key] = fill(value, other if isinstance(other, dict) else None, where, f"{path}{key}.")
        else:
            out[key] = value
    return out
