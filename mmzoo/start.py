"""Where training starts: towers from files of any family, and whole models from related ones of their own family."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmzoo.config import to_dict
from mmzoo.errors import UsageError
from mmzoo.growth import Growth, Shapes, plan
from mmzoo.interchange import fill_tower, meta_model, open_weights, refuse_contradictions, shapes_of
from mmzoo.paths import find_weights
from mmzoo.weights.convert import Checkpoint
from mmzoo.weights.io import load_strictly
from mmzoo.zoo import FAMILIES, config_from, family_of, model_class

__all__ = ["grown", "start_parts"]


def start_parts(model: nn.Module, start: Mapping[str, str | Path]) -> frozenset[str]:
    """Fill parts of a model from files, in place.

    Args:
        model: A model of the zoo.
        start: `"vision"` and `"text"` to weights of any family that has such a tower; `"model"` to those of a related
            model of the same family, which the model's `GROWS` knows how to start from. Paths may lie inside an
            installed package (`pkg:PACKAGE/PATH`).

    Returns:
        Names of what was filled; everything else is as it was built.

    Raises:
        UsageError: No such tower or package, or a model that this one cannot start from.
        ZooError: Weights are missing, damaged or do not fit; both sides are listed.
    """
    filled: frozenset[str] = frozenset()
    if "model" in start:
        filled |= _start_model(model, find_weights(start["model"]))
    for part, path in start.items():
        if part != "model":
            filled |= fill_tower(model, part, path)
    return filled


def grown(model: nn.Module, config: Any) -> Any:
    """A model for another task that starts from a trained one of its family.

    Args:
        model: The trained model; it stays as it is.
        config: What to build.

    Returns:
        A new model in the old one's dtype, device and mode; what the old one lacks starts as built.

    Raises:
        UsageError: A model of this config cannot start from such a one.
        ZooError: The two do not fit; both sides are listed.
    """
    like, old = next(model.parameters()), model.state_dict()
    with torch.device(like.device):
        new: nn.Module = model_class(FAMILIES[family_of(config)], config)(config)
    new = new.to(like.dtype).train(model.training)
    _grow(new, model.config, old, shapes_of(model), f"this {type(model).__name__}")
    return new


def _start_model(model: nn.Module, path: Path) -> frozenset[str]:
    opened = open_weights(path, None, family_of(model))
    if opened.checkpoint is not None:
        config, state = _published(opened.checkpoint, model)
    elif opened.config is None:
        raise UsageError(
            f"start.model: {path} has no config.json beside it, which says what model it is: give the folder that "
            "mmzoo.save or a run's export wrote."
        )
    else:
        assert opened.source is not None
        config, state = opened.config, {name: opened.source.tensor(name) for name in opened.source.shapes()}
        if family_of(config) != family_of(model):
            raise UsageError(
                f"start.model: {path} is a {family_of(config)} model, not a {family_of(model)}: give its towers as "
                "start.vision and start.text."
            )
    return _grow(model, config, state, {name: tuple(t.shape) for name, t in state.items()}, str(path))


def _published(checkpoint: Checkpoint, model: Any) -> tuple[Any, dict[str, Tensor]]:
    """Config and state of a published file; what it does not tell (heads) is as in the model that starts from it."""
    family = family_of(model)
    plain = checkpoint.describe(to_dict(model.config))
    config = config_from(family, plain, checkpoint.where, plain.pop("kind", None))
    shapes = shapes_of(meta_model(FAMILIES[family], config))
    return config, dict(checkpoint.tensors(to_dict(config), shapes))


def _grow(model: Any, source: Any, state: Mapping[str, Tensor], have: Shapes, where: str) -> frozenset[str]:
    """Fill a model from another one's state as the family's table says."""
    old, new = type(source).__name__, type(model.config).__name__
    refuse_contradictions(to_dict(source), model.config, where)
    growth = _growth(old, new, source, model.config)
    own = model.state_dict()
    taken, fresh = plan(growth, have, shapes_of(model), f"a {type(model).__name__} cannot start from {where}")
    started = {
        name: (tensor if name not in growth.rows else tensor[list(growth.rows[name])]).to(
            own[name], copy=True
        )
        for name, tensor in ((name, state[other]) for name, other in taken.items())
    }
    started |= {name: own[name] for name in fresh}
    fit: Any = getattr(model, "fit_state", None)
    load_strictly(model, fit(started) if fit else started, where)
    return frozenset(taken)


def _growth(old: str, new: str, source: Any, config: Any) -> Growth:
    table = getattr(importlib.import_module(FAMILIES[family_of(config)].module), "GROWS", {})
    if (old, new) in table:
        return table[old, new](source, config)
    if old == new:
        return Growth()
    known = [pair[0].removesuffix("Config") for pair in table if pair[1] == new]
    raise UsageError(
        f"a {new.removesuffix('Config')} cannot start from a {old.removesuffix('Config')}; it can from "
        f"{', '.join(dict.fromkeys([*known, new.removesuffix('Config')]))}."
    )
