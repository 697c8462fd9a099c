"""Start-up: a fresh process that imports and builds ViT-B/32 with weights, mmzoo against open_clip.

    python tools/bench_startup.py --json docs/benchmarks/startup.json

Both read the same random weights from a safetensors file of their own layout, in files that the system has cached.
Each process is measured whole, from start to end: CPU seconds of user and system, in rounds that turn the order.
The second row goes on to the first embedding of a picture, since mapped weights are only read when used.
"""

from __future__ import annotations

import argparse
import functools
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import benchlib

OURS = "import mmzoo; model = mmzoo.create_model('clip-vit-b32', pretrained={folder!r})"
THEIRS = "import open_clip; model = open_clip.create_model('ViT-B-32-quickgelu', pretrained={file!r})"
EMBED = (
    "; import torch; torch.manual_seed(0); x = torch.randn(1, 3, 224, 224)"
    "\nwith torch.inference_mode(): y = model.encode_image(x)"
    "\ny = torch.nn.functional.normalize(y, dim=-1)"
)
SHOW = "\nprint(*y[0].tolist())"


def run(code: str, result: Any) -> Any:
    """Run a Python process to its end and give what both sides' processes were found to compute."""
    subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL, check=True)
    return result


def children() -> float:
    """CPU seconds, user and system, of all processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def embedding(code: str) -> Any:
    import torch

    done = subprocess.run(
        [sys.executable, "-c", code + EMBED + SHOW], capture_output=True, text=True, check=True
    )
    return torch.tensor([float(word) for word in done.stdout.split()])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of the first row (5)")
    parser.add_argument("--bar", type=float, default=2.0, help="exit with 1 below this ratio (2.0)")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()

    import torch

    import mmzoo

    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder, hub = str(Path(scratch) / "own"), str(Path(scratch) / "hub")
        torch.manual_seed(0)
        mmzoo.save(mmzoo.create_model("clip-vit-b32"), folder)
        file = str(mmzoo.convert(folder, hub, layout="clip/open_clip"))
        ours, theirs = OURS.format(folder=folder), THEIRS.format(file=file)
        found = embedding(ours), embedding(theirs)
        for name, rest, rounds in (
            ("import and create", "", args.rounds),
            ("import, create and embed one picture", EMBED, 3),
        ):
            rows.append(
                benchlib.duel(
                    f"ViT-B/32 in a fresh process: {name}",
                    functools.partial(run, ours + rest, found[0]),
                    functools.partial(run, theirs + rest, found[1]),
                    tolerance=1e-5,
                    rounds=rounds,
                    clock=children,
                    note="the gate compares embeddings of one picture",
                )
            )
    status = benchlib.report(rows, args.json, packages=["open_clip_torch", "timm"])
    return status or int(rows[0].ratio < args.bar)


if __name__ == "__main__":
    sys.exit(main())
