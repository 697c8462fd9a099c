"""The `mmzoo` command: finds the verb and imports only what that verb needs.

Without a verb (or for `--help`, `--version`, a misspelt verb) nothing beyond the standard library is
imported, so the answer is there before torch could have begun to load.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from mmzoo.cli.errors import guarded
from mmzoo.errors import UsageError, nearest

__all__ = ["VERBS", "Verb", "help_text", "main", "run"]

TRAINER = "mmzoo.cli.trainer"


class Verb(NamedTuple):
    """One line of the help and where the verb's code is.

    Attributes:
        group: Heading under which the help lists it.
        summary: What it does, in a few words.
        module: Imported when the verb is called; its `main(argv)` takes the words from the verb on.
    """

    group: str
    summary: str
    module: str


VERBS = {
    "fit": Verb("Train", "train a model from a config; writes metrics, checkpoints and export/", TRAINER),
    "validate": Verb("Train", "run the validation loop of a config on a checkpoint", TRAINER),
    "test": Verb("Train", "run the test loop of a config on a checkpoint", TRAINER),
    "predict": Verb("Train", "write a config's predictions for a checkpoint", TRAINER),
    "zeroshot": Verb(
        "Use", "name what is in pictures, or measure accuracy on a data set", "mmzoo.cli.verbs.zeroshot"
    ),
    "embed": Verb(
        "Use", "embeddings of pictures and texts, as safetensors or Parquet", "mmzoo.cli.verbs.embed"
    ),
    "retrieve": Verb(
        "Use", "find pictures by words, captions or pictures by a picture", "mmzoo.cli.verbs.retrieve"
    ),
    "caption": Verb(
        "Use", "describe pictures in words, line by line; stopped runs go on", "mmzoo.cli.verbs.caption"
    ),
    "answer": Verb(
        "Use", "answer a question about a picture, ranked answers with scores", "mmzoo.cli.verbs.answer"
    ),
    "capfilt": Verb(
        "Use", "caption pictures, judge all texts, keep what fits: clean data", "mmzoo.cli.verbs.capfilt"
    ),
    "evaluate": Verb(
        "Use",
        "a model's numbers on a data set by the papers' protocols, chance beside",
        "mmzoo.cli.verbs.evaluate",
    ),
    "explain": Verb(
        "Use", "heat maps: where a model looks for each word, read or written", "mmzoo.cli.verbs.explain"
    ),
    "convert": Verb("Move", "weights from any layout to any other, exactly", "mmzoo.cli.verbs.convert"),
    "export": Verb("Move", "encoders as torch.export programs and ONNX, checked", "mmzoo.cli.verbs.export"),
    "list": Verb("Look", "the models: size, input, what they can do, licence", "mmzoo.cli.verbs.list"),
    "show": Verb("Look", "one model: config, parameters, preprocessing, citation", "mmzoo.cli.verbs.show"),
    "doctor": Verb(
        "Look", "versions, devices, attention backends, extras: for a bug report", "mmzoo.cli.verbs.doctor"
    ),
}

EXAMPLES = (
    "mmzoo fit -c clip/tiny                                      # a CLIP in minutes, on two CPU cores",
    "mmzoo zeroshot --model runs/clip-tiny/export --labels cat,dog photos/",
)


def help_text() -> str:
    """The text of `mmzoo --help`: every verb in its group with one line, then two examples."""
    lines = ["usage: mmzoo VERB ...", "", "A multimodal model zoo: ViT, CLIP, ViLT, ALBEF, BLIP and BLIP-2."]
    for group in dict.fromkeys(verb.group for verb in VERBS.values()):
        lines += ["", f"{group}:"]
        lines += [f"  {name:<10}{verb.summary}" for name, verb in VERBS.items() if verb.group == group]
    lines += ["", "Examples:", *(f"  {example}" for example in EXAMPLES), ""]
    lines += [
        "More on a verb: mmzoo VERB --help    Full traceback of a failure: --traceback (or -v)",
        "Exit status: 0 done, 1 failed, 2 wrong usage.    Version: mmzoo --version",
    ]
    return "\n".join(lines)


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if argv[0] in ("-V", "--version"):
        from mmzoo import __version__

        print(f"mmzoo {__version__}")
        return 0
    verb = VERBS.get(argv[0])
    if verb is None:
        kind = "option" if argv[0].startswith("-") else "verb"
        known = [*VERBS, "--help", "--version"]
        raise UsageError(f"no {kind} {argv[0]!r}.{nearest(argv[0], known)} All verbs: mmzoo --help")
    status = importlib.import_module(verb.module).main(argv)
    return int(status or 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Words after `mmzoo`; those of the process when None. `-v` or `--traceback`, anywhere before
            a lone `--`, asks for the full traceback of a failure.

    Returns:
        The exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted from the keyboard.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word not in ("-v", "--traceback")]
    return guarded(lambda: _dispatch(kept + words[end:]), traceback=len(kept) < end)


def run() -> None:
    """Entry point of the console script."""
    sys.exit(main())
