"""LitCLIP and LitViT: losses, clamp, exact accumulation, held-out numbers."""

import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch.optim import SGD, AdamW

from mmzoo.errors import UsageError, ZooError
from mmzoo.lit import LitCLIP, LitViT
from mmzoo.lit.clip import pieces
from mmzoo.lit.heldout import HeldOutClasses, HeldOutPairs


def sgd(params):
    return SGD(params, lr=0.1)


def still(toys):
    """A toy without randomness in its forward pass."""
    return toys.clip(vision=toys.vit(dropout=0.0, patch_drop=0.0).vision)


class Told(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, *args):
        self.seen.append({k: float(v) for k, v in trainer.callback_metrics.items()})


def one_step(toys, folder, *, loss="softmax", accumulate=1, steps=1, **settings):
    torch.manual_seed(0)
    config = still(toys)
    module = LitCLIP(config, loss=loss, accumulate=accumulate, optimizer=sgd)
    told = Told()
    trainer = toys.trainer(folder, callbacks=[told], max_steps=steps, limit_val_batches=0, **settings)
    trainer.fit(module, datamodule=toys.data(size=24, batch_size=6))
    return module, told.seen


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("accumulate", [2, 4, 50])
def test_accumulation_is_exact(toys, tmp_path, loss, accumulate):
    """The step of one batch in pieces is the step of the batch, learned scale and bias included."""
    whole, told_whole = one_step(toys, tmp_path / "a", loss=loss, precision="64-true", steps=3)
    cut, told_cut = one_step(
        toys, tmp_path / "b", loss=loss, precision="64-true", steps=3, accumulate=accumulate
    )
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(cut.state_dict()[name], weight, rtol=0, atol=1e-12, msg=name)
    for one, two in zip(told_whole, told_cut, strict=True):
        assert one["train/loss"] == pytest.approx(two["train/loss"], abs=1e-6)
        assert one["train/accuracy"] == two["train/accuracy"]


def test_accumulation_under_a_loss_scaler_with_clipping(toys, tmp_path):
    def settings():
        return {
            "plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=512.0))],
            "gradient_clip_val": 0.01,
        }

    whole, _ = one_step(toys, tmp_path / "a", **settings())
    cut, _ = one_step(toys, tmp_path / "b", accumulate=3, **settings())
    start = LitCLIP(still(toys), optimizer=sgd)
    torch.manual_seed(0)
    start = LitCLIP(still(toys), optimizer=sgd)
    move = {k: (whole.state_dict()[k] - v) for k, v in start.state_dict().items()}
    other = {k: (cut.state_dict()[k] - v) for k, v in start.state_dict().items()}
    length = math.sqrt(sum(float(v.square().sum()) for v in other.values()))
    assert length == pytest.approx(0.1 * 0.01, rel=1e-3)
    flat, flat_other = (torch.cat([v.flatten() for v in m.values()]) for m in (move, other))
    assert torch.nn.functional.cosine_similarity(flat, flat_other, dim=0) > 0.999


def test_pieces_share_the_ids_of_the_whole(toys):
    data = toys.data(size=7, batch_size=7)
    batch = next(iter(data.loader()))
    cut = pieces(batch, 3)
    assert [len(p.images) for p in cut] == [3, 3, 1]
    assert torch.equal(torch.cat([p.ids for p in cut]), batch.ids)
    assert all(torch.equal(p.image_ids, batch.image_ids) for p in cut)


@pytest.mark.parametrize(("start", "kept"), [(math.log(200.0), math.log(100.0)), (-0.5, 0.0), (2.0, 2.0)])
def test_the_scale_is_clamped_after_the_step(toys, tmp_path, start, kept):
    module = LitCLIP(toys.clip(logit_scale=start), optimizer=lambda params: SGD(params, lr=1e-9))
    toys.trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, datamodule=toys.data())
    assert float(module.model.logit_scale) == pytest.approx(kept, abs=1e-6)


def test_the_sigmoid_loss_brings_its_bias_and_start_and_is_not_clamped(toys, tmp_path):
    module = LitCLIP(toys.clip(), loss="sigmoid", optimizer=lambda params: AdamW(params, lr=1e-3))
    assert float(module.model.logit_bias) == -10
    assert float(module.model.logit_scale) == pytest.approx(math.log(10))
    own = LitCLIP(
        toys.clip(logit_bias=-3.0, logit_scale=5.0),
        loss="sigmoid",
        optimizer=lambda params: SGD(params, lr=1e-6),
    )
    assert (float(own.model.logit_bias), float(own.model.logit_scale)) == (-3, 5)
    toys.trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(own, datamodule=toys.data())
    assert float(own.model.logit_scale) > math.log(100)


def test_unfit_settings_are_refused(toys):
    with pytest.raises(UsageError, match="accumulate is 0"):
        LitCLIP(toys.clip(), accumulate=0)
    with pytest.raises(UsageError, match=r"templates named 'imagnet'.*imagenet"):
        LitCLIP(toys.clip(), templates="imagnet")
    with pytest.raises(UsageError, match="expected a CLIPConfig, found a ViTConfig"):
        LitCLIP(toys.vit())
    with pytest.raises(UsageError, match="label_smoothing is 1"):
        LitViT(toys.vit(), label_smoothing=1)
    with pytest.raises(UsageError, match="mixup is -1"):
        LitViT(toys.vit(), mixup=-1)


