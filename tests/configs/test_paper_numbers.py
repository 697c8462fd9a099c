"""The recipes of ALBEF and ViLT say what the released code says; the numbers are written out here once more."""

import itertools
import re

import pytest
import torch
import yaml
from built import build

from mmzoo.lit.optim import build_schedule
from mmzoo.paths import find_config

GPUS = 8

# image, tokens, batch over all GPUs, epochs, rate, first rate, last rate, warm-up steps, smallest crop
ALBEF = {
    "pretrain_4m": (256, 25, 512, 30, 1e-4, 1e-5, 1e-5, 2000, 0.2),
    "pretrain_14m": (256, 25, 512, 30, 1e-4, 1e-5, 1e-5, 2000, 0.2),
    "retrieval_coco": (384, 30, 256, 5, 1e-5, 1e-5, 1e-6, 0, 0.5),
    "retrieval_flickr": (384, 30, 256, 10, 1e-5, 1e-5, 1e-6, 0, 0.5),
    "grounding": (384, 30, 256, 5, 1e-5, 1e-5, 1e-6, 0, 1.0),
    "vqa": (384, 25, 256, 8, 2e-5, 1e-5, 1e-6, 400, 0.5),
    "nlvr2_pretrain": (256, 25, 512, 1, 2e-5, 1e-5, 2e-5, 100, 0.2),
    "nlvr2": (384, 50, 128, 10, 2e-5, 1e-5, 1e-6, 100, 0.5),
    "ve": (384, 50, 256, 5, 2e-5, 1e-5, 1e-6, 100, 0.5),
}
# the teacher: alpha, epochs over which it grows, momentum
TAUGHT = {name: (0.4, 0.0 if name == "ve" else 1.0, 0.995) for name in ALBEF if name != "nlvr2_pretrain"}
# candidates re-ranked, and whether words are hidden
CONTRAST = {
    "pretrain_4m": (0, True),
    "pretrain_14m": (0, True),
    "retrieval_coco": (256, False),
    "retrieval_flickr": (128, False),
    "grounding": (0, False),
}

# class of the module, batch over all GPUs, steps or epochs, warm-up (steps or a share), factor of the head
VILT = {
    "pretrain_200k": ("LitViLT", 4096, 200_000, 2500, {}),
    "vqa": ("LitViLTVQA", 256, 10, 0.1, {"answer_head": 10.0}),
    "nlvr2": ("LitViLTNLVR2", 128, 10, 0.1, {}),
    "retrieval_coco": ("LitViLTRetrieval", 256, 10, 0.1, {}),
    "retrieval_flickr": ("LitViLTRetrieval", 256, 10, 0.1, {}),
}
NAMES = [f"albef/{name}" for name in ALBEF] + [f"vilt/{name}" for name in VILT]


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """Module, data and the trainer's settings of a recipe."""
    monkeypatch.chdir(tmp_path)

    def open_recipe(name):
        built = build(monkeypatch, "-c", str(find_config(name)), "-c", str(find_config("trainer/cpu_smoke")))
        trainer = yaml.safe_load(find_config(name).read_text())["trainer"]
        return built["model"], built["data"], trainer

    return open_recipe


def optimizer_of(module):
    return module._make_optimizer([torch.nn.Parameter(torch.zeros(1))])


def rates(module, total):
    """The rate at every step of a run."""
    optimizer, r = optimizer_of(module), module.recipe
    schedule = build_schedule(
        optimizer, warmup=r.warmup_steps or int(r.warmup_share * total), total=total, floor=r.floor,
        shape=r.schedule, warmup_floor=r.warmup_floor,
    )  # fmt: skip
    lr = optimizer.defaults["lr"]
    return [lr * schedule.lr_lambdas[0](step) for step in range(total + 1)]


def batch(data, trainer):
    return GPUS * data.batch_size * trainer.get("accumulate_grad_batches", 1)


