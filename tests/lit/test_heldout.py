"""The held-out loop that every family shares, the generator that losses draw from, and written predictions."""

import contextlib
import json

import pytest
import torch
from lightning.pytorch import Callback
from safetensors import safe_open

from mmzoo.lit.base import Recipe
from mmzoo.lit.checkpoints import Checkpoints
from mmzoo.lit.clip import CLIPAdamW, LitCLIP
from mmzoo.lit.files import write_predictions
from mmzoo.lit.heldout import HeldOutClasses, HeldOutPairs, Several


class Drawing(LitCLIP):
    """Judges by two collectors, and notes what the generator gives."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.drawn, self.judged = {}, []

    def training_step(self, batch, batch_idx):
        self.drawn[self.current_epoch, batch_idx] = float(torch.rand((), generator=self.generator))
        assert float(torch.rand(())) != self.drawn[self.current_epoch, batch_idx]
        return super().training_step(batch, batch_idx)

    def heldout(self, split):
        return Several(super().heldout(split), guess=HeldOutClasses())

    def judge(self, batch, collector):
        super().judge(batch, collector.main)
        logits = torch.rand(len(batch.labels), 4, generator=self.generator)
        self.judged.append(logits)
        collector.others["guess"].add(logits, batch.labels)


def adamw(params):
    return CLIPAdamW(params, lr=1e-3)


def test_one_module_judges_a_split_in_several_ways(toys, tmp_path):
    module = Drawing(toys.clip(), optimizer=adamw, recipe=Recipe(ema_decay=0.9))
    trainer = toys.trainer(tmp_path, max_steps=2)
    trainer.fit(module, datamodule=toys.data(size=20))
    told = trainer.callback_metrics
    assert {"held/guess_top1", "held/i2t_r1", "held/zeroshot_top1"} <= set(module.chance)
    assert module.chance["held/guess_top1"] == pytest.approx(0.25)
    # the main collector's score decides which checkpoint is best
    assert float(told["val/score"]) == pytest.approx(float(told["held/i2t_r1"] + told["held/t2i_r1"]) / 2)
    # test goes through the same loop
    data = toys.data(size=20)
    data.test_dataloader = data.val_dataloader
    data.test_sources = {"last": data.val_sources["held"]}
    trainer.test(module, datamodule=data, verbose=False)
    assert "last/guess_top1" in trainer.callback_metrics


def test_the_first_split_gives_the_score_and_every_split_its_numbers(toys, tmp_path):
    data = toys.data(size=12)
    data.val_sources["other"] = data.val_sources["held"]
    held, loader = data.val_dataloader, data.loader
    data.val_dataloader = lambda: [*held(), loader()]
    module = LitCLIP(toys.clip(), optimizer=adamw)
    trainer = toys.trainer(tmp_path, max_steps=1)
    trainer.fit(module, datamodule=data)
    told = trainer.callback_metrics
    assert told["other/i2t_r1"] == told["held/i2t_r1"]
    assert float(told["val/score"]) == pytest.approx(float(told["held/i2t_r1"] + told["held/t2i_r1"]) / 2)


def test_losses_draw_anew_in_each_step_and_alike_in_each_evaluation(toys, tmp_path):
    drawn, judged = [], []
    for run in ("a", "b"):
        torch.manual_seed(3)
        module = Drawing(toys.clip(), optimizer=adamw)
        toys.trainer(tmp_path / run, max_epochs=2).fit(module, datamodule=toys.data(size=12))
        drawn.append(module.drawn)
        judged.append(module.judged)
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0].values())) == len(drawn[0]) == 2 * 3
    torch.manual_seed(4)
    other = Drawing(toys.clip(), optimizer=adamw)
    toys.trainer(tmp_path / "c", max_epochs=2).fit(other, datamodule=toys.data(size=12))
    assert not set(other.drawn.values()) & set(drawn[0].values())
    # the second evaluation repeats the first, whatever the run's seed
    first, second = judged[0][:3], judged[0][3:]
    assert all(map(torch.equal, first, second))
    assert all(map(torch.equal, first, other.judged[:3]))
    assert not torch.equal(first[0], first[1])


class Killed(BaseException):
    pass


class Kill(Callback):
    def on_train_batch_start(self, trainer, module, *args):
        if trainer.global_step == 4:
            raise Killed


def test_a_resumed_run_draws_what_an_uninterrupted_one_does(toys, tmp_path):
    def run(folder, seed, steps=6, **settings):
        torch.manual_seed(seed)
        module = Drawing(toys.clip(), optimizer=adamw)
        ckpt_path = settings.pop("ckpt_path", None)
        trainer = toys.trainer(folder, Checkpoints(every_n_steps=4), max_steps=steps, **settings)
        with contextlib.suppress(Killed):
            trainer.fit(module, datamodule=toys.data(size=12), ckpt_path=ckpt_path)
        return module.drawn

    whole = run(tmp_path / "whole", 3)
    half = run(tmp_path / "half", 3, callbacks=[Kill()])
    rest = run(tmp_path / "half", 9, ckpt_path=tmp_path / "half" / "checkpoints" / "last.ckpt")
    assert (len(half), len(rest)) == (4, 2)
    assert half | rest == whole


def test_names_of_several_collectors():
    main, other = HeldOutClasses(), HeldOutClasses()
    for counts in (main, other):
        counts.add(torch.eye(3), torch.tensor([0, 1, 0]))
    both = Several(main, itm=other)
    assert both.score == ("top1",)
    assert both.numbers() == {"top1": (2 / 3, 2 / 3), "itm_top1": (2 / 3, 2 / 3)}
    assert Several(HeldOutPairs(), itm=main).score == ("i2t_r1", "t2i_r1")


def test_predictions_keep_words_and_numbers(tmp_path):
    batches = [
        {"keys": ["a", "b"], "answer": ["yes", "zwei Bäume"], "score": torch.tensor([0.5, 0.25]).bfloat16()},
        {"keys": ["c"], "answer": [None], "score": torch.tensor([0.75]).bfloat16()},
    ]
    tensors, lines = write_predictions(tmp_path, batches)
    with safe_open(tensors, "pt") as file:
        assert json.loads(file.metadata()["keys"]) == ["a", "b", "c"]
        assert set(file.keys()) == {"score"}
        assert file.get_tensor("score").tolist() == [0.5, 0.25, 0.75]
    rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    assert rows == [
        {"key": "a", "answer": "yes"}, {"key": "b", "answer": "zwei Bäume"}, {"key": "c", "answer": None}
    ]  # fmt: skip
    whole = {"keys": ["d"], "label": torch.tensor([2**24 + 1])}
    (only,) = write_predictions(tmp_path / "other", [whole])
    with safe_open(only, "pt") as file:
        assert file.get_tensor("label").item() == 2**24 + 1