def test_two_kinds_of_accumulation_are_not_mixed(toys, tmp_path):
    module = LitCLIP(toys.clip(), accumulate=2)
    with pytest.raises(UsageError, match="do not go together"):
        toys.trainer(tmp_path, max_steps=2, accumulate_grad_batches=2).fit(module, datamodule=toys.data())


def test_held_out_numbers_stand_beside_chance(toys, tmp_path):
    module = LitCLIP(toys.clip(), optimizer=lambda params: AdamW(params, lr=1e-3))
    trainer = toys.trainer(tmp_path, max_steps=2)
    trainer.fit(module, datamodule=toys.data(size=20))
    numbers = trainer.callback_metrics
    assert set(module.chance) == {
        *(f"held/{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)), "held/zeroshot_top1"
    }  # fmt: skip
    for name, chance in module.chance.items():
        assert float(numbers[f"{name}.chance"]) == pytest.approx(chance)
        assert 0 <= float(numbers[name]) <= 1
    assert module.chance["held/i2t_r5"] == pytest.approx(5 / 20)
    assert module.chance["held/zeroshot_top1"] == pytest.approx(0.25)
    assert float(numbers["val/score"]) == pytest.approx(
        float(numbers["held/i2t_r1"] + numbers["held/t2i_r1"]) / 2
    )


def test_retrieval_counts_any_positive_and_pads_ids(toys):
    """Two pictures of one thing answer each other's text; ids of batches with different widths meet."""
    batch = next(iter(toys.data(size=4, batch_size=4).loader()))
    eye = torch.eye(4)
    pairs = HeldOutPairs()
    swapped = eye[[1, 0, 2, 3]]
    pairs.add(eye[:2], swapped[:2], batch._replace(
        image_ids=torch.tensor([[0], [1]]), text_ids=torch.tensor([0, 1]), labels=None
    ))  # fmt: skip
    pairs.add(eye[2:], swapped[2:], batch._replace(
        image_ids=torch.tensor([[2, 7], [7, 3]]), text_ids=torch.tensor([7, 3]), labels=None
    ))  # fmt: skip
    numbers = pairs.numbers()
    assert numbers["i2t_r1"][0] == 0.5  # images 2 and 3 find theirs, 0 and 1 each other's
    assert numbers["t2i_r1"][0] == 0.5
    assert "zeroshot_top1" not in numbers
    assert numbers["t2i_r1"][1] == pytest.approx((1 / 4 + 1 / 4 + 2 / 4 + 1 / 4) / 4)


def test_class_counts_break_ties_against_the_model():
    counts = HeldOutClasses()
    counts.add(torch.zeros(3, 7), torch.tensor([0, 0, 1]))
    assert counts.numbers()["top1"] == (0.0, pytest.approx(2 / 3))
    counts = HeldOutClasses()
    counts.add(torch.eye(7), torch.tensor([0, 1, 2, 3, 4, 0, -1]))
    assert counts.numbers()["top1"][0] == pytest.approx(5 / 6)
    assert counts.numbers()["top5"][1] == pytest.approx(1)


def test_vit_learns_with_smoothing_and_mixup_and_refuses_other_classes(toys, tmp_path):
    module = LitViT(
        toys.vit(dropout=0.0), label_smoothing=0.1, mixup=0.2, optimizer=lambda params: AdamW(params, lr=3e-3)
    )
    trainer = toys.trainer(tmp_path, max_steps=4)
    trainer.fit(module, datamodule=toys.data("classes"))
    assert module.chance["held/top1"] == pytest.approx(6 / 22)
    assert math.isfinite(float(trainer.callback_metrics["train/loss"]))
    other = LitViT(toys.vit(), classes=3)
    with pytest.raises(ZooError, match="4 classes and the model's head 3"):
        toys.trainer(tmp_path, max_steps=1).fit(other, datamodule=toys.data("classes"))


def test_mixup_of_equal_labels_is_plain_cross_entropy(toys):
    module = LitViT(toys.vit(dropout=0.0, patch_drop=0.0), mixup=1.0)
    module.log_step = lambda loss, **_: loss
    torch.nn.init.normal_(module.model.head.weight)
    batch = next(iter(toys.data("classes", size=4, batch_size=4).loader()))
    same = batch._replace(images=batch.images[:1].expand(4, -1, -1, -1), labels=torch.tensor([2, 2, 2, 2]))
    expected = torch.nn.functional.cross_entropy(module.model(same.images), same.labels)
    torch.testing.assert_close(module.training_step(same, 0), expected)


def test_the_next_command_looks_at_the_held_out_data(toys, tmp_path):
    module, data = LitCLIP(toys.clip(), optimizer=sgd), toys.data()
    toys.trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, datamodule=data)
    export = tmp_path / "export"
    assert module.next_command(export) == f"mmzoo zeroshot --model {export} --labels cat,dog PICTURE..."
    data.source, data.val_splits, data.by = "data/emoji", ("held",), "group"
    assert module.next_command(export) == (
        f"mmzoo zeroshot --model {export} --data data/emoji --split held --by group --html {tmp_path}/gallery.html"
    )
    data.val, data.val_splits, data.by = "my/val", None, None
    assert f"--data my/val --html {tmp_path}/gallery.html" in module.next_command(export)
