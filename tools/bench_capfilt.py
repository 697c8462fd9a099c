"""Measure `mmzoo capfilt` against the naive path, and the memory it takes as records grow.

    python tools/bench_capfilt.py [--captions 1 10] [--pictures 24] [--records 1000 10000 100000] [--json OUT]

The naive path is what published scripts do: for each caption the picture is encoded again, and for each text that is
judged it is encoded and its keys and values are projected again, one text at a time. Both compute with the same model
(a BLIP of random weights, 224 pixels, six layers of width 192), one thread, and the scores of the web texts must agree.
Memory is that of the stage `select`, which is the one that looks at all records together, on synthetic shards of 1,000
records each; captioning and scoring hold one shard, whatever their number.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import benchlib
import numpy as np
import torch
from PIL import Image

import mmzoo
from mmzoo.apps.capfilt import capfilt
from mmzoo.apps.capfilt.records import Record, State, read_records, record_file, write_records
from mmzoo.apps.capfilt.rules import Rules
from mmzoo.apps.capfilt.select import select
from mmzoo.apps.opening import open_model
from mmzoo.apps.writing import prompt_ids, write_texts
from mmzoo.data.open import open_source
from mmzoo.generation import GenerationConfig
from mmzoo.models.capabilities import WritesCaptions
from mmzoo.processing.image import decode_image

SHARD = 1000


def model_and_processor() -> tuple[torch.nn.Module, mmzoo.processing.processor.Processor]:
    torch.manual_seed(0)
    tiny = mmzoo.get_config("blip-tiny")
    width = {"width": 192, "heads": 3, "hidden": 768}
    vision = replace(tiny.vision, image_size=224, patch=16, depth=6, **width)
    text = replace(tiny.text, depth=6, cross_layers=tuple(range(6)), cross_width=192, **width)
    image = replace(tiny.image, size=224)
    model = mmzoo.create_model("blip-tiny", replace(tiny, vision=vision, text=text, image=image))
    assert isinstance(model, WritesCaptions)
    return model, mmzoo.create_processor(model)


def pictures(folder: Path, number: int) -> Path:
    source = open_source("data/emoji", split="train")
    with (folder / "captions.jsonl").open("w") as lines:
        for i in range(number):
            sample = source[i]
            image = sample.image if isinstance(sample.image, Image.Image) else decode_image(sample.image)
            image.convert("RGB").resize((256, 256)).save(folder / f"{i:05}.jpg", quality=90)
            lines.write(f'{{"image": "{i:05}.jpg", "captions": ["{sample.texts[0]}"]}}\n')
    return folder


def throughput(captions: int, number: int, rounds: int) -> benchlib.Duel:
    pair = model_and_processor()
    opened = open_model(pair, device="cpu")
    settings = GenerationConfig(sample=True, top_p=0.9, max_new_tokens=16, min_new_tokens=1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        source = open_source(pictures(folder / "in", number))
        fresh = count()

        def ours() -> list[float]:
            out = folder / f"out{next(fresh)}"
            capfilt(
                folder / "in", out, stages=["caption", "score"], model=pair, num_captions=captions, workers=1,
                max_new_tokens=16, device="cpu",
            )  # fmt: skip
            rows = [row for file in sorted((out / "records").iterdir()) for row in read_records(file)]
            return [row.itm_prob or 0.0 for row in rows if row.source == "web"]

        @torch.inference_mode()
        def naive() -> list[float]:
            prompt, found = prompt_ids(opened, None), []
            for i in range(len(source)):
                sample = source[i]
                texts = list(sample.texts)
                for j in range(captions):
                    pixels = opened.processor.images([decode_image(sample.image)])
                    decoder = opened.model.caption_decoder(pixels)
                    texts.append(
                        write_texts(opened, decoder, prompt, replace(settings, seed=j), [i])[0][0].text
                    )
                for place, text in enumerate(texts):
                    pixels = opened.processor.images([decode_image(sample.image)])
                    ids, keep = opened.processor.texts([text])
                    probability = opened.model.match(pixels, ids, keep).softmax(1)[0, 1].item()
                    opened.model.similarity(
                        opened.model.encode_image(pixels), opened.model.encode_text(ids, keep)
                    )
                    if place < len(sample.texts):
                        found.append(probability)
            return found

        name = f"caption and score, {captions} caption{'s' if captions > 1 else ''} and a web text a picture"
        note = f"{number} pictures, records written"
        return benchlib.duel(name, ours, naive, tolerance=1e-4, rounds=rounds, note=note)


def selecting(records: int) -> Callable[[], object]:
    """The stage `select` over so many records, in shards of `SHARD`."""
    folder = Path(tempfile.mkdtemp())
    chance = np.random.default_rng(0)

    def write(numbers: range) -> None:
        for number in numbers:
            rows = [
                Record(
                    f"{number}/{i // 2}", i // 2, f"{chance.integers(2**62):064x}", int(chance.integers(2**62)),
                    640, 480, None, f"a picture of number {chance.integers(9 * records)} in a long row of words",
                    ("web", "synthetic")[i % 2], itm_prob=float(chance.random()),
                )
                for i in range(SHARD)
            ]  # fmt: skip
            write_records(record_file(folder, number), rows, State(score="x", images=SHARD // 2))

    write(range(records // SHARD))
    rules = Rules(threshold=0.5, dedup="near")
    select(folder, [0], replace(rules, threshold=0.4))  # libraries have loaded
    return lambda: select(folder, range(records // SHARD), rules).changed


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--captions", type=int, nargs="*", default=[1, 10])
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows: list[benchlib.Duel | benchlib.Fact] = []
    for captions in args.captions:
        rows.append(throughput(captions, args.pictures, args.rounds))
        print(rows[-1], flush=True)
    for records in args.records:
        peak = benchlib.peak_memory(selecting, records)
        note = f"{1024 * 1024 * peak / records:.0f} bytes a record"
        rows.append(benchlib.Fact(f"peak memory of select over {records:,} records", peak, "MiB", note))
        print(rows[-1], flush=True)
    return benchlib.report(rows, args.json)


if __name__ == "__main__":
    sys.exit(main())
