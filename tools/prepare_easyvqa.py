"""Pack the pictures of the easy-VQA package into two atlases, an index of shape and colour, and its questions.

    pip install easy-vqa==1.0
    python tools/prepare_easyvqa.py            # writes data/easyvqa
    python tools/prepare_easyvqa.py --check    # compares data/easyvqa with the package instead

A picture holds one shape of one colour; for nine in ten both follow from the questions and answers about it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

TILE, COLUMNS = 64, 50
SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
# Every shape loses two colours and no colour more than one shape: each word is still learned from other pairs.
LEFT_OUT = (
    "red circle",
    "brown circle",
    "blue rectangle",
    "black rectangle",
    "green triangle",
    "yellow triangle",
)
DATA = Path(__file__).resolve().parents[1] / "data" / "easyvqa"


def told(questions: list[tuple[str, str]], known: tuple[str, ...]) -> str | None:
    """Which of the known words is true of a picture, as far as its questions and answers tell.

    An open question tells by its answer and by the word it takes for granted ("what is the blue shape?"), a yes/no
    question by its answer, turned round by "not" and by "no" ("is no blue shape present?"); or all other words are
    ruled out.
    """
    yes: set[str] = set()
    no: set[str] = set()
    for question, answer in questions:
        words = question.rstrip("?").split()
        named = [word for word in known if word in words]
        if answer in ("yes", "no"):
            negated = "not" in words or "no" in words
            (no if (answer == "yes") == negated else yes).update(named)
        else:
            yes.update(named, [answer] if answer in known else [])
    left = yes or set(known) - no
    if len(yes) > 1 or yes & no:
        sys.exit(f"prepare_easyvqa: contradicting answers: {questions}")
    return left.pop() if len(left) == 1 else None


def load(part: str) -> tuple[Image.Image, list[str | None]]:
    """One part's atlas and "colour shape" of each picture (None where the questions do not tell)."""
    import easy_vqa

    paths = getattr(easy_vqa, f"get_{part}_image_paths")()
    asked: dict[int, list[tuple[str, str]]] = {i: [] for i in paths}
    for question, answer, image in zip(*getattr(easy_vqa, f"get_{part}_questions")(), strict=True):
        asked[image].append((question, answer))
    sheet = Image.new("RGB", (COLUMNS * TILE, -(-len(paths) // COLUMNS) * TILE), "white")
    names: list[str | None] = []
    for i in range(len(paths)):
        with Image.open(paths[i]) as picture:
            sheet.paste(picture.convert("RGB"), (i % COLUMNS * TILE, i // COLUMNS * TILE))
        colour, shape = told(asked[i], COLOURS), told(asked[i], SHAPES)
        names.append(f"{colour} {shape}" if colour and shape else None)
    return sheet, names


def questions() -> str:
    """Every question and answer as JSON, a line per picture: number of a question, number of its answer, ...."""
    import easy_vqa

    asked = {part: list(zip(*getattr(easy_vqa, f"get_{part}_questions")())) for part in ("train", "test")}
    texts = sorted({question for rows in asked.values() for question, _, _ in rows})
    answers = easy_vqa.get_answers()
    lines = ["{", f'"questions": {json.dumps(texts)},', f'"answers": {json.dumps(answers)},']
    for part, rows in asked.items():
        pictures: list[list[int]] = [[] for _ in range(rows[-1][2] + 1)]
        for question, answer, image in rows:  # in the order of the pictures
            pictures[image] += [texts.index(question), answers.index(answer)]
        body = ",\n".join(json.dumps(numbers, separators=(",", ":")) for numbers in pictures)
        lines.append(f'"{part}": [\n{body}\n]' + ("," if part == "train" else ""))
        print(f"{part}: {len(rows)} questions, {len(answers)} answers")
    return "\n".join([*lines, "}"]) + "\n"


def pixel_hash(image: Image.Image) -> str:
    return hashlib.sha256(np.asarray(image.convert("RGB")).tobytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="compare with data/easyvqa instead of writing it"
    )
    check = parser.parse_args().check
    parts = {part: load(part) for part in ("train", "test")}
    for part, (_, names) in parts.items():
        print(f"{part}: {len(names)} pictures, of {names.count(None)} the questions don't tell all")
    pixels = {part: pixel_hash(sheet) for part, (sheet, _) in parts.items()}
    index = {
        "tile": TILE, "columns": COLUMNS, "shapes": SHAPES, "colours": COLOURS, "left_out": LEFT_OUT,
        "package": "easy-vqa 1.0", "pixels": pixels,
        "pictures": {p: names for p, (_, names) in parts.items()},
    }  # fmt: skip
    texts = {"easyvqa.json": json.dumps(index, indent=0) + "\n", "questions.json": questions()}
    if check:
        wrong = [p for p in parts if pixel_hash(Image.open(DATA / f"{p}.webp")) != pixels[p]]
        wrong += [name for name in texts if (DATA / name).read_text(encoding="utf-8") != texts[name]]
        sys.exit(f"prepare_easyvqa: differs from data/easyvqa: {', '.join(wrong)}" if wrong else 0)
    DATA.mkdir(parents=True, exist_ok=True)
    for part, (sheet, _) in parts.items():
        sheet.save(DATA / f"{part}.webp", lossless=True, quality=100, method=6)
    for name, text in texts.items():
        (DATA / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
