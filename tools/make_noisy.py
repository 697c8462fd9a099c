"""Write the bundled pictures as an ordinary folder of pictures and captions in which a known share is wrong.

    python tools/make_noisy.py OUT [--swap 0.3] [--boilerplate 0.0] [--data data/emoji] [--seed 0]

OUT holds `images/`, `captions.jsonl` (what any tool of mmzoo reads) and `truth.jsonl` beside it: for each picture
whether its captions are its own (`own`), another picture's (`swapped`) or words that fit no picture (`boilerplate`).
The swapped hand their captions round in a ring, so that none gets its own back. Every picture has an id of its own, as
on the web, or the drawing of the same object in another style would tell which captions are wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from mmzoo.data.open import open_source
from mmzoo.errors import ZooError

BOILERPLATE = (
    "image unavailable", "click to enlarge", "free shipping on all orders", "copyright all rights reserved",
    "download the app today", "photo by staff", "read more", "sign up for our newsletter",
)  # fmt: skip


def main(out: Path, *, data: str, split: str, swap: float, boilerplate: float, seed: int) -> None:
    if not (swap >= 0 and boilerplate >= 0 and swap + boilerplate <= 1):
        raise ZooError(f"swap {swap} and boilerplate {boilerplate} are shares, of 1 together at most.")
    if out.exists() and any(out.iterdir()):
        raise ZooError(f"{out} holds something already; name a new folder.")
    source = open_source(data, split=split)
    count = len(source)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    ring, rest = order[: round(swap * count)], order[round(swap * count) :]
    giver = dict(zip(ring, [*ring[1:], *ring[:1]], strict=True))
    empty = set(rest[: round(boilerplate * count)])
    (out / "images").mkdir(parents=True, exist_ok=True)
    with (out / "captions.jsonl").open("w") as captions, (out / "truth.jsonl").open("w") as truth:
        for i in range(count):
            sample = source[i]
            name = f"images/{i:06d}.png"
            sample.image.save(out / name)
            texts = list(source[giver.get(i, i)].texts)
            kind = "swapped" if giver.get(i, i) != i else "own"
            if i in empty:
                texts, kind = [BOILERPLATE[i % len(BOILERPLATE)]], "boilerplate"
            captions.write(json.dumps({"image": name, "captions": texts, "id": i}) + "\n")
            told = {"image": name, "truth": kind, "key": sample.key, "own": sample.texts[0]}
            truth.write(json.dumps(told) + "\n")
    print(
        f"{out}: {count} pictures of {source.name}, {len(ring)} with swapped captions, {len(empty)} with boilerplate"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", default="data/emoji")
    parser.add_argument("--split", default="train")
    parser.add_argument("--swap", type=float, default=0.3)
    parser.add_argument("--boilerplate", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    try:
        main(**vars(parser.parse_args()))
    except ZooError as error:
        sys.exit(f"make_noisy: {error}")
