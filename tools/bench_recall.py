"""Retrieval recall at 1, 5 and 10 both ways: mmzoo's streamed `recall` against clip-benchmark.

    python tools/bench_recall.py --json docs/benchmarks/recall.json

5,000 images with five captions each, the size of COCO's test split. clip-benchmark's part is its own `recall_at_k` and
`batchify` on a matrix of scores that is already there (its matrix product is not timed), in batches of 64, its
default. Ours starts from the embeddings, product included, and gives mean and median ranks, chance and ties besides.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import benchlib
import torch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=5000, help="images (5000)")
    parser.add_argument("--captions", type=int, default=5, help="captions of each (5)")
    parser.add_argument("--width", type=int, default=512, help="embedding width (512)")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds; the peer takes 40 s in each (3)")
    parser.add_argument("--bar", type=float, default=12.0, help="least ratio (12)")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()

    from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k

    from mmzoo.metrics.retrieval import recall

    texts = args.images * args.captions
    generator = torch.Generator().manual_seed(0)
    image_ids = torch.arange(args.images)
    text_ids = image_ids.repeat_interleave(args.captions)
    image = torch.nn.functional.normalize(torch.randn(args.images, args.width, generator=generator), dim=1)
    noise = torch.nn.functional.normalize(torch.randn(texts, args.width, generator=generator), dim=1)
    text = torch.nn.functional.normalize(0.16 * image[text_ids] + noise, dim=1)

    scores = text @ image.T
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(texts), text_ids] = True

    def ours() -> list[float]:
        found = recall(image, text, image_ids=image_ids, text_ids=text_ids, ks=(1, 5, 10))
        return [*found.i2t.recall.values(), *found.t2i.recall.values()]

    def theirs() -> list[float]:
        return [
            (batchify(recall_at_k, z, pairs, 64, "cpu", k=k) > 0).float().mean().item()
            for z, pairs in ((scores.T, positive.T), (scores, positive))
            for k in (1, 5, 10)
        ]

    values = ", ".join(f"{value:.4f}" for value in ours())
    row = benchlib.duel(
        f"recall at 1, 5, 10 both ways, {args.images} images x {texts} texts, D={args.width}",
        ours,
        theirs,
        # One query at the edge of rank k would be 4e-5; the peer averages in float32.
        tolerance=1e-6,
        rounds=args.rounds,
        warmups=0,
        note=f"i2t, t2i: {values}",
    )
    status = benchlib.report([row], args.json, packages=["clip-benchmark"])
    return status or int(row.ratio < args.bar)


if __name__ == "__main__":
    sys.exit(main())
