"""Converting holds about one checkpoint and no more: the benchmark at a small scale."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parents[2] / "tools" / "bench_convert_memory.py"


def test_converting_holds_little_more_than_the_checkpoint():
    # at 80 MB the allocator's own slack is a few percent
    done = subprocess.run(
        [sys.executable, TOOL, "--gigabytes", "0.1", "--bar", "1.2"],
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "to mmzoo .safetensors" in done.stdout
    assert "to clip/open_clip .pt" in done.stdout
