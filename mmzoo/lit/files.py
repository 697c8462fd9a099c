"""The files of a run: `metrics.csv` while it goes on, `metrics.json` and `curve.png` for whoever looks at it."""

from __future__ import annotations

import csv
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from mmzoo.files import atomic_path
from mmzoo.weights.io import write_tensors

__all__ = ["RunLogger", "best_of", "draw_curve", "last_of", "write_predictions"]

log = logging.getLogger("mmzoo")
Row = dict[str, float]


class RunLogger(Logger):
    """Writes every logged number to `metrics.csv` in the run folder.

    A row has the number of optimizer steps done (`step`), the seconds since the run began (`seconds`) and whatever
    was logged then. Rows reach the disk at once, so a killed run keeps them.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = Path(folder)
        self.rows: list[Row] = []
        self._columns: list[str] = []
        self._start = time.monotonic()

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.folder.name

    @property
    def version(self) -> str:
        """A run folder holds one run."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.folder)

    @property
    def path(self) -> Path:
        """The CSV file."""
        return self.folder / "metrics.csv"

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the run folder holds config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row; `step` counts from 0, the file from 1. What the last row says already is not said again."""
        row: Row = {"step": (step or 0) + 1, "seconds": round(time.monotonic() - self._start, 3)}
        row |= {name: float(f"{float(value):.6g}") for name, value in metrics.items() if name != "epoch"}
        last = self.rows[-1] if self.rows else {}
        if row["step"] == last.get("step") and row.keys() <= last.keys():
            return
        self.rows.append(row)
        new = [name for name in row if name not in self._columns]
        if new:  # a column that was not there before: the header must change, so write all rows again
            self._columns += new
            self._rewrite()
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)

    @rank_zero_only
    def resume(self, step: int) -> None:
        """Take over the rows that an interrupted run wrote up to `step`; later ones will come again."""
        if not self.path.exists():
            return
        with self.path.open(newline="") as file:
            old = [_numbers(row) for row in csv.DictReader(file)]
        self.rows = [row for row in old if row and row["step"] <= step]
        self._columns = list(dict.fromkeys(name for row in self.rows for name in row))
        if self.rows:
            self._start = time.monotonic() - max(row["seconds"] for row in self.rows)
            self._rewrite()

    def _rewrite(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".csv.part")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self.rows)
        temporary.replace(self.path)


def _numbers(row: dict[str, str]) -> Row:
    """A row of the file as numbers; empty if the row was cut short by a kill."""
    try:
        numbers = {name: float(value) for name, value in row.items() if value != ""}
        return numbers | {"step": int(numbers["step"])} if "step" in numbers else {}
    except (TypeError, ValueError):
        return {}


def last_of(rows: list[Row]) -> Row:
    """The last value of each metric."""
    last: Row = {}
    for row in rows:
        last |= row
    return {name: value for name, value in last.items() if name not in ("step", "seconds")}


def best_of(rows: list[Row], chance: dict[str, float]) -> dict[str, dict[str, float]]:
    """The best value of each held-out metric with its step: the largest, or for a loss the smallest."""
    best: dict[str, dict[str, float]] = {}
    for row in rows:
        for name, value in row.items():
            loss = name.endswith("/loss") and not name.startswith("train/")
            if not (loss or name in chance):
                continue
            old = best.get(name)
            if old is None or (value < old["value"] if loss else value > old["value"]):
                best[name] = {"value": value, "step": row["step"]}
    return best


def draw_curve(rows: list[Row], chance: dict[str, float], path: Path, title: str) -> bool:
    """Draw losses and held-out numbers over the steps of a run.

    Args:
        rows: What was logged.
        chance: What guessing gives, by metric; drawn dotted.
        path: The PNG to write.
        title: Stands over the picture.

    Returns:
        Whether it was drawn: not without rows or without matplotlib, which a log line then says.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        log.info("no learning curve was drawn: matplotlib is missing (pip install 'mmzoo[plots]').")
        return False
    names = list(dict.fromkeys(name for row in rows for name in row))
    panels = {"loss": [name for name in names if name.endswith("/loss")]}
    for name in names:  # a panel for each held-out split; recall@5 lies between 1 and 10 and only crowds it
        if name in chance and not name.endswith("_r5"):
            panels.setdefault(name.split("/")[0], []).append(name)
    panels = {title: shown for title, shown in panels.items() if shown}
    if not panels:
        return False
    figure = Figure(figsize=(4.6 * len(panels), 4), layout="constrained")
    FigureCanvasAgg(figure)  # no window, no global state: training must not touch the user's pyplot
    palette = colormaps["tab20"].colors  # type: ignore[attr-defined]
    colours: dict[str, Any] = {}
    for axes, (heading, shown) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for name in shown:
            points = [(row["step"], row[name]) for row in rows if name in row]
            label = name if heading == "loss" else name.split("/", 1)[1]
            colour = colours.setdefault(
                label, palette[len(colours) % 20]
            )  # a metric looks alike on every split
            few = {"marker": "o", "markersize": 3} if len(points) < 30 else {}
            axes.plot(*zip(*points, strict=True), label=label, color=colour, **few)
            if name in chance:
                axes.axhline(chance[name], color=colour, linestyle=":", linewidth=1)
        axes.set_title(heading if heading == "loss" else f"{heading} (dotted: chance)", fontsize=9)
        axes.set_xlabel("optimizer steps")
        axes.grid(alpha=0.3)
        # under the lines, not over them: a split of fusion models has a dozen
        axes.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.22))
        if heading != "loss":
            axes.set_ylim(bottom=0)
    figure.suptitle(title)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return True


def write_predictions(folder: Path, batches: list[dict[str, Any]]) -> list[Path]:
    """Write what `predict_step` gave for every batch.

    Args:
        folder: The run folder.
        batches: Each `keys`, the names of its samples, and by name tensors or lists with a row for each of them.

    Returns:
        What was written: `predictions.safetensors` with the tensors, floating ones in float32, and the keys in its
        metadata; and `predictions.jsonl` with a line for each sample that holds its key and everything else (answers,
        captions). Whatever there is nothing for is not written.
    """
    keys = [key for batch in batches for key in batch["keys"]]
    names = [name for name in batches[0] if name != "keys"]
    numbers = [name for name in names if torch.is_tensor(batches[0][name])]
    written = []
    if numbers:
        joined = {name: torch.cat([batch[name] for batch in batches]) for name in numbers}
        tensors = {name: t.float() if t.is_floating_point() else t for name, t in joined.items()}
        written.append(folder / "predictions.safetensors")
        write_tensors(written[-1], tensors, {"keys": json.dumps(keys)})
    if others := [name for name in names if name not in numbers]:
        columns = [[value for batch in batches for value in batch[name]] for name in others]
        rows = [dict(zip(["key", *others], row, strict=True)) for row in zip(keys, *columns, strict=True)]
        written.append(folder / "predictions.jsonl")
        with atomic_path(written[-1]) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return written
