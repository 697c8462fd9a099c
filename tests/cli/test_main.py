"""The dispatcher: quick answers without heavy imports, whole names only, one sentence and a status for every end."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmzoo import __version__
from mmzoo.cli.errors import guarded
from mmzoo.cli.main import VERBS, help_text, main
from mmzoo.errors import UsageError, ZooError
from mmzoo.zoo import get_config

ENTRY = "from mmzoo.cli.main import run; run()"


def command(*words: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ENTRY, *words], capture_output=True, text=True, timeout=120, **options
    )


def cpu_seconds(*words: str) -> float:
    """Least CPU time of three runs; unlike wall time it does not grow when neighbours are busy."""
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert command(*words).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(spent)


@pytest.mark.parametrize(
    ("words", "limit"),
    [((), 0.3), (("--help",), 0.3), (("--version",), 0.3), (("list",), 0.5), (("list", "--json"), 0.5)],
)
def test_answers_at_once(words, limit):
    assert cpu_seconds(*words) <= limit


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"], ["list"], ["fti"]])
def test_imports_nothing_heavy(words):
    code = (
        "import sys; from mmzoo.cli.main import main; main(sys.argv[1:]);"
        "heavy = {'torch', 'numpy', 'PIL', 'lightning', 'jsonargparse', 'rich', 'yaml', 'jinja2'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_help_names_every_verb_with_one_line_in_groups(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == text == help_text() + "\n"
    lines = text.splitlines()
    for name, verb in VERBS.items():
        assert sum(line.split()[:1] == [name] for line in lines) == 1
        assert verb.summary in text
    assert [line for line in lines if line in ("Train:", "Use:", "Move:", "Look:")] == [
        "Train:", "Use:", "Move:", "Look:",
    ]  # fmt: skip
    examples = lines[lines.index("Examples:") + 1 :]
    assert sum(line.startswith("  mmzoo ") for line in examples) == 2
    assert max(map(len, lines)) <= 100


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mmzoo {__version__}\n"


def test_unknown_verb_names_the_nearest(capsys):
    assert main(["zero-shot"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "mmzoo: no verb 'zero-shot'. Did you mean zeroshot? All verbs: mmzoo --help\n"
    assert main(["--versoin"]) == 2
    assert "no option '--versoin'. Did you mean --version?" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [verb for verb in VERBS if VERBS[verb].module != "mmzoo.cli.trainer"])
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: mmzoo {verb}")


def test_trainer_verbs_get_their_words_and_load_the_trainer_only_then(monkeypatch):
    seen = []
    module = type(sys)("mmzoo.cli.trainer")
    module.main = lambda argv: seen.append(argv) or 1
    monkeypatch.setitem(sys.modules, "mmzoo.cli.trainer", module)
    assert main(["fit", "-c", "clip/tiny", "--traceback", "--trainer.max_steps=3"]) == 1
    assert seen == [["fit", "-c", "clip/tiny", "--trainer.max_steps=3"]]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["list", "--jsno"], "list has no option '--jsno'. Did you mean --json? See mmzoo list --help."),
        (["list", "--js"], "list has no option '--js'."),  # a prefix is not a name
        (["list", "--json=yes"], "argument --json: ignored explicit argument 'yes' (see mmzoo list --help)."),
        (["list", "a", "b"], "list has no use for the argument 'b'."),
        (["show"], "the following arguments are required: NAME (see mmzoo show --help)."),
        (["show", "clip-tiney"], "no model named 'clip-tiney'. Did you mean clip-tiny"),
        (["show", "vit-tiny", "--json", "--yaml"], "not allowed with argument"),
        (["list", "blpi*"], "no model matches 'blpi*'."),
    ],
)
def test_wrong_usage_is_one_sentence_and_status_2(words, sentence, capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mmzoo: ")
    assert sentence in err
    assert err.count("\n") == 1


def failing(error: BaseException):
    def run() -> int:
        raise error

    return run


class OutOfMemoryError(RuntimeError):
    """Called as torch's own."""


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (ZooError("the folder is empty."), 1, "the folder is empty."),
        (UsageError("no such name."), 2, "no such name."),
        (
            OSError(errno.ENOSPC, "No space left on device", "a.bin"),
            1,
            "the disk is full (a.bin); nothing half-written",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "permission denied (/x)."),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"),
            1,
            "no such file or directory (/x).",
        ),
        (OSError("Connection refused by a host"), 1, "OSError: Connection refused by a host."),
        (MemoryError(), 1, "out of memory: try a smaller --batch-size"),
        (OutOfMemoryError("CUDA out of memory. Tried"), 1, "out of memory: try a smaller --batch-size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9"), 1, "out of memory"),
        (KeyError("x"), 1, "unexpected KeyError: 'x'. Run again with --traceback"),
        (TypeError("first\nsecond"), 1, "unexpected TypeError: first. Run again with --traceback"),
        (KeyboardInterrupt(), 130, "interrupted."),
    ],
)
def test_each_error_is_one_line_and_a_status(error, status, sentence, capsys):
    assert guarded(failing(error)) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"mmzoo: {sentence}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("flag", ["-v", "--traceback"])
