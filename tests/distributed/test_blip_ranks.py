"""Two processes over gloo train BLIP as one does with all pairs, hard negatives across processes included."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("blip_ranks.py")
_spec = importlib.util.spec_from_file_location("blip_ranks", SCRIPT)
blip_ranks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(blip_ranks)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(SCRIPT)]
    processes = [
        subprocess.Popen([*command, str(rank), str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=180)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("split", blip_ranks.SPLITS)
def test_two_steps_equal_those_of_one_process(split, ranks, monkeypatch):
    monkeypatch.setattr(blip_ranks.everywhere, "draw_negatives", blip_ranks.hardest)
    alone = blip_ranks.train(split, None, lambda x: x)
    for rank in ranks:
        for found, wanted in zip(rank[split]["steps"], alone["steps"], strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
        for part in ("teacher", "queue"):
            torch.testing.assert_close(rank[split][part], alone[part], rtol=1e-9, atol=1e-11)
    assert max(g.abs().max() for g in alone["steps"][0]["gradients"].values()) > 1e-2


@pytest.mark.parametrize("split", blip_ranks.SPLITS)
def test_negatives_come_from_the_other_process(split, monkeypatch):
    """Else the test above would prove nothing."""
    monkeypatch.setattr(blip_ranks.everywhere, "draw_negatives", blip_ranks.hardest)
    drawn, inner = [], blip_ranks.everywhere.draw_everywhere
    monkeypatch.setattr(
        "mmzoo.lit.blip.draw_everywhere", lambda *args, **kw: (drawn.append(inner(*args, **kw)), drawn[-1])[1]
    )
    blip_ranks.train(split, None, lambda x: x)
    border = blip_ranks.SPLITS[split][0]
    for some in drawn:
        text, image, match, _ = some.rows
        assert bool(((text < border) != (image < border))[~match].any())
