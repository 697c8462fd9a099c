"""One training step of CLIP ViT-B/32 on short captions: mmzoo against open_clip, the same weights in both.

    python tools/bench_train_step.py --json docs/benchmarks/train_step.json

A step is forward, loss, backward, optimizer and clamp. Ours computes texts as long as the batch's longest and uses
torch's fused AdamW; open_clip 3.3 computes 77 tokens a text, and AdamW as torch makes it on a CPU is a loop. The
second row gives open_clip the fused AdamW too, which a user of it could have by a flag.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import benchlib

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

START, END, CONTEXT = 49406, 49407, 77


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="pairs in a batch (16)")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds (3); a round takes about 15 s")
    parser.add_argument("--bar", type=float, default=1.45, help="exit with 1 below this ratio (1.45)")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()

    import open_clip
    import torch
    from hand_copy import copy_open_clip
    from open_clip.loss import ClipLoss
    from torch.optim import AdamW

    import mmzoo
    from mmzoo.lit.optim import build_optimizer
    from mmzoo.losses.contrastive import clip_loss

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(args.batch, 3, 224, 224, generator=generator)
    lengths = torch.randint(5, 17, (args.batch,), generator=generator)  # start and end token included
    ids = torch.zeros(args.batch, CONTEXT, dtype=torch.int64)
    for row, length in zip(ids, lengths.tolist(), strict=True):
        row[:length] = torch.randint(0, START, (length,), generator=generator)
        row[0], row[length - 1] = START, END
    longest = int(lengths.max())
    trimmed, keep = ids[:, :longest], torch.arange(longest) < lengths[:, None]
    settings = {"lr": 1e-5, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.2}

    def step_of_ours(source: torch.nn.Module) -> Callable[[], torch.Tensor]:
        model = mmzoo.create_model("clip-vit-b32-laion").train()  # GELU, as open_clip's ViT-B-32
        copy_open_clip(model, source)
        optimizer = build_optimizer(model, lambda groups: AdamW(groups, **settings))
        assert optimizer.defaults["fused"]

        def step() -> torch.Tensor:
            optimizer.zero_grad()
            loss = clip_loss(model.encode_image(images), model.encode_text(trimmed, keep), model.scale).loss
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, 4.6052)
            grads = (
                model.vision.patch.proj.weight.grad,
                model.text.embed.tok.weight.grad,
                model.logit_scale.grad,
            )
            return torch.stack([loss.detach(), *(grad.norm() for grad in grads)])

        return step

    def step_of_theirs(model: torch.nn.Module, fused: bool | None) -> Callable[[], torch.Tensor]:
        # the two groups of open_clip's training script
        small = [p for n, p in model.named_parameters() if p.ndim < 2 or "logit_scale" in n]
        large = [p for n, p in model.named_parameters() if not (p.ndim < 2 or "logit_scale" in n)]
        groups = [{"params": small, "weight_decay": 0.0}, {"params": large}]
        optimizer, loss_of = AdamW(groups, fused=fused, **settings), ClipLoss()

        def step() -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(*model(images, ids))
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, 4.6052)
            grads = model.visual.conv1.weight.grad, model.token_embedding.weight.grad, model.logit_scale.grad
            return torch.stack([loss.detach(), *(grad.norm() for grad in grads)])

        return step

    rows = []
    for fused, name in ((None, "torch's default AdamW"), (True, "fused AdamW")):
        torch.manual_seed(0)
        theirs = open_clip.create_model("ViT-B-32").train()
        ours = step_of_ours(theirs)
        rows.append(
            benchlib.duel(
                f"train step of ViT-B/32, batch {args.batch}, against open_clip with {name}",
                ours,
                step_of_theirs(theirs, fused),
                # loss and gradients after one step of each, so that the optimizers are compared as well
                tolerance=1e-4,
                difference=lambda a, b: float(((a - b).abs() / b.abs()).max()),
                rounds=args.rounds,
                note=f"texts of {lengths.float().mean():.1f} tokens on average, {longest} at most",
            )
        )
    status = benchlib.report(rows, args.json, packages=["open_clip_torch"])
    return status or int(rows[0].ratio < args.bar)


if __name__ == "__main__":
    sys.exit(main())
