"""`--engine ray`: the shards of a run over a Ray cluster, by Ray Data. The only file that knows Ray (extra `ray`)."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from mmzoo.apps.capfilt.local_engine import one_thread
from mmzoo.apps.capfilt.plan import Shard
from mmzoo.apps.capfilt.settings import Job
from mmzoo.apps.capfilt.work import Outcome, Worker
from mmzoo.errors import ZooError

__all__ = ["run_ray"]


class _Actor:
    """Holds the models of a job in an actor of Ray."""

    def __init__(self, job: Job) -> None:
        one_thread()
        self.worker = Worker(job)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        shards = [Shard.of(json.loads(told)) for told in batch["shard"]]
        return {"outcome": [json.dumps(self.worker(shard)._asdict()) for shard in shards]}


def run_ray(job: Job, shards: Sequence[Shard], workers: int) -> Iterator[Outcome]:
    """Work on shards in actors that hold the models, in the cluster that `RAY_ADDRESS` or `ray.init` names, else here.

    An actor that dies is started anew and its shard done again. All nodes must see input and output under one path.

    Args:
        job: What to do.
        shards: What to do it with.
        workers: Actors.

    Yields:
        Outcomes in the order in which they come.

    Raises:
        ZooError: Ray is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise ZooError("--engine ray needs Ray Data: pip install 'mmzoo[ray]'.") from None
    own = not ray.is_initialized()
    if own:
        here = not os.environ.get("RAY_ADDRESS")
        ray.init(
            num_cpus=workers + 1 if here else None, include_dashboard=False if here else None, log_to_driver=False,
            logging_level=logging.ERROR,
        )  # fmt: skip
    try:
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells of its plans on every call
        rows = [{"shard": json.dumps(shard._asdict())} for shard in shards]
        # a block for each shard, or a block of many would go to one actor
        data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Actor,
            fn_constructor_kwargs={"job": job},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            num_gpus=_gpus(job),
        )
        for row in data.iter_rows():
            yield Outcome(**json.loads(row["outcome"]))
    finally:
        if own:
            ray.shutdown()


def _gpus(job: Job) -> int:
    """Of an actor: one where the driver has one, so that each actor sees a GPU of its own."""
    import torch

    return int(job.device is None and torch.cuda.is_available())
