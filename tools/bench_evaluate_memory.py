"""Peak memory above the model of evaluating retrieval: ALBEF-B/16 at 384 px, 1,000 pictures x 5,000 captions, k=128.

    python tools/bench_evaluate_memory.py --json docs/benchmarks/evaluate_memory.json

What runs is `mmzoo.apps.evaluate.evaluate` on a folder of JPEG pictures with five captions each. Encoding all pictures
and matching some 700,000 pairs would take hours of one thread, so the model computes the first passes of each stage,
and answers at random in later ones, which are of the same shapes: a batch of pictures is embedded, 512 captions are
embedded and read, and of two chunks of pictures (whose keys and values are held at once) four passes of 256 pairs are
matched. All else is there: every picture is read and made pixels twice, every caption is tokenised, and the states of
all captions, all embeddings, candidates, scores and ranks are held at their full size.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import benchlib

PICTURES, TEXTS, PROJECTED, PASSES = 32, 512, 16, 4
"""Pictures that are embedded, captions that are read, pictures that are projected, passes of each chunk of them."""
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


def evaluator(data: str, toy: str, rerank: int) -> Any:
    """What a fresh process measures; it evaluates a toy folder first."""
    import dataclasses

    import torch
    from torch import Tensor

    import mmzoo
    from mmzoo.apps.evaluate import evaluate
    from mmzoo.models.albef import ALBEF

    class Begun(ALBEF):
        """Computes the first passes of each stage; the counts are of pictures, captions and passes."""

        def begin(self) -> None:
            self.images = self.texts = self.read = self.projected = self.passes = 0

        def _random(self, count: int) -> Tensor:
            return torch.nn.functional.normalize(torch.randn(count, self.config.embed), dim=1)

        def encode_image(self, images: Tensor) -> Tensor:
            self.images += len(images)
            return super().encode_image(images) if self.images <= PICTURES else self._random(len(images))

        def encode_text(self, ids: Tensor, keep: Tensor) -> Tensor:
            self.texts += len(ids)
            if self.texts > TEXTS:
                return self._random(len(ids))
            return self.embed_text(super().text_states(ids, keep))

        def text_states(self, ids: Tensor, keep: Tensor, *, packed: bool = False) -> Tensor:
            self.read += len(ids)
            if self.read > TEXTS:
                return torch.randn(*ids.shape, self.config.text.width)
            return super().text_states(ids, keep, packed=packed)

        def project_images(self, images: Tensor) -> Any:
            self.projected, self.passes = self.projected + len(images), 0
            return super().project_images(images) if self.projected <= PROJECTED else None

        def match_states(self, states: Tensor, keep: Tensor, kv: Any, *rest: Any, **packed: Any) -> Tensor:
            self.passes += 1
            if kv is None or self.passes > PASSES:
                return torch.randn(len(keep), 2)
            return super().match_states(states, keep, kv, *rest, **packed)

    base = mmzoo.get_config("albef-b16")
    config = dataclasses.replace(
        base,
        vision=dataclasses.replace(base.vision, image_size=384),
        image=dataclasses.replace(base.image, size=384),
        words=False,
    )
    model = Begun(config).eval()
    model.begin()
    processor = mmzoo.create_processor(model)
    evaluate("retrieval", (model, processor), toy, rerank=rerank, batch_size=2, device="cpu")

    def run() -> None:
        model.begin()
        found = evaluate(
            "retrieval",
            (model, processor),
            data,
            rerank=rerank,
            device="cpu",
            say=lambda s: print(s, file=sys.stderr),
        )
        assert model.images == model.projected == found.data["images"] > PROJECTED
        assert model.texts <= model.read == found.data["texts"]

    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000, help="pictures, with five captions each (1000)")
    parser.add_argument("--rerank", type=int, default=128, help="candidates of each (128)")
    parser.add_argument("--bar", type=float, default=2048, help="exit with 1 above so many MiB (2048)")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = write_data(Path(scratch) / "data", args.pictures, 5)
        toy = write_data(Path(scratch) / "toy", 2, 2)
        peak = benchlib.peak_memory(evaluator, str(data), str(toy), args.rerank)
    row = benchlib.Fact(
        f"evaluating {args.pictures} pictures x {5 * args.pictures} captions, ALBEF-B/16 at 384 px, k={args.rerank}",
        peak,
        "MiB above the model",
        f"of each stage the first passes computed ({PICTURES} pictures embedded, {TEXTS} captions read, {PROJECTED} "
        f"pictures projected, {PASSES} passes of 256 pairs with each 8 of them); all else whole",
    )
    return benchlib.report([row], args.json) or int(not peak <= args.bar)


if __name__ == "__main__":
    sys.exit(main())
