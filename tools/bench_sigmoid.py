"""Sigmoid contrastive loss, forward and backward: mmzoo's one-pass `siglip_loss` against open_clip's `SigLipLoss`.

    python tools/bench_sigmoid.py --json docs/benchmarks/sigmoid.json --open-clip-main CHECKOUT

open_clip 3.3.0 makes the whole matrix of logits. Its unreleased main branch has a chunked variant, which a checkout of
https://github.com/mlfoundations/open_clip lets this compare with; without one, the peer is 3.3.0's and the rows say so.
Both sides start from the same unit vectors in float32 and give the loss and the gradients of image, text, scale and
bias; ours gives both accuracies besides.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchlib
import torch
from torch import Tensor


def peer(checkout: Path | None, chunk: int) -> Any:
    """Give open_clip's loss: chunked from a checkout of main, else as released."""
    if checkout is None:
        from open_clip.loss import SigLipLoss

        return SigLipLoss()
    spec = importlib.util.spec_from_file_location("open_clip_main_loss", checkout / "src/open_clip/loss.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SigLipLoss(chunk_size=chunk)


def build(
    which: str, batch: int, width: int, checkout: Path | None, chunk: int
) -> Callable[[], list[Tensor]]:
    """Prepare one contender's call: loss and gradients."""
    from mmzoo.losses.sigmoid import siglip_loss

    loss_of = peer(checkout, chunk) if which == "theirs" else lambda *x: siglip_loss(*x).loss

    def prepared(rows: int) -> Callable[[], list[Tensor]]:
        generator = torch.Generator().manual_seed(0)
        image, noise = (
            torch.nn.functional.normalize(torch.randn(rows, width, generator=generator), dim=1)
            for _ in range(2)
        )
        # Pairs score a little above the rest, as early in training: neither side's gradient is rounding.
        text = torch.nn.functional.normalize(0.16 * image + noise, dim=1)
        inputs = [x.requires_grad_() for x in (image, text, torch.tensor(10.0), torch.tensor(-10.0))]

        def call() -> list[Tensor]:
            loss = loss_of(*inputs)
            return [loss.detach(), *torch.autograd.grad(loss, inputs)]

        return call

    prepared(64)()
    return prepared(batch)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=8192, help="pairs (8192)")
    parser.add_argument("--width", type=int, default=512, help="embedding width (512)")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (7)")
    parser.add_argument("--open-clip-main", type=Path, help="checkout of open_clip's main branch")
    parser.add_argument("--chunk", type=int, default=512, help="chunk_size of open_clip main (512)")
    parser.add_argument("--bar", type=float, default=4.0, help="least ratio of memory (4)")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()

    checkout = args.open_clip_main
    if checkout is not None and not (checkout / "src/open_clip/loss.py").exists():
        parser.error(f"{checkout} is no checkout of open_clip: it has no src/open_clip/loss.py")
    name = f"sigmoid loss, B={args.batch}, D={args.width}"
    note = (
        f"peer: open_clip main, chunk_size={args.chunk}" if checkout else "peer: open_clip 3.3.0, unchunked"
    )
    sizes = (args.batch, args.width, checkout, args.chunk)
    duel = benchlib.duel(
        name,
        build("ours", *sizes),
        build("theirs", *sizes),
        tolerance=2e-5,
        rounds=args.rounds,
        warmups=0,  # `build` has warmed up
        note=note,
    )
    ours, theirs = (benchlib.peak_memory(build, which, *sizes) for which in ("ours", "theirs"))
    memory = benchlib.Memory(name, ours, theirs, note)
    status = benchlib.report([duel, memory], args.json, packages=["open_clip_torch"])
    return status or int(memory.ratio < args.bar)


if __name__ == "__main__":
    sys.exit(main())
