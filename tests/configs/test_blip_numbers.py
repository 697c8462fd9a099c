"""BLIP's recipes say what the released code says; the numbers are written out here once more."""

import itertools
import re

import pytest
import torch
import yaml
from built import build

from mmzoo.lit.optim import build_schedule
from mmzoo.models.blip import BLIP, BLIPNLVR2, BLIPVQA, BLIPReader, BLIPWriter
from mmzoo.paths import find_config

# model, image, tokens, GPUs, batch over all, epochs, rate, first rate, last rate, warm-up steps, smallest crop
BLIPS = {
    "pretrain_14m": (BLIP, 224, 30, 32, 2880, 20, 3e-4, 1e-6, 3e-4 * 0.9**20, 3000, 0.2),
    "pretrain_129m": (BLIP, 224, 30, 32, 2880, 20, 3e-4, 1e-6, 3e-4 * 0.9**20, 3000, 0.2),
    "retrieval_coco": (BLIPReader, 384, 35, 8, 256, 6, 1e-5, 1e-5, 0.0, 0, 0.5),
    "retrieval_flickr": (BLIPReader, 384, 35, 8, 256, 6, 1e-5, 1e-5, 0.0, 0, 0.5),
    "caption_coco": (BLIPWriter, 384, 40, 8, 256, 5, 1e-5, 1e-5, 0.0, 0, 0.5),
    "vqa": (BLIPVQA, 480, 35, 16, 256, 10, 2e-5, 2e-5, 0.0, 0, 0.5),
    "nlvr2": (BLIPNLVR2, 384, 512, 16, 256, 15, 3e-5, 3e-5, 0.0, 0, 0.5),
}
# epochs over which alpha grows, weights of negatives, where they are drawn, candidates re-ranked
PAIRS = {
    "pretrain_14m": (2, "blip", "batch", 0),
    "pretrain_129m": (2, "blip", "batch", 0),
    "retrieval_coco": (1, "albef", "ranks", 256),
    "retrieval_flickr": (1, "albef", "batch", 128),
}
LISTS = ["coco_karpathy_train", "vg_caption", "ccs_filtered", "ccs_synthetic_filtered"]
ALL = [*BLIPS, "caption_nocaps"]


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """Module, data and the trainer's settings of a recipe."""
    monkeypatch.chdir(tmp_path)

    def open_recipe(name):
        path = find_config(f"blip/{name}")
        built = build(monkeypatch, "-c", str(path), "-c", str(find_config("trainer/cpu_smoke")))
        return built["model"], built["data"], yaml.safe_load(path.read_text()).get("trainer")

    return open_recipe


@pytest.mark.parametrize("name", BLIPS)
def test_blip(opened, name):
    module, data, trainer = opened(name)
    kind, image, tokens, gpus, size, epochs, rate, first, last, warmup, crop = BLIPS[name]
    config = module.model.config
    assert type(module.model) is kind
    assert (config.image.size, config.vision.image_size, config.image.fit) == (image, image, "squash")
    assert (config.vision.patch, config.vision.width, config.vision.depth) == (16, 768, 12)
    assert config.vision.drop_path == (0.1 if name in ("vqa", "nlvr2") else 0.0)
    text = config.text_input
    assert (text.context, text.sep, text.vocab) == (tokens, True, 30_524)
    assert text.clean == ("blip_question" if name == "vqa" else "blip")
    assert (config.text.dropout, config.text.attn_dropout, config.text.token_types) == (0.1, 0.1, 0)
    assert config.text.cross_layers == tuple(range(12))
    assert (gpus * data.batch_size, trainer["max_epochs"]) == (size, epochs)
    optimizer = module._make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    settings = [optimizer.defaults[key] for key in ("lr", "betas", "eps", "weight_decay")]
    assert settings == [rate, (0.9, 0.999), 1e-8, 0.05]
    r, total = module.recipe, 10 * (warmup or 100)
    course = build_schedule(
        optimizer, warmup=warmup, total=total, floor=r.floor, shape=r.schedule, warmup_floor=r.warmup_floor
    ).lr_lambdas[0]
    assert r.warmup_steps == warmup
    assert rate * course(0) == pytest.approx(first, rel=1e-3)
    assert course(warmup) == 1
    assert rate * course(total) == pytest.approx(last, rel=1e-3)
    if "pretrain" in name:  # half of the epochs after the warm-up have half of the factors
        assert course((warmup + total) // 2) == pytest.approx(0.9**10, rel=1e-3)
    else:
        assert course(total // 2) == pytest.approx(0.5)
    change = data.rand_augment
    assert (data.crop.scale, data.crop.flip) == ((crop, 1.0), True)
    assert (change.policy, change.count, change.level) == ("albef", 2, 5)
    assert "gradient_clip_val" not in trainer
    if name in PAIRS:
        said = (module.teaching.alpha_epochs, module.weighting, module.negatives, module.rerank)
        assert said == PAIRS[name]
        assert (module.teaching.alpha, module.teacher.decay) == (0.4, 0.995)
        assert (module.queue.size, config.embed) == (57_600, 256)
        assert (module.settings.hard_negatives, module.settings.align_steps) == (1, 0)
    else:
        assert getattr(module, "teacher", None) is None
    if name not in ("nlvr2", "retrieval_coco", "retrieval_flickr"):
        assert module.label_smoothing == 0.1
    if "pretrain" in name:
        lists = [re.sub(r".*/|\.json", "", part) for part in data.source.split("+")]
        assert lists == LISTS + (["laion_filtered", "laion_synthetic_filtered"] if "129m" in name else [])
    if name == "vqa":
        assert (module.k, data.single_weight, data.targets) == (128, 0.2, "words")
    if name == "nlvr2":
        assert config.merge_from == 6


@pytest.mark.parametrize("name", ["caption_coco", "caption_nocaps"])
def test_captions_are_written_as_the_code_writes_them(opened, name):
    """Lengths there count [DEC] and "a picture of"."""
    module, _, _ = opened(name)
    w, begun = module.writing, 1 + 3
    assert (w.beams, w.max_new_tokens + begun, w.min_new_tokens + begun) == (3, 20, 5)
    assert w.repetition_penalty == (1.1 if name == "caption_nocaps" else 1.0)
    assert (w.length_penalty, w.sample) == (1.0, False)
    assert module.model.config.prompt == "a picture of "
    assert module.objective == "words"


@pytest.mark.parametrize("name", ALL)
def test_every_number_names_its_source_and_nothing_was_claimed(name):
    text = find_config(f"blip/{name}").read_text()
    assert "not measured" in text
    sourced = {
        "lr", "weight_decay", "alpha", "alpha_epochs", "momentum", "queue", "floor", "warmup_steps", "warmup_floor",
        "crop", "rand_augment", "max_epochs", "k", "rerank", "batch_size", "val_batch_size", "single_weight",
        "label_smoothing", "writing", "context", "prompt", "image_size",
    }  # fmt: skip
    for before, line in itertools.pairwise(text.splitlines()):
        said = line.split("#")[0].strip()
        keys = set(re.findall(r"(\w+):", said))
        if keys & sourced and re.search(r"\d", said) and said != "context: 512":  # BERT's
            assert "#" in line or before.lstrip().startswith("#"), line


def test_where_paper_and_code_disagree_both_are_said():
    for name in ("pretrain_14m", "pretrain_129m"):
        text = find_config(f"blip/{name}").read_text()
        assert re.search(r"times 0\.9 \(the paper: 0\.85\)", text)
        assert re.search(r"2,880 in all \(the paper.*The code's file says 75", text)
