"""Checkpoints that are whole or not there at all, and the callback that writes them."""

from __future__ import annotations

import errno
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from mmzoo.errors import UsageError, ZooError
from mmzoo.files import atomic_path

__all__ = ["Checkpoints", "WholeFileIO", "check_whole"]


def check_whole(path: Path) -> None:
    """Refuse a checkpoint that is cut short, altered or something else: its checksums must hold.

    torch itself notices a missing end, but reads altered tensors without a word.

    Raises:
        ZooError: Names the file and what else lies beside it.
    """
    if path.is_dir():  # a sharded checkpoint, which torch.distributed.checkpoint checks by itself
        return
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        bad = str(error).lower()
    if bad is not None:
        others = sorted(p.name for p in path.parent.glob("*.ckpt") if p != path)
        instead = f"Beside it lie {', '.join(others)}." if others else "There is no other beside it."
        raise ZooError(f"checkpoint {path} is damaged or no checkpoint ({bad}). {instead}")


class WholeFileIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there once it is on the disk; checks it before loading.

    Lightning's own writes the file in memory first, which doubles the memory of saving.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write `checkpoint` to `path`, whole or not at all.

        Raises:
            ZooError: The disk is full; whatever was at `path` is still there.
        """
        path = Path(path)
        for stale in path.parent.glob(f".{path.name}.*.part"):  # left by a kill in the middle of a write
            stale.unlink(missing_ok=True)
        try:
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch hides a failed write behind a RuntimeError
            full = next((e for e in _chain(error) if isinstance(e, OSError)), None)
            if full is None:
                raise
            if full.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise full from error
            kept = (
                f"the earlier {path.name} is untouched" if path.exists() else "no half-written file is left"
            )
            raise ZooError(
                f"the disk is full: {path} could not be written; {kept}. Free some space and go on with "
                "--ckpt_path last."
            ) from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint after `check_whole`."""
        if Path(path).exists():
            check_whole(Path(path))
        return super().load_checkpoint(path, map_location, weights_only)


def _chain(error: BaseException | None) -> list[BaseException]:
    chain = []
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


class Checkpoints(Checkpoint):
    """Keeps `last.ckpt`, from which a run resumes exactly, and `best.ckpt`.

    `last.ckpt` is written every so many optimizer steps, after each validation, and at the end. Weights that are
    not finite are never written: a run that breaks leaves the last checkpoint from before.

    Args:
        every_n_steps: Write `last.ckpt` so often; 0 for only after validations and at the end.
        monitor: Metric at whose best value `best.ckpt` is written; None for the module's own.
        mode: Whether the best value of `monitor` is the largest or the smallest.
        keep_steps: Also keep `step-N.ckpt` every so many steps; 0 for none.
    """

    def __init__(
        self, every_n_steps: int = 500, monitor: str | None = None, mode: str = "max", keep_steps: int = 0
    ):
        if mode not in ("max", "min"):
            raise UsageError(f"checkpoints.mode is {mode!r}; it is 'max' or 'min'.")
        self.every_n_steps = every_n_steps
        self.monitor = monitor
        self.mode = mode
        self.keep_steps = keep_steps
        self.best: float | None = None
        self._saved_at = -1

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on comparing with the best value so far."""
        self.best = state_dict["best"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time, unless a validation is about to follow, after which it is saved anyway."""
        step, loop = trainer.global_step, trainer.fit_loop.epoch_loop
        if loop._should_accumulate() or step == self._saved_at:
            return
        if _is_last_step(trainer):
            trainer.should_stop = True  # so that the run ends with a validation, however the interval falls
        if trainer.fit_loop._data_fetcher and loop._should_check_val_fx(trainer.fit_loop._data_fetcher):
            return
        due = self.every_n_steps > 0 and step % self.every_n_steps == 0
        keep = self.keep_steps > 0 and step % self.keep_steps == 0
        if keep:
            self._save(trainer, pl_module, f"step-{step}")
        if due or keep:
            self._save(trainer, pl_module, "last")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, and once more as the best if it is."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        name = self.monitor or getattr(pl_module, "monitor", None)
        value = trainer.callback_metrics.get(name) if name else None
        if self.monitor and value is None:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise ZooError(f"checkpoints.monitor: nothing is logged as {self.monitor!r}; there are {known}.")
        better = value is not None and self._is_better(float(value))
        if better:
            self.best = float(value)  # type: ignore[arg-type]
        # last.ckpt holds the best value: written after best.ckpt, it never speaks of a file that a kill kept from being
        if better:
            self._save(trainer, pl_module, "best")
        self._save(trainer, pl_module, "last")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what the run ended with."""
        if trainer.global_step != self._saved_at:
            self._save(trainer, pl_module, "last")

    def _is_better(self, value: float) -> bool:
        if self.best is None:
            return True
        return value > self.best if self.mode == "max" else value < self.best

    def _save(self, trainer: Trainer, module: LightningModule, name: str) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        wrong = next((n for n, p in module.named_parameters() if not _finite(p)), None)
        if wrong is not None:
            raise ZooError(
                f"parameter {wrong} is no longer finite at step {trainer.global_step}: training stops here and "
                f"{self.path(trainer, 'last')} stays as it is. Lower the learning rate, lengthen the warm-up or set "
                "--trainer.gradient_clip_val 1, then go on with --ckpt_path last."
            )
        trainer.save_checkpoint(self.path(trainer, name), weights_only=False)
        self._saved_at = trainer.global_step

    @staticmethod
    def path(trainer: Trainer, name: str) -> Path:
        """Where the checkpoint `name` of this run lies."""
        return Path(trainer.default_root_dir) / "checkpoints" / f"{name}.ckpt"


def _is_last_step(trainer: Trainer) -> bool:
    """Whether the optimizer step that was just made ends the run."""
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return True
    last_epoch = trainer.max_epochs is not None and trainer.current_epoch + 1 >= trainer.max_epochs > 0
    return last_epoch and trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def _finite(parameter: Tensor) -> bool:
    return bool(torch.isfinite(parameter.detach()).all())
