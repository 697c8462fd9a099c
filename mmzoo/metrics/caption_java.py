"""METEOR and SPICE, which exist as Java programs only: the extra `caption-java` and a Java runtime.

Both are run by the package pycocoevalcap, the COCO caption kit. SPICE also parses with Stanford CoreNLP 3.6.0, which
the kit does not carry; nothing is downloaded here, the error says how to get it.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from mmzoo.errors import ZooError
from mmzoo.metrics.cider import Words

__all__ = ["SCORES", "check_java", "meteor", "spice"]

CORENLP = "stanford-corenlp-3.6.0"


def meteor(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> tuple[float, list[float]]:
    """METEOR 1.5 (Denkowski and Lavie, 2014).

    Args:
        candidates: One caption for each picture, cut into words by `ptb_tokenize`.
        references: References of each picture.

    Returns:
        The score of the whole and that of each picture, 0 to 1.

    Raises:
        ZooError: The package or Java is missing, or the program failed.
    """
    kit = _kit("meteor", "METEOR")
    scorer = kit.Meteor()
    try:
        # its arithmetic ends where the program's output does: an empty answer is no number
        whole, each = scorer.compute_score(*_as_kit(candidates, references))
    except (ValueError, OSError) as error:
        raise ZooError(f"METEOR's Java program failed ({error}); it takes 2 GB of memory.") from None
    return float(whole), [float(score) for score in each]


def spice(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> tuple[float, list[float]]:
    """SPICE (Anderson et al., ECCV 2016): F over the objects, attributes and relations that captions tell of.

    Args:
        candidates: One caption for each picture, cut into words by `ptb_tokenize`.
        references: References of each picture.

    Returns:
        The mean and the score of each picture, 0 to 1.

    Raises:
        ZooError: The package, Java or Stanford CoreNLP is missing, or the program failed.
    """
    kit = _spice()
    try:
        whole, each = kit.Spice().compute_score(*_as_kit(candidates, references))
    except (subprocess.CalledProcessError, OSError) as error:
        raise ZooError(f"SPICE's Java program failed ({error}); it takes 8 GB of memory.") from None
    return float(whole), [float(scores["All"]["f"]) for scores in each]


SCORES: dict[str, Callable[..., tuple[float, list[float]]]] = {"meteor": meteor, "spice": spice}
"""By name."""


def check_java(names: Sequence[str]) -> None:
    """Make sure that scores can be had, before a model writes for hours.

    Args:
        names: Of `SCORES`.

    Raises:
        ZooError: The package, Java or Stanford CoreNLP is missing.
    """
    for name in names:
        if name == "spice":
            _spice()
        else:
            _kit(name, name.upper())


def _spice() -> ModuleType:
    """SPICE's module of the kit.

    Raises:
        ZooError: It, Java or Stanford CoreNLP is missing.
    """
    kit = _kit("spice", "SPICE")
    folder = Path(str(kit.__file__)).parent
    missing = [
        jar for jar in (f"{CORENLP}.jar", f"{CORENLP}-models.jar") if not (folder / "lib" / jar).is_file()
    ]
    if missing:
        raise ZooError(
            f"SPICE needs {' and '.join(missing)} in {folder / 'lib'}: run `python get_stanford_models.py` in {folder} "
            "(400 MB), or copy them from another machine."
        )
    return kit


def _kit(part: str, name: str) -> ModuleType:
    """A module of the kit.

    Raises:
        ZooError: It or Java is missing.
    """
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise ZooError(f"{name} needs the package pycocoevalcap: pip install 'mmzoo[caption-java]'.")
    if shutil.which("java") is None:
        raise ZooError(
            f"{name} runs in Java, and there is no `java` here: apt-get install default-jre-headless."
        )
    return importlib.import_module(f"pycocoevalcap.{part}.{part}")


def _as_kit(
    candidates: Sequence[Words], references: Sequence[Sequence[Words]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """References and candidates as the kit takes them: number to texts of words with spaces between."""
    theirs = {i: [" ".join(words) for words in texts] for i, texts in enumerate(references)}
    return theirs, {i: [" ".join(words)] for i, words in enumerate(candidates)}
