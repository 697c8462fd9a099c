"""The recipes of ALBEF and ViLT train small models, from weights on, on files in the published formats."""

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
    """All data of the recipes as their heads describe it, eight pictures of each kind; small weights to start from."""
    root = tmp_path_factory.mktemp("recipes")
    data, say = root / "data", lambda i: f"a {COLOURS[i % 4]} square"
    for i in range(8):
        coco = f"train2014/COCO_train2014_{i:012}.jpg"
        for file in (
            f"pretrain/{coco}", f"coco/images/{coco}", f"coco/images/val2014/COCO_val2014_{i:012}.jpg",
            f"flickr30k/flickr30k-images/{i}.jpg", f"vg/image/{i}.jpg", f"refcoco/images/{coco}",
            *(f"nlvr2/{name}-{i}-0-img{side}.png" for name in ("train/0/train", "dev/dev") for side in (0, 1)),
        ):  # fmt: skip
            draw(data / file, i + file.endswith("img1.png"))
    for name in ("coco", "vg", "cc12m", "cc3m_train", "cc3m_val", "sbu"):
        captions = [[say(i), "a square"] if name == "coco" else say(i) for i in range(8)]
        images = [f"train2014/COCO_train2014_{i:012}.jpg" for i in range(8)]
        write(data / f"pretrain/{name}.json", [{"image": m, "caption": c} for m, c in zip(images, captions)])
    for name, folder in (
        ("coco", "train2014/COCO_train2014_00000000000"),
        ("flickr30k", "flickr30k-images/"),
    ):
        rows = [{"image": f"{folder}{i}.jpg", "caption": say(i), "image_id": f"{name}_{i}"} for i in range(8)]
        write(data / f"{name}/{name}_train.json", [*rows, rows[0] | {"caption": "one square"}])
        held = [{"image": row["image"], "caption": [row["caption"]] * 5} for row in rows]
        write(data / f"{name}/{name}_val.json", held)
        write(data / f"{name}/{name}_test.json", held)
    phrases = [
        {"image": f"train2014/COCO_train2014_{i:012}.jpg", "text": say(i), "ref_id": i} for i in range(8)
    ]
    write(data / "refcoco/refcoco+_train.json", phrases)
    for split in ("train", "val"):
        images = [f"{split}2014/COCO_{split}2014_{i:012}.jpg" for i in range(8)]
        asked = [
            {"image": m, "question": "Which colour?", "answer": [COLOURS[i % 4]] * 7 + ["dark"] * 3, "question_id": i,
             "dataset": "vqa"}
            for i, m in enumerate(images)
        ]  # fmt: skip
        write(data / f"vqa/vqa_{split}.json", asked)
        head = {"info": {}, "license": {}, "data_subtype": f"{split}2014"}
        rows = [{"image_id": i, "question": "Which colour?", "question_id": i} for i in range(8)]
        said = [
            {"question_id": i, "image_id": i, "answer_type": "other", "multiple_choice_answer": COLOURS[i % 4],
             "answers": [{"answer": a, "answer_confidence": "yes"} for a in q["answer"]]}
            for i, q in enumerate(asked)
        ]  # fmt: skip
        write(data / f"vqa/v2_OpenEnded_mscoco_{split}2014_questions.json", head | {"questions": rows})
        write(data / f"vqa/v2_mscoco_{split}2014_annotations.json", head | {"annotations": said})
    seen = [
        {"image": f"image/{i}.jpg", "question": "What?", "answer": "a square", "dataset": "vg"}
        for i in range(8)
    ]
    write(data / "vqa/vg_qa.json", seen)
    write(data / "vqa/answer_list.json", [*COLOURS, "dark", "a square"])
    for split, stem in (("train", "train/0/train"), ("dev", "dev/dev"), ("test", "dev/dev")):
        rows = [
            {
                "images": [f"{stem}-{i}-0-img{side}.png" for side in (0, 1)],
                "sentence": say(i),
                "label": str(i % 2 == 0),
            }
            for i in range(8)
        ]
        write(data / f"nlvr2/nlvr_{split}.json", rows)
    for split, more in (("train", {"directory": 0}), ("dev", {})):
        rows = [
            {"identifier": f"{split}-{i}-0-0", "sentence": say(i), "label": str(i % 2 == 0)} | more
            for i in range(8)
        ]
        (data / "nlvr2/official").mkdir(exist_ok=True)
        (data / f"nlvr2/official/{split}.json").write_text("\n".join(map(json.dumps, rows)))
    for split in ("train", "dev", "test"):
        label = ("entailment", "neutral", "contradiction")
        rows = [{"image": str(i), "sentence": say(i), "label": label[i % 3]} for i in range(8)]
        write(data / f"ve/ve_{split}.json", rows)
    torch.manual_seed(0)
    for family, run in (("albef", "albef-pretrain_14m"), ("vilt", "vilt-pretrain_200k")):
        mmzoo.save(mmzoo.create_model(f"{family}-tiny"), root / f"runs/{run}/export")
    return root


@pytest.fixture(autouse=True)
def _there(place, monkeypatch):
    monkeypatch.chdir(place)


def fit(name, model, *words):
    """Train three steps of a recipe on its own data.

    Returns:
        What it exported, the weights and the processor, and its numbers.
    """
    run = Path("runs") / name.replace("/", "-")
    assert main(["fit", "-c", name, *SMALL, "--model.model", model, *words]) == 0
    told = json.loads((run / "metrics.json").read_text())
    return *mmzoo.load(run / "export"), told


