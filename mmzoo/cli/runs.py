"""Run folders: their names, who may write to them, and what becomes of an earlier run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from mmzoo.errors import UsageError, ZooError

__all__ = ["Claim", "checkpoint_of", "run_name"]

OWN = ("config.yaml", "metrics.csv", "metrics.json", "curve.png", "checkpoints", "export")


def run_name(configs: Sequence[str]) -> str:
    """Name a run after its first config: `configs/clip/tiny.yaml` gives `clip-tiny`, `my/own.yaml` gives `own`."""
    if not configs:
        return "run"
    path = Path(configs[0]).resolve().with_suffix("")
    if "configs" in path.parts:
        inner = path.parts[len(path.parts) - path.parts[::-1].index("configs") :]
        return "-".join(inner)
    return path.parent.name if path.name == "config" else path.name


def checkpoint_of(folder: Path, wanted: str | None) -> Path | None:
    """The file behind `--ckpt_path`: `last` and `best` are the run's own.

    Returns:
        None if no checkpoint was asked for, or if `last` or `best` was and the run has none yet.

    Raises:
        UsageError: A path was given that is not there.
    """
    if wanted is None:
        return None
    if wanted in ("last", "best"):
        path = folder / "checkpoints" / f"{wanted}.ckpt"
        return path if path.exists() else None
    path = Path(wanted)
    if not path.exists():
        there = ", ".join(str(p) for p in sorted((folder / "checkpoints").glob("*.ckpt"))) or "none"
        raise UsageError(f"no checkpoint {wanted!r}. Those of {folder}: {there}; or say last or best.")
    return path


class Claim:
    """Holds a run folder for this process while it trains, so that two runs never mix their files.

    The hold is the operating system's lock on a file, which ends with the process however that ends.

    Args:
        folder: The run folder; made if missing.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._file: IO[str] | None = None

    def take(self) -> None:
        """Take the folder.

        Raises:
            ZooError: A running process has it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ZooError(f"{self.folder} is a file: give the run another --name.") from None
        file = (self.folder / ".lock").open("a+")
        with contextlib.suppress(ImportError):  # Windows: no such lock, no such protection
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                who = file.read().strip() or "?"
                file.close()
                raise ZooError(
                    f"{self.folder} is in use by a run that is still going (process {who}): give this one a name of "
                    "its own with --name."
                ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._file = file

    def release(self) -> None:
        """Let go of the folder."""
        if self._file is not None:
            self._file.close()
            (self.folder / ".lock").unlink(missing_ok=True)
            self._file = None

    def make_room(self) -> Path | None:
        """Move an earlier run's files into a folder of their own, so that a new run starts clean and loses nothing.

        Returns:
            Where they are now; None if there was nothing worth keeping.
        """
        valuable = [*(self.folder / "checkpoints").glob("*.ckpt"), *self.folder.glob("export/config.json")]
        if not valuable:
            for name in ("metrics.csv", "metrics.json", "curve.png"):
                (self.folder / name).unlink(missing_ok=True)
            return None
        number = 1
        while (self.folder / f"previous-{number}").exists():
            number += 1
        target = self.folder / f"previous-{number}"
        target.mkdir()
        for name in OWN:
            if (self.folder / name).exists():
                (self.folder / name).rename(target / name)
        return target
