"""SIGKILL at random moments of a real `mmzoo fit`; then `--ckpt_path last` goes on as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from PIL import Image

import mmzoo
from mmzoo.cli.main import main
from mmzoo.lit.checkpoints import check_whole

STEPS = 60


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    lines = []
    for i in range(22):
        Image.new("RGB", (20, 20), (11 * i, 255 - 11 * i, 120)).save(tmp_path / "pictures" / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "captions": [f"square {i}", f"number {i}"]}))
    (tmp_path / "pictures/captions.jsonl").write_text("\n".join(lines))
    shown = mmzoo.config.to_dict(mmzoo.get_config("clip-tiny"))
    vision = {k: v for k, v in shown["vision"].items() if k != "kind"} | {
        "depth": 1,
        "dropout": 0.1,
        "patch_drop": 0.3,
    }
    model = shown | {"vision": vision, "text": shown["text"] | {"depth": 1}}
    config = {
        "model": {"class_path": "LitCLIP", "init_args": {"model": model, "recipe": {"ema_decay": 0.9}}},
        "data": {
            "class_path": "CaptionsData",
            "init_args": {"source": "pictures", "val": "pictures", "batch_size": 4, "augment": {"rotate": 20}},
        },
        "checkpoints": {"every_n_steps": 1},
        "trainer": {
            "max_steps": STEPS, "accelerator": "cpu", "num_sanity_val_steps": 0, "val_check_interval": 7,
            "check_val_every_n_epoch": None, "log_every_n_steps": 1,
        },
    }  # fmt: skip
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(config))
    # sums over other numbers of threads round otherwise, and the killed runs have one
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def rows(path):
    lines = [line.split(",") for line in path.read_text().splitlines()]
    return [dict(zip(lines[0][:1] + lines[0][2:], line[:1] + line[2:], strict=True)) for line in lines[1:]]


def test_killed_twice_and_gone_on_equals_never_killed(here):
    assert main(["fit", "-c", "toy.yaml", "--name", "whole"]) == 0
    last = here / "runs/toy/checkpoints/last.ckpt"
    chance = random.Random(time.time_ns())
    code = "from mmzoo.cli.main import run; run()"
    words = ["fit", "-c", "toy.yaml", "--ckpt_path", "last"]
    reached = 0
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        before = last.stat().st_mtime_ns if last.exists() else 0
        deadline = time.monotonic() + 100
        while not last.exists() or last.stat().st_mtime_ns == before:  # until it has written one of its own
            assert process.poll() is None, "fit ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.25))  # some ten steps; the run has 60
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        check_whole(last)
        step = torch.load(last, weights_only=True)["global_step"]
        assert step > reached  # it went on from where the first had got to
        logged = max(float(row["step"]) for row in rows(here / "runs/toy/metrics.csv"))
        assert logged - step <= 1  # every_n_steps is 1: at most the step that was under way is lost
        reached = step
    assert main(words) == 0
    whole, part = (mmzoo.load(here / "runs" / name / "export")[0].state_dict() for name in ("whole", "toy"))
    assert all(torch.equal(whole[k], part[k]) for k in whole)
    told = [rows(here / "runs" / name / "metrics.csv") for name in ("whole", "toy")]
    assert [float(row["step"]) for row in told[0]] == [float(row["step"]) for row in told[1]]
    losses = [[row["train/loss"] for row in one if row["train/loss"]] for one in told]
    assert losses[0] == losses[1]
    assert len(losses[0]) == STEPS
