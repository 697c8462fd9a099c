"""Short answers as the VQA evaluation compares them: without case, articles, stray punctuation and spelt-out digits.

The rules and the table of contractions are those of the VQA evaluation kit (Antol et al., "VQA: Visual Question
Answering", 2015; `PythonEvaluationTools/vqaEvaluation/vqaEval.py` of github.com/GT-Vision-Lab/VQA), by which all
published results are counted.
"""

from __future__ import annotations

import json
import re
from functools import cache, lru_cache
from importlib import resources

__all__ = ["normalise_answer", "strip_punctuation"]

MARKS = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBERS)}

_THOUSANDS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")


@cache
def _contractions() -> dict[str, str]:
    """Contractions without or with misplaced apostrophes, and how they are written."""
    file = resources.files("mmzoo.processing").joinpath("assets/vqa_contractions.json")
    table: dict[str, str] = json.loads(file.read_text("utf-8"))
    return table


def strip_punctuation(answer: str) -> str:
    """Take punctuation out of an answer.

    A mark beside a space somewhere in the answer is dropped; one that only stands between characters becomes a space; a
    comma between digits anywhere has all marks dropped. Full stops go unless a digit follows.

    Args:
        answer: As someone gave it.
    """
    dropped = _THOUSANDS.search(answer) is not None
    text = answer
    for mark in MARKS:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if dropped or beside_space else " ")
    return _FULL_STOP.sub("", text)


@lru_cache(maxsize=2**17)  # the same few thousand answers are compared over and over
def normalise_answer(answer: str) -> str:
    """Bring an answer into the form in which answers are compared.

    Args:
        answer: As a model or a person gave it.

    Example:
        >>> normalise_answer("The two cats, dont they?")
        "2 cats don't they"
    """
    text = strip_punctuation(answer.replace("\n", " ").replace("\t", " ").strip())
    words = [DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(_contractions().get(word, word) for word in words if word not in ARTICLES)
