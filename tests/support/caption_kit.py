"""The COCO caption kit as it is, and captions to try it on. Needs the package pycocoevalcap and Java.

`python tests/support/caption_kit.py` writes `tests/metrics/caption_kit.json` anew: captions, the words the kit cuts
them into, and its scores, so that the default tests hold against it where there is no Java.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "metrics" / "caption_kit.json"

# What people write in captions besides words. Joined to words with and without a space.
_BITS = (
    "'s|'|\"|,|.|!|?|...|-|--|/|&|(|)|n't| 's|s'|:|;|#|$|%|*|!!|?!|5|10|1/2|3 1/2|2nd|'90s|80's|1950s|5:30|12:00 p.m.|"
    "U.S.|St.|Mr.|No. 5|T-shirt|t.v.|TV's|x-ray|18-wheeler|w/|w/o|it's|they're|don't|can't|o'clock|McDonald's|O'Brien|"
    "'n'|rock 'n' roll|B&W|black&white|a.m.|e.g.|A.|I'm|6'2\"|5\"|½|é|café|“hi”|it’s|don’t|–|—|…|USA.|U.S.A.|"
    "Washington, D.C.|(2)|[sic]|hot-dog.|dog,cat|man.Another|and/or|@home|#1|#tag|10%|$5.00|1,000|3-D|7-Eleven|"
    "girl's/boy's|'STOP'|\"STOP\"|'stop'|gonna|cannot|y'all|ma'am|'til|_|=|+|mid-air|semi-|she'll|AT&T|M&M's|n/a|24/7|"
    "1990's|'60s|2-3|50mph|no.|6ft.|lb.|a.b|Co.|vs.|Ave.|:)|🙂|€5"
)
_THINGS = "man woman dog cat plate table street train bus clock pizza board field beach kite horse bench umbrella sign"
_DOES = "riding holding next to|standing near|sitting on|looking at|parked by|eating|with|in front of|under|throwing"
_KINDS = "red small large old wooden young brown parked empty white two several A The"
BITS, THINGS, DOES, KINDS = _BITS.split("|"), _THINGS.split(), _DOES.split("|"), _KINDS.split()


def caption(draw: random.Random, bits: float = 0.1) -> str:
    """A caption that somebody might have written, with a share of `bits` thrown in."""
    words = [
        "a", draw.choice(KINDS), draw.choice(THINGS), *draw.choice(DOES).split(), "the", draw.choice(KINDS),
        draw.choice(THINGS), *([] if draw.random() < 0.5 else ["and", draw.choice(THINGS)]),
    ]  # fmt: skip
    for i, word in enumerate(words):
        if draw.random() < bits:
            bit = draw.choice(BITS)
            words[i] = draw.choice((bit, f"{word} {bit}", f"{word} {bit}", f"{bit} {word}", word + bit))
    text = " ".join(words)
    return draw.choice((text, text.capitalize())) + draw.choice((".", "", " .", "!"))


def edited(draw: random.Random, text: str) -> str:
    """The same caption as another would have put it."""
    words = text.split()
    for _ in range(draw.randrange(5)):
        place = draw.randrange(len(words))
        if draw.random() < 0.3 and len(words) > 1:
            del words[place]
        else:
            words[place] = draw.choice((*THINGS, *KINDS, "of", "at", "runs"))
    return " ".join(words)


def corpus(seed: int, pictures: int, bits: float = 0.1) -> tuple[dict[int, str], dict[int, list[str]]]:
    """Candidates and references of some pictures, one to seven each, corner cases among them."""
    draw = random.Random(seed)
    candidates, references = {}, {}
    for i in range(pictures):
        text = caption(draw, bits)
        references[i] = [edited(draw, text) for _ in range(draw.randrange(1, 8))]
        candidates[i] = edited(draw, text)
    candidates |= {0: "", 1: "zebra qqq", 2: ".", 3: "", 4: "3 1/2 cups of of of tea", 5: "a"}
    references |= {3: ["", "a dog"], 4: ["3 1/2 cups", "cups of tea of"], 5: ["a", "a a"]}
    return candidates, references


def kit_words(captions: list[str]) -> list[list[str]]:
    """Cut captions into words with the kit."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    cut = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(captions)})
    return [[] if cut[i] == [""] else cut[i][0].split(" ") for i in range(len(captions))]


def kit_scores(
    candidates: dict[int, str], references: dict[int, list[str]]
) -> tuple[dict, dict[str, list[float]]]:
    """The kit's numbers, and those of each picture, under our names."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    cut = PTBTokenizer().tokenize
    theirs = cut({i: [{"caption": text} for text in texts] for i, texts in references.items()})
    mine = cut({i: [{"caption": candidates[i]}] for i in references})
    bleu, bleu_each = Bleu(4).compute_score(theirs, mine, verbose=0)
    numbers: dict[str, Any] = {f"bleu{n}": bleu[n - 1] for n in range(1, 5)}
    each: dict[str, Any] = {f"bleu{n}": bleu_each[n - 1] for n in range(1, 5)}
    for name, scorer in (("rouge_l", Rouge()), ("cider_d", Cider())):
        numbers[name], each[name] = scorer.compute_score(theirs, mine)
    return {k: float(v) for k, v in numbers.items()}, {k: [float(x) for x in v] for k, v in each.items()}


def refresh() -> None:
    """Write the golden file."""
    draw = random.Random(0)
    captions = [caption(draw, 0.25) for _ in range(400)]
    candidates, references = corpus(1, 60)
    numbers, each = kit_scores(candidates, references)
    content = {
        "words": [[text, words] for text, words in zip(captions, kit_words(captions), strict=True)],
        "candidates": list(candidates.values()),
        "references": list(references.values()),
        "numbers": numbers,
        "each": each,
    }
    GOLDEN.write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    refresh()
