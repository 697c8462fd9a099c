"""Two processes over gloo give the losses, gradients, teacher and queue of one process with the whole batch."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("fusion_ranks.py")
_spec = importlib.util.spec_from_file_location("fusion_ranks", SCRIPT)
fusion_ranks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fusion_ranks)

ALL = slice(0, fusion_ranks.ROWS)


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
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def check(case, ranks, expected):
    result, gradients = expected
    for rank in ranks:
        found, found_gradients = rank[case]
        torch.testing.assert_close(found, result, rtol=1e-12, atol=1e-12)
        for key, gradient in gradients.items():
            torch.testing.assert_close(found_gradients[key], gradient, rtol=1e-11, atol=1e-12)
    largest = max(g.abs().max() for g in gradients.values())
    assert largest > 1e-3, "a gradient of nothing would prove nothing"


@pytest.mark.parametrize("case", fusion_ranks.CONTRASTS, ids="-".join)
def test_queued_contrast(case, ranks):
    loss_of = fusion_ranks.contrast(("whole", *case[1:]), ALL, "none")
    check(case, [rank["contrasts"] for rank in ranks], fusion_ranks.run(loss_of, ALL, False, lambda x: x))


@pytest.mark.parametrize("case", fusion_ranks.MEANS, ids="-".join)
def test_means_over_rows(case, ranks):
    loss_of = fusion_ranks.mean(case[1], ALL, False)
    check(case, [rank["means"] for rank in ranks], fusion_ranks.run(loss_of, ALL, True, lambda x: x))


@pytest.mark.parametrize("split", fusion_ranks.STEPS)
def test_teacher_and_queue_after_some_steps(split, ranks):
    alone = fusion_ranks.train(split, None, lambda x: x)
    for rank in ranks:
        found = rank["training"][split]
        torch.testing.assert_close(found["losses"], alone["losses"], rtol=1e-11, atol=1e-12)
        for part in ("teacher", "queue"):
            torch.testing.assert_close(found[part], alone[part], rtol=1e-11, atol=1e-12)
    first, second = (rank["training"][split]["queue"] for rank in ranks)
    assert all(torch.equal(first[key], second[key]) for key in first), "the same on every rank, bit for bit"
    pairs = sum(map(sum, fusion_ranks.STEPS[split]))
    assert first["pushed"] == pairs
    assert pairs % fusion_ranks.QUEUE, "the batches do not divide the queue"


def test_ddp_sends_no_queue_around(ranks):
    for number, rank in enumerate(ranks):
        queue, buffer = rank["not_broadcast"]
        assert queue == [number]
        assert buffer == [0], "while buffers are sent from rank 0, else this test would prove nothing"
