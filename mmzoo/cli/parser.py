"""The argument parser of the verbs: argparse with whole names only and errors in our own sentences."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from mmzoo.errors import UsageError, nearest

__all__ = ["Parser", "positive"]


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
            kind = "option" if flag.startswith("-") else "use for the argument"
            raise UsageError(
                f"{self.prog} has no {kind} {flag!r}.{nearest(flag, known)} See {self.prog} --help."
            )
        return args
