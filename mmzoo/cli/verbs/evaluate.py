"""`mmzoo evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmzoo.apps.report.shares import percent
from mmzoo.cli.parser import Parser, add_model_options, positive
from mmzoo.cli.render import print_json, progress_bar, say, say_broken, table

if TYPE_CHECKING:
    from mmzoo.apps.evaluate import Evaluated
    from mmzoo.apps.evaluation.request import Measure

__all__ = ["main"]

CANDIDATES = 128
"""Re-ranked unless a number is given: what ALBEF and BLIP do on Flickr30k (256 on COCO)."""
EXAMPLES = """tasks: retrieval, zeroshot, captioning, vqa, nlvr2, ve

examples:
  mmzoo evaluate retrieval --model runs/albef-tiny/export --data data/emoji --split unseen-style --rerank 16
  mmzoo evaluate retrieval --model albef-b16 --pretrained P --data dataset_flickr30k.json --split test --rerank
  mmzoo evaluate zeroshot --model runs/clip-tiny/export --data data/emoji --split unseen-style --by group
  mmzoo evaluate vqa --model M --data vqa_val_questions.json --images coco/ --answers list.json --predictions out.json
  mmzoo evaluate captioning --model M --data captions_val2014.json --images coco/ --predictions captions.json
  mmzoo evaluate captioning --predictions captions.json --data dataset_coco.json --split test
  mmzoo evaluate nlvr2 --model M --data nlvr2/dev.json --images nlvr2/ --json > nlvr2.json

Several processes share a task where torch.distributed is initialised, which a script of yours does before it calls
mmzoo.apps.evaluate.evaluate.
"""


def main(argv: Sequence[str]) -> int:
    """Print a model's numbers on a data set, chance beside each."""
    parser = Parser("evaluate", "Measure a model on a data set by the protocol of the papers.", EXAMPLES)
    parser.add_argument(
        "task", metavar="TASK", help="what to measure: retrieval, zeroshot, captioning, vqa, nlvr2, ve"
    )
    add_model_options(parser, batch_size=32, required=False)
    parser.add_argument(
        "--data", required=True, metavar="DATA", help="a data set, or a published annotation file"
    )
    parser.add_argument("--split", metavar="NAME", help="split of the data set")
    parser.add_argument("--images", metavar="FOLDER", help="pictures that the annotations name (beside them)")
    parser.add_argument("--limit", type=positive, metavar="N", help="take the first N samples only")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of whatever a model draws (0)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    found = parser.add_argument_group("retrieval")
    found.add_argument(
        "--rerank",
        type=positive,
        nargs="?",
        const=CANDIDATES,
        metavar="K",
        help=f"match the best K ({CANDIDATES}) of both directions, for models that embed and score pairs",
    )
    found.add_argument(
        "--score", metavar="NAME", help="order them by itm or itm+itc (as the family's own evaluation)"
    )
    named = parser.add_argument_group("zeroshot")
    named.add_argument("--by", metavar="WHAT", help="what classes are, where the data knows several answers")
    named.add_argument(
        "--labels", metavar="CAT,DOG|FILE", help="other words for the classes, see mmzoo zeroshot"
    )
    named.add_argument("--templates", metavar="NAME", help="prompts, see mmzoo zeroshot (auto)")
    asked = parser.add_argument_group("vqa")
    asked.add_argument(
        "--answers", metavar="FILE", help="answers to choose from (the model's own, or the data's)"
    )
    told = parser.add_argument_group("captioning")
    told.add_argument("--prompt", metavar="TEXT", help="what captions begin with (the model's own)")
    told.add_argument("--beams", type=positive, metavar="N", help="width of the search (3)")
    told.add_argument("--max-new-tokens", type=positive, metavar="N", help="most tokens of a caption (20)")
    told.add_argument("--min-new-tokens", type=positive, metavar="N", help="least tokens of a caption")
    told.add_argument("--extra", metavar="NAMES", help="meteor, spice or meteor,spice: they run in Java")
    parser.add_argument(
        "--predictions",
        metavar="FILE",
        help="vqa, captioning: write what the model says there, in the official format; captioning without --model: "
        "score what is there",
    )
    args = parser.read(argv[1:])
    from mmzoo.apps.evaluate import evaluate  # torch, only once the words are known to be right

    with progress_bar(args.task) as progress:
        result = evaluate(
            args.task,
            args.model,
            args.data,
            split=args.split,
            images=args.images,
            limit=args.limit,
            rerank=args.rerank,
            score=args.score,
            by=args.by,
            labels=args.labels,
            templates=args.templates,
            answers=args.answers,
            predictions=args.predictions,
            prompt=args.prompt,
            beams=args.beams,
            max_new_tokens=args.max_new_tokens,
            min_new_tokens=args.min_new_tokens,
            extra=args.extra,
            seed=args.seed,
            pretrained=args.pretrained,
            batch_size=args.batch_size,
            device=args.device,
            progress=progress,
            say=lambda sentence: say(f"mmzoo: {sentence}"),
        )
    say_broken(result.broken)
    for note in result.notes:
        say(f"mmzoo: {note}")
    if result.weights == "random":
        say(
            f"mmzoo: {result.model} has random weights, so this is guesswork; give --pretrained or a saved folder."
        )
    if args.json:
        print_json(result)
    else:
        print(_text(result))
    if result.predictions is not None:
        say(f"predictions: {result.predictions}")
    return 0


def _text(result: Evaluated) -> str:
    size = ", ".join(
        f"{value:,} {name}"
        for name, value in result.data.items()
        if isinstance(value, int) and name not in ("limit", "broken")
    )
    rows = [(name, _shown(m, m.value), _shown(m, m.chance)) for name, m in result.numbers.items()]
    head = f"{result.model} on {result.data['source']}: {size} ({result.seconds:.0f} s)"
    return f"{head}\n\n{table(('', 'value', 'chance'), rows, right=(1, 2))}" if rows else head


def _shown(measure: Measure, value: float | None) -> str:
    if measure.unit == "share" or value is None:
        return percent(value)
    return f"{100 * value if measure.unit == 'score' else value:,.1f}"
