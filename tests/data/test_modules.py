"""The DataModules, without a model and under Lightning's own loops."""

from __future__ import annotations

import json
import multiprocessing
import shutil

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from mmzoo.data.batch import CaptionBatch, ClassBatch
from mmzoo.data.modules import CaptionsData, ClassificationData, Crop, Stream
from mmzoo.errors import UsageError, ZooError
from mmzoo.processing.augment import BatchAugment
from mmzoo.processing.image import ImageTransform
from mmzoo.processing.processor import Processor
from mmzoo.processing.randaugment import RandAugment
from mmzoo.spec import ImageSpec, TextSpec

PROCESSOR = Processor(ImageSpec(16), TextSpec("clip", 77, 49408))


def ready(data, stage="fit"):
    data.processor = PROCESSOR
    data.setup(stage)
    return data


def keys(loader):
    return [key for batch in loader for key in batch.keys]


def test_captions_from_a_carried_set():
    data = CaptionsData(
        "data/emoji", val_splits=("unseen-style", "unseen-concepts"), by="group", batch_size=64, seed=1
    )
    ready(data)
    train = data.train_dataloader()
    batch = next(iter(train))
    assert isinstance(batch, CaptionBatch)
    assert batch.images.shape == (64, 3, 16, 16)
    assert batch.labels.max() < 5
    assert data.val_names == ["unseen-style", "unseen-concepts"]
    assert len(data.classes) == len(data.val_sources["unseen-style"].classes) == 5
    style, concepts = data.val_dataloader()
    assert len(keys(style)) == 765
    first = next(iter(concepts))
    decoded = PROCESSOR.decode(first.ids[:3])
    assert decoded == [data.val_sources["unseen-concepts"][i].texts[0].lower() for i in range(3)]


@pytest.mark.parametrize("workers", [0, 1])
def test_cached_images_are_the_models_own_pixels(make_jsonl, workers):
    folder = make_jsonl(10)
    data = ready(CaptionsData(str(folder), cache_images=True, batch_size=10, seed=0, num_workers=workers))
    (batch,) = data.train_dataloader()
    transform = ImageTransform(ImageSpec(16))
    for image, key in zip(batch.images, batch.keys):
        assert torch.equal(image, transform.load_batch([folder / key])[0])
    augmented = ready(
        CaptionsData(
            str(folder), cache_images=True, batch_size=10, seed=0, augment=BatchAugment(brightness=0.5)
        )
    ).train_dataloader()
    one, two = list(augmented), list(augmented)
    assert not torch.equal(one[0].images, batch.images)
    assert not torch.equal(one[0].images, two[0].images)  # another epoch, another change
    augmented.set_epoch(0)
    (again,) = augmented
    assert torch.equal(again.images, one[0].images)


def test_splits_are_found_and_explained(class_folder, make_jsonl, tmp_path):
    folder = tmp_path / "all"
    folder.mkdir()
    for split in ("train", "val", "test"):
        shutil.copytree(class_folder, folder / split)
    data = ready(ClassificationData(str(folder), batch_size=2, test_splits=("test",)))
    assert data.val_names == ["val"]  # found by itself
    assert ready(data, "test").test_sources.keys() == {"test"}
    assert ready(ClassificationData(str(folder), batch_size=2, val_splits=())).val_dataloader() == []
    apart = ready(CaptionsData(str(make_jsonl(6)), val=str(make_jsonl(3, name="other")), batch_size=2))
    assert apart.val_names == ["val"]
    assert len(keys(apart.val_dataloader()[0])) == 3
    shutil.rmtree(folder / "val")
    with pytest.raises(UsageError, match="holds the splits train, test; name some in val_splits"):
        ready(CaptionsData(str(make_jsonl(6, name="third")), val=str(folder), batch_size=2))
    with pytest.raises(UsageError, match="has no splits, so 'trian' cannot be opened"):
        ready(CaptionsData(str(make_jsonl(6, name="fourth")), train_split="trian"))
    with pytest.raises(UsageError, match=r"no split 'unseen-stile'. Did you mean unseen-style"):
        ready(CaptionsData("data/emoji", val_splits=("unseen-stile",)))
    with pytest.raises(UsageError, match="nothing to validate on"):
        ready(CaptionsData(str(tmp_path / "fourth")), "validate")
    with pytest.raises(UsageError, match="nothing to test on"):
        ready(CaptionsData(str(tmp_path / "fourth")), "test")


