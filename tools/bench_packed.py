"""Which way to attend to packed texts on the CPU: segment by segment, jagged nested tensors, or padding.

    OMP_NUM_THREADS=1 python tools/bench_packed.py [--json runs/bench_packed.json]

The attention of the text tower of clip-vit-b32 (12 layers, 8 heads of 64 channels, float32), forward and
backward, for captions of 6 to 20 tokens, and for a few long texts among short ones. The order of
`mmzoo.ops.attention.BACKENDS` rests on it.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import benchlib
import torch
from torch import Tensor

from mmzoo.ops.attention import AttnMask, Packed, attend

HEADS, DIM, LAYERS = 8, 64, 12
TEXTS = {
    "64 captions of 6-20 tokens": [6 + 7 * i % 15 for i in range(64)],
    "the same, sorted": sorted(6 + 7 * i % 15 for i in range(64)),
    "4 texts of 77 tokens among 60 short": [77 if i % 16 == 0 else 8 + i % 12 for i in range(64)],
}


def step(attends: Callable[[Tensor, Tensor, Tensor], Tensor], leaves: list[Tensor]) -> Callable[[], object]:
    """Forward and backward of so many layers; returns the last output and gradients."""

    def run() -> list[Tensor]:
        for _ in range(LAYERS):
            out = attends(leaves[0], leaves[1], leaves[2])
            gradients = torch.autograd.grad(out.sum(), leaves)
        return [out, *gradients]

    return run


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="The PyTorch API of nested tensors")
    torch.manual_seed(0)
    rows = []
    for name, lengths in TEXTS.items():
        offsets = torch.tensor([0, *lengths]).cumsum(0)
        total, longest = sum(lengths), max(lengths)
        leaves = [torch.randn(1, total, HEADS, DIM).transpose(1, 2).requires_grad_() for _ in range(3)]
        keep = torch.arange(longest) < torch.tensor(lengths)[:, None]
        places = keep.flatten().nonzero().squeeze(1)

        def ways(
            offsets: Tensor = offsets, keep: Tensor = keep, places: Tensor = places
        ) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
            mask = AttnMask(packed=Packed(offsets, offsets))

            def pad(x: Tensor) -> Tensor:
                flat = x.new_zeros(keep.numel(), HEADS, DIM).index_copy(0, places, x[0].transpose(0, 1))
                return flat.view(*keep.shape, HEADS, DIM).transpose(1, 2)

            def padded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                out = attend(pad(q), pad(k), pad(v), mask=AttnMask(keep=keep))
                return out.transpose(1, 2).flatten(0, 1)[places].transpose(0, 1)[None]

            return {
                "jagged nested tensors": lambda q, k, v: attend(q, k, v, mask=mask, backend="jagged"),
                "padding to the longest": padded,
                "segments": lambda q, k, v: attend(q, k, v, mask=mask, backend="sdpa"),
            }

        attends = ways()
        ours = step(attends.pop("segments"), leaves)
        for other, way in attends.items():
            title = f"{name}: segment by segment over {other}"
            rows.append(benchlib.duel(title, ours, step(way, leaves), tolerance=1e-5, rounds=9))
    return benchlib.report(rows, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
