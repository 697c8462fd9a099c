"""Two processes over gloo report what one process reports of all answers and verdicts."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = Path(__file__).with_name("metric_ranks.py")
_spec = importlib.util.spec_from_file_location("metric_ranks", SCRIPT)
metric_ranks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(metric_ranks)


def test_both_ranks_report_on_everything(tmp_path):
    command = [sys.executable, str(SCRIPT)]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    alone = [tuple(report) for report in metric_ranks.reports(slice(None))]
    assert alone[0][3:] == (4, 1)
    for rank in range(2):
        assert torch.load(tmp_path / f"rank{rank}.pt") == alone
