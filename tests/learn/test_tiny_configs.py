"""The carried configs reach their bars on held-out pictures. Minutes: `pytest -m slow tests/learn`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def fit(config: str, folder: Path, seed: int = 0) -> dict[str, float]:
    """Train as a user would, and read the last held-out numbers."""
    code = "from mmzoo.cli.main import run; run()"
    words = ["fit", "-c", config, "--name", "run", "--seed_everything", str(seed)]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "runs" / "run" / "metrics.json").read_text())["last"]


def test_clip_reads_a_drawing_style_that_it_never_saw(tmp_path):
    held = fit("clip/tiny", tmp_path)
    for way in ("i2t", "t2i"):
        assert held[f"unseen-style/{way}_r1"] >= 0.22
        assert held[f"unseen-style/{way}_r10"] >= 0.60
    assert (held["unseen-concepts/i2t_r10"] + held["unseen-concepts/t2i_r10"]) / 2 >= 0.28
    assert held["unseen-style/zeroshot_top1"] >= 0.55


def test_clip_puts_known_words_together(tmp_path):
    held = fit("clip/tiny_easyvqa", tmp_path)
    assert held["val/zeroshot_top1"] >= 0.95
    assert held["left-out/zeroshot_top1"] >= 0.40
