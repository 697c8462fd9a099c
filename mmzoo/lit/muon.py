"""Muon: momentum whose update of every hidden matrix is made orthogonal (Jordan et al. 2024), AdamW for the rest.

A step along the gradient moves a weight matrix mostly in a few directions; the orthogonal matrix nearest to it
moves all of them alike, which its authors found to save steps. `torch.optim.Muon` works in bfloat16, which CPUs without
such units are very slow at; this one works in float32.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

__all__ = ["Muon", "orthogonal"]

_HIDDEN = re.compile(r"(^|\.)blocks\.(layers\.)?\d+\.")
_QUINTIC = (3.4445, -4.7750, 2.0315)  # steepest at 0, settles between 0.7 and 1.2; Jordan et al. 2024


def orthogonal(matrices: Tensor, iterations: int) -> Tensor:
    """Bring all singular values of `matrices` (n, rows, columns) near 1, by Newton-Schulz iterations in float32."""
    a, b, c = _QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.float()
    x = x.mT if tall else x
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(AdamW):
    """AdamW whose groups' matrices inside transformer blocks are updated by Muon instead.

    Which those are is told by the `names` that `parameter_groups` puts into each group. A fused projection is taken
    apart into its square pieces (query, key and value; the MLP's slices of the width), each made orthogonal for itself.

    Args:
        params: Groups from `parameter_groups`.
        lr: Rate of AdamW.
        betas: Of AdamW.
        eps: Of AdamW.
        weight_decay: Decoupled, of both; Muon's own is this times its rate.
        ratio: Muon's rate over AdamW's.
        momentum: Of Muon, with Nesterov's look ahead.
        iterations: Newton-Schulz iterations; 4 or 5.
        fused: AdamW's fused kernel.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.1,
        ratio: float = 10.0,
        momentum: float = 0.95,
        iterations: int = 4,
        fused: bool | None = None,
    ):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)
        self.defaults.update(ratio=ratio, momentum=momentum, iterations=iterations)
        # fused AdamW undoes the loss scale inside its step and skips an overflow there; Muon's part cannot, so the
        # scaler must unscale before and leave the whole step out
        self._step_supports_amp_scaling = False

    def _hidden(self, group: dict[str, Any]) -> list[Tensor]:
        named = zip(group["params"], group.get("names", ()))
        return [p for p, name in named if p.ndim == 2 and p.grad is not None and _HIDDEN.search(name)]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update all parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients: dict[Tensor, Tensor | None] = {}
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in self._hidden(group):
                by_shape.setdefault(p.shape, []).append(p)
            for same in by_shape.values():
                gradients |= {p: p.grad for p in same}
                self._update(same, group)
        for p in gradients:
            p.grad = None  # hidden from AdamW, which passes over what has no gradient
        super().step()
        for p, gradient in gradients.items():
            p.grad = gradient
        return loss

    def _update(self, same: list[Tensor], group: dict[str, Any]) -> None:
        """Update matrices of one shape at once."""
        momentum, rate = self.defaults["momentum"], group["lr"] * self.defaults["ratio"]
        steps = []
        for p in same:
            assert p.grad is not None
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros(())  # AdamW looks for it in every state that it loads
                state["momentum"] = torch.zeros_like(p)
            state["step"] += 1
            state["momentum"].lerp_(p.grad, 1 - momentum)
            steps.append(p.grad.lerp(state["momentum"], momentum))
        stack = torch.stack(steps)
        n, rows, columns = stack.shape
        side = min(rows, columns)
        if rows % side == 0 and columns % side == 0:
            squares = stack.unflatten(1, (-1, side)).unflatten(3, (-1, side)).transpose(2, 3)
            made = orthogonal(squares.reshape(-1, side, side), self.defaults["iterations"]).view(
                squares.shape
            )
            stack = made.transpose(2, 3).reshape(n, rows, columns)
        else:
            stack = orthogonal(stack, self.defaults["iterations"])
        for p, change in zip(same, stack):
            p.mul_(1 - rate * group["weight_decay"]).sub_(change, alpha=rate)
