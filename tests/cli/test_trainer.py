"""`fit`, `validate`, `test`, `predict`: what a run leaves, and each pitfall of LightningCLI avoided."""

import json
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from PIL import Image

import mmzoo
from mmzoo.cli import trainer as trainer_verbs
from mmzoo.cli.main import main
from mmzoo.cli.runs import Claim, checkpoint_of, run_name
from mmzoo.errors import UsageError, ZooError

EMBED = mmzoo.get_config("clip-tiny").embed
COLOURS = ("red", "green", "blue", "white", "black", "yellow")


def prepare(folder):
    """A config and twelve captioned pictures."""
    data = folder / "pictures"
    data.mkdir()
    lines = []
    for i in range(12):
        Image.new("RGB", (20, 20), COLOURS[i % 6]).save(data / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "captions": [f"a {COLOURS[i % 6]} square number {i}"]}))
    (data / "captions.jsonl").write_text("\n".join(lines))
    config = {
        "model": {
            "class_path": "LitCLIP",
            "init_args": {
                "model": "clip-tiny",
                "optimizer": {"class_path": "AdamW", "init_args": {"lr": 1e-3}},
                "recipe": {"warmup_steps": 2},
            },
        },
        "data": {
            "class_path": "CaptionsData",
            "init_args": {"source": "pictures", "val": "pictures", "batch_size": 4},
        },
        "trainer": {"max_steps": 4, "accelerator": "cpu", "log_every_n_steps": 2, "num_sanity_val_steps": 0},
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a config, pictures and nothing else."""
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A working folder in which `fit` has run once, to copy from."""
    folder = tmp_path_factory.mktemp("trained")
    prepare(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert fit() == 0
    return folder


@pytest.fixture
def trained(template, tmp_path, monkeypatch):
    """A working folder with a finished run in runs/toy."""
    folder = tmp_path / "work"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    return folder


def fit(*words, verb="fit"):
    return main([verb, "-c", "toy.yaml", *words])


def last_line(capsys):
    out, err = capsys.readouterr()
    lines = err.strip().splitlines()
    assert lines, out
    return lines[-1]


# -- what a run leaves ------------------------------------------------------------------------------------------


def test_a_run_leaves_everything_in_one_folder_and_says_where(here, capsys):
    assert fit() == 0
    out, err = capsys.readouterr()
    run = here / "runs" / "toy"
    assert {p.name for p in run.iterdir()} == {
        "config.yaml", "metrics.csv", "metrics.json", "curve.png", "checkpoints", "export"
    }  # fmt: skip
    assert not [p for p in here.iterdir() if p.name not in ("toy.yaml", "pictures", "runs")]
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["seed_everything"] == 0
    assert saved["name"] == "toy"
    assert saved["model"]["class_path"] == "mmzoo.lit.LitCLIP"
    assert saved["ckpt_path"] is None
    model, processor = mmzoo.load(run / "export")
    assert model.encode_text(*processor.texts(["a red square"])).shape == (1, EMBED)
    # results on stdout with chance beside each, talk on stderr, no advertising anywhere
    for name in ("i2t_r1", "t2i_r10"):
        assert re.search(rf"^val/{name} +\d\.\d{{4}}  \d\.\d{{4}}$", out, re.MULTILINE), out
    for place in (
        "export    runs/toy/export",
        "curve     runs/toy/curve.png",
        "next      mmzoo zeroshot --model",
    ):
        assert place in out
    assert "step 2/4  loss" in err
    assert "step" not in out.split("held-out")[1].split("export")[0]
    assert not re.search(r"💡|litlogger|GPU available|Tip:", out + err)
    assert "\x1b[" not in out + err  # no progress bar when not on a terminal


def test_results_as_json(here, capsys):
    assert fit("--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["export"] == "runs/toy/export"
    assert told["chance"]["val/i2t_r1"] == pytest.approx(1 / 12)
    assert told["last"].keys() >= told["chance"].keys()
    assert json.loads((here / "runs/toy/metrics.json").read_text()) == told


def test_a_second_run_neither_dies_nor_destroys_the_first(trained, capsys):
    first = (trained / "runs/toy/checkpoints/last.ckpt").read_bytes()
    assert fit("--seed_everything", "1") == 0
    assert "is now in runs/toy/previous-1" in capsys.readouterr().err
    assert (trained / "runs/toy/previous-1/checkpoints/last.ckpt").read_bytes() == first
    assert yaml.safe_load((trained / "runs/toy/config.yaml").read_text())["seed_everything"] == 1
    assert yaml.safe_load((trained / "runs/toy/previous-1/config.yaml").read_text())["seed_everything"] == 0
    assert (
        len((trained / "runs/toy/metrics.csv").read_text().splitlines()) == 5
    )  # header, three of training, one held out
    mmzoo.load(trained / "runs/toy/previous-1/export")


def test_a_command_that_cannot_run_moves_nothing(trained, capsys):
    before = sorted(p.name for p in (trained / "runs/toy").iterdir())
    assert fit("--data.source", "nowhere") == 1
    assert "no data at nowhere" in last_line(capsys)
    assert sorted(p.name for p in (trained / "runs/toy").iterdir()) == before


def test_the_same_seed_gives_the_same_run_and_another_another(here):
    weights = []
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert fit("--name", name, "--seed_everything", seed) == 0
        weights.append(mmzoo.load(here / "runs" / name / "export")[0].state_dict())
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert not all(torch.equal(weights[0][k], weights[2][k]) for k in weights[0])


def test_a_folder_of_ones_own_keeps_what_else_is_in_it(trained):
    (trained / "runs/toy").rename(trained / "mine")
    (trained / "mine/notes.txt").write_text("keep me")
    assert fit("--trainer.default_root_dir", "mine") == 0
    assert (trained / "mine/notes.txt").read_text() == "keep me"
    assert (trained / "mine/previous-1/checkpoints/last.ckpt").exists()
    assert not list((trained / "runs").iterdir())


def test_two_runs_never_share_a_folder(here, capsys):
    claim = Claim(here / "runs" / "toy")
    claim.take()
    assert fit() == 1
    assert "runs/toy is in use by a run that is still going" in last_line(capsys)
    claim.release()
    assert fit() == 0


# -- going on ---------------------------------------------------------------------------------------------------


def test_last_means_this_runs_own_and_none_yet_is_no_error(trained, capsys):
    assert fit("--ckpt_path", "last", "--trainer.max_steps", "6") == 0
    err = capsys.readouterr().err
    assert "going on from runs/toy/checkpoints/last.ckpt" in err
    assert json.loads((trained / "runs/toy/metrics.json").read_text())["steps"] == 6
    assert not (trained / "runs/toy/previous-1").exists()
    assert fit("--name", "other", "--ckpt_path", "last") == 0
    assert "runs/other has no checkpoint yet: starting from step 0" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named(trained, capsys):
    path = trained / "runs/toy/checkpoints/last.ckpt"
    path.write_bytes(path.read_bytes()[:-100])
    assert fit("--ckpt_path", "last") == 1
    assert "last.ckpt is damaged" in last_line(capsys)


def test_what_a_checkpoint_holds_never_overrides_flags(trained):
    """Lightning 2.6.6 merges `hyper_parameters` of the file over the command line, and prints the flags."""
    from mmzoo.cli.zoo_cli import ZooCLI

    path = trained / "runs/toy/checkpoints/last.ckpt"
    saved = torch.load(path, weights_only=True)
    assert "hyper_parameters" not in saved
    saved["hyper_parameters"] = {"_class_path": "mmzoo.lit.LitCLIP", "loss": "sigmoid", "templates": "plain"}
    torch.save(saved, path)
    seen = {}

    class Look(ZooCLI):
        def _run_subcommand(self, subcommand):
            seen.update(loss=self.model.loss, templates=self.model.templates)

    Look(["fit", "-c", "toy.yaml", "--ckpt_path", str(path), "--model.templates", "simple"])
    assert seen == {"loss": "softmax", "templates": "simple"}


def test_a_loss_that_is_not_a_number_ends_with_status_1_and_keeps_the_checkpoint(here, capsys):
    words = [
        "--checkpoints.every_n_steps",
        "1",
        "--model.recipe.warmup_steps",
        "0",
        "--trainer.max_steps",
        "20",
    ]
    assert fit(*words, "--model.optimizer.lr", "1e30") == 1
    assert re.search(
        r"mmzoo: (the loss is|parameter .* is no longer finite).*--ckpt_path last", last_line(capsys)
    )
    for path in (here / "runs/toy/checkpoints").iterdir():
        assert all(v.isfinite().all() for v in torch.load(path, weights_only=True)["state_dict"].values())


def test_ctrl_c_ends_with_the_way_to_go_on(here, capsys, monkeypatch):
    from mmzoo.lit import LitCLIP

    real = LitCLIP.training_step

    def step(self, batch, batch_idx):
        if self.global_step == 2:
            raise KeyboardInterrupt
        return real(self, batch, batch_idx)

    monkeypatch.setattr(LitCLIP, "training_step", step)
    handler = signal.getsignal(signal.SIGINT)
    try:
        assert fit("--checkpoints.every_n_steps", "1") == 130
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
    err = capsys.readouterr().err
    assert "stopped at step 2. runs/toy/checkpoints/last.ckpt is there: add --ckpt_path last to go on." in err
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert fit("--ckpt_path", "last") == 0
    assert json.loads((here / "runs/toy/metrics.json").read_text())["steps"] == 4


# -- the other verbs --------------------------------------------------------------------------------------------


def test_validate_test_and_predict(trained, capsys):
    told = json.loads((trained / "runs/toy/metrics.json").read_text())
    config = (trained / "runs/toy/config.yaml").read_text()
    capsys.readouterr()
    assert fit("--ckpt_path", "last", "--json", verb="validate") == 0
    out = json.loads(capsys.readouterr().out)
    assert out["values"]["val/i2t_r5"] == pytest.approx(told["last"]["val/i2t_r5"], rel=1e-5)
    assert out["checkpoint"] == "runs/toy/checkpoints/last.ckpt"
    assert fit("--ckpt_path", "best", verb="test") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("held-out")
    assert "─" not in printed  # Lightning's own table
    assert fit("--ckpt_path", "last", verb="predict") == 0
    from safetensors import safe_open

    with safe_open(trained / "runs/toy/predictions.safetensors", "pt") as file:
        assert file.get_tensor("image").shape == (12, EMBED)
        assert len(json.loads(file.metadata()["keys"])) == 12
    assert (trained / "runs/toy/config.yaml").read_text() == config  # looking at a run does not change it
    # the run's own config works for another verb (Lightning #17447: it carries ckpt_path: null)
    assert main(["validate", "-c", "runs/toy/config.yaml", "--ckpt_path", "last"]) == 0
    assert fit("--name", "nothing", "--ckpt_path", "last", verb="validate") == 2
    assert "runs/nothing has no last checkpoint" in last_line(capsys)


# -- parsing ----------------------------------------------------------------------------------------------------

WRONG = [
    # prefixes of options are no options, on the main parser and on the verb's
    (["--trainer.max_step=9"], 2, r"no option 'trainer.max_step'. Did you mean trainer.max_steps"),
    (["--seed_every", "3"], 2, r"no option 'seed_every'. Did you mean seed_everything"),
    (["--data.batch", "3"], 2, r"CaptionsData has no option 'batch'. Did you mean batch_size"),
    (["--model.los", "softmax"], 2, r"LitCLIP has no option 'los'. Did you mean loss"),
    (["--model.recipe.warmpu", "3"], 2, r"no option 'recipe.warmpu'. Did you mean recipe.warmup_steps"),
    (["--model.optimizer.betta", "3"], 2, r"AdamW has no option 'betta'. Did you mean betas"),
    (["--checkpoints.evry", "3"], 2, r"no option 'checkpoints.evry'. Did you mean checkpoints"),
    (
        ["--optimizer", "SGD"],
        2,
        r"no option 'optimizer'",
    ),  # a second place for it would override the module's
    (["--lr_scheduler", "StepLR"], 2, r"no option 'lr_scheduler'"),
    # classes
    (["--model", "LitCLIPP"], 2, r"no class 'LitCLIPP'. Did you mean LitCLIP"),
    (["--data", "CaptionData"], 2, r"no class 'CaptionData'. Did you mean CaptionsData"),
    (["--model.optimizer", "SDG"], 2, r"no class 'SDG'. Did you mean SGD"),
    # values: the innermost cause, in words
    (["--model.loss", "hinge"], 2, r"loss: expected one of softmax, sigmoid, found hinge"),
    (["--trainer.max_steps", "abc"], 2, r"trainer.max_steps: expected a whole number, found abc"),
    (["--trainer.precision", "bf17"], 2, r"trainer.precision: expected one of .*bf16-mixed.*, found bf17"),
    (["--model.optimizer.lr", "abc"], 2, r"lr: expected a number, found abc"),
    (["--model.recipe.ema_decay", "1.5"], 2, r"ema_decay is 1.5"),
    (["--model.model", "clip-tinny"], 2, r"no model named 'clip-tinny'. Did you mean clip-tiny"),
    (["--model.model", "vit-tiny"], 2, r"vit-tiny is a vit model"),
    (["--model.model.vision.width", "97"], 2, r"model: written out, it must be whole; image_size, patch"),
    (["--model.recipe.freeze", "[visoin]"], 2, r"recipe.freeze: no part 'visoin'.* Did you mean vision"),
    (["--trainer.accelerator", "gpu"], 2, r"No supported gpu backend found"),
    (["--ckpt_path", "no.ckpt"], 2, r"no checkpoint 'no.ckpt'"),
    # data
    (["--data.source", "nowhere"], 1, r"no data at nowhere"),
    (["--data.batch_size", "100"], 1, r"12 samples do not fill one batch of 100"),
    (["--trainer.max_steps", "-1", "--trainer.max_epochs", "-1"], 1, r"set trainer.max_steps"),
]


@pytest.mark.parametrize(("words", "status", "told"), WRONG, ids=[" ".join(w[0]) for w in WRONG])
def test_what_is_wrong_is_one_sentence(here, capsys, words, status, told):
    if torch.cuda.is_available() and "gpu" in words:
        pytest.skip("there is a GPU")
    assert fit(*words) == status
    line = last_line(capsys)
    assert re.match(rf"mmzoo: .*{told}", line), line
    assert not list(here.glob("runs/*/checkpoints/*"))


YAML = [
    ({"trainr": {"max_steps": 3}}, r"no option 'trainr.max_steps'. Did you mean trainer.max_steps"),
    ({"trainer": {"max_stps": 3}}, r"no option 'trainer.max_stps'. Did you mean trainer.max_steps"),
    (
        {"model": {"class_path": "LitCLIP", "init_args": {"lss": "x"}}},
        r"LitCLIP has no option 'lss'. Did you mean",
    ),
    ({"optimizer": {"class_path": "SGD", "init_args": {"lr": 1}}}, r"no option 'optimizer"),
]


@pytest.mark.parametrize(
    ("content", "told"), YAML, ids=[next(iter(c)) + str(i) for i, (c, _) in enumerate(YAML)]
)
def test_typos_in_yaml_are_named(here, capsys, content, told):
    (here / "more.yaml").write_text(yaml.safe_dump(content))
    assert fit("-c", "more.yaml") == 2
    assert re.match(f"mmzoo: .*{told}", line := last_line(capsys)), line


def test_missing_and_broken_configs(here, capsys):
    assert main(["fit", "-c", "clip/tinny"]) == 2
    assert "no config 'clip/tinny'. Did you mean clip/tiny" in last_line(capsys)
    (here / "broken.yaml").write_text("model: {class_path: LitCLIP\ndata: 3")
    assert main(["fit", "-c", "broken.yaml"]) == 2
    assert "not valid YAML" in last_line(capsys)
    assert main(["fit", "--trainer.max_steps", "3"]) == 2
    assert "must be given, most simply by a config" in last_line(capsys)
    assert main(["fit"]) == 2


def test_full_text_of_a_complaint_with_v(here, capsys):
    assert fit("--model.los", "softmax", "-v") == 2
    assert "Does not validate against any of the Union subtypes" in capsys.readouterr().err


def test_a_later_config_overrides_and_merges(here, capsys):
    (here / "more.yaml").write_text(
        "model: {init_args: {recipe: {ema_decay: 0.9}}}\ntrainer: {max_steps: 2, gradient_clip_val: 1.0}\n"
    )
    assert fit("-c", "more.yaml", "--name", "both") == 0
    saved = yaml.safe_load((here / "runs/both/config.yaml").read_text())
    assert saved["model"]["init_args"]["recipe"]["ema_decay"] == 0.9
    assert saved["model"]["init_args"]["recipe"]["warmup_steps"] == 2
    assert saved["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 1e-3
    assert saved["trainer"]["max_steps"] == 2


def test_what_is_printed_is_what_runs(here, capsys):
    assert fit("--print_config", "--trainer.max_steps", "3") == 0
    printed = capsys.readouterr().out
    (here / "printed.yaml").write_text(printed)
    assert main(["fit", "-c", "printed.yaml", "--print_config"]) == 0
    assert capsys.readouterr().out == printed
    assert yaml.safe_load(printed)["trainer"]["max_steps"] == 3
    assert yaml.safe_load(printed)["seed_everything"] == 0


def test_default_optimizers_are_written_out_in_full(here, capsys):
    """A default that YAML cannot hold would make a run's config.yaml unreadable."""
    content = yaml.safe_load((here / "toy.yaml").read_text())
    del content["model"]["init_args"]["optimizer"]
    (here / "toy.yaml").write_text(yaml.safe_dump(content))
    assert fit("--print_config", "--model.optimizer.lr", "0.1") == 0
    found = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["optimizer"]
    assert found["class_path"] == "mmzoo.lit.CLIPAdamW"
    assert found["init_args"] == {
        "lr": 0.1, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.2, "fused": None
    }  # fmt: skip
    content["model"] = {"class_path": "LitViT"}
    content["data"]["class_path"] = "ClassificationData"
    (here / "toy.yaml").write_text(yaml.safe_dump(content))
    assert fit("--print_config") == 0
    found = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["optimizer"]
    assert (found["init_args"]["lr"], found["init_args"]["weight_decay"]) == (3e-3, 0.3)


def test_nothing_is_linked():
    """A linked value that a user gives is dropped without a word; data modules take the processor at setup."""
    from jsonargparse._link_arguments import ActionLink

    from mmzoo.cli.zoo_cli import ZooCLI

    class Look(ZooCLI):
        def parse_arguments(self, parser, args):
            found.extend(self._subcommand_parsers.values())
            raise KeyboardInterrupt

    found = []
    with pytest.raises(KeyboardInterrupt):
        Look(["fit"])
    assert len(found) == 4
    assert not [action for parser in found for action in parser._actions if isinstance(action, ActionLink)]
    assert not any(hasattr(parser, "_links_group") for parser in found)


def test_help_is_short_and_imports_neither_torch_nor_lightning(capsys):
    assert main(["fit", "--help"]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 32
    assert "--print_config" in text
    code = (
        "import sys; from mmzoo.cli.main import main; main(['fit', '--help']); "
        "sys.exit(bool({'torch', 'lightning', 'jsonargparse'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_names_of_runs_and_configs(tmp_path):
    assert run_name(["/x/configs/clip/tiny.yaml", "/x/configs/trainer/cpu_smoke.yaml"]) == "clip-tiny"
    assert run_name([str(tmp_path / "my.yaml")]) == "my"
    assert run_name(["runs/best/config.yaml"]) == "best"
    assert run_name([]) == "run"
    words = trainer_verbs.resolve_configs(
        ["-c", "clip/tiny", "--config=clip/tiny", "--trainer.max_steps", "3"]
    )
    assert [w.endswith("configs/clip/tiny.yaml") for w in words] == [False, True, False, True, False, False]
    with pytest.raises(UsageError):
        trainer_verbs.resolve_configs(["-c", "clip/nothing"])


def test_checkpoints_by_name(tmp_path):
    assert checkpoint_of(tmp_path, None) is None
    assert checkpoint_of(tmp_path, "last") is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/best.ckpt").write_text("")
    assert checkpoint_of(tmp_path, "best") == tmp_path / "checkpoints/best.ckpt"
    with pytest.raises(UsageError, match=r"no checkpoint 'x\.ckpt'.*best\.ckpt"):
        checkpoint_of(tmp_path, "x.ckpt")


def test_a_run_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(ZooError, match="--name"):
        Claim(tmp_path / "runs" / "toy").take()
