"""What all families' training shares, each claim with a test that fails without it."""

import math
import re

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch.optim import SGD, AdamW

from mmzoo.errors import UsageError, ZooError
from mmzoo.interchange import fill_tower
from mmzoo.lit import Checkpoints, LitCLIP, LitViT, Recipe


class Watch(Callback):
    def __init__(self):
        self.losses, self.rates, self.training, self.norms = [], [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.training.append(all(m.training for m in module.model.modules()))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.rates.append([(g["name"], g["lr"]) for g in trainer.optimizers[0].param_groups])
        if "train/grad_norm" in trainer.callback_metrics:
            self.norms.append(float(trainer.callback_metrics["train/grad_norm"]))


def adamw(lr=1e-3):
    return lambda params: AdamW(params, lr=lr, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)


def test_training_trains_in_train_mode_and_loss_falls(toys, tmp_path):
    watch = Watch()
    module = LitCLIP(toys.clip(vision=toys.clip().vision), optimizer=adamw(3e-3))
    assert not module.model.training
    toys.trainer(tmp_path, callbacks=[watch], max_steps=20).fit(module, datamodule=toys.data())
    assert all(watch.training)
    assert sum(watch.losses[-4:]) < sum(watch.losses[:4])


def test_rates_follow_warmup_layer_decay_and_cosine_in_the_trainer(toys, tmp_path):
    watch = Watch()
    recipe = Recipe(warmup_steps=3, layer_decay=0.5, floor=0.1)
    module = LitCLIP(toys.clip(), optimizer=adamw(1e-2), recipe=recipe)
    trainer = toys.trainer(tmp_path, callbacks=[watch], max_steps=8)
    trainer.fit(module, datamodule=toys.data())
    # what is watched after step k is the rate of step k + 1
    for step, rates in enumerate(watch.rates, start=1):
        factor = (step + 1) / 4 if step < 3 else 0.1 + 0.45 * (1 + math.cos(math.pi * (step - 3) / 5))
        assert {round(rate / (1e-2 * factor), 9) for _, rate in rates} == {1, 0.5, 0.25, 0.125}
    assert trainer.optimizers[0].defaults["fused"] is True


def test_accumulated_batches_count_as_one_step_of_the_schedule(toys, tmp_path):
    watch = Watch()
    module = LitCLIP(toys.clip(), optimizer=adamw(1.0), recipe=Recipe(warmup_steps=4))
    trainer = toys.trainer(tmp_path, callbacks=[watch], max_steps=3, accumulate_grad_batches=2)
    trainer.fit(module, datamodule=toys.data())
    # epochs of 5 batches: Lightning also steps on an epoch's last one
    assert [round(rates[0][1], 6) for rates in watch.rates] == [0.2, 0.4, 0.4, 0.6, 0.8]
    assert trainer.global_step == 3


def test_a_warmup_can_be_a_share_of_the_run(toys, tmp_path):
    watch = Watch()
    recipe = Recipe(warmup_share=0.5, schedule="linear")
    trainer = toys.trainer(tmp_path, callbacks=[watch], max_steps=8)
    trainer.fit(LitCLIP(toys.clip(), optimizer=adamw(1.0), recipe=recipe), datamodule=toys.data())
    assert [round(rates[0][1], 6) for rates in watch.rates] == [0.4, 0.6, 0.8, 1.0, 0.75, 0.5, 0.25, 0.0]
    with pytest.raises(UsageError, match="give one"):
        Recipe(warmup_steps=3, warmup_share=0.1)
    with pytest.raises(UsageError, match="warmup_share is 10"):
        Recipe(warmup_share=10)


def test_an_endless_run_is_refused(toys, tmp_path):
    with pytest.raises(ZooError, match=r"set trainer\.max_steps"):
        toys.trainer(tmp_path, max_epochs=-1).fit(LitCLIP(toys.clip()), datamodule=toys.data())


def test_frozen_parts_stay_still_in_eval_mode_and_out_of_the_optimizer(toys, tmp_path):
    module = LitCLIP(
        toys.clip(), optimizer=adamw(), recipe=Recipe(freeze=("vision", "text.embed", "logit_scale"))
    )
    before = {k: v.clone() for k, v in module.model.state_dict().items()}
    seen = []

    class Modes(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            seen.append((module.model.vision.blocks[0].training, module.model.text.blocks[0].training))

    trainer = toys.trainer(tmp_path, callbacks=[Modes()], max_steps=4, val_check_interval=2)
    trainer.fit(module, datamodule=toys.data())
    moved = {k for k, v in module.model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved
    assert not [k for k in moved if k.startswith(("vision.", "text.embed", "logit_scale"))]
    assert set(seen) == {(False, True)}  # also after a validation, which switches modes
    held = {name for group in trainer.optimizers[0].param_groups for name in group["names"]}
    assert not [k for k in held if k.startswith("vision.")]


def test_freezing_what_is_not_there_is_refused(toys):
    with pytest.raises(UsageError, match=r"recipe\.freeze: no part 'visoin'.*vision"):
        LitCLIP(toys.clip(), recipe=Recipe(freeze=("visoin",)))


def test_blocks_are_frozen_by_their_range(toys):
    """The names are those of `mmzoo.adapt.freeze`."""
    module = LitCLIP(toys.clip(), recipe=Recipe(freeze=("text.blocks.0-1", "text.embed.pos")))
    frozen = {n for n, p in module.model.named_parameters() if not p.requires_grad}
    assert all(n.startswith(("text.blocks.0.", "text.blocks.1.", "text.embed.pos")) for n in frozen)
    assert "text.embed.pos.weight" in frozen
    module.train()
    assert not module.model.text.blocks[1].training
    assert module.model.text.training


@pytest.mark.parametrize("clip", [0.05, None])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true"])
def test_fused_adamw_clips_under_every_precision(toys, tmp_path, precision, clip):
    """Lightning 2.6.6 raises for fused AdamW with clipping under the mixed precisions."""
    watch, settings = Watch(), {"precision": precision}
    if precision == "16-mixed":  # by name it would become bf16-mixed on a CPU
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        settings = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}
    module = LitViT(toys.vit(dropout=0.0, patch_drop=0.0), optimizer=adamw())
    trainer = toys.trainer(tmp_path, callbacks=[watch], max_steps=2, gradient_clip_val=clip, **settings)
    trainer.fit(module, datamodule=toys.data("classes"))
    assert trainer.optimizers[0].defaults["fused"] is True
    assert all(math.isfinite(loss) for loss in watch.losses)
    assert len(watch.norms) == (2 if clip else 0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_the_clipped_step_is_the_same_under_every_precision(toys, tmp_path, precision):
    """SGD moves by lr * clipped gradient: its length is lr * limit, whatever the loss was scaled with."""
    settings = {"precision": precision}
    if precision == "16-mixed":
        settings = {
            "plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))]
        }
    module = LitViT(
        toys.vit(dropout=0.0, patch_drop=0.0), optimizer=lambda params: SGD(params, lr=0.5, fused=True)
    )
    before = torch.cat([p.detach().flatten() for p in module.parameters()])
    trainer = toys.trainer(tmp_path, max_steps=1, gradient_clip_val=0.01, limit_val_batches=0, **settings)
    trainer.fit(module, datamodule=toys.data("classes"))
    after = torch.cat([p.detach().flatten() for p in module.parameters()])
    assert float((after - before).norm()) == pytest.approx(0.5 * 0.01, rel=1e-3)


def test_a_loss_that_is_not_a_number_stops_with_a_sentence_and_keeps_the_last_checkpoint(toys, tmp_path):
    class Poison(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 3:
                batch.images.fill_(float("nan"))

    module = LitCLIP(toys.clip(), optimizer=adamw())
    trainer = toys.trainer(tmp_path, Checkpoints(every_n_steps=1), callbacks=[Poison()], max_steps=9)
    with pytest.raises(ZooError, match=r"loss is nan at step 4 .*--ckpt_path last"):
        trainer.fit(module, datamodule=toys.data())
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 3
    assert all(v.isfinite().all() for v in saved["state_dict"].values())


def test_weights_that_are_not_finite_are_never_saved(toys, tmp_path):
    class Break(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            if trainer.global_step == 2:
                module.model.text_proj.weight.grad.fill_(float("inf"))

    module = LitCLIP(toys.clip(), optimizer=adamw())
    trainer = toys.trainer(tmp_path, Checkpoints(every_n_steps=1), callbacks=[Break()], max_steps=9)
    with pytest.raises(ZooError, match=r"text_proj\.weight is no longer finite at step 3"):
        trainer.fit(module, datamodule=toys.data())
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


def test_activation_checkpointing_changes_nothing_but_memory(toys, tmp_path):
    """Dropout and patch dropout included: the recomputed pass draws the same numbers."""
    losses = []
    for on in (False, True):
        torch.manual_seed(0)
        watch = Watch()
        module = LitCLIP(toys.clip(), optimizer=adamw(), recipe=Recipe(checkpointing=on))
        assert module.model.vision.blocks.checkpointing is on
        toys.trainer(tmp_path, callbacks=[watch], max_steps=4).fit(module, datamodule=toys.data())
        losses.append(watch.losses)
    assert losses[0] == losses[1]


def test_compiled_towers_keep_names_and_results(toys, tmp_path, monkeypatch):
    """Blocks really go through the compiler's tracing and its autograd; only the code generator, minutes on two cores,
    is left out.
    """
    compiled, real = [], torch.nn.Module.compile

    def traced(self, *args, **rest):
        compiled.append(type(self).__name__)
        real(self, *args, **rest | {"backend": "aot_eager"})

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    losses, names = [], []
    for on in (False, True):
        torch.manual_seed(0)
        watch = Watch()
        plain = toys.clip(vision=toys.vit(dropout=0.0, patch_drop=0.0).vision)
        module = LitCLIP(plain, optimizer=adamw(), recipe=Recipe(compile_towers=on))
        names.append(list(module.state_dict()))
        toys.trainer(tmp_path / str(on), callbacks=[watch], max_steps=3, limit_val_batches=0).fit(
            module, datamodule=toys.data()
        )
        assert list(module.state_dict()) == names[-1]
        losses.append(watch.losses)
    assert compiled == ["TransformerBlock"] * 4
    assert names[0] == names[1]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_the_average_is_what_is_evaluated_while_training_goes_on_with_the_weights(toys, tmp_path):
    seen = {}

    class Look(Callback):
        def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
            seen["during"] = module.model.text_proj.weight.detach().clone()

        def on_validation_end(self, trainer, module):
            seen["after"] = module.model.text_proj.weight.detach().clone()

    module = LitCLIP(toys.clip(), optimizer=adamw(1e-2), recipe=Recipe(ema_decay=0.9))
    trainer = toys.trainer(tmp_path, callbacks=[Look()], max_steps=5)
    trainer.fit(module, datamodule=toys.data())
    average = module.ema.state_dict()["average"]["text_proj.weight"]
    assert module.ema.updates == 5
    assert torch.equal(seen["during"], average)
    assert torch.equal(seen["after"], module.model.text_proj.weight)
    assert not torch.equal(seen["during"], seen["after"])
    # a checkpoint written right after validation holds the weights, not the average
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert torch.equal(saved["state_dict"]["model.text_proj.weight"], seen["after"])


def test_a_checkpoint_without_an_average_is_refused_by_a_run_with_one(toys, tmp_path):
    toys.trainer(tmp_path, max_steps=1).fit(LitCLIP(toys.clip()), datamodule=toys.data())
    module = LitCLIP(toys.clip(), recipe=Recipe(ema_decay=0.9))
    with pytest.raises(ZooError, match="no average"):
        toys.trainer(tmp_path, max_steps=2).fit(
            module, datamodule=toys.data(), ckpt_path=tmp_path / "checkpoints" / "last.ckpt"
        )


def test_an_average_is_not_dropped_silently(toys, tmp_path):
    averaged = LitCLIP(toys.clip(), recipe=Recipe(ema_decay=0.9))
    toys.trainer(tmp_path, max_steps=1).fit(averaged, datamodule=toys.data())
    with pytest.raises(ZooError, match="which this run would drop"):
        toys.trainer(tmp_path, max_steps=2).fit(
            LitCLIP(toys.clip()), datamodule=toys.data(), ckpt_path=tmp_path / "checkpoints" / "last.ckpt"
        )


def test_frozen_weights_from_a_file_stay_out_of_checkpoints(toys, tmp_path):
    import mmzoo

    source = LitCLIP(toys.clip())
    mmzoo.save(source.model, tmp_path / "start")
    sizes = {}
    for pretrained in (None, str(tmp_path / "start")):
        torch.manual_seed(7)
        module = LitCLIP(toys.clip(), pretrained, optimizer=adamw(), recipe=Recipe(freeze=("text",)))
        toys.trainer(tmp_path, max_steps=2).fit(module, datamodule=toys.data())
        path = tmp_path / "checkpoints" / "last.ckpt"
        names = torch.load(path, weights_only=True)["state_dict"]
        sizes[pretrained] = path.stat().st_size
        assert any(n.startswith("model.text.") for n in names) is (pretrained is None)
    assert sizes[str(tmp_path / "start")] < 0.5 * sizes[None]
    # as weights it is half a model, which is said with the place of the whole one
    told = rf"last\.ckpt leaves out the {len(module.model.text.state_dict())} tensors .* \(text\)"
    with pytest.raises(ZooError, match=rf"{told}.*in the folder export/ of its run"):
        mmzoo.create_model("clip-tiny", config=module.model.config, pretrained=path)
    (tmp_path / "export").mkdir()
    with pytest.raises(ZooError, match=rf"{told}.* is in {re.escape(str(tmp_path / 'export'))}\.$"):
        mmzoo.convert(path, tmp_path / "out", layout="mmzoo", model="clip-tiny")
    other = LitCLIP(toys.clip()).model
    with pytest.raises(ZooError, match=told):
        fill_tower(other, "text", path)
    fill_tower(other, "vision", path)
    assert torch.equal(other.vision.norm.weight, module.model.vision.norm.weight)
    # and it resumes strictly, the frozen weights coming from the file again
    again = LitCLIP(toys.clip(), str(tmp_path / "start"), optimizer=adamw(), recipe=Recipe(freeze=("text",)))
    trainer = toys.trainer(tmp_path, max_steps=4)
    trainer.fit(again, datamodule=toys.data(), ckpt_path=path)
    assert trainer.global_step == 4
    assert torch.equal(again.model.text.embed.tok.weight, source.model.text.embed.tok.weight)


def test_another_family_is_refused():
    with pytest.raises(UsageError, match="vit-tiny is a vit model"):
        LitCLIP("vit-tiny")
    with pytest.raises(UsageError, match=r"no model named 'clip-tinny'.*clip-tiny"):
        LitCLIP("clip-tinny")
