"""An interrupted run equals an uninterrupted one, bit for bit."""

import pytest
import torch
from lightning.pytorch import Callback
from torch.optim import AdamW

from mmzoo.lit import Checkpoints, LitCLIP, Recipe
from mmzoo.lit.files import RunLogger

STEPS = 13


class Killed(BaseException):
    pass


class Kill(Callback):
    """Ends the process's work without warning, as SIGKILL would: nothing of Lightning's or ours runs after it."""

    def __init__(self, step, where="on_train_batch_start"):
        self.step = step
        setattr(self, where, self.strike)

    def strike(self, trainer, module, *args):
        if trainer.global_step == self.step and not trainer.sanity_checking:
            raise Killed


class Losses(Callback):
    def __init__(self):
        self.by_step = {}

    def on_train_batch_end(self, trainer, module, *args):
        self.by_step[trainer.global_step] = float(trainer.callback_metrics["train/loss"])


def run(toys, folder, *, kill=None, resume=False, every=1, seed=0, **settings):
    torch.manual_seed(seed)
    module = LitCLIP(
        toys.clip(),
        optimizer=lambda params: AdamW(params, lr=3e-3, weight_decay=0.1),
        recipe=Recipe(warmup_steps=4, layer_decay=0.8, ema_decay=0.9),
    )
    losses, logger = Losses(), RunLogger(folder)
    settings = {"max_steps": STEPS, "gradient_clip_val": 1.0, "logger": logger} | settings
    trainer = toys.trainer(
        folder, Checkpoints(every_n_steps=every), callbacks=[losses, *([kill] if kill else [])], **settings
    )
    path = folder / "checkpoints" / "last.ckpt"
    if resume:
        logger.resume(torch.load(path, weights_only=True)["global_step"])
    try:
        trainer.fit(module, datamodule=toys.data(), ckpt_path=path if resume else None)
    except Killed:
        trainer = None
    return module, trainer, losses.by_step, logger


def rows_of(logger):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in logger.rows]


def same(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one), [k for k in one if not torch.equal(one[k], two[k])]


@pytest.mark.parametrize(
    ("settings", "stops"),
    [  # epochs have 5 batches: validation at their end, in their middle, across them, and steps of two batches
        pytest.param({}, (1, 4, 5, 6, 12), id="epoch"),
        pytest.param({"val_check_interval": 2}, (2, 3, 9), id="middle"),
        pytest.param({"val_check_interval": 4, "check_val_every_n_epoch": None}, (4, 5), id="across"),
        pytest.param({"accumulate_grad_batches": 2}, (3, 5), id="accumulate"),
    ],
)
def test_killed_anywhere_and_resumed_equals_never_stopped(toys, tmp_path, settings, stops):
    whole, whole_trainer, whole_losses, whole_log = run(toys, tmp_path / "whole", every=0, **settings)
    optimizer = whole_trainer.optimizers[0].state_dict()
    for stop in stops:
        folder = tmp_path / f"stop-{stop}"
        _, _, before, _ = run(toys, folder, kill=Kill(stop), every=stop, **settings)
        saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        assert saved["global_step"] == stop
        # another seed: what matters must come from the checkpoint
        part, trainer, after, log = run(toys, folder, resume=True, seed=99, every=0, **settings)
        assert before | after == whole_losses, stop
        same(part.state_dict(), whole.state_dict())
        same(part.ema.state_dict()["average"], whole.ema.state_dict()["average"])
        assert part.ema.updates == STEPS
        resumed = trainer.optimizers[0].state_dict()
        assert [g["lr"] for g in resumed["param_groups"]] == [g["lr"] for g in optimizer["param_groups"]]
        for state, expected in zip(resumed["state"].values(), optimizer["state"].values(), strict=True):
            same(state, expected)
        assert rows_of(log) == rows_of(whole_log), stop


def test_killed_between_checkpoints_loses_only_the_steps_since(toys, tmp_path):
    whole, _, whole_losses, _ = run(toys, tmp_path / "whole", val_check_interval=5)
    run(toys, tmp_path / "part", kill=Kill(9), every=4, val_check_interval=5)
    assert torch.load(tmp_path / "part/checkpoints/last.ckpt", weights_only=True)["global_step"] == 8
    part, _, after, _ = run(toys, tmp_path / "part", resume=True, every=4, val_check_interval=5)
    assert set(after) == set(range(9, STEPS + 1))
    assert all(whole_losses[step] == loss for step, loss in after.items())
    same(part.state_dict(), whole.state_dict())


def test_killed_during_validation_comes_back_to_that_validation(toys, tmp_path):
    whole, _, _, whole_log = run(toys, tmp_path / "whole", val_check_interval=2)
    run(toys, tmp_path / "part", kill=Kill(7, "on_validation_batch_start"), val_check_interval=2)
    part, _, _, log = run(toys, tmp_path / "part", resume=True, val_check_interval=2)
    same(part.state_dict(), whole.state_dict())
    assert rows_of(log) == rows_of(whole_log)


def test_resuming_a_finished_run_changes_nothing(toys, tmp_path):
    whole, _, _, _ = run(toys, tmp_path)
    again, _, losses, _ = run(toys, tmp_path, resume=True, seed=5)
    assert losses == {}
    same(again.state_dict(), whole.state_dict())


def test_randomness_of_a_step_depends_on_nothing_before_it(toys, tmp_path):
    """Dropout is on in the toy model: two seeds differ, and validation in between changes nothing."""
    _, _, one, _ = run(toys, tmp_path / "a", limit_val_batches=0)
    _, _, two, _ = run(toys, tmp_path / "b", val_check_interval=1)
    assert one == two


def test_the_run_ends_with_a_validation_of_the_last_weights(toys, tmp_path):
    _, _, _, log = run(toys, tmp_path, val_check_interval=5)
    validated = [row["step"] for row in log.rows if "held/i2t_r1" in row]
    assert validated[-1] == STEPS
