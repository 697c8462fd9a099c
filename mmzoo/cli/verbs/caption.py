"""`mmzoo caption`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmzoo.cli.parser import Parser, add_model_options, counting, positive
from mmzoo.cli.render import progress_bar, say, say_broken

if TYPE_CHECKING:
    from mmzoo.apps.caption import Captioned, Captions

__all__ = ["main"]

NAMED = 50
"""Unreadable pictures that are named; all are counted."""
EXAMPLES = """examples:
  mmzoo caption --model runs/blip-tiny/export photo.png
  mmzoo caption --model M photos/ --out photos/captions.jsonl --html captions.html
  find . -name '*.jpg' | mmzoo caption --model M --json - > captions.jsonl
  mmzoo caption --model M photo.jpg --sample --num-captions 5 --seed 7

A line of JSON holds the picture, its captions (best first), the mean log-probability of a token of each ("scores"), and
whether it ended by itself ("finished"). With --out, a run that was stopped goes on by the same command; pictures beside
that file or below it are named from there, as a data set's are.

BLIP counts its prompt among its tokens: its paper's 20 are --max-new-tokens 16. With --prompt "" captions begin freely.
"""


def main(argv: Sequence[str]) -> int:
    """Print captions of pictures as they are written."""
    parser = Parser("caption", "Describe pictures in words.", EXAMPLES)
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="files, folders, shell patterns; - for a list on stdin"
    )
    add_model_options(parser, batch_size=16)
    parser.add_argument(
        "--prompt", metavar="TEXT", help='what captions begin with (the model\'s own; "" for nothing)'
    )
    parser.add_argument("--num-captions", type=positive, default=1, metavar="N", help="captions of each (1)")
    how = parser.add_argument_group("search")
    how.add_argument("--beams", type=positive, metavar="N", help="width of beam search; 1 is greedy (3)")
    how.add_argument(
        "--length-penalty", type=float, default=1.0, metavar="X", help="above 1 favours length (1)"
    )
    drawn = parser.add_argument_group("sampling")
    drawn.add_argument("--sample", action="store_true", help="draw words instead")
    drawn.add_argument(
        "--top-p", type=float, metavar="SHARE", help="of the likeliest that hold this share (0.9)"
    )
    drawn.add_argument("--top-k", type=counting, default=0, metavar="K", help="of the K likeliest (0: all)")
    drawn.add_argument("--temperature", type=float, default=1.0, metavar="X", help="below 1 is bolder (1)")
    drawn.add_argument(
        "--seed", type=int, default=0, metavar="N", help="with the picture it decides the draw (0)"
    )
    text = parser.add_argument_group("text")
    text.add_argument(
        "--max-new-tokens", type=positive, default=20, metavar="N", help="behind the prompt (20)"
    )
    text.add_argument("--min-new-tokens", type=counting, default=1, metavar="N", help="no end before (1)")
    text.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1 avoids it (1)"
    )
    text.add_argument(
        "--no-repeat-ngram", type=counting, default=0, metavar="N", help="no N tokens twice (0: off)"
    )
    parser.add_argument(
        "--out", metavar="FILE.jsonl", help="write lines of JSON there, and go on with what is there"
    )
    parser.add_argument("--html", metavar="OUT", help="write a gallery there")
    parser.add_argument("--json", action="store_true", help="print lines of JSON")
    args = parser.read(argv[1:])
    from mmzoo.apps.caption import caption, read_list  # torch, only once the words are known to be right
    from mmzoo.apps.lines import as_line

    def announce(said: Captioned) -> None:
        if args.json:
            print(as_line(said._asdict()), flush=True)
        elif args.out is None:
            for text in said.captions:
                print(_printable(f"{said.image}\t{text}"), flush=True)

    try:
        with progress_bar("describing pictures") as progress:
            result = caption(
                args.model,
                read_list(args.images),
                prompt=args.prompt,
                num_captions=args.num_captions,
                beams=args.beams,
                sample=args.sample,
                top_p=args.top_p,
                top_k=args.top_k,
                temperature=args.temperature,
                seed=args.seed,
                max_new_tokens=args.max_new_tokens,
                min_new_tokens=args.min_new_tokens,
                repetition_penalty=args.repetition_penalty,
                length_penalty=args.length_penalty,
                no_repeat_ngram=args.no_repeat_ngram,
                pretrained=args.pretrained,
                batch_size=args.batch_size,
                device=args.device,
                out=args.out,
                html=args.html,
                progress=progress,
                announce=announce,
            )
    except KeyboardInterrupt:
        if args.out is not None:
            say(f"mmzoo: what was written stays in {args.out}; the same command goes on from there.")
        raise
    _tell(result)
    return 0


def _tell(result: Captions) -> None:
    """Say on stderr what a reader of the captions should know."""
    say_broken(result.broken, NAMED)
    if not result.prompt.strip():
        say("mmzoo: the prompt is empty, so captions begin with their first word.")
    if result.weights == "random":
        say(
            f"mmzoo: {result.model} has random weights, so this is guesswork; give --pretrained or a saved folder."
        )
    cut = sum(not finished for said in result.captions for finished in said.finished)
    if cut:
        some = "1 caption was" if cut == 1 else f"{cut:,} captions were"
        say(f"mmzoo: {some} cut at {result.settings.max_new_tokens} tokens; see --max-new-tokens.")
    if result.resumed:
        there = "was" if result.resumed == 1 else "were"
        say(f"mmzoo: {result.resumed:,} of {len(result.captions):,} pictures {there} described already.")
    done = len(result.captions) - result.resumed
    if done:
        pictures = "1 picture" if done == 1 else f"{done:,} pictures"
        say(
            f"{pictures} in {result.seconds:.1f} s: {done / result.seconds:.3g} pictures, "
            f"{result.tokens / result.seconds:.3g} tokens a second"
        )
    if result.out is not None:
        say(f"captions: {result.out}")
    if result.html is not None:
        say(f"gallery: {result.html}")


def _printable(text: str) -> str:
    """A text with whatever cannot be printed as UTF-8 (in file names) replaced."""
    return text.encode("utf-8", "replace").decode()
