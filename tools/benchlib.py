"""The one way in which mmzoo compares itself with others: gated, interleaved, one thread, with its spread.

Import it before torch, so that the thread limits below still count:

    import benchlib                                   # tools/ is on the path of any script that lies in it
    row = benchlib.duel("loss", ours, theirs, tolerance=1e-5)
    mib = benchlib.peak_memory(build, 16384)          # above the inputs, in a process of its own
    sys.exit(benchlib.report([row], arguments.json))

Rules that the functions enforce: no ratio without an equality gate; contenders run in one process, warmed up,
interleaved, the order turned each round; the ratio is the median of per-round ratios of process CPU time,
which neighbours on the machine disturb least; a ratio whose rounds disagree (inter-quartile range over 10 %)
is not printed.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

THREADS = os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", THREADS)

MAX_SPREAD = 0.10
"""Largest inter-quartile range, as a share of the median ratio, at which a ratio is still worth printing."""


@dataclasses.dataclass(frozen=True)
class Duel:
    """What a duel found. `ratio` is how many times faster `ours` is than `theirs`."""

    name: str
    ratio: float  # median over rounds of theirs / ours
    iqr: float  # inter-quartile range of those ratios, as a share of the median
    ours_s: float  # median CPU seconds of one call
    theirs_s: float
    ours_min_s: float
    theirs_min_s: float
    error: float  # largest relative difference between the two results
    tolerance: float  # what the gate allowed
    rounds: int
    note: str = ""

    @property
    def trusted(self) -> bool:
        """Whether the rounds agree well enough for the ratio to mean something."""
        return not self.iqr > MAX_SPREAD

    def __str__(self) -> str:
        ratio = f"{self.ratio:.2f}x" if self.trusted else "no ratio, rounds disagree:"
        return (
            f"{self.name}: {ratio} (IQR {100 * self.iqr:.1f} %, {self.rounds} rounds; "
            f"ours {self.ours_s:.3g} s, theirs {self.theirs_s:.3g} s; "
            f"results differ by {self.error:.1e} <= {self.tolerance:.0e})"
            + (f"; {self.note}" if self.note else "")
        )


@dataclasses.dataclass(frozen=True)
class Memory:
    """Peak memory of both contenders over their inputs, each in a fresh process. `ratio` is theirs / ours."""

    name: str
    ours_mib: float
    theirs_mib: float
    note: str = ""

    @property
    def ratio(self) -> float:
        """How many times less memory `ours` needs."""
        return self.theirs_mib / max(self.ours_mib, 1e-9)

    def __str__(self) -> str:
        return (
            f"{self.name}: 1/{self.ratio:.1f} (ours {self.ours_mib:.0f} MiB, theirs {self.theirs_mib:.0f} "
            "MiB over the inputs)" + (f"; {self.note}" if self.note else "")
        )


@dataclasses.dataclass(frozen=True)
class Fact:
    """One measured number that is not a comparison."""

    name: str
    value: float
    unit: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.value:.4g} {self.unit}" + (f"; {self.note}" if self.note else "")


def relative_error(ours: Any, theirs: Any) -> float:
    """Give the largest difference between two results, relative to the largest magnitude in `theirs`.

    Args:
        ours: A tensor, a number, or a list, tuple or mapping of them.
        theirs: The same structure.

    Returns:
        `max |ours - theirs| / max |theirs|`, the worst of all leaves; infinite on a nan or if shapes differ.
    """
    if isinstance(theirs, Mapping):
        return max((relative_error(ours[key], theirs[key]) for key in theirs), default=0.0)
    if isinstance(theirs, (list, tuple)):
        return max((relative_error(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)
    import torch

    a, b = (torch.as_tensor(value).detach().double() for value in (ours, theirs))
    if a.shape != b.shape or not (a.isfinite().all() and b.isfinite().all()):
        return float("inf")
    if not b.numel():
        return 0.0
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def duel(
    name: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    *,
    tolerance: float,
    difference: Callable[[Any, Any], float] = relative_error,
    rounds: int = 7,
    warmups: int = 1,
    clock: Callable[[], float] = time.process_time,
    note: str = "",
) -> Duel:
    """Time two ways to the same result against each other.

    Args:
        name: What is compared, for the report.
        ours: A call that does the whole work and returns its result.
        theirs: The same for the peer.
        tolerance: The largest `difference` at which the results count as equal. More ends the program.
        difference: Measures how far two results are apart.
        rounds: Timed rounds, at least 3; each runs both once, in an order that turns.
        warmups: Untimed calls of each before that; 0 only where callers have warmed up at a smaller size.
        clock: `time.process_time` (CPU seconds) unless waiting is part of the question.
        note: What a reader must know about the contenders' settings.

    Returns:
        The medians and the spread.

    Raises:
        SystemExit: The results differ by more than `tolerance`.
    """
    assert rounds >= 3, "fewer rounds have no spread"
    fix_threads()
    for _ in range(warmups):
        ours(), theirs()
    ours_s: list[float] = []
    theirs_s: list[float] = []
    error = 0.0
    for index in range(rounds):
        results: dict[str, Any] = {}
        contenders = [("ours", ours, ours_s), ("theirs", theirs, theirs_s)]
        for key, call, seconds in contenders if index % 2 == 0 else reversed(contenders):
            gc.collect()
            start = clock()
            results[key] = call()
            seconds.append(clock() - start)
        if index == 0:
            error = difference(results["ours"], results["theirs"])
            if not error <= tolerance:
                raise SystemExit(
                    f"{name}: results differ by {error:.2e}, allowed {tolerance:.0e}; no ratio is given"
                )
    ratios = [b / a for a, b in zip(ours_s, theirs_s, strict=True)]
    middle = statistics.median(ratios)
    low, _, high = (
        statistics.quantiles(ratios, n=4, method="inclusive") if rounds >= 3 else (float("nan"),) * 3
    )
    return Duel(
        name=name,
        ratio=middle,
        iqr=(high - low) / middle,
        ours_s=statistics.median(ours_s),
        theirs_s=statistics.median(theirs_s),
        ours_min_s=min(ours_s),
        theirs_min_s=min(theirs_s),
        error=error,
        tolerance=tolerance,
        rounds=rounds,
        note=note,
    )


def peak_memory(build: Callable[..., Callable[[], Any]], *args: Any) -> float:
    """Measure how much memory one call needs on top of its inputs, in a fresh process.

    Args:
        build: A function at the top level of a module. `build(*args)` prepares the inputs, warms up at a toy
            size (so that libraries have loaded) and returns the call to be measured.
        *args: Picklable arguments of `build`.

    Returns:
        Peak resident memory in MiB above that just before the call.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, build, args))
    process.start()
    sender.close()
    try:
        peak = float(receiver.recv())
    except EOFError:
        peak = float("nan")
    process.join()
    if process.exitcode:
        raise SystemExit(f"the memory run of {build.__name__}{args} ended with status {process.exitcode}")
    return peak


