"""`mmzoo answer`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmzoo.apps.report.shares import percent
from mmzoo.cli.parser import Parser, positive
from mmzoo.cli.render import print_json, say, table

if TYPE_CHECKING:
    from mmzoo.apps.answer import Answered

__all__ = ["main"]

EXAMPLES = """examples:
  mmzoo answer --model runs/vilt-tiny-vqa/export photo.png "what shape is in the picture?"
  mmzoo answer --model M photo.jpg "what is the man holding?" --answers umbrella,dog,phone
  mmzoo answer --model blip-base-vqa --pretrained P photo.jpg "what is the man holding?" --generate

Models with a classifier (ViLT) choose from the list that they were trained on and hold each answer to be right by some
share, which need not sum to 100 %. Others (ALBEF, BLIP) rank any list by how likely they would say each answer; shares
are of that list. BLIP also writes answers of its own: the share is then how likely it says exactly that.
"""


def main(argv: Sequence[str]) -> int:
    """Print answers to a question about a picture, best first."""
    parser = Parser("answer", "Answer a question about a picture.", EXAMPLES)
    parser.add_argument("picture", metavar="IMAGE", help="a picture file")
    parser.add_argument("question", metavar="QUESTION", help="the question, as one argument")
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="a name of the zoo, or a folder with a saved model"
    )
    parser.add_argument(
        "--pretrained", metavar="PATH", help="weights for a name of the zoo; without them they are random"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (a GPU if there is one)")
    parser.add_argument(
        "--answers",
        metavar="YES,NO|FILE",
        help="answers to choose from: words between commas, or a file (the model's)",
    )
    parser.add_argument("--generate", action="store_true", help="let the model write the answer (BLIP)")
    parser.add_argument("--top-k", type=positive, default=5, metavar="K", help="answers to print (5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.read(argv[1:])
    from mmzoo.apps.answer import answer  # torch, only once the words are known to be right

    result = answer(
        args.model,
        args.picture,
        args.question,
        answers=args.answers,
        generate=args.generate,
        top_k=args.top_k,
        pretrained=args.pretrained,
        device=args.device,
    )
    if result.cut:
        say(f"mmzoo: the question is longer than {result.model} reads; its end did not count.")
    if result.weights == "random":
        say(
            f"mmzoo: {result.model} has random weights, so this is guesswork; give --pretrained or a saved folder."
        )
    if args.json:
        print_json(result)
    else:
        print(_text(result))
    return 0


def _text(result: Answered) -> str:
    of = "" if result.choices is None else f" of {result.choices:,}"
    rows = [(one.answer or "(nothing)", percent(one.share), f"{one.score:.2f}") for one in result.answers]
    return f"{result.model}: {result.way}{of}\n{table(('answer', 'share', 'score'), rows, right=(1, 2))}"
