"""What a run tells while it goes on, and what it leaves behind."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from mmzoo import __version__
from mmzoo.lit.base import LitBase
from mmzoo.lit.files import RunLogger, best_of, draw_curve, last_of
from mmzoo.weights.io import write_json
from mmzoo.zoo import save

__all__ = ["ExportWeights", "RunReport", "Talk", "held_out_table"]


def held_out_table(values: dict[str, float], chance: dict[str, float]) -> str:
    """Lay out held-out numbers with chance beside each, one metric a line."""
    names = [name for name in values if name in chance]
    width = max([len(name) for name in names] + [8])
    lines = [f"{'held-out':<{width}}   value   chance"]
    return "\n".join(lines + [f"{n:<{width}}   {values[n]:.4f}  {chance[n]:.4f}" for n in names])


class Talk(Callback):
    """Tells on stderr how training goes, in plain lines.

    Args:
        steps: Whether to tell of steps too, and not of validations alone; where there is no progress bar.
    """

    def __init__(self, *, steps: bool = True):
        self.steps = steps
        self._since = (0, 0.0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since = (trainer.global_step, time.monotonic())

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One line per logging interval."""
        step, (before, then) = trainer.global_step, self._since
        if not self.steps or step <= before or step % max(1, trainer.log_every_n_steps):  # type: ignore[attr-defined]
            return
        total, now = trainer.estimated_stepping_batches, time.monotonic()
        loss = trainer.callback_metrics.get("train/loss", torch.tensor(float("nan")))
        speed = (step - before) / max(now - then, 1e-9)
        left = (total - step) / speed
        print(
            f"step {step}/{total}  loss {float(loss):.4f}  {speed:.1f} steps/s  {left:.0f} s left",
            file=sys.stderr,
        )
        self._since = (step, now)

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The held-out numbers in one line."""
        if not trainer.sanity_checking and isinstance(pl_module, LitBase):
            print(f"held-out at step {trainer.global_step}, chance in brackets:", file=sys.stderr)
            splits: dict[str, list[str]] = {}
            for name, value in trainer.callback_metrics.items():
                if name in pl_module.chance:
                    split, metric = name.split("/", 1)
                    told = f"{metric} {float(value):.3f} ({pl_module.chance[name]:.3f})"
                    splits.setdefault(split, []).append(told)
            for split, told_of in splits.items():
                print(f"  {split}: {'  '.join(told_of)}", file=sys.stderr)


class RunReport(Callback):
    """Writes `metrics.json` after each validation and at the end, and `curve.png` at the end.

    Args:
        folder: The run folder.
        logger: Holds the rows.
    """

    def __init__(self, folder: Path, logger: RunLogger):
        self.folder = Path(folder)
        self.logger = logger
        self.content: dict[str, Any] = {}

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over an interrupted run's rows."""
        if trainer.ckpt_path:
            self.logger.resume(trainer.global_step)

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a step's row now. Lightning does it after the checkpoint, and a kill in between would lose it."""
        step = trainer.global_step
        if step and step % max(1, trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            row = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("train/")}
            self.logger.log_metrics(row, step - 1)

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is known so far."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._write(trainer, pl_module, finished=False)

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the curve and write the final numbers."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            chance = getattr(pl_module, "chance", {})
            drawn = draw_curve(self.logger.rows, chance, self.folder / "curve.png", self.folder.name)
            self._write(trainer, pl_module, finished=True, curve=drawn)

    def _write(
        self, trainer: Trainer, module: LightningModule, *, finished: bool, curve: bool = False
    ) -> None:
        rows, chance = self.logger.rows, getattr(module, "chance", {})
        last, best = last_of(rows), best_of(rows, chance)
        seconds = rows[-1]["seconds"] if rows else 0.0
        self.content = {
            "run": self.folder.name,
            "finished": finished,
            "steps": trainer.global_step,
            "seconds": seconds,
            "last": {name: value for name, value in last.items() if not name.endswith(".chance")},
            "best": best,
            "chance": chance,
            "curve": str(self.folder / "curve.png") if curve else None,
            "versions": {"mmzoo": __version__, "torch": torch.__version__},
        }
        write_json(self.folder / "metrics.json", self.content)


class ExportWeights(Callback):
    """Saves the trained model as a folder for `mmzoo.load` when training ends, with the average if there is one.

    Args:
        folder: Where to save.
        name: How the model card calls the model.
    """

    def __init__(self, folder: Path, name: str):
        self.folder = Path(folder)
        self.name = name

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save."""
        if trainer.fast_dev_run or not isinstance(pl_module, LitBase):  # type: ignore[attr-defined]
            return
        measured = {
            f"{name} (chance {pl_module.chance[name]:.4g})": round(float(value), 4)
            for name, value in trainer.callback_metrics.items()
            if name in pl_module.chance
        }
        training = {
            "steps": trainer.global_step,
            "weights": f"average, decay {pl_module.ema.decay}" if pl_module.ema else "of the last step",
            "config": "config.yaml of the run",
            "torch": torch.__version__,
        }
        processor = pl_module.processor
        if pl_module.ema is not None:
            with pl_module.ema.applied():
                save(
                    pl_module.model,
                    self.folder,
                    processor,
                    name=self.name,
                    training=training,
                    metrics=measured,
                )
        else:
            save(pl_module.model, self.folder, processor, name=self.name, training=training, metrics=measured)
