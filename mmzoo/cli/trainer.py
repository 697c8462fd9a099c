"""The training verbs: `fit`, `validate`, `test`, `predict`.

Help and mistakes in config names are answered here without importing torch; the rest is in `zoo_cli`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmzoo.errors import UsageError
from mmzoo.paths import find_config

__all__ = ["help_text", "main", "resolve_configs"]

_ABOUT = {
    "fit": "Train a model from a config.",
    "validate": "Held-out numbers of a checkpoint, on the config's validation splits.",
    "test": "Held-out numbers of a checkpoint, on the config's test splits.",
    "predict": "Write what a checkpoint's model gives for the config's data to predictions.safetensors.",
}


def help_text(verb: str) -> str:
    """The short help of a training verb."""
    return f"""usage: mmzoo {verb} -c CONFIG [-c CONFIG ...] [--OPTION VALUE ...]

{_ABOUT[verb]} A later -c or option overrides an earlier one.

  -c, --config CONFIG                a file, or the name of a carried config: clip/tiny, trainer/gpu_bf16
  --name NAME                        the run's folder is runs/NAME (default: from the config, clip-tiny)
  --ckpt_path PATH                   last (of this run), best (of this run) or a file
  --model.model NAME                 the model (mmzoo list); mmzoo show NAME --yaml gives one to edit in a config
  --model.optimizer.lr RATE          and .weight_decay, .betas: whatever the optimizer takes
  --data.source FOLDER               your own pictures and captions
  --data.batch_size N
  --trainer.max_steps N              optimizer steps; --trainer.max_epochs N
  --trainer.precision bf16-mixed     or 16-mixed, 32-true
  --checkpoints.every_n_steps N      how often last.ckpt is written between validations
  --seed_everything N                default 0
  --json                             print the results as JSON
  --print_config                     every option with its value, as YAML that -c takes

Options of a class: mmzoo {verb} --model.help LitCLIP, mmzoo {verb} --data.help CaptionsData

Examples:
  mmzoo {verb} -c clip/tiny
  mmzoo {verb} -c clip/tiny -c trainer/gpu_bf16 --data.source my/pictures --ckpt_path last"""


def resolve_configs(argv: Iterable[str]) -> list[str]:
    """Replace names of configs after `-c` and `--config` by paths.

    Raises:
        UsageError: There is no such config.
    """
    words, result = list(argv), []
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if flag in ("-c", "--config") and (equals or words):
            result += [flag, str(find_config(value if equals else words.pop(0)))]
        else:
            result.append(word)
    return result


def main(argv: Sequence[str]) -> int:
    """Run a training verb.

    Args:
        argv: The verb and what follows it.

    Returns:
        The exit status.

    Raises:
        UsageError: An option, class or config is unknown or has an unfit value.
        ZooError: The data, the weights or the run itself failed in a way that can be mended.
    """
    verb, words = argv[0], list(argv[1:])
    if verb not in _ABOUT:
        raise UsageError(f"{verb!r} is not a training verb; there are {', '.join(_ABOUT)}.")
    if not words or {"-h", "--help"} & set(words):
        print(help_text(verb))
        return 0 if words else 2
    as_json = "--json" in words
    words = resolve_configs(word for word in words if word != "--json")

    from mmzoo.cli.zoo_cli import run

    return run([verb, *words], as_json=as_json)
