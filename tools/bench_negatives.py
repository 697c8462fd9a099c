"""Hard negatives for a batch: mmzoo's one draw against the loop of the reference, one `multinomial` a row and side.

    python tools/bench_negatives.py --json docs/benchmarks/negatives.json

Both turn the logits of B images and B texts into an image for each text and a text for each image, never their own.
The peer is `draw_one_by_one` of `tools/albef_port.py`, on ALBEF's weights. Random draws cannot be compared one by one,
so before any ratio the frequencies of both are held against the exact probabilities of a small batch.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import benchlib

DRAWS = 20_000


def frequencies(draw: Any, scores: Any) -> Any:
    """How often each pair is drawn, (2, B, B): images for texts, texts for images."""
    import torch

    count = len(scores)
    found, own = torch.zeros(2, count, count, dtype=torch.float64), torch.arange(count)
    for _ in range(DRAWS):
        for side, picked in zip(found, draw(scores), strict=True):
            side[own, torch.as_tensor(picked)] += 1
    return found / DRAWS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256, 1024], help="pairs (64 256 1024)")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (9)")
    parser.add_argument("--bar", type=float, default=1.0, help="exit with 1 below this ratio (1)")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()

    import torch
    from albef_port import draw_one_by_one

    from mmzoo.losses.negatives import draw_negatives
    from mmzoo.ops.pairs import Positives

    benchlib.fix_threads()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)

    def ours(scores: Any) -> tuple[Any, Any]:
        ids = torch.arange(len(scores))
        drawn = draw_negatives(scores, Positives(ids, ids), generator=generator)
        return drawn.image, drawn.text

    def theirs(scores: Any) -> tuple[Any, Any]:
        weights = [s.softmax(1).fill_diagonal_(0) for s in (scores, scores.T)]
        return draw_one_by_one(*weights)

    scores = 2 * torch.randn(4, 4)
    exact = torch.stack([s.double().softmax(1).fill_diagonal_(0) for s in (scores.T, scores)])
    exact /= exact.sum(2, keepdim=True)
    worst = max(float((frequencies(draw, scores) - exact).abs().max()) for draw in (ours, theirs))
    allowed = 4 * (0.25 / DRAWS) ** 0.5  # four standard deviations of the widest frequency
    if worst > allowed:
        raise SystemExit(f"frequencies are {worst:.3f} off, allowed {allowed:.3f}; no ratio is given")

    rows: list[Any] = [benchlib.Fact("frequencies of both against the exact ones", worst, "at most apart")]
    for count in args.batch:
        image, text = torch.nn.functional.normalize(torch.randn(2, count, 256), dim=2)
        scores = 14 * image @ text.T
        repeats = max(1, 16384 // count)

        def many(draw: Any, scores: Any = scores, repeats: int = repeats) -> float:
            """How many rows took their own: none."""
            own = torch.arange(len(scores))
            for _ in range(repeats):
                picked = draw(scores)
            return float(sum((torch.as_tensor(side) == own).sum() for side in picked))

        row = benchlib.duel(
            f"hard negatives of {count} pairs, {repeats} draws",
            lambda: many(ours),
            lambda: many(theirs),
            tolerance=0.0,
            rounds=args.rounds,
            note="rows that drew their own are compared (none), frequencies above",
        )
        rows += [row]
        for who, seconds in (("ours", row.ours_s), ("theirs", row.theirs_s)):
            rows.append(benchlib.Fact(f"one draw of {count} pairs, {who}", 1e3 * seconds / repeats, "ms"))
    status = benchlib.report(rows, args.json)
    return status or int(any(isinstance(row, benchlib.Duel) and row.ratio < args.bar for row in rows))


if __name__ == "__main__":
    sys.exit(main())
