"""Checkpoints: whole or absent, checked before they are read, best and last, and what the export holds."""

import json
import os
import random
import signal
import time

import pytest
import torch
from lightning.pytorch import Callback
from torch.optim import AdamW

import mmzoo
from mmzoo.errors import UsageError, ZooError
from mmzoo.lit import Checkpoints, ExportWeights, LitCLIP, Recipe, RunReport
from mmzoo.lit import checkpoints as module_under_test
from mmzoo.lit.checkpoints import WholeFileIO, check_whole
from mmzoo.lit.files import RunLogger, best_of, draw_curve, last_of


def content(step):
    return {"step": step, "weights": torch.full((300, 300), float(step))}


@pytest.fixture
def full_disk(monkeypatch):
    """From now on checkpoints go to a device that is full: the kernel's own ENOSPC through torch's own writer."""
    real = torch.save

    def save(obj, file):
        file.write(b"half of")
        with open("/dev/full", "wb", buffering=0) as full:
            real(obj, full)

    def fill():
        monkeypatch.setattr(module_under_test.torch, "save", save)

    return fill


def test_a_full_disk_is_one_sentence_and_the_earlier_checkpoint_stays(tmp_path, full_disk):
    io, path = WholeFileIO(), tmp_path / "last.ckpt"
    full_disk()
    with pytest.raises(ZooError, match=r"disk is full.*no half-written file is left.*--ckpt_path last"):
        io.save_checkpoint(content(1), path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_in_the_middle_of_a_run(toys, tmp_path, full_disk):
    class Fill(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 3:
                full_disk()

    trainer = toys.trainer(tmp_path, Checkpoints(every_n_steps=1), callbacks=[Fill()], max_steps=9)
    with pytest.raises(ZooError, match=r"disk is full.*the earlier last\.ckpt is untouched"):
        trainer.fit(LitCLIP(toys.clip()), datamodule=toys.data())
    folder = tmp_path / "checkpoints"
    assert [p.name for p in folder.iterdir()] == ["last.ckpt"]
    assert WholeFileIO().load_checkpoint(folder / "last.ckpt")["global_step"] == 3


def test_other_write_errors_keep_their_names(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        WholeFileIO().save_checkpoint(content(1), tmp_path / "file" / "last.ckpt")


@pytest.mark.parametrize("damage", ["cut", "half", "empty", "altered", "text"])
def test_damaged_checkpoints_are_refused_by_name(tmp_path, damage):
    io, path = WholeFileIO(), tmp_path / "last.ckpt"
    io.save_checkpoint(content(1), path)
    io.save_checkpoint(content(2), tmp_path / "best.ckpt")
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes({
        "cut": whole[:-50], "half": whole[:middle], "empty": b"", "text": b"hello " * 99,
        "altered": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
    }[damage])  # fmt: skip
    with pytest.raises(ZooError, match=r"last\.ckpt is damaged or no checkpoint.*best\.ckpt"):
        io.load_checkpoint(path)
    check_whole(tmp_path / "best.ckpt")


def test_a_kill_in_the_middle_of_writing_never_costs_a_checkpoint(tmp_path):
    """SIGKILL at random moments while a process does nothing but write checkpoints."""
    io, path, lots = WholeFileIO(), tmp_path / "last.ckpt", random.Random(0)
    step, interrupted = 0, 0
    for _ in range(25):
        child = os.fork()
        if child == 0:
            while True:
                step += 1
                io.save_checkpoint(content(step), path)
        time.sleep(lots.uniform(0.005, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        interrupted += any(tmp_path.glob(".last.ckpt.*.part"))
        if path.exists():
            found = io.load_checkpoint(path)
            assert found["step"] >= step
            assert (found["weights"] == found["step"]).all()
            step = found["step"]
    assert step > 0
    assert interrupted > 0, "no kill hit a write, so this has shown nothing"
    io.save_checkpoint(content(step), path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]  # what the kills left is gone


def test_best_is_the_best_and_last_the_last(toys, tmp_path, monkeypatch):
    scores = iter([0.2, 0.5, 0.3, 0.4])
    module = LitCLIP(toys.clip(), optimizer=lambda params: AdamW(params, lr=1e-3))
    monkeypatch.setattr(
        module, "on_validation_epoch_end", lambda: module.log("val/score", next(scores)), raising=True
    )
    trainer = toys.trainer(tmp_path, Checkpoints(keep_steps=3), max_steps=8, val_check_interval=2,
                           check_val_every_n_epoch=None)  # fmt: skip
    trainer.fit(module, datamodule=toys.data())
    folder = tmp_path / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["best.ckpt", "last.ckpt", "step-3.ckpt"]
    steps = {p.name: torch.load(p, weights_only=True)["global_step"] for p in folder.iterdir()}
    assert steps == {"best.ckpt": 4, "last.ckpt": 8, "step-3.ckpt": 3}


def test_a_kill_between_two_files_never_loses_the_best(toys, tmp_path, monkeypatch):
    """last.ckpt remembers the best value, so best.ckpt must be on the disk before it."""
    written = []
    module = LitCLIP(toys.clip(), optimizer=lambda params: AdamW(params, lr=1e-3))
    trainer = toys.trainer(tmp_path, Checkpoints(keep_steps=2), max_steps=2)
    save = trainer.save_checkpoint

    def noted(path, **settings):
        written.append(path.stem)
        save(path, **settings)

    monkeypatch.setattr(trainer, "save_checkpoint", noted)
    trainer.fit(module, datamodule=toys.data())
    assert "best" in written
    assert written[written.index("best") + 1] == "last"
    assert all(written[i + 1] == "last" for i, name in enumerate(written) if name.startswith("step-"))


def test_the_best_value_survives_a_restart(toys, tmp_path):
    callback = Checkpoints()
    callback.load_state_dict({"best": 0.7})
    assert not callback._is_better(0.6)
    assert callback._is_better(0.8)
    assert Checkpoints(mode="min")._is_better(0.8)
    with pytest.raises(UsageError, match="mode"):
        Checkpoints(mode="most")
    trainer = toys.trainer(tmp_path, Checkpoints(monitor="nothing"), max_steps=1)
    with pytest.raises(ZooError, match=r"nothing is logged as 'nothing'.*held/i2t_r1"):
        trainer.fit(LitCLIP(toys.clip()), datamodule=toys.data())


def test_a_run_leaves_metrics_curve_and_an_export_with_the_average(toys, tmp_path):
    logger = RunLogger(tmp_path)
    report = RunReport(tmp_path, logger)
    module = LitCLIP(
        toys.clip(), optimizer=lambda params: AdamW(params, lr=1e-2), recipe=Recipe(ema_decay=0.9)
    )
    trainer = toys.trainer(tmp_path, callbacks=[report, ExportWeights(tmp_path / "export", "toy")], max_steps=6,
                           logger=logger, val_check_interval=3)  # fmt: skip
    trainer.fit(module, datamodule=toys.data())
    model, processor = mmzoo.load(tmp_path / "export")
    average = module.ema.state_dict()["average"]
    assert torch.equal(model.text_proj.weight, average["text_proj.weight"])
    assert not torch.equal(model.text_proj.weight, module.model.text_proj.weight)
    assert processor.texts(["red apple"]).ids.shape[0] == 1
    card = (tmp_path / "export" / "README.md").read_text()
    assert "average, decay 0.9" in card
    assert "held/i2t_r1 (chance" in card
    told = json.loads((tmp_path / "metrics.json").read_text())
    assert told["finished"] is True
    assert told["steps"] == 6
    held = float(trainer.callback_metrics["held/i2t_r1"])
    assert told["last"]["held/i2t_r1"] == pytest.approx(held, rel=1e-5)  # files keep six digits
    assert told["chance"]["held/i2t_r1"] == pytest.approx(1 / 22)
    assert set(told["best"]) == set(told["chance"])
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    steps = [row["step"] for row in logger.rows if "train/loss" in row]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_the_csv_survives_a_kill_in_the_middle_of_a_line(tmp_path):
    logger = RunLogger(tmp_path)
    for step in range(4):
        logger.log_metrics({"train/loss": 4.0 - step}, step)
    logger.log_metrics({"held/top1": 0.5}, 3)
    with logger.path.open("a") as file:
        file.write("5,3.1,abc")
    again = RunLogger(tmp_path)
    again.resume(3)
    assert [row["step"] for row in again.rows] == [1, 2, 3]
    again.log_metrics({"train/loss": 0.5}, 3)
    lines = logger.path.read_text().splitlines()
    assert lines[0].startswith("step,seconds,train/loss")
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "2", "3", "4"]
    assert again.rows[-1]["seconds"] >= again.rows[0]["seconds"]


def test_last_and_best_values():
    rows = [
        {"step": 1, "seconds": 0, "train/loss": 3.0, "a/top1": 0.2, "a/loss": 2.0},
        {"step": 2, "seconds": 1, "a/top1": 0.4, "a/loss": 1.5},
        {"step": 3, "seconds": 2, "train/loss": 1.0, "a/top1": 0.3, "a/loss": 1.8},
    ]
    assert last_of(rows) == {"train/loss": 1.0, "a/top1": 0.3, "a/loss": 1.8}
    best = best_of(rows, {"a/top1": 0.1})
    assert best == {"a/top1": {"value": 0.4, "step": 2}, "a/loss": {"value": 1.5, "step": 2}}


def test_without_matplotlib_a_log_line_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    rows = [{"step": 1, "seconds": 0, "train/loss": 3.0}]
    with caplog.at_level("INFO", logger="mmzoo"):
        assert draw_curve(rows, {}, tmp_path / "curve.png", "toy") is False
    assert "mmzoo[plots]" in caplog.text
    monkeypatch.undo()
    assert draw_curve([], {}, tmp_path / "curve.png", "toy") is False
    assert draw_curve(rows, {}, tmp_path / "curve.png", "toy") is True
