"""`mmzoo capfilt`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmzoo.cli.parser import Parser, counting, positive
from mmzoo.cli.render import print_json, progress_bar, say
from mmzoo.errors import UsageError, nearest

if TYPE_CHECKING:
    from mmzoo.apps.capfilt import CapFilt

__all__ = ["main"]

NAMED = 20
"""Faults that are named; all are counted."""
EXAMPLES = """examples:
  mmzoo capfilt photos/ OUT --captioner M1 --filter M2                 # BLIP: one drawn caption, match >= 0.5
  mmzoo capfilt 'web/{000..099}.tar' OUT -c capfilt/blip2 --captioner M1 --clip M3   # ten captions, the best two
  mmzoo capfilt OUT --stages select --threshold 0.7 --write jsonl,tar  # decide anew, without a model
  mmzoo capfilt web/ OUT --stages score,select --filter M2             # judge what is there, write nothing

IN: a folder of pictures (a .txt beside one is its caption), captions.jsonl or its folder, Parquet lists of local
pictures (columns image, caption, url), tar shards, or other data that mmzoo opens. OUT gets records/ (Parquet, a row
for each candidate, rejected ones too), captions.jsonl with images/, report.html and report.json. A run that was stopped
goes on by the same command.
"""


def main(argv: Sequence[str]) -> int:
    """Caption, score and select; print what is kept by source, or the report as JSON."""
    parser = _parser()
    args = vars(parser.read(argv[1:]))
    config = args.pop("config")
    if config is not None:
        given = {word.split("=")[0] for word in argv[1:]}
        for name, value in _read_config(config, parser).items():
            if f"--{name.replace('_', '-')}" not in given:  # what is typed goes before what is written
                args[name] = value
    where, as_json = args.pop("where"), args.pop("json")
    if not 1 <= len(where) <= 2:
        raise UsageError(
            "name the input and a folder for the output (mmzoo capfilt IN OUT), or that folder alone."
        )
    from mmzoo.apps.capfilt import capfilt  # torch, only once the words are known to be right

    source, out = (None, where[0]) if len(where) == 1 else where
    try:
        with progress_bar("shards") as progress:
            result = capfilt(source, out, **args, progress=progress)
    except KeyboardInterrupt:
        say(f"mmzoo: what was done stays in {out}; the same command goes on from there.")
        raise
    if as_json:
        print_json(result)
    _tell(result, as_json)
    return int(bool(result.failed))


def _words(text: str) -> list[str]:
    """An argparse type: words joined by commas."""
    return [word for word in text.split(",") if word]


def _parser() -> Parser:
    parser = Parser("capfilt", "Caption pictures, judge all texts, keep what fits.", EXAMPLES)
    add = parser.add_argument
    add(
        "where",
        nargs="*",
        metavar="IN OUT",
        help="what to read, and the folder of the run; OUT alone goes on with it",
    )
    add(
        "-c",
        "--config",
        metavar="FILE",
        help="options in YAML, such as the carried capfilt/blip and capfilt/blip2",
    )
    add(
        "--stages",
        type=_words,
        default=["caption", "score", "select"],
        metavar="S,...",
        help="caption, score, select (all)",
    )
    add("--split", metavar="NAME", help="a split of the input")
    add(
        "--texts",
        choices=("web", "human"),
        default="web",
        help="what its texts are; human ones are not judged (web)",
    )
    add("--json", action="store_true", help="print the outcome as JSON")
    models = parser.add_argument_group("models (names of the zoo, or saved folders)")
    add = models.add_argument
    add("--model", metavar="M", help="captioner and filter in one")
    for name, does in (
        ("captioner", "writes captions"),
        ("filter", "gives match probability and cosine"),
        ("clip", "gives a CLIP cosine"),
    ):
        add(f"--{name}", metavar="M", help=does)
    for name in ("pretrained", "captioner-pretrained", "filter-pretrained", "clip-pretrained"):
        add(f"--{name}", metavar="PATH", help="weights for a name of the zoo")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1 (a GPU if there is one)")
    add("--batch-size", type=positive, default=16, metavar="N", help="pictures at a time (16)")
    write = parser.add_argument_group("captions")
    add = write.add_argument
    add("--num-captions", type=positive, default=1, metavar="N", help="of each picture (1)")
    add("--prompt", metavar="TEXT", help="what captions begin with (the model's own)")
    add("--top-p", type=float, metavar="SHARE", help="draw of the likeliest words that hold this share (0.9)")
    add("--top-k", type=counting, default=0, metavar="K", help="of the K likeliest (0: all)")
    add("--temperature", type=float, default=1.0, metavar="X", help="below 1 is bolder (1)")
    add("--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1 avoids it (1)")
    add("--beams", type=positive, metavar="N", help="search instead of drawing")
    add("--max-new-tokens", type=positive, default=20, metavar="N", help="behind the prompt (20)")
    add("--min-new-tokens", type=counting, default=1, metavar="N", help="no end before (1)")
    add("--seed", type=int, default=0, metavar="N", help="with a picture's key it decides the draw (0)")
    rules = parser.add_argument_group("selection")
    add = rules.add_argument
    add(
        "--threshold",
        type=float,
        metavar="P",
        help="least match probability (0.5, if no other rule is given)",
    )
    add("--best", type=counting, default=0, metavar="K", help="the best K of a picture (0: all)")
    add("--percentile", type=float, metavar="P", help="least standing among all, 0 to 100")
    add(
        "--by",
        choices=("itm", "itc", "clip"),
        help="the score of --best and --percentile (clip, if there; else itm)",
    )
    add("--min-words", type=counting, default=1, metavar="N", help="(1)")
    add("--max-words", type=counting, default=0, metavar="N", help="(0: any number)")
    add("--max-chars", type=counting, default=1000, metavar="N", help="(1000; 0: any number)")
    add(
        "--dedup",
        choices=("none", "exact", "near"),
        default="exact",
        help="same text and file, or look (exact)",
    )
    add("--distance", type=counting, default=3, metavar="N", help="of 64 bits, for --dedup near (3)")
    add(
        "--write",
        type=_words,
        default=["jsonl"],
        metavar="W,...",
        help="jsonl, tar or '' beside the records (jsonl)",
    )
    run = parser.add_argument_group("run")
    add = run.add_argument
    add("--engine", choices=("local", "ray"), default="local", help="processes here, or Ray's actors (local)")
    add("--workers", type=positive, metavar="N", help="of them (as many as GPUs, or cores)")
    add(
        "--shard-size",
        type=positive,
        default=1000,
        metavar="N",
        help="pictures done as one; a tar is one (1000)",
    )
    add("--again", action="store_true", help="replace what was captioned or scored in another way")
    add("--no-html", dest="html", action="store_false", help="no page")
    return parser


def _read_config(name: str, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Options out of a YAML file, by their names without dashes, each checked as if it were typed.

    Raises:
        UsageError: It is none, or names an option that is not there.
    """
    import yaml

    from mmzoo.paths import find_config

    try:
        told = yaml.safe_load(find_config(name).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UsageError(f"{name}: broken YAML ({error}).") from None
    if not isinstance(told, dict):
        raise UsageError(f"{name} holds no options: write one a line, as in threshold: 0.5.")
    actions = {
        action.dest: action for action in parser._actions if action.dest not in ("help", "config", "where")
    }
    values: dict[str, Any] = {}
    for key, value in told.items():
        if key not in actions:
            raise UsageError(f"{name}: no option {key!r}.{nearest(str(key), actions)}")
        action = actions[key]
        if value is None or isinstance(value, bool):
            values[key] = value
            continue
        word = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        try:
            values[key] = word if action.type is None else action.type(word)  # type: ignore[operator]
        except (argparse.ArgumentTypeError, ValueError):
            raise UsageError(f"{name}: {key}: {word!r} does not fit.") from None
        if action.choices is not None and values[key] not in action.choices:
            raise UsageError(f"{name}: {key}: choose of {', '.join(map(str, action.choices))}.")
    return values


def _tell(result: CapFilt, as_json: bool) -> None:
    """Print the outcome by source, and say what a reader should know."""
    summary = result.summary
    if summary is None:
        say(
            f"mmzoo: {result.done:,} of {result.shards:,} shards were worked on; the stage select is still to come."
        )
    else:
        for source, told in summary.sources.items():
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in told.reasons.items())
            line = f"{source}: kept {told.kept:,} of {told.candidates:,} texts ({100 * told.share:.1f} %)"
            if not as_json:
                print(line + (f"; {reasons}" if reasons else ""))
        total = sum(summary.fault_counts.values())
        if total:
            counts = ", ".join(f"{kind} {count:,}" for kind, count in summary.fault_counts.items())
            say(f"mmzoo: {total:,} things could not be used as they were ({counts}):")
            for kind, key, reason in summary.faults[:NAMED]:
                say(f"  {kind}: {key}: {reason}")
            if total > NAMED:
                say(f"  and {total - NAMED:,} more, in {Path(result.out) / 'report.json'}")
        say(f"records: {result.out / 'records'}; report: {result.out / 'report.json'}")
    for where, why in result.failed[:NAMED]:
        say(f"mmzoo: {where} failed: {why}. The same command tries it again.")