def test_classification(class_folder, make_jsonl, tmp_path):
    data = ready(ClassificationData(str(class_folder), batch_size=5, seed=0))
    (batch,) = data.train_dataloader()
    assert isinstance(batch, ClassBatch)
    assert data.classes == ("black_cat", "dog")
    assert all((label == 1) == key.startswith("dog") for label, key in zip(batch.labels.tolist(), batch.keys))
    with pytest.raises(ZooError, match="set has no classes; ClassificationData reads class folders"):
        ready(ClassificationData(str(make_jsonl(3))))
    other = tmp_path / "other"
    shutil.copytree(class_folder, other)
    (other / "dog").rename(other / "wolf")
    with pytest.raises(ZooError, match="other has other classes than the training data: dog, wolf"):
        ready(ClassificationData(str(class_folder), val=str(other), batch_size=2))
    shutil.rmtree(other / "wolf")
    with pytest.raises(ZooError, match=r"one class only \(black_cat\); there is nothing to tell apart"):
        ready(ClassificationData(str(other)))
    captions = ready(CaptionsData(str(class_folder), batch_size=5))
    assert set(PROCESSOR.decode(next(iter(captions.train_dataloader())).ids)) == {"black cat", "dog"}


def test_contradictions_and_too_little_data(make_jsonl):
    folder = str(make_jsonl(5))
    with pytest.raises(UsageError, match="crop works on one picture at a time"):
        CaptionsData(folder, crop=Crop(), cache_images=True)
    with pytest.raises(UsageError, match="a stream cannot be cached"):
        CaptionsData(folder, stream=Stream(10), cache_images=True)
    with pytest.raises(UsageError, match="num_workers is -1"):
        CaptionsData(folder, num_workers=-1)
    with pytest.raises(ZooError, match="5 samples do not fill one batch of 128; lower batch_size"):
        ready(CaptionsData(folder)).train_dataloader()
    assert len(keys(ready(CaptionsData(folder, drop_last=False)).train_dataloader())) == 5
    with pytest.raises(UsageError, match="streamed shards carry no classes"):
        ready(ClassificationData(folder, stream=Stream(10))).train_dataloader()


def test_the_runs_seed_is_the_default(make_jsonl):
    folder = str(make_jsonl(30))
    orders = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        orders.append(keys(ready(CaptionsData(folder, batch_size=5)).train_dataloader()))
    assert orders[0] == orders[1] != orders[2]


def test_broken_share_of_a_cached_set_is_judged_at_once(make_jsonl):
    folder = make_jsonl(40)
    for i in range(3):
        (folder / "img" / f"{i:03}.png").write_bytes(b"no")
    with pytest.raises(ZooError, match=r"set: 3 of 40 samples are broken, more than max_broken = 0.01"):
        ready(CaptionsData(str(folder), cache_images=True, batch_size=4)).train_dataloader()
    loader = ready(
        CaptionsData(str(folder), cache_images=True, batch_size=4, max_broken=0.1)
    ).train_dataloader()
    assert len(loader) == 9


class Probe(LightningModule):
    """Records what it is fed, and learns one number from it so that there is a loop to run."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.processor = PROCESSOR
        self.seen: list[tuple[int, list[str], float]] = []
        self.validated: list[tuple[int, str]] = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch.keys, float(batch.images.double().sum())))
        return (self.weight * batch.images.mean()).sum()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.validated += [(dataloader_idx, key) for key in batch.keys]

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return batch.keys

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(Callback):
    """Saves a checkpoint after a given step."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def fit(folder, workers, callbacks=(), ckpt=None, **limits):
    data = CaptionsData(
        str(folder),
        val=str(folder),
        batch_size=4,
        val_batch_size=8,
        num_workers=workers,
        seed=5,
        crop=Crop(scale=(0.3, 1.0)),
    )
    probe = Probe()
    limits = limits or {"max_epochs": 3}
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **limits,
    )
    trainer.fit(probe, data, ckpt_path=ckpt, weights_only=True)
    return probe, trainer, data


