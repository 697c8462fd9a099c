"""Re-ranking with ALBEF: one picture of 384 pixels against 16 and 128 texts of 9 to 15 tokens.

    python tools/bench_rerank.py --json docs/benchmarks/rerank.json

Both sides start from the picture's 577 tokens and the ids of the texts, and give the matching logits. mmzoo projects
the picture's keys and values once, folds all texts into one query sequence and computes no padding. The peer does what
salesforce/ALBEF's evaluation does: texts padded to 30 tokens, the picture repeated for each of them, keys and values
projected for each pair and layer. It is built of transformers' BERT layers (`tools/albef_port.py`); random weights are
copied from it tensor by tensor. Its attention is transformers' eager one, as ALBEF's own is written out;
`--attention sdpa` gives it a fused one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import benchlib

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

PADDED = 30
SHORTEST, LONGEST = 9, 15


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--texts", type=int, nargs="+", default=[16, 128], help="texts per picture (16 128)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, 3 beyond 32 texts (5)")
    parser.add_argument("--attention", choices=("eager", "sdpa"), default="eager", help="the peer's (eager)")
    parser.add_argument(
        "--bars", type=float, nargs="+", default=[3.5, 4.5], help="exit with 1 below (3.5 4.5)"
    )
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()
    if len(args.bars) != len(args.texts):
        parser.error("give one bar for each number of texts")

    import torch
    from albef_oracle import copy_words
    from albef_port import Words

    from mmzoo.layers.image_kv import ImageKV
    from mmzoo.models.albef import ALBEF
    from mmzoo.zoo import create_model

    benchlib.fix_threads()
    torch.manual_seed(0)
    port, match = Words(args.attention).eval(), torch.nn.Linear(768, 2)
    ours: ALBEF = create_model("albef-b16")
    copy_words(ours.text, port)
    ours.match_head.load_state_dict(match.state_dict())
    # the picture's tokens are given, so that its tower need not be built for 384 pixels
    tokens = torch.randn(1, 577, 768)

    def share(ids: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        kv: ImageKV = ours.project(tokens)
        index = torch.zeros(len(ids), dtype=torch.long)
        return ours.match_states(ours.text_states(ids, keep, packed=True), keep, kv, index, packed=True)

    def repeat(ids: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        return match(port.fusion(port.text(ids, keep), keep, tokens.repeat(len(ids), 1, 1))[:, 0])

    rows, status = [], 0
    with torch.inference_mode():
        for count, bar in zip(args.texts, args.bars):
            lengths = torch.randint(SHORTEST, LONGEST + 1, (count, 1))
            keep = torch.arange(PADDED) < lengths
            ids = torch.randint(1000, 30_000, (count, PADDED)) * keep  # [PAD] is 0
            row = benchlib.duel(
                f"re-ranking of 1 picture x {count} texts, ALBEF-B/16 at 384 pixels",
                lambda ids=ids, keep=keep: share(ids, keep),
                lambda ids=ids, keep=keep: repeat(ids, keep),
                tolerance=1e-4,
                rounds=args.rounds if count <= 32 else 3,
                note=f"{lengths.float().mean():.1f} tokens on average; transformers' {args.attention} attention",
            )
            rows.append(row)
            status |= int(row.ratio < bar)
    return benchlib.report(rows, args.json, packages=["transformers"]) or status


if __name__ == "__main__":
    sys.exit(main())
