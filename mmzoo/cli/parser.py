"""The argument parser of the verbs: argparse with whole names only and errors in our own sentences."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from mmzoo.errors import UsageError, nearest

__all__ = ["Parser", "add_model_options", "counting", "positive"]


def counting(text: str) -> int:
    """An argparse type: a whole number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that refuses prefixes of flags and raises `UsageError` instead of exiting.

    Args:
        verb: Name of the verb, as typed after `mmzoo`.
        summary: First paragraph of its help.
        epilog: Examples, printed as they are.
    """

    def __init__(self, verb: str, summary: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=f"mmzoo {verb}",
            description=summary,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Raise argparse's complaint as a `UsageError`."""
        raise UsageError(f"{message} (see {self.prog} --help).")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse the words after the verb; pictures may stand before, between and after flags.

        Raises:
            UsageError: A flag is unknown (the nearest is named), lacks its value, or has a value that
                does not fit.
        """
        args, unknown = self.parse_known_intermixed_args(list(argv))
        if unknown:
            flag = unknown[0].split("=")[0]
            known = [name for action in self._actions for name in action.option_strings]
            verb = self.prog.removeprefix("mmzoo ")
            kind = "option" if flag.startswith("-") else "use for the argument"
            raise UsageError(f"{verb} has no {kind} {flag!r}.{nearest(flag, known)} See {self.prog} --help.")
        return args


def add_model_options(parser: Parser, *, batch_size: int = 64, required: bool = True) -> None:
    """Add the options of every verb that runs a model: `--model --pretrained --batch-size --device`."""
    parser.add_argument(
        "--model",
        required=required,
        metavar="MODEL",
        help="a name of the zoo, or a folder with a saved model",
    )
    parser.add_argument(
        "--pretrained", metavar="PATH", help="weights for a name of the zoo; without them they are random"
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=batch_size,
        metavar="N",
        help=f"pictures at a time ({batch_size})",
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (a GPU if there is one)")