def check_start(model, source, names):
    """The weights are those of the start, and a few small steps away."""
    for ours, theirs in names.items():
        now, then = model.get_parameter(ours), source.get_parameter(theirs)
        assert 0 < (now - then).abs().max() < 5e-3, ours


def pretrained(family):
    run = {"albef": "albef-pretrain_14m", "vilt": "vilt-pretrain_200k"}[family]
    return mmzoo.load(f"runs/{run}/export")[0]


def test_albef_is_pretrained_on_lists_of_captions():
    exported, _, told = fit("albef/pretrain_4m", "albef-tiny", "--model.start", "null")
    assert exported.mlm is not None
    assert {"train/itc", "train/itm", "train/mlm"} <= told["last"].keys()


def test_vilt_is_pretrained_on_lists_of_captions():
    exported, _, told = fit("vilt/pretrain_200k", "vilt-tiny", "--model.start", "null")
    assert exported.mlm is not None
    assert {"train/itm", "train/mlm", "train/matching_distance"} <= told["last"].keys()


@pytest.mark.parametrize("name", ["retrieval_coco", "grounding"])
def test_albef_is_fine_tuned_for_retrieval_on_larger_pictures(name):
    """The table of positions grows, and the head for masked words is left behind."""
    tiny = get_config("albef-tiny")
    vision, image = (
        replace(part, **{size: 36}) for part, size in ((tiny.vision, "image_size"), (tiny.image, "size"))
    )
    config = to_dict(replace(tiny, vision=vision, image=image, words=False))
    exported, _, told = fit(f"albef/{name}", json.dumps(config), "--model.queue", "16")
    assert exported.mlm is None
    assert exported.vision.pos.shape[1] > pretrained("albef").vision.pos.shape[1]
    check_start(
        exported, pretrained("albef"), {n: n for n in ("text.blocks.3.mlp.fc1.weight", "match_head.weight")}
    )
    if name == "retrieval_coco":
        assert {"val/i2t_r1", "val/reranked_t2i_r1"} <= told["best"].keys()


def test_albef_is_fine_tuned_on_questions_and_answers_more_of_them():
    exported, processor, _ = fit("albef/vqa", "albef-tiny")
    assert processor.answers == (*COLOURS, "dark", "a square")
    blocks = {
        f"{part}.mlp.fc1.weight": "text.blocks.3.mlp.fc1.weight"
        for part in ("text.blocks.3", "decoder.blocks.1")
    }
    check_start(exported, pretrained("albef"), blocks)
    held = ["--data.val", "data/vqa/vqa_val.json", "--data.val_splits", "null"]
    assert (
        main(
            [
                "predict",
                "-c",
                "albef/vqa",
                *SMALL,
                "--model.model",
                "albef-tiny",
                "--ckpt_path",
                "last",
                *held,
            ]
        )
        == 0
    )
    check_answers("albef-vqa", processor)


def test_vilt_is_fine_tuned_on_official_questions_and_answers_more_of_them():
    listed = ["--data.at_least", "4", "--model.answers", "4"]
    exported, processor, _ = fit("vilt/vqa", "vilt-tiny", *listed)
    assert set(processor.answers) == set(COLOURS)
    check_start(
        exported, pretrained("vilt"), {n: n for n in ("vision.blocks.1.mlp.fc1.weight", "modality.weight")}
    )
    asked = ["--data.val", "data/vqa/v2_OpenEnded_mscoco_val2014_questions.json", "--data.val_splits", "null"]
    small = ["--model.model", "vilt-tiny", *listed]
    assert main(["predict", "-c", "vilt/vqa", *SMALL, *small, "--ckpt_path", "last", *asked]) == 0
    check_answers("vilt-vqa", processor)


def check_answers(run, processor):
    lines = (Path("runs") / run / "predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert sorted(row["key"] for row in rows) == [f"vqa/{i}" for i in range(8)]
    assert {row["answer"] for row in rows} <= set(processor.answers)


def test_albef_assigns_texts_then_compares_pictures():
    assigning, _, _ = fit("albef/nlvr2_pretrain", "albef-tiny")
    assert assigning.config.task == "assign"
    old = pretrained("albef")
    twins = {
        f"text.blocks.{i}.mlp.fc1.weight": f"text.blocks.{2 + (i - 2) // 2}.mlp.fc1.weight"
        for i in range(2, 6)
    }
    check_start(assigning, old, twins)
    comparing, _, told = fit("albef/nlvr2", "albef-tiny")
    assert comparing.config.task == "compare"
    check_start(comparing, assigning, {name: name for name in twins})
    assert told["chance"]["dev/accuracy"] == 0.5


def test_vilt_compares_pictures_of_the_official_files():
    official = ["--data.source", "data/nlvr2/official", "--data.images", "data/nlvr2"]
    exported, _, told = fit("vilt/nlvr2", "vilt-tiny", *official)
    check_start(
        exported, pretrained("vilt"), {"vision.blocks.1.mlp.fc1.weight": "vision.blocks.1.mlp.fc1.weight"}
    )
    assert told["chance"]["dev/accuracy"] == 0.5


def test_albef_learns_entailment():
    exported, _, told = fit("albef/ve", "albef-tiny")
    check_start(exported, pretrained("albef"), {n: n for n in ("text.blocks.3.mlp.fc1.weight",)})
    assert told["chance"]["dev/top1"] == pytest.approx(3 / 8)


def test_vilt_is_fine_tuned_for_retrieval():
    exported, _, told = fit("vilt/retrieval_flickr", "vilt-tiny")
    old = pretrained("vilt")
    assert (exported.rank_head.weight - old.match_head.weight[1:]).abs().max() < 5e-3
    assert "val/choice_top1" in told["best"]