@pytest.mark.parametrize("limits", [{"max_epochs": 3}, {"max_steps": 15}])
@pytest.mark.parametrize("step", [1, 5, 7, 10])
def test_lightning_resumes_in_the_middle_and_at_the_end_of_epochs(make_jsonl, tmp_path, step, limits):
    folder = make_jsonl(23)
    path = tmp_path / "saved.ckpt"
    whole, _, _ = fit(folder, 0, [SaveAt(step, path)], **limits)
    assert len(whole.seen) == 15
    assert [s[0] for s in whole.seen] == [0] * 5 + [1] * 5 + [2] * 5
    resumed, _, _ = fit(folder, 0, ckpt=path, **limits)
    assert resumed.seen == whole.seen[step:]
    assert torch.equal(resumed.weight, whole.weight)


def test_lightning_resumes_with_workers(make_jsonl, tmp_path):
    folder = make_jsonl(23)
    path = tmp_path / "saved.ckpt"
    whole, _, _ = fit(folder, 2, [SaveAt(7, path)])
    assert multiprocessing.active_children() == []  # all workers were told to end, rather than waited for
    assert fit(folder, 0)[0].seen == whole.seen
    assert fit(folder, 2, ckpt=path)[0].seen == whole.seen[7:]


def test_lightning_validates_and_predicts_everything_once(make_jsonl):
    folder = make_jsonl(23)
    probe, trainer, data = fit(folder, 0, max_epochs=1, num_sanity_val_steps=1)
    names = [f"img/{i:03}.png" for i in range(23)]
    assert [key for _, key in probe.validated] == names[:8] + names
    assert [key for batch in trainer.predict(probe, data) for key in batch] == names


def test_overfit_batches_repeats_the_same_batches(make_jsonl):
    probe, _, _ = fit(make_jsonl(23), 0, max_epochs=2, overfit_batches=2)
    assert [s[1] for s in probe.seen[:2]] == [s[1] for s in probe.seen[2:]]


def test_types_parse_on_a_command_line(make_jsonl):
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(CaptionsData, "data")
    settings = {
        "source": "x",
        "val_splits": ["a", "b"],
        "crop": {"scale": [0.5, 1.0]},
        "augment": {"rotate": 10.0},
    }
    data = parser.instantiate(parser.parse_object({"data": settings})).data
    assert data.val_splits == ("a", "b")
    assert data.crop == Crop(scale=(0.5, 1.0))
    assert data.augment == BatchAugment(rotate=10.0)
    assert "--data.max_broken" in parser.format_help()
    assert "Share of broken samples" in parser.format_help()
    assert json.loads(json.dumps(settings)) == settings


def test_randaugment_changes_training_and_nothing_else(make_jsonl):
    folder = str(make_jsonl(6))
    whole = {"crop": Crop(scale=(1, 1), ratio=(0.01, 100)), "val": folder, "batch_size": 6, "seed": 0}
    plain, changed, again = (
        ready(CaptionsData(folder, **whole, **more))
        for more in ({}, *({"rand_augment": RandAugment("albef", 7)},) * 2)
    )
    (one,), (two,), (three,) = (data.train_dataloader() for data in (plain, changed, again))
    assert one.keys == two.keys
    assert not torch.equal(one.images, two.images)
    assert torch.equal(two.images, three.images)
    (held,), (same,) = plain.val_dataloader()[0], changed.val_dataloader()[0]
    assert torch.equal(held.images, same.images)
    with pytest.raises(UsageError, match="rand_augment works on one picture at a time"):
        CaptionsData(folder, rand_augment=RandAugment("albef", 7), cache_images=True)
