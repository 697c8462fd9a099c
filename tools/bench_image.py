"""From JPEG bytes to a model's input, and from strings to ids: mmzoo against open_clip.

    python tools/bench_image.py --json docs/benchmarks/image.json

Pictures have the entropy of photographs (about 0.26 bytes a pixel). Results count as equal when no value is
more than one grey level off and the mean difference after normalisation is below 1e-3; the exact path must be
equal to rounding. Scaled decoding changes pixels, so it is measured for what it is: a choice for training
only.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

import benchlib


def photographs(width: int, height: int, count: int) -> list[bytes]:
    """JPEG files with soft shapes under fine noise."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    files = []
    for _ in range(count):
        coarse = (draw.normal(size=(height // 16, width // 16, 3)) * 60 + 128).clip(0, 255).astype(np.uint8)
        soft = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        noisy = (soft + draw.normal(size=(height, width, 3)) * 9).clip(0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(noisy).save(stream, "JPEG", quality=84)
        files.append(stream.getvalue())
    return files


def mean_difference(ours: Any, theirs: Any) -> float:
    """Mean in standard deviations; infinite if one value is more than a grey level (0.0153) off."""
    gap = (ours - theirs).abs()
    return float(gap.mean()) if float(gap.max()) < 0.0153 else float("inf")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=12, help="pictures in a call (12)")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (9)")
    parser.add_argument(
        "--bar", type=float, default=2.0, help="exit with 1 below this ratio at 640 x 480 (2.0)"
    )
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()

    import open_clip
    import torch
    from open_clip.transform import image_transform
    from PIL import Image

    from mmzoo.processing.image import ImageTransform, TrainTransform, normalize
    from mmzoo.processing.templates import TEMPLATES, expand, imagenet_names
    from mmzoo.processing.text import build_tokenizer
    from mmzoo.spec import CLIP_VOCAB, ImageSpec, TextSpec

    spec = ImageSpec(224)
    ours, exact = ImageTransform(spec), ImageTransform(spec, exact=True)
    theirs = image_transform(224, is_train=False)

    def peer(files: list[bytes], transform: Any = theirs) -> Any:
        return torch.stack([transform(Image.open(io.BytesIO(data)).convert("RGB")) for data in files])

    small = photographs(640, 480, args.images)
    large = photographs(2048, 1536, max(args.images // 4, 2))
    size = sum(map(len, small)) / len(small)
    note = f"{size / 1e3:.0f} kB a file, {size / 640 / 480:.2f} bytes a pixel"
    first = benchlib.duel(
        f"{len(small)} JPEG of 640 x 480 to 224",
        lambda: ours.load_batch(small),
        lambda: peer(small),
        tolerance=1e-3,
        difference=mean_difference,
        rounds=args.rounds,
        note=f"{note}; difference is the mean, at most one grey level",
    )
    rows = [
        first,
        benchlib.duel(
            f"{len(small)} JPEG of 640 x 480 to 224, exact=True",
            lambda: exact.load_batch(small),
            lambda: peer(small),
            tolerance=1e-6,
            rounds=args.rounds,
            note="resized by PIL, equal to the last bit before normalisation",
        ),
        benchlib.duel(
            f"{len(large)} JPEG of 2048 x 1536 to 224",
            lambda: ours.load_batch(large),
            lambda: peer(large),
            tolerance=1e-3,
            difference=mean_difference,
            rounds=args.rounds,
            note="difference is the mean, at most one grey level",
        ),
    ]

    # The whole picture as the crop, so that both sides have the same pixels to deliver.
    whole = {"scale": (1.0, 1.0), "ratio": (4 / 3, 4 / 3)}
    fast = TrainTransform(spec, **whole, fast_decode=True)  # type: ignore[arg-type]
    squash = image_transform(224, is_train=False, resize_mode="squash")
    generator = torch.Generator()
    rows.append(
        benchlib.duel(
            f"{len(large)} JPEG of 2048 x 1536 to 224, training with fast_decode=True",
            lambda: normalize(torch.stack([fast(data, generator) for data in large]), spec),
            lambda: peer(large, squash),
            tolerance=0.1,
            difference=lambda a, b: float((a - b).abs().mean()),
            rounds=args.rounds,
            note="changes pixels: the difference is the mean in standard deviations",
        )
    )

    prompts = expand(imagenet_names()[::50], TEMPLATES["imagenet"])
    tokenizer = build_tokenizer(TextSpec("clip", 77, CLIP_VOCAB, pad_to_context=True))
    original = open_clip.get_tokenizer("ViT-B-32")
    rows.append(
        benchlib.duel(
            f"CLIP tokens of {len(prompts)} ImageNet prompts",
            lambda: tokenizer(prompts).ids,
            lambda: original(prompts),
            tolerance=0,
            rounds=args.rounds,
            note="open_clip with its cache of words warm",
        )
    )
    status = benchlib.report(
        rows, args.json, packages=["open_clip_torch", "torchvision", "pillow", "tokenizers"]
    )
    return status or int(first.ratio < args.bar)


if __name__ == "__main__":
    sys.exit(main())
