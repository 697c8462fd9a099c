"""`--engine local`: the shards of a run over processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing.connection import wait as wait_for

import torch

from mmzoo.apps.capfilt.plan import Shard
from mmzoo.apps.capfilt.settings import Job
from mmzoo.apps.capfilt.work import Outcome, Worker

__all__ = ["TRIES", "one_thread", "run_local"]

TRIES = 3
"""Times that a shard may lose its process before it is given up."""
_worker: Worker | None = None


def run_local(job: Job, shards: Sequence[Shard], workers: int) -> Iterator[Outcome]:
    """Work on shards, in this process or in several others.

    Args:
        job: What to do.
        shards: What to do it with.
        workers: Processes; 1 is this one.

    Yields:
        Outcomes in the order in which they come. A shard whose process died is tried again.
    """
    if workers == 1:
        worker = Worker(job)
        threads = torch.get_num_threads()
        for shard in shards:
            one_thread()
            try:
                outcome = worker(shard)
            finally:
                torch.set_num_threads(threads)
            yield outcome
        return
    todo = {shard.number: shard for shard in shards}
    losses: Counter[int] = Counter()
    while todo:
        # a process that died takes its pool with it, so the rest goes to a new one; a suspect comes alone, or it would
        # bring the others down again
        suspects = [shard for shard in todo.values() if losses[shard.number] > 1]
        some = suspects[:1] or list(todo.values())
        yield from _pool(job, some, min(workers, len(some)), todo, losses)
        for number in [n for n in todo if losses[n] >= TRIES]:
            del todo[number]
            yield Outcome(number, failed=f"its process died {TRIES} times (out of memory?)")


def _pool(
    job: Job, shards: Sequence[Shard], workers: int, todo: dict[int, Shard], losses: Counter[int]
) -> Iterator[Outcome]:
    """Work on shards until they are done or a process dies; what is done leaves `todo`."""
    context = multiprocessing.get_context("spawn")  # forked threads of torch would hang
    turn = context.Value("i", 0)
    with ProcessPoolExecutor(workers, context, _begin, (job, turn)) as pool:
        waiting = iter(shards)
        under_way: dict[Future[Outcome], Shard] = {}
        try:
            while True:
                # not more than are being worked on: those are the only ones that a dying process may have taken along
                for shard in waiting:
                    under_way[pool.submit(_work, shard)] = shard
                    if len(under_way) >= workers:
                        break
                if not under_way:
                    return
                for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                    outcome = done.result()
                    del todo[under_way.pop(done).number]
                    yield outcome
        except BrokenProcessPool:
            for future, shard in under_way.items():
                if future.done() and future.exception() is None:
                    del todo[shard.number]
                    yield future.result()
                else:
                    losses[shard.number] += 1


def one_thread() -> None:
    """Sums over other numbers of threads round otherwise, and records may not depend on the machine's cores."""
    torch.set_num_threads(1)


def _begin(job: Job, turn: object) -> None:
    global _worker
    threading.Thread(target=_follow_parent, daemon=True).start()
    one_thread()
    count = torch.cuda.device_count() if job.device is None and torch.cuda.is_available() else 0
    if count > 1:
        with turn.get_lock():  # type: ignore[attr-defined]
            job = replace(job, device=f"cuda:{turn.value % count}")  # type: ignore[attr-defined]
            turn.value += 1  # type: ignore[attr-defined]
    _worker = Worker(job)


def _follow_parent() -> None:
    """End with the process that shares out the work: after a kill it could not tell, and they would wait forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)


def _work(shard: Shard) -> Outcome:
    assert _worker is not None
    return _worker(shard)
