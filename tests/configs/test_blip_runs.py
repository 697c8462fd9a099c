"""The recipes of BLIP train small models, from weights on, on files in the published formats."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

import mmzoo
from mmzoo import get_config
from mmzoo.cli.main import main
from mmzoo.config import to_dict

SMALL = ["-c", "trainer/cpu_smoke", "--trainer.max_steps", "3", "--trainer.val_check_interval", "3"]
SMALL += ["--data.batch_size", "4", "--data.num_workers", "0", "--trainer.accumulate_grad_batches", "1"]
COLOURS = ("red", "green", "blue", "black")


def draw(file, number):
    """A picture of a square of one of the colours."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (48, 36), "white")
    ImageDraw.Draw(image).rectangle((8 + number, 6, 24 + number, 22), COLOURS[number % 4])
    image.save(file)


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The data that the recipes' heads describe, eight pictures of each kind, and small weights to start from."""
    root = tmp_path_factory.mktemp("blip")
    data, said = root / "data", [f"a {COLOURS[i % 4]} square" for i in range(8)]
    images = [f"train2014/COCO_train2014_{i:012}.jpg" for i in range(8)]
    for i, image in enumerate(images):
        for file in (f"coco/images/{image}", f"pretrain/{image}", f"nocaps/{i}.jpg", f"vg/image/{i}.jpg"):
            draw(data / file, i)
        for side in (0, 1):
            draw(data / f"nlvr2/train/0/train-{i}-0-img{side}.png", i + side)
            draw(data / f"nlvr2/dev/dev-{i}-0-img{side}.png", i + side)
    for name in ("coco_karpathy_train", "vg_caption", "ccs_filtered", "ccs_synthetic_filtered"):
        write(
            data / f"pretrain/{name}.json",
            [{"image": m, "caption": c} for m, c in zip(images, said, strict=True)],
        )
    rows = [
        {"image": m, "caption": c, "image_id": f"coco_{i}"}
        for i, (m, c) in enumerate(zip(images, said, strict=True))
    ]
    write(data / "coco/coco_karpathy_train.json", [*rows, rows[0] | {"caption": "one square"}])
    for split in ("val", "test"):
        held = [{"image": r["image"], "caption": [r["caption"], "a square"]} for r in rows]
        write(data / f"coco/coco_karpathy_{split}.json", held)
    write(data / "nocaps/nocaps_val_4500_captions.json", {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(8)],
        "annotations": [{"id": i, "image_id": i % 8, "caption": said[i % 8]} for i in range(16)],
    })  # fmt: skip
    asked = [
        {"image": m, "question": "Which colour?", "answer": [COLOURS[i % 4]] * 7 + ["dark"] * 3, "question_id": i,
         "dataset": "vqa"}
        for i, m in enumerate(images)
    ]  # fmt: skip
    for split in ("train", "val"):
        write(data / f"vqa/vqa_{split}.json", asked)
    seen = [
        {"image": f"image/{i}.jpg", "question": "What?", "answer": "a square", "dataset": "vg"}
        for i in range(8)
    ]
    write(data / "vqa/vg_qa.json", seen)
    write(data / "vqa/answer_list.json", [*COLOURS, "dark", "a square"])
    for split, stem in (("train", "train/0/train"), ("dev", "dev/dev"), ("test", "dev/dev")):
        pictures = [[f"{stem}-{i}-0-img{side}.png" for side in (0, 1)] for i in range(8)]
        pairs = [{"images": pictures[i], "sentence": said[i], "label": str(i % 2 == 0)} for i in range(8)]
        write(data / f"nlvr2/nlvr_{split}.json", pairs)
    torch.manual_seed(0)
    mmzoo.save(mmzoo.create_model("blip-tiny"), root / "runs/blip-pretrain_14m/export")
    return root


@pytest.fixture(autouse=True)
def _there(place, monkeypatch):
    monkeypatch.chdir(place)


