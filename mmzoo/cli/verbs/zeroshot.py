"""`mmzoo zeroshot`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmzoo.apps.report.shares import percent
from mmzoo.cli.parser import Parser, add_model_options, positive
from mmzoo.cli.render import print_json, progress_bar, say, say_broken, table

if TYPE_CHECKING:
    from mmzoo.apps.zeroshot import ZeroShot

__all__ = ["main"]

EXAMPLES = """examples:
  mmzoo zeroshot --model runs/clip-tiny/export --labels cat,dog,bird photos/
  mmzoo zeroshot --model runs/clip-tiny/export --data data/emoji --split unseen-style --by group --html report.html
  mmzoo zeroshot --model clip-vit-b32 --pretrained clip.safetensors --data imagenet/val --labels names.txt

A labels file has one label per line. For a data set whose folders are not words, write lines of folder, tab, label.
"""
ROWS, PAIRS, MATRIX = 30, 10, 12
"""Longest per-class table, longest list of confused pairs, and largest confusion matrix in a terminal."""


def main(argv: Sequence[str]) -> int:
    """Print what is in pictures, or how well a data set is recognised."""
    parser = Parser(
        "zeroshot", "Name what is in pictures by labels given as words; on a data set, measure it.", EXAMPLES
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="files, folders, shell patterns")
    add_model_options(parser)
    parser.add_argument(
        "--labels",
        metavar="CAT,DOG|FILE",
        help="labels between commas, a file, or imagenet; a data set's classes by default",
    )
    parser.add_argument("--data", metavar="DATA", help="class folders or another data set, instead of IMAGE")
    parser.add_argument("--split", metavar="NAME", help="split of the data set")
    parser.add_argument("--by", metavar="WHAT", help="what its classes are, where it knows several answers")
    parser.add_argument(
        "--templates",
        default="auto",
        metavar="NAME",
        help="auto, imagenet, simple, ...; a sentence with {}; or a file with one per line (auto)",
    )
    parser.add_argument("--top-k", type=positive, default=5, metavar="K", help="labels per picture (5)")
    parser.add_argument("--html", metavar="OUT", help="write a gallery there, worst mistakes first")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.read(argv[1:])
    from mmzoo.apps.zeroshot import zeroshot  # torch, only once the words are known to be right

    def announce(result: ZeroShot) -> None:
        say_broken(result.broken)
        if result.weights == "random":
            say(
                f"mmzoo: {result.model} has random weights, so this is guesswork; give --pretrained or a saved folder."
            )
        if args.json:
            print_json(result)
        else:
            print(_measured(result) if result.numbers else _named(result))

    with progress_bar("looking at pictures") as progress:
        result = zeroshot(
            args.model,
            args.images,
            labels=args.labels,
            data=args.data,
            split=args.split,
            by=args.by,
            templates=args.templates,
            top_k=args.top_k,
            pretrained=args.pretrained,
            batch_size=args.batch_size,
            device=args.device,
            html=args.html,
            progress=progress,
            announce=announce,
        )
    if result.html is not None:
        say(f"gallery: {result.html}")
    return 0


def _named(result: ZeroShot) -> str:
    rows = [
        (p.key, ", ".join(f"{guess.label} {percent(guess.score)}" for guess in p.guesses))
        for p in result.predictions
    ]
    width = max(len(key) for key, _ in rows)
    return "\n".join(f"{key.ljust(width)}  {guesses}" for key, guesses in rows)


def _measured(result: ZeroShot) -> str:
    numbers = [(n.name, percent(n.value), percent(n.chance), n.note) for n in result.numbers]
    head = f"{result.model} on {result.source}: {len(result.predictions)} pictures, {len(result.labels)} labels, "
    parts = [
        f"{head}{len(result.templates)} prompts for each",
        table(("", "value", "chance", ""), numbers, right=(1, 2)),
    ]
    if len(result.predictions) >= 2 * len(result.classes) > 0:  # one picture per class makes no table
        rows = sorted(result.classes, key=lambda row: -1.0 if row.recall is None else row.recall)
        if len(rows) <= ROWS:
            rows = list(result.classes)
        shown = [
            (row.name, row.pictures, percent(row.recall), percent(row.precision), row.confused_with)
            for row in rows[:ROWS]
        ]
        parts.append(
            table(
                ("class", "pictures", "recall", "precision", "most often taken for"), shown, right=(1, 2, 3)
            )
        )
        if len(rows) > ROWS:
            parts.append(f"the {ROWS} worst of {len(rows)} classes; all of them: --json or --html")
    if result.classes and len(result.labels) <= MATRIX:
        parts.append(_matrix(result))
    elif result.confused:
        often = [pair for pair in result.confused[:PAIRS] if pair.pictures > 1]
        pairs = [(p.truth, p.guess, p.pictures, percent(p.share, 0)) for p in often]
        if pairs:
            parts.append(table(("is", "taken for", "pictures", "of its class"), pairs, right=(2, 3)))
    return "\n\n".join(parts)


def _matrix(result: ZeroShot) -> str:
    counts = {(pair.truth, pair.guess): pair.pictures for pair in result.confused}
    for row in result.classes:
        counts[row.name, row.name] = round((row.recall or 0) * row.pictures)
    heads = ["is \\ taken for", *(f"[{i}]" for i in range(1, len(result.labels) + 1))]
    rows = [
        (f"[{i}] {truth}", *(counts.get((truth, guess)) or "." for guess in result.labels))
        for i, truth in enumerate(result.labels, 1)
    ]
    return table(heads, rows, right=range(1, len(heads)))
