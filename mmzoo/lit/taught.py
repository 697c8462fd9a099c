"""What training under a momentum teacher shares, whatever the task; and without one, where none is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from mmzoo.errors import UsageError
from mmzoo.lit.base import LitBase, Recipe
from mmzoo.lit.fusion import steps_of
from mmzoo.lit.momentum import MomentumCopy, ramped
from mmzoo.losses.matching import Choice, choice_loss

__all__ = ["NO_TEACHING", "LitTaught", "Teaching"]


@dataclass(frozen=True)
class Teaching:
    """How a teacher takes part.

    Attributes:
        alpha: Its share in the targets; 0 for no teacher.
        alpha_epochs: Epochs over which that share grows from 0 (SNLI-VE: 0).
        momentum: Share of its weights that stays at each step.
        dropout: Let it drop out as the reference does.
    """

    alpha: float = 0.4
    alpha_epochs: float = 1.0
    momentum: float = 0.995
    dropout: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1 or self.alpha_epochs < 0:
            raise UsageError(
                f"teaching: alpha is {self.alpha} and must be a share from 0 to 1; alpha_epochs is "
                f"{self.alpha_epochs} and must not be negative."
            )


NO_TEACHING = Teaching(alpha=0.0)
"""For tasks that have no teacher."""


class LitTaught(LitBase):
    """A model and its teacher.

    Args:
        built: The model.
        teaching: The teacher's part.
        optimizer: Makes the optimizer from parameter groups.
        recipe: Everything else about training.
        pretrained: Whether the weights came from a file.
        start: Files that parts of the model start from.
        teacher: Whether there is one; None: if it has a share in the targets. A contrast wants it without a share too,
            for the columns that it gives.
        left_out: Modules that the teacher does not need, by their names in the model.
    """

    teacher: MomentumCopy | None

    def __init__(
        self,
        built: nn.Module,
        teaching: Teaching,
        optimizer: OptimizerCallable,
        recipe: Recipe,
        *,
        pretrained: bool,
        start: dict[str, str] | None,
        teacher: bool | None = None,
        left_out: tuple[str, ...] = (),
    ):
        super().__init__(built, optimizer, recipe, pretrained=pretrained, start=start)
        self.teaching, self.teacher = teaching, None
        if bool(teaching.alpha) if teacher is None else teacher:
            self.teacher = MomentumCopy(
                built, decay=teaching.momentum, leave_out=left_out, dropout=teaching.dropout
            )

    def share(self) -> float:
        """The teacher's share in this step's targets."""
        alpha, epochs = self.teaching.alpha, self.teaching.alpha_epochs
        return ramped(alpha, self.global_step, steps_of(self.trainer, epochs) if alpha else 0)

    def taught(self) -> Any:
        """The teacher's model, or None."""
        return None if self.teacher is None else self.teacher.model

    def after_step(self) -> None:
        """Let the teacher follow."""
        if self.teacher is not None:
            self.teacher.update()

    def choose(self, logits: Tensor, labels: Tensor, soft: Tensor | None) -> Tensor:
        """Cross-entropy over labelled rows, the teacher's opinion `soft` mixed into the targets, logged."""
        alpha = self.share() if soft is not None else 0.0
        choice: Choice = choice_loss(
            logits, labels, valid=labels >= 0, teacher=soft, alpha=alpha, over_ranks=True
        )
        return self.log_step(choice.loss, accuracy=choice.accuracy, alpha=alpha)
