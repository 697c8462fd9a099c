"""Zero-shot text classifier, 80 ImageNet templates: mmzoo against open_clip, the same weights in both.

    python tools/bench_zeroshot.py --json docs/benchmarks/zeroshot.json

The text tower is that of ViT-B/32 with random weights, copied from open_clip tensor by tensor. Both sides start
from strings, so tokenising is part of the time. open_clip pads each prompt to 77 tokens and has no option not to
(3.3); prompts have about 10.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import benchlib

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--classes", type=int, default=3, help="ImageNet names, evenly out of the 1,000 (3)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (5)")
    parser.add_argument("--bar", type=float, default=6.5, help="exit with 1 below this ratio (6.5)")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()

    import open_clip
    import torch
    from hand_copy import copy_open_clip

    import mmzoo
    from mmzoo.metrics.zeroshot import build_classifier
    from mmzoo.processing.templates import TEMPLATES, expand, imagenet_names

    torch.manual_seed(0)
    theirs = open_clip.create_model("ViT-B-32").eval()
    ours = mmzoo.create_model("clip-vit-b32-laion")  # GELU, as open_clip's ViT-B-32
    copy_open_clip(ours, theirs)
    processor = mmzoo.create_processor(ours)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    templates = TEMPLATES["imagenet"]
    names = imagenet_names()[:: 1000 // args.classes][: args.classes]

    prompts = expand(names, templates)
    lengths = processor.texts(prompts).keep.sum(1).float()
    row = benchlib.duel(
        f"zero-shot classifier, {args.classes} classes x {len(templates)} templates, text tower of ViT-B/32",
        lambda: build_classifier(ours, processor, names, templates),
        lambda: open_clip.build_zero_shot_classifier(theirs, tokenizer, names, templates).T,
        tolerance=1e-6,
        rounds=args.rounds,
        note=f"{len(prompts)} prompts of {lengths.mean():.1f} tokens on average, {int(lengths.max())} at most",
    )
    status = benchlib.report([row], args.json, packages=["open_clip_torch", "tokenizers"])
    return status or int(row.ratio < args.bar)


if __name__ == "__main__":
    sys.exit(main())
