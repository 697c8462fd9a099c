"""`mmzoo explain`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmzoo.apps.report.shares import percent
from mmzoo.cli.parser import Parser, counting
from mmzoo.cli.render import print_json, say, table

if TYPE_CHECKING:
    from mmzoo.apps.explain import Explained

__all__ = ["main"]

EXAMPLES = """examples:
  mmzoo explain --model runs/albef-tiny/export photo.png "a red circle on the left"
  mmzoo explain --model runs/blip-tiny/export photo.png
  mmzoo explain --model albef-b16 --pretrained ALBEF.pth street.jpg "a dog behind a fence" --layer 8 --out maps

A map is the attention from a word to the patches of the picture, times what it adds to "they match". Without TEXT, a
model that writes captions (BLIP) writes one, and a map shows what spoke for each word when it was written. Words are
divided where the model's vocabulary divides them, and their pieces joined again.
"""


def main(argv: Sequence[str]) -> int:
    """Write heat maps over a picture, of the words of a text or of a caption."""
    parser = Parser(
        "explain",
        "Show where in a picture a model looks for each word of a text, or of its own caption.",
        EXAMPLES,
    )
    parser.add_argument("picture", metavar="IMAGE", help="a picture file")
    parser.add_argument(
        "text",
        nargs="?",
        metavar="TEXT",
        help="what is said of it, as one argument (the model's own caption)",
    )
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="a name of the zoo, or a folder with a saved model"
    )
    parser.add_argument(
        "--pretrained", metavar="PATH", help="weights for a name of the zoo; without them they are random"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (a GPU if there is one)")
    parser.add_argument(
        "--out", metavar="DIR", help="folder of the heat maps (runs/explain/ and the picture's name)"
    )
    parser.add_argument(
        "--layer", type=counting, metavar="N", help="layer to look at, counted from 0 (the model's own)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.read(argv[1:])
    from mmzoo.apps.explain import explain  # torch, only once the words are known to be right

    result = explain(
        args.model,
        args.picture,
        args.text,
        out=args.out or Path("runs/explain", Path(args.picture).stem),
        layer=args.layer,
        pretrained=args.pretrained,
        device=args.device,
    )
    if result.cut and result.written:
        say(f"mmzoo: the caption was cut at the most tokens that {result.model} is let write.")
    elif result.cut:
        say(f"mmzoo: the text is longer than {result.model} reads; its end did not count.")
    if result.weights == "random":
        say(
            f"mmzoo: {result.model} has random weights, so this is guesswork; give --pretrained or a saved folder."
        )
    if args.json:
        print_json(result)
    else:
        print(_text(result))
    return 0


def _text(result: Explained) -> str:
    rows = [
        (
            w.word,
            percent(w.share),
            "-" if w.peak is None else f"{percent(w.peak[0], 0)}, {percent(w.peak[1], 0)}",
            w.file,
        )
        for w in result.words
    ]
    said = f"wrote {result.text!r}" if result.written else f"a match by {percent(result.match)}"
    return "\n".join(
        [
            f"{result.model}: {said}; layer {result.layer}, {result.grid[0]} x {result.grid[1]} patches",
            table(("word", "heat", "peak (right, down)", "map"), rows, right=(1, 2)),
            f"all words: {result.file}",
        ]
    )
