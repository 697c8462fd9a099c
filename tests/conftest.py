"""Two test processes on two cores: each computes with one thread, or four threads would wait for two cores."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests begin

    import torch

    torch.set_num_threads(1)