def _measure(sender: Any, build: Callable[..., Callable[[], Any]], args: tuple[Any, ...]) -> None:
    fix_threads()
    call = build(*args)
    gc.collect()
    # What the preparation freed would otherwise count as the inputs', and its peak as the call's.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = _peak_rss()
    result = call()
    sender.send(_peak_rss() - before)
    del result


def _peak_rss() -> float:
    # VmHWM, since on Linux ru_maxrss of a child starts at its parent's peak.
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def fix_threads() -> None:
    """Hold torch to the number of threads in `OMP_NUM_THREADS` (1 unless the caller set it)."""
    import torch

    torch.set_num_threads(int(THREADS))


def environment(*packages: str) -> dict[str, Any]:
    """Describe the machine and the versions of torch and of `packages`, for the record."""
    import torch

    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        fields = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
        cpu = {key.strip(): value.strip() for key, _, value in fields}.get("model name", cpu)
    arguments = ("PATH" if Path(word).is_absolute() else word for word in sys.argv[1:])
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    return {
        "date": date.today().isoformat(),
        "commit": commit,
        "command": " ".join(["python", f"tools/{Path(sys.argv[0]).name}", *arguments]),
        "python": platform.python_version(),
        "cpu": f"{cpu}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "versions": {name: metadata.version(name) for name in ("torch", *packages)},
    }


def report(
    rows: Iterable[Duel | Memory | Fact], path: Path | None = None, *, packages: Iterable[str] = ()
) -> int:
    """Print rows, and write them with the environment as JSON if a path is given.

    Args:
        rows: What was measured.
        path: Where the JSON goes.
        packages: Distributions whose versions belong beside the numbers.

    Returns:
        The exit status: 0, or 1 if a ratio is not to be trusted because the rounds disagree.
    """
    rows = list(rows)
    about = environment(*packages)
    print(
        f"{about['cpu']}; {about['threads']} thread(s), load {about['load']}; {about['versions']}",
        file=sys.stderr,
    )
    for row in rows:
        print(row)
    if path is not None:
        records = [
            {"kind": type(row).__name__.lower(), **dataclasses.asdict(row)}
            | ({"ratio": row.ratio} if isinstance(row, Memory) else {})
            for row in rows
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"environment": about, "rows": records}, indent=2) + "\n")
    return int(any(isinstance(row, Duel) and not row.trusted for row in rows))
