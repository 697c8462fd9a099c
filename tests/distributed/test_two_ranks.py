"""Two processes over gloo give the loss and the parameter gradients of one process with the whole batch."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmzoo import dist

SCRIPT = Path(__file__).with_name("two_ranks.py")
_spec = importlib.util.spec_from_file_location("two_ranks", SCRIPT)
two_ranks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(two_ranks)


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


@pytest.fixture(scope="module")
def alone():
    """Loss, accuracies and gradients of one process that holds all rows."""
    outcomes = {}
    for name in ("softmax", "sigmoid"):
        for with_ids in (False, True):
            towers = two_ranks.Towers(name)
            ids = {"image_ids": two_ranks.IMAGE_IDS, "text_ids": two_ranks.TEXT_IDS} if with_ids else {}
            result = towers(*two_ranks.batch(), **ids)
            result.loss.backward()
            outcomes[name, with_ids] = (
                [x.detach() for x in result],
                {key: parameter.grad for key, parameter in towers.named_parameters()},
            )
    return outcomes


@pytest.mark.parametrize("case", two_ranks.CASES, ids=lambda case: "-".join(map(str, case)))
def test_loss_and_averaged_gradients_are_those_of_one_process(case, ranks, alone):
    name, _, split, with_ids, _ = case
    if with_ids and split == "even":
        # Rank 1 narrows its ids to two columns, which holds all that its rows have.
        assert (two_ranks.IMAGE_IDS[4:, 2] == -1).all()
    expected, expected_gradients = alone[name, with_ids]
    for rank in ranks:
        result, gradients = rank["cases"][case]
        torch.testing.assert_close(list(result), expected, rtol=1e-12, atol=1e-12)
        for key, gradient in expected_gradients.items():
            torch.testing.assert_close(gradients[key], gradient, rtol=1e-11, atol=1e-12)
            assert gradient.abs().max() > 1e-4, "a gradient of nothing would prove nothing"


def test_gathers(ranks):
    first, second = (rank["gathers"] for rank in ranks)
    assert (first["identity"], second["identity"]) == ((0, 2), (1, 2))
    for found in (first, second):
        assert found["sizes"] == [2, 3]
        assert found["gathered"].flatten().tolist() == [0, 1, 10, 11, 12]
        assert found["integers"].tolist() == [[2**40, 2**40]]
        assert found["booleans"].tolist() == [True, False, True, True]
        assert found["sum"].tolist() == [2, 1]
        assert found["max"].tolist() == [1, 1]
    # Rank 0 weighs row k by k + 1, rank 1 by twice that; each row's gradient is the sum.
    assert first["gradient"].flatten().tolist() == [3, 6]
    assert second["gradient"].flatten().tolist() == [9, 12, 15]
    assert first["even_gradient"].tolist() == [[0] * 3, [3] * 3]
    assert second["even_gradient"].tolist() == [[3] * 3, [0] * 3]


def test_without_a_process_group_everything_is_the_identity():
    x = torch.ones(3, 2, requires_grad=True)
    assert (dist.rank(), dist.world(), dist.gather_sizes(3)) == (0, 1, [3])
    assert dist.gather_with_grad(x) is x
    assert not dist.gather_no_grad(x).requires_grad
    torch.testing.assert_close(dist.gather_no_grad(x), x.detach())
    assert dist.sum_over_ranks(x) is dist.max_over_ranks(x) is x
