"""What every verb that runs a model begins with: the model, its processor, and whether it can do what is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmzoo import zoo
from mmzoo.errors import UsageError, ZooError, nearest
from mmzoo.models.capabilities import CAPABILITIES, capabilities_of
from mmzoo.processing.processor import Processor
from mmzoo.weights.io import weights_hash

__all__ = ["ModelLike", "Opened", "Progress", "finite", "open_model", "require"]

ModelLike = str | Path | tuple[nn.Module, Processor]
"""A name of the zoo, a folder written by `mmzoo.save`, or the pair that `mmzoo.load` returns."""

Progress = Callable[[int, int], None]
"""Called now and then with how many items are done and how many there are."""


class Opened(NamedTuple):
    """A model ready to be used.

    Attributes:
        model: In eval mode, on `device`.
        processor: Its preprocessing.
        name: How to call it in messages and reports.
        weights: Where its weights come from; `"random"` for a zoo name without `pretrained`.
        device: Where it is.
    """

    model: Any
    processor: Processor
    name: str
    weights: str
    device: torch.device

    def digest(self) -> str:
        """SHA-256 of the weights, as `mmzoo.save` writes it into the model card."""
        return weights_hash(self.model.state_dict())


def open_model(
    model: ModelLike, *, pretrained: str | Path | None = None, device: str | torch.device | None = None
) -> Opened:
    """Open a model by name, folder or object.

    Args:
        model: A name of the zoo, a folder written by `mmzoo.save` (so `export/` of a run), or a pair of model
            and processor.
        pretrained: Weights for a model given by name; see `mmzoo.create_model`.
        device: Where to put it; a CUDA device if there is one, else the CPU.

    Raises:
        UsageError: No such name or folder, no such device, or `pretrained` where it has no meaning.
        ZooError: The folder or its files are damaged.
    """
    where = _device(device)
    if isinstance(model, tuple):
        module, processor = model
        return Opened(module.to(where).eval(), processor, type(module).__name__, "given", where)
    name = str(model)
    if name in zoo.MODELS:
        with torch.random.fork_rng(devices=[]):  # random weights, but the same ones each time
            torch.manual_seed(0)
            module = zoo.create_model(name, pretrained=pretrained, device=where)
        weights = "random" if pretrained is None else str(pretrained)
        return Opened(module, zoo.create_processor(module), name, weights, where)
    if not Path(name).is_dir():
        raise UsageError(
            f"{name!r} is neither a model of the zoo nor a folder.{nearest(name, zoo.MODELS)} "
            "List the models: mmzoo list"
        )
    if pretrained is not None:
        raise UsageError(f"{name} is a saved model with weights of its own; leave pretrained out.")
    module, processor = zoo.load(name, device=where)
    return Opened(module, processor, name, name, where)


def require(opened: Opened, capability: str, what: str, *also: str) -> None:
    """Refuse a model that lacks a capability.

    Args:
        opened: The model.
        capability: A name of `mmzoo.models.capabilities.CAPABILITIES`.
        what: What was asked of it, to complete "... cannot ...".
        also: Capabilities that are needed as well, of which models to name.

    Raises:
        ZooError: It lacks the capability; the text says what it can do and which models can.
    """
    if isinstance(opened.model, CAPABILITIES[capability]):
        return
    can = " and ".join(capabilities_of(opened.model)) or "gives features only"
    others = sorted(
        (name for name, entry in zoo.MODELS.items() if {capability, *also} <= set(entry.capabilities)),
        key=lambda name: zoo.MODELS[name].params,
    )
    some = ", ".join(others[:4]) + (f" and {len(others) - 4} more" if len(others) > 4 else "")
    raise ZooError(f"{opened.name} cannot {what} (it {can}). Models that can: {some or 'none so far'}.")


def finite(values: Tensor, opened: Opened) -> Tensor:
    """Pass on what a model gave, unless there are nan or infinity in it.

    Raises:
        ZooError: There are; its weights are damaged, or its training had diverged.
    """
    if not bool(values.isfinite().all()):
        raise ZooError(
            f"{opened.name} gives numbers that are not finite: its weights are damaged or diverged."
        )
    return values


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        first = str(error).strip().splitlines()[0].rstrip(".")
        raise UsageError(f"device {str(device)!r} cannot be used here ({first}). See mmzoo doctor.") from None
    return chosen