def fit(name, model, *words):
    """Train three steps of a recipe; what it exported, and its numbers."""
    run = Path("runs") / name.replace("/", "-")
    assert main(["fit", "-c", name, *SMALL, "--model.model", model, *words]) == 0
    told = json.loads((run / "metrics.json").read_text())
    return mmzoo.load(run / "export")[0], told


def tiny(size=24, **changes):
    config = get_config("blip-tiny")
    vision, image = replace(config.vision, image_size=size), replace(config.image, size=size)
    return json.dumps(to_dict(replace(config, vision=vision, image=image, **changes)))


def check_start(model, **moved):
    """Weights are those of the start, and a few small steps away."""
    old = mmzoo.load("runs/blip-pretrain_14m/export")[0]
    for ours, theirs in moved.items():
        now, then = (m.get_parameter(n.replace("__", ".")) for m, n in ((model, ours), (old, theirs)))
        assert 0 < (now - then).abs().max() < 5e-3, ours


def test_blip_is_pretrained_on_lists_of_captions():
    # under another name, since the other recipes start from this run's
    words = ["fit", "-c", "blip/pretrain_14m", *SMALL, "--model.model", "blip-tiny", "--model.start", "null"]
    assert main([*words, "--name", "fresh"]) == 0
    told = json.loads(Path("runs/fresh/metrics.json").read_text())
    assert {"train/itc", "train/itm", "train/lm"} <= told["last"].keys()
    assert type(mmzoo.load("runs/fresh/export")[0]).__name__ == "BLIP"


def test_blip_is_fine_tuned_for_retrieval_on_larger_pictures():
    exported, told = fit("blip/retrieval_coco", tiny(36, writes=False), "--model.queue", "16")
    assert type(exported).__name__ == "BLIPReader"
    check_start(exported, text__blocks__1__mlp__fc1__weight="text.blocks.1.mlp.fc1.weight")
    assert {"val/i2t_r1", "val/reranked_t2i_r1"} <= told["best"].keys()


def test_blip_learns_captions_then_rewards_then_writes_about_new_objects():
    exported, told = fit("blip/caption_coco", tiny(36, reads=False))
    assert type(exported).__name__ == "BLIPWriter"
    check_start(
        exported,
        decoder__blocks__1__mlp__fc1__weight="text.blocks.1.mlp.fc1.weight",
        decoder__blocks__1__attn__qkv__weight="decoder.blocks.1.attn.qkv.weight",
    )
    assert {"val/exact", "val/cider_d", "val/loss"} <= told["best"].keys()
    assert told["chance"]["val/exact"] == 1  # "a square" fits all pictures
    again = ["--name", "rewarded", "--model.objective", "scst", "--model.samples", "2", "--model.start.model"]
    words = ["fit", "-c", "blip/caption_coco", *SMALL, "--model.model", tiny(36, reads=False)]
    assert main([*words, *again, "runs/blip-caption_coco/export"]) == 0
    assert "train/reward" in json.loads(Path("runs/rewarded/metrics.json").read_text())["last"]
    words = ["-c", "blip/caption_nocaps", "-c", "trainer/cpu_smoke", "--model.model", tiny(36, reads=False)]
    assert main(["validate", *words, "--data.num_workers", "0"]) == 0
    assert main(["predict", *words, "--data.num_workers", "0"]) == 0
    lines = Path("runs/blip-caption_nocaps/predictions.jsonl").read_text().splitlines()
    assert [set(json.loads(line)) for line in lines] == [{"key", "caption"}] * 8


def test_blip_answers_questions():
    exported, _ = fit("blip/vqa", "blip-tiny")
    assert type(exported).__name__ == "BLIPVQA"
    check_start(exported, decoder__blocks__1__attn__qkv__weight="decoder.blocks.1.attn.qkv.weight")


def test_blip_compares_pictures():
    exported, told = fit("blip/nlvr2", "blip-tiny")
    check_start(exported, text__blocks__1__cross__second__q__weight="text.blocks.1.cross.q.weight")
    assert told["chance"]["dev/accuracy"] == 0.5
