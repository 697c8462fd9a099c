"""Peak memory above the model of evaluating retrieval: ALBEF-B/16 at 384 px, 1,000 pictures x 5,000 captions, k=128.

    python tools/bench_evaluate_memory.py --json docs/benchmarks/evaluate_memory.json

What runs is `mmzoo.apps.evaluate.evaluate` on a folder of JPEG pictures with five captions each. Encoding all pictures
and matching some 700,000 pairs would take hours of one thread, so only the first pictures of each stage go through the
model: `--encode` (a whole batch) are embedded, and `--match` (one chunk of those whose keys and values are held at
once, and two) are matched with all of their candidates. For later ones the model answers at random. All else is there:
every picture is read and made pixels twice, every caption is read by the text half and its states are held, and so are
all embeddings, candidates, scores and ranks. Nothing is kept of a picture but its embedding, so one chunk and two must
give about the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import benchlib

WORDS = """
a the two small large red blue old young man woman dog cat horse child boat house street river field table with on near
behind holding riding looking standing sitting playing is are of in wooden white black green open empty
"""


def write_data(folder: Path, pictures: int, captions: int) -> Path:
    """Noisy JPEG pictures of 640 x 480, and captions of 7 to 13 words."""
    import torch
    from PIL import Image

    folder.mkdir()
    words, draw = WORDS.split(), torch.Generator().manual_seed(0)
    lines = []
    for i in range(pictures):
        coarse = torch.randint(256, (12, 16, 3), generator=draw, dtype=torch.uint8)
        Image.fromarray(coarse.numpy()).resize((640, 480)).save(folder / f"{i}.jpg")
        lengths = torch.randint(7, 14, (captions,), generator=draw).tolist()
        texts = [
            " ".join(words[w] for w in torch.randint(len(words), (n,), generator=draw).tolist())
            for n in lengths
        ]
        lines.append(json.dumps({"image": f"{i}.jpg", "captions": texts}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


def evaluator(data: str, toy: str, rerank: int, encode: int, match: int) -> Any:
    """What a fresh process measures; it evaluates a toy folder first."""
    import dataclasses

    import torch
    from torch import Tensor

    import mmzoo
    from mmzoo.apps.evaluate import evaluate
    from mmzoo.models.albef import ALBEF

    class Some(ALBEF):
        """Looks at the first pictures only."""

        encoded = projected = 0

        def encode_image(self, images: Tensor) -> Tensor:
            self.encoded += len(images)
            if self.encoded <= encode:
                return super().encode_image(images)
            return torch.nn.functional.normalize(torch.randn(len(images), self.config.embed), dim=1)

        def project_images(self, images: Tensor) -> Any:
            self.projected += len(images)
            return super().project_images(images) if self.projected <= match else None

        def match_states(self, states: Tensor, keep: Tensor, kv: Any, *rest: Any, **packed: Any) -> Tensor:
            return (
                torch.randn(len(keep), 2)
                if kv is None
                else super().match_states(states, keep, kv, *rest, **packed)
            )

    base = mmzoo.get_config("albef-b16")
    config = dataclasses.replace(
        base,
        vision=dataclasses.replace(base.vision, image_size=384),
        image=dataclasses.replace(base.image, size=384),
        words=False,
    )
    model = Some(config).eval()
    processor = mmzoo.create_processor(model)
    evaluate("retrieval", (model, processor), toy, rerank=rerank, batch_size=2, device="cpu")

    def run() -> None:
        model.encoded = model.projected = 0
        found = evaluate(
            "retrieval",
            (model, processor),
            data,
            rerank=rerank,
            device="cpu",
            say=lambda s: print(s, file=sys.stderr),
        )
        assert model.encoded == model.projected == found.data["images"]

    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000, help="pictures, with five captions each (1000)")
    parser.add_argument("--rerank", type=int, default=128, help="candidates of each (128)")
    parser.add_argument("--encode", type=int, default=32, help="pictures that are really embedded (32)")
    parser.add_argument(
        "--match", type=int, nargs="+", default=[8, 16], help="pictures really matched (8 16)"
    )
    parser.add_argument("--bar", type=float, default=2048, help="exit with 1 above so many MiB (2048)")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        data = write_data(Path(scratch) / "data", args.pictures, 5)
        toy = write_data(Path(scratch) / "toy", 2, 2)
        for match in args.match:
            peak = benchlib.peak_memory(evaluator, str(data), str(toy), args.rerank, args.encode, match)
            rows.append(
                benchlib.Fact(
                    f"evaluating {args.pictures} pictures x {5 * args.pictures} captions, ALBEF-B/16 at 384 pixels, "
                    f"k={args.rerank}",
                    peak,
                    "MiB above the model",
                    f"{args.encode} pictures really embedded, {match} really matched with all of their candidates; all "
                    "else is whole",
                )
            )
            print(rows[-1], file=sys.stderr)
    status = benchlib.report(rows, args.json)
    return status or int(max(row.value for row in rows) > args.bar)


if __name__ == "__main__":
    sys.exit(main())
