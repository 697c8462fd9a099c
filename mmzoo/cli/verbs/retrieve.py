"""`mmzoo retrieve`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmzoo.apps.report.shares import percent
from mmzoo.cli.parser import Parser, add_model_options, positive
from mmzoo.cli.render import print_json, progress_bar, say, say_broken, table

if TYPE_CHECKING:
    from mmzoo.apps.retrieve import Found, Retrieved

__all__ = ["main"]

CANDIDATES = 128
"""Re-ranked unless a number is given: what ALBEF and BLIP do on Flickr30k."""
EXAMPLES = """examples:
  mmzoo retrieve --model runs/clip-tiny/export -t "a red apple" -t "a boat" --images photos/
  mmzoo retrieve --model runs/clip-tiny/export --image cat.jpg --captions captions.txt --top-k 3
  mmzoo retrieve --model runs/clip-tiny/export -t "a fish" --data data/emoji --split unseen-style --html found.html

A folder that is searched often is embedded once:
  mmzoo embed --model M --out photos.safetensors photos/
  mmzoo retrieve --model M -t "a boat" --images photos.safetensors
"""


def main(argv: Sequence[str]) -> int:
    """Print the best pictures or captions for each query."""
    parser = Parser(
        "retrieve", "Find pictures by words, captions by pictures, and pictures by pictures.", EXAMPLES
    )
    add_model_options(parser)
    asked = parser.add_argument_group("search by")
    asked.add_argument(
        "-t",
        "--texts",
        nargs="+",
        action="extend",
        default=[],
        metavar="TEXT",
        help="texts; one that ends in .txt is a file with one per line",
    )
    asked.add_argument(
        "--image",
        nargs="+",
        action="extend",
        default=[],
        metavar="PICTURE",
        help="files, folders, shell patterns",
    )
    searched = parser.add_argument_group("search in")
    searched.add_argument(
        "--images",
        nargs="+",
        action="extend",
        default=[],
        metavar="PICTURE",
        help="files, folders, shell patterns; or one file written by mmzoo embed",
    )
    searched.add_argument(
        "--captions",
        metavar="FILE|FOLDER",
        help="one caption per line, a folder with captions.jsonl, or a file written by mmzoo embed",
    )
    searched.add_argument(
        "--data", metavar="DATA", help="a data set: texts find its pictures, pictures its captions"
    )
    searched.add_argument("--split", metavar="NAME", help="split of the data set")
    parser.add_argument(
        "--top-k", type=positive, metavar="K", help="how many for each query (5, or all if there are fewer)"
    )
    parser.add_argument(
        "--rerank",
        type=positive,
        nargs="?",
        const=CANDIDATES,
        default=0,
        metavar="N",
        help=f"read the best N ({CANDIDATES}) again together with the query, for models that score pairs",
    )
    parser.add_argument("--html", metavar="OUT", help="write a page with what was found there")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.read(argv[1:])
    from mmzoo.apps.labels import read_lines  # torch, only once the words are known to be right
    from mmzoo.apps.retrieve import retrieve

    def announce(result: Retrieved) -> None:
        say_broken(result.broken)
        if result.cut:
            some = "1 caption is" if result.cut == 1 else f"{result.cut} captions are"
            say(f"mmzoo: {some} longer than {result.model} reads; the end did not count.")
        if result.weights == "random":
            say(
                f"mmzoo: {result.model} has random weights, so this is guesswork; give --pretrained or a saved folder."
            )
        if args.json:
            print_json(result)
        else:
            print("\n\n".join(_lines(found) for found in result.found))

    texts = [line for text in args.texts for line in (read_lines(text) if text.endswith(".txt") else [text])]
    with progress_bar("searching") as progress:
        result = retrieve(
            args.model,
            texts=texts,
            image=args.image,
            images=args.images,
            captions=args.captions,
            data=args.data,
            split=args.split,
            top_k=args.top_k,
            rerank=args.rerank,
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


def _lines(found: Found) -> str:
    matched = any(hit.match is not None for hit in found.hits)
    heads = (
        "",
        *(("match",) if matched else ()),
        "cosine",
        "picture" if found.finds == "image" else "caption",
    )
    rows = [
        (rank, *((percent(hit.match),) if matched else ()), f"{hit.score:.3f}", hit.key)
        for rank, hit in enumerate(found.hits, 1)
    ]
    return f"{found.query}\n{table(heads, rows, right=range(len(heads) - 1))}"
