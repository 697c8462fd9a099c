"""Toy data for trainer tests: everything in memory, resumable, on one thread."""

import logging
import warnings

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer

from mmzoo.data.batch import CaptionBatch, ClassBatch
from mmzoo.data.loader import BatchOrder, ResumableLoader
from mmzoo.data.reader import Read
from mmzoo.lit.checkpoints import Checkpoints, WholeFileIO
from mmzoo.models.clip import CLIPConfig
from mmzoo.models.vit import ViTConfig
from mmzoo.processing.text import tiny_vocabulary
from mmzoo.spec import HALF, ImageSpec, TextSpec
from mmzoo.towers import VisionConfig
from mmzoo.towers.text import clip_text

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", ".*")

SIZE = 16
VOCAB = len(tiny_vocabulary())


def toy_vision(**changes):
    settings = {
        "image_size": SIZE, "patch": 8, "width": 16, "depth": 2, "heads": 2, "hidden": 32, "norm_eps": 1e-5,
        "act": "gelu", "init": "timm", "dropout": 0.1, "patch_drop": 0.5,
    }  # fmt: skip
    return VisionConfig(**(settings | changes))


def toy_clip(**changes):
    settings = {
        "vision": toy_vision(),
        "text": clip_text(vocab=VOCAB, context=8, width=16, depth=2, heads=2, hidden=32, act="gelu"),
        "embed": 8,
        "image": ImageSpec(SIZE, HALF, HALF, fit="squash"),
        "text_input": TextSpec("tiny", context=8, vocab=VOCAB),
    }
    return CLIPConfig(**(settings | changes))


def toy_vit(**changes):
    return ViTConfig(vision=toy_vision(**changes), image=ImageSpec(SIZE, HALF, HALF), classes=4)


class Named:
    def __init__(self, classes):
        self.classes = classes


class ToyData(LightningDataModule):
    """N pictures of noise, each with a text of its own; a batch depends on nothing but its indices and epoch."""

    def __init__(self, kind="captions", size=22, batch_size=4, seed=0):
        super().__init__()
        self.kind, self.size, self.batch_size, self.seed = kind, size, batch_size, seed
        self.val_sources = {"held": Named(("cat", "dog", "bird", "fish"))}

    def batch(self, step):
        index = torch.tensor(step.indices)
        images, ids, keep = [], [], []
        for i in step.indices:
            generator = torch.Generator().manual_seed(1000 + i)
            images.append(torch.randn(3, SIZE, SIZE, generator=generator))
            row = torch.randint(5, VOCAB, (8,), generator=generator)
            length = 3 + i % 5
            ids.append(row)
            keep.append(torch.arange(8) < length)
        images = torch.stack(images) + 0.01 * step.epoch
        keys = [f"toy-{i}" for i in step.indices]
        if self.kind == "classes":
            return ClassBatch(images, index % 4, keys)
        return CaptionBatch(
            images, torch.stack(ids), torch.stack(keep), index[:, None], index, index % 4, keys
        )

    def loader(self, **settings):
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        order = BatchOrder(self.size, self.batch_size, seed=self.seed, rank=rank, world=world, **settings)

        def reads(epoch, position):
            for step in order.steps(epoch, position):
                yield Read(self.batch(step), len(step.indices), [])

        return ResumableLoader(order, reads)

    def train_dataloader(self):
        return self.loader(shuffle=True, last="drop")

    def val_dataloader(self):
        return [self.loader()]


@pytest.fixture
def toys():
    class Toys:
        clip = staticmethod(toy_clip)
        vit = staticmethod(toy_vit)
        data = ToyData

        @staticmethod
        def trainer(folder, checkpoints=None, callbacks=(), **settings):
            plugins = settings.pop("plugins", [])
            settings = {
                "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
                "default_root_dir": str(folder), "num_sanity_val_steps": 0, "log_every_n_steps": 1,
            } | settings  # fmt: skip
            return Trainer(
                callbacks=[*callbacks, checkpoints or Checkpoints()],
                plugins=[*plugins, WholeFileIO()],
                **settings,
            )

    return Toys


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
