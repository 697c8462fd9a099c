"""Two processes over gloo evaluate to the numbers of one, and fail together where one of them fails."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

SCRIPT = Path(__file__).with_name("evaluate_ranks.py")
SUPPORT = SCRIPT.parent.parent / "support"
_spec = importlib.util.spec_from_file_location("evaluate_ranks", SCRIPT)
evaluate_ranks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(evaluate_ranks)


@pytest.fixture
def data(tmp_path):
    """Nine pictures with one to three captions; the first cannot be read."""
    folder = tmp_path / "data"
    folder.mkdir()
    lines = []
    for i in range(9):
        pixels = torch.randint(256, (6, 6, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).resize((41 if i == 8 else 40, 40)).save(folder / f"{i}.png")
        captions = ["a red boat", "two dogs", "a small house", "blue"][i % 4 : i % 4 + 1 + i % 3]
        lines.append(json.dumps({"image": f"{i}.png", "captions": [f"{c} {i}" for c in captions or ["cat"]]}))
    (folder / "0.png").write_text("no picture")
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


def test_two_processes_report_what_one_does(data, tmp_path):
    paths = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(tmp_path), str(data)],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    alone = evaluate_ranks.reports(data, tmp_path / "alone.json")
    assert alone["two stages"]["data"]["broken"] == 1
    assert alone["said"] == "the last picture is bad."
    for rank in range(2):
        assert torch.load(tmp_path / f"rank{rank}.pt") == alone
    assert (tmp_path / "answers.json").read_text() == (tmp_path / "alone.json").read_text()
