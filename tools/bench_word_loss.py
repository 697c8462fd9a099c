"""Language loss, forward and backward: mmzoo's chunked `word_loss` against torch's `linear` + `cross_entropy`.

    python tools/bench_word_loss.py --json docs/benchmarks/word_loss.json

Both start from the same states, decoder and labels in float32 and give the loss and the gradients of states, weight and
bias. A BERT vocabulary over 64 captions padded to 20 tokens, of which a third are real (a decoder's loss), and the same
with 15 % of those asked for (masked words).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import benchlib
import torch
from torch import Tensor
from torch.nn import functional as F


def build(which: str, rows: int, kept: int, width: int, words: int) -> Callable[[], list[Tensor]]:
    """Prepare one contender's call: loss and gradients."""
    from mmzoo.losses.words import word_loss

    def theirs(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight, bias), labels)

    loss_of = {"ours": lambda *x: word_loss(*x).loss, "theirs": theirs}[which]

    def prepared(rows: int, kept: int, words: int) -> Callable[[], list[Tensor]]:
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(rows, width, generator=generator)
        weight = 0.02 * torch.randn(words, width, generator=generator)
        inputs = [x.requires_grad_() for x in (hidden, weight, torch.zeros(words))]
        labels = torch.full((rows,), -100)
        where = torch.randperm(rows, generator=generator)[:kept]
        labels[where] = torch.randint(words, (kept,), generator=generator)

        def call() -> list[Tensor]:
            loss = loss_of(*inputs, labels)
            return [loss.detach(), *torch.autograd.grad(loss, inputs)]

        return call

    prepared(8, 4, 50)()
    return prepared(rows, kept, words)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=1280, help="rows (1280)")
    parser.add_argument(
        "--kept", type=int, nargs="+", default=(438, 66), help="how many have a label (438 66)"
    )
    parser.add_argument("--width", type=int, default=768, help="of the states (768)")
    parser.add_argument("--words", type=int, default=30524, help="in the vocabulary (30524)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (5)")
    parser.add_argument(
        "--bars", type=float, nargs=2, default=(2.0, 1.5), help="least ratios: time, memory (2 1.5)"
    )
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()

    rows: list[benchlib.Duel | benchlib.Memory] = []
    for kept in args.kept:
        size = args.rows, kept, args.width, args.words
        name = f"word loss, {kept} of {args.rows} rows, D={args.width}, V={args.words}"
        ours, theirs = build("ours", *size), build("theirs", *size)
        rows.append(benchlib.duel(name, ours, theirs, tolerance=1e-5, rounds=args.rounds))
        rows.append(
            benchlib.Memory(
                name, *(benchlib.peak_memory(build, which, *size) for which in ("ours", "theirs"))
            )
        )
    status = benchlib.report(rows, args.json)
    bars = [row.ratio >= args.bars[isinstance(row, benchlib.Memory)] for row in rows]
    return status or int(not all(bars))


if __name__ == "__main__":
    sys.exit(main())
