"""An exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmzoo.errors import UsageError, ZooError

__all__ = ["Ema"]


class Ema:
    """A float32 average of the trainable parameters, kept beside the model and lent to it for evaluation.

    Frozen parameters are not averaged: they are what they are. The rate grows from 2/11 with the number of
    updates until it reaches `decay`, so that a short run's average does not remember the random start.

    Args:
        model: What to average.
        decay: Share of the old average that stays at each update, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise UsageError(
                f"ema_decay is {decay}, but must lie in [0, 1): 0.999 averages about 1,000 steps."
            )
        self.decay = decay
        self.updates = 0
        self._live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().float().clone() for name, p in self._live.items()}
        self._parked: dict[str, Tensor] | None = None

    def follow(self) -> None:
        """Move the average to where the model is; call it once the model stands where it trains."""
        self._average = {name: average.to(self._live[name].device) for name, average in self._average.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model. Call it once per optimizer step."""
        self.updates += 1
        rate = min(self.decay, (1 + self.updates) / (10 + self.updates))
        live = [p.detach().to(self._average[name]) for name, p in self._live.items()]
        # one fused pass over all tensors instead of several small ones for each
        torch._foreach_lerp_(list(self._average.values()), live, 1 - rate)

    @torch.no_grad()
    def lend(self) -> None:
        """Let the model compute with the average until `take_back`."""
        assert self._parked is None, "the average is already lent"
        self._parked = {name: p.detach().clone() for name, p in self._live.items()}
        for name, parameter in self._live.items():
            parameter.copy_(self._average[name])

    @torch.no_grad()
    def take_back(self) -> None:
        """Give the model its own weights back, bit for bit. Nothing happens if the average is not lent."""
        for name, weights in (self._parked or {}).items():
            self._live[name].copy_(weights)
        self._parked = None

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model computes with the average inside this context."""
        self.lend()
        try:
            yield
        finally:
            self.take_back()

    def state_dict(self) -> dict[str, Tensor | int | dict[str, Tensor]]:
        """What a checkpoint needs to go on exactly."""
        return {"updates": self.updates, "average": dict(self._average)}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ZooError: The averaged parameters are not those of this model.
        """
        other = set(state["average"]) ^ set(self._average)
        if other:
            raise ZooError(
                "the checkpoint's average covers other parameters than this model trains: "
                f"{', '.join(sorted(other)[:5])}. Use the same recipe.freeze as the run that wrote it."
            )
        self.updates = int(state["updates"])
        for name, average in self._average.items():
            average.copy_(state["average"][name])
