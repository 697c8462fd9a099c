"""kill -9 of the whole run, of a process of the pool, of an actor of Ray: the records stay the same."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("pyarrow", reason="extra capfilt")

SHARDS = 10
# the models are loaded once; each run is a child of this process, which kills it and begins the next
KILLER = """
import os, pathlib, random, shutil, signal, sys, time
import torch
torch.set_num_threads(1)
import mmzoo
from mmzoo.apps.capfilt import capfilt
torch.manual_seed(0)
model = mmzoo.create_model("blip-tiny")
blip = model, mmzoo.create_processor(model)
source, whole, out = sys.argv[1:4]

def run(target):
    capfilt(source, target, model=blip, shard_size=3, workers=1, batch_size=2, write=["jsonl", "tar"], dedup="near")

def held(folder):
    names = (p for p in sorted(pathlib.Path(folder).rglob("*")) if p.is_file())
    odd = ("log.jsonl", "report.json", "report.html", "manifest.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in names if p.name not in odd}

run(whole)
start = time.perf_counter()
run(whole + "2")
took = time.perf_counter() - start
expected, chance, kills, moments = held(whole), random.Random(time.time_ns()), 0, set()
assert held(whole + "2") == expected
while kills < 10:
    child = os.fork()
    if not child:
        run(out)
        os._exit(0)
    time.sleep(chance.uniform(0.01, took / 3))
    os.kill(child, signal.SIGKILL)
    if os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL:
        kills += 1
        done = len(list(pathlib.Path(out).glob("records/0*.parquet")))
        moments.add((done, pathlib.Path(out, "captions.jsonl").exists()))
    else:  # it was over: the next one begins anew
        assert held(out) == expected
        shutil.rmtree(out)
run(out)
assert held(out) == expected, "another result"
print(len(moments), len(expected))
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in")
    with (folder / "captions.jsonl").open("w") as lines:
        for i in range(3 * SHARDS):
            image = Image.new("RGB", (24, 24), (8 * i, 255 - 8 * i, 90))
            image.paste((0, 0, 0), (i % 20, 3, i % 20 + 4, 9 + i % 7))
            image.save(folder / f"{i}.png")
            lines.write(
                json.dumps({"image": f"{i}.png", "captions": [f"square {i}", "free shipping"]}) + "\n"
            )
    return folder


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1"}


def test_killed_at_ten_random_moments_and_gone_on_equals_never_killed(pictures, tmp_path):
    words = [sys.executable, "-c", KILLER, str(pictures), str(tmp_path / "whole"), str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    moments, files = map(int, done.stdout.split()[-2:])
    assert moments >= 3  # the kills met the run in different places
    assert files > 3 * SHARDS


@pytest.fixture(scope="module")
def reference(pictures, tmp_path_factory):
    """What one process writes that nobody disturbs."""
    out = tmp_path_factory.mktemp("whole")
    run(pictures, out, engine="local", workers=1)
    return records(out)


def run(pictures, out, **more):
    from mmzoo.apps.capfilt import capfilt

    return capfilt(pictures, out, model="blip-tiny", shard_size=3, batch_size=2, html=False, **more)


def records(out):
    return {path.name: path.read_bytes() for path in sorted((out / "records").iterdir())}


def killing(out, name):
    """Kill a process once, when the first records are there: one whose command line holds `name`, below this one."""
    killed = []

    def watch():
        deadline = time.monotonic() + 800
        while time.monotonic() < deadline and not list(out.glob("records/0*.parquet")):
            time.sleep(0.02)
        for pid in below(os.getpid()):
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if name in line:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return killed


def below(pid):
    """Processes that a process has begun, and theirs."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found, front = [], {pid}
    while front:
        front = {child for child, parent in parents.items() if parent in front}
        found += front
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.timeout(900)  # a second of work, but processes that load torch on a busy machine
def test_a_killed_process_of_the_pool_changes_nothing(pictures, reference, tmp_path):
    killed = killing(tmp_path, "spawn_main")
    result = run(pictures, tmp_path, engine="local", workers=2)
    assert len(killed) == 1
    assert result.failed == []
    assert records(tmp_path) == reference


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.slow  # a Ray cluster takes minutes to start on two busy cores
def test_a_killed_worker_of_a_ray_cluster_changes_nothing(pictures, reference, tmp_path):
    ray = pytest.importorskip("ray", reason="extra ray")
    pytest.importorskip("ray.data", reason="extra ray")
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        killed = killing(tmp_path, "MapWorker")
        result = run(pictures, tmp_path, engine="ray", workers=2)
    finally:
        ray.shutdown()
    assert len(killed) == 1
    assert result.failed == []
    assert records(tmp_path) == reference