def test_traceback_on_request(flag, capsys, monkeypatch):
    module = type(sys)("mmzoo.cli.trainer")
    module.main = lambda argv: failing(KeyError("x"))()
    monkeypatch.setitem(sys.modules, "mmzoo.cli.trainer", module)
    assert main(["fit", flag]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)")
    assert err.splitlines()[-1] == "mmzoo: unexpected KeyError: 'x'."
    assert main(["fit"]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_words_after_two_dashes_are_left_alone(monkeypatch):
    seen = []
    module = type(sys)("mmzoo.cli.trainer")
    module.main = lambda argv: seen.append(argv)
    monkeypatch.setitem(sys.modules, "mmzoo.cli.trainer", module)
    assert main(["fit", "--", "-v"]) == 0
    assert seen == [["fit", "--", "-v"]]


def test_a_closed_pipe_is_quiet():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", ENTRY, "list", "--json"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_is_one_line_and_130():
    code = (
        # what a shell starts in the background inherits that SIGINT is ignored
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "import sys, time, types; from mmzoo.cli.main import main; t = types.ModuleType('mmzoo.cli.trainer');"
        "t.main = lambda argv: (print('ready', flush=True), time.sleep(60));"
        "sys.modules['mmzoo.cli.trainer'] = t; sys.exit(main(['fit']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "mmzoo: interrupted.\n"


def test_list_as_json(capsys):
    assert main(["list", "clip-vit-b32*", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    first = json.loads(out)[0]
    assert first.pop("tags")[:2] == ["openai", "openai-timm"]
    assert first == {
        "name": "clip-vit-b32",
        "params": 151_277_313,
        "image_size": 224,
        "capabilities": ["embeds pairs"],
        "family": "clip",
        "origin": "openai",
        "licence": "MIT, CC-BY-NC-4.0",
    }
    assert [model["name"] for model in json.loads(out)] == ["clip-vit-b32", "clip-vit-b32-laion"]


def test_list_as_a_table(capsys):
    assert main(["list", "laion"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "params", "image", "can", "tags", "licence"]
    assert {line.split()[0] for line in lines[1:]} == {
        f"clip-vit-{size}-laion" for size in ("b32", "b16", "l14", "h14", "g14")
    }


def test_show_as_json_and_text(capsys):
    assert main(["show", "clip-tiny", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert main(["show", "clip-tiny"]) == 0
    text = capsys.readouterr().out
    for words in (
        f"{shown['params']:,}",
        "vision",
        "text_proj",
        "Radford et al.",
        "context: 32",
        "no weights",
    ):
        assert words in text
    assert main(["show", "clip-vit-b32"]) == 0
    text = capsys.readouterr().out
    for words in (
        "openai-hf",
        "clip/transformers",
        "605 MB",
        "CC-BY-NC-4.0",
        "https://openaipublic",
        "verified",
    ):
        assert words in text


@pytest.mark.parametrize("name", ["clip-tiny", "vit-tiny", "clip-vit-b32"])
def test_show_as_yaml_is_what_a_config_of_fit_takes(name, capsys):
    import yaml
    from jsonargparse import ArgumentParser

    assert main(["show", name, "--yaml"]) == 0
    written = yaml.safe_load(capsys.readouterr().out)
    config = get_config(name)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=str | type(config))
    assert parser.instantiate(parser.parse_object({"model": written})).model == config


def test_doctor_prints_json_and_text(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["mmzoo"] == __version__
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for section in found:
        assert f"[{section}]" in text
    assert str(Path(sys.executable)) in text