@pytest.mark.parametrize("name", ALBEF)
def test_albef(opened, name):
    module, data, trainer = opened(f"albef/{name}")
    image, tokens, size, epochs, rate, first, last, warmup, crop = ALBEF[name]
    config = module.model.config
    assert (config.image.size, config.vision.image_size, config.image.fit) == (image, image, "squash")
    assert (config.text_input.context, config.text_input.sep, config.text_input.clean) == (
        tokens,
        False,
        "albef",
    )
    assert (config.text.dropout, config.text.attn_dropout) == (0.1, 0.1)
    assert config.vision.patch == 16
    assert (batch(data, trainer), trainer["max_epochs"]) == (size, epochs)
    optimizer = optimizer_of(module)
    assert type(optimizer) is torch.optim.AdamW
    settings = [optimizer.defaults[key] for key in ("lr", "betas", "eps", "weight_decay")]
    assert settings == [rate, (0.9, 0.999), 1e-8, 0.02]
    course = rates(module, 10 * (warmup or 100))
    assert course[0] == pytest.approx(first)
    assert course[warmup] == pytest.approx(rate)
    assert course[-1] == pytest.approx(last)
    assert module.recipe.warmup_steps == warmup
    assert data.crop.scale == (crop, 1.0)
    assert data.crop.flip
    change = data.rand_augment
    assert (change.policy, change.count, change.level) == ("albef", 2, 7)
    assert "gradient_clip_val" not in trainer
    if name in TAUGHT:
        said = getattr(module, "teaching", module)
        assert (said.alpha, said.alpha_epochs, module.teacher.decay) == TAUGHT[name]
    if name in CONTRAST:
        assert (module.queue.size, config.embed, module.mask) == (65_536, 256, 0.15)
        assert (module.rerank, module.model.mlm is not None) == CONTRAST[name]
        assert module.model.vision.pos.shape[-2] == 1 + (image // 16) ** 2
    if name.startswith("pretrain"):
        lists = {re.sub(r".*/|\.json", "", part) for part in data.source.split("+")}
        assert lists == {"coco", "vg", "cc3m_train", "cc3m_val", "sbu"} | (
            {"cc12m"} if "14m" in name else set()
        )
    if name == "vqa":
        assert (module.k, data.single_weight, data.targets) == (128, 0.5, "words")
        assert (config.decoder.depth, config.text.cross_layers) == (6, tuple(range(6, 12)))
    if "nlvr2" in name:
        task = "assign" if name == "nlvr2_pretrain" else "compare"
        assert (config.task, config.text.depth, config.text.cross_layers) == (task, 18, tuple(range(6, 18)))
    if name == "nlvr2_pretrain":
        assert module.teacher is None
    if name == "ve":
        assert config.classes == 3


@pytest.mark.parametrize("name", VILT)
def test_vilt(opened, name):
    module, data, trainer = opened(f"vilt/{name}")
    kind, size, length, warmup, factors = VILT[name]
    assert type(module).__name__ == kind
    config = module.model.config
    assert (config.image.size, config.image.longest, config.image.multiple) == (384, 639, 32)
    assert (config.text_input.context, config.text.context, config.vision.patch) == (40, 40, 32)
    assert (config.vision.dropout, config.vision.attn_dropout) == (0.1, 0.0)
    assert config.max_patches == (200 if name == "pretrain_200k" else None)
    assert batch(data, trainer) == size
    assert trainer["max_steps" if name == "pretrain_200k" else "max_epochs"] == length
    optimizer = optimizer_of(module)
    assert type(optimizer) is torch.optim.AdamW
    settings = [optimizer.defaults[key] for key in ("lr", "betas", "eps", "weight_decay")]
    assert settings == [1e-4, (0.9, 0.98), 1e-8, 0.01]
    course = rates(module, 10_000)
    begin = warmup if warmup > 1 else 1000
    assert course[begin] == max(course) == pytest.approx(1e-4)
    assert course[-1] == 0
    half = (begin + 10_000) // 2
    assert course[half] == pytest.approx(0.5e-4)  # a straight line
    assert module.recipe.lr_factors == factors
    change = data.rand_augment
    if name == "pretrain_200k":
        assert change is None
        assert (module.itm, module.mlm, module.alignment) == (1.0, 1.0, 0.1)
        assert (module.mask, module.whole_words) == (0.15, True)
    else:
        assert (change.policy, change.count, change.level) == ("vilt", 2, 9)
    assert data.crop is None
    if name == "vqa":
        assert (config.answers, data.at_least, data.targets) == (3129, 9, "votes")
    if kind == "LitViLTRetrieval":
        assert module.others == 15
        assert data.batch_size > module.others  # the others come from the batch
        assert module.model.rank_head is not None


@pytest.mark.parametrize("name", NAMES)
def test_every_number_names_its_source_and_nothing_was_claimed(name):
    text = find_config(name).read_text()
    assert "not measured" in text
    sourced = {
        "lr",
        "weight_decay",
        "betas",
        "eps",
        "alpha",
        "alpha_epochs",
        "momentum",
        "queue",
        "mask",
        "floor",
    }
    sourced |= {
        "warmup_steps",
        "warmup_share",
        "warmup_floor",
        "crop",
        "max_epochs",
        "max_steps",
        "k",
        "others",
        "rerank",
    }
    sourced |= {
        "teaching",
        "batch_size",
        "single_weight",
        "answers",
        "itm",
        "mlm",
        "alignment",
        "lr_factors",
        "at_least",
    }
    lines = text.splitlines()
    for before, line in itertools.pairwise(lines):
        keys = set(re.findall(r"(\w+):", line.split("#")[0]))
        if keys & (sourced | {"rand_augment"}) and re.search(r"\d", line.split("#")[0]):
            assert "#" in line or before.lstrip().startswith("#"), line


def test_where_paper_and_code_disagree_both_are_said():
    for name in ("albef/pretrain_4m", "albef/pretrain_14m"):
        assert re.search(r"warmup_steps: 2000  # .*the paper says 1,000", find_config(name).read_text())
    text = find_config("vilt/pretrain_200k").read_text()
    assert re.search(r"warmup_steps: 2500  # .*the paper says 10 % of the steps, 20,000", text)
