"""One of two processes that count answers and verdicts; run by test_metric_ranks.py with its rank and a folder."""

import sys
from pathlib import Path

import torch
from torch import distributed

from mmzoo.metrics.vqa import PairVerdicts, VQAAccuracy

ANSWERS = [
    ("yes", ("yes",) * 10, "yes/no"),
    ("2", ("2",) * 2 + ("3",) * 8, "number"),
    ("red", ("Red", "blue"), "other"),
    ("no", ("yes",) * 10, "yes/no"),
    ("what", (), "other"),
]
VERDICTS = torch.tensor([[5, 1, 1], [5, 0, 0], [6, 1, 0], [6, 1, 1], [7, 0, 0]])  # group, label, verdict


def reports(mine: slice):
    """Both reports of the rows that a slice takes."""
    answers, verdicts = VQAAccuracy(), PairVerdicts()
    answers.update(*zip(*ANSWERS[mine]))
    groups, labels, predicted = VERDICTS[mine].unbind(1)
    verdicts.update(predicted, labels, groups)
    return answers.compute(), verdicts.compute()


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = reports(slice(rank, None, 2))  # three rows and two; rank 1 meets no type "other"
    torch.save([tuple(report) for report in found], folder / f"rank{rank}.pt")
    distributed.destroy_process_group()
