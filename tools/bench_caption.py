"""Captions of BLIP-base at 384 pixels, 20 forced tokens, against transformers' BlipForConditionalGeneration.

    python tools/bench_caption.py --json docs/benchmarks/caption.json

A case is images x beams. Both sides have the same random weights and must write the same ids. They see (image tower),
then write (keys and values of the images, decoder, search); the two are timed apart, end to end is their sum. The peer
is called as its own `generate` calls its parts. Beside the ratios stands what no float32 decoder goes below at one
image and one beam: the time to read the decoder's weights once per token.

Memory is a peak in a process of its own, by three accounts: of writing, over image tokens that are held; of the whole,
over the pixels; and how far the whole exceeds the peak of its own image tower, which need not be there any more.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import benchlib

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

TOKENS = 20
FULL = [(batch, beams) for batch in (1, 2, 8) for beams in (1, 3, 5)]
BARS = {(8, 5): (2.2, 4.5), (1, 5): (1.4, 0.0)}  # end to end, writing alone; others: never slower


class Ours:
    """mmzoo's captioner."""

    def __init__(self, model: Any):
        self.model = model

    def see(self, images: Any) -> Any:  # noqa: D102
        return self.model.image_tokens(images)

    def write(self, tokens: Any, beams: int) -> Any:  # noqa: D102
        from mmzoo.generation import GenerationConfig, generate

        config = GenerationConfig(max_new_tokens=TOKENS, min_new_tokens=TOKENS, beams=beams)
        return generate(self.model.caption_decoder(self.model.project(tokens)), config=config).rows


class Theirs:
    """transformers' captioner."""

    def __init__(self, model: Any):
        self.model = model

    def see(self, images: Any) -> Any:  # noqa: D102
        return self.model.vision_model(pixel_values=images)[0]

    def write(self, tokens: Any, beams: int) -> Any:  # noqa: D102
        import torch

        text = self.model.config.text_config
        ids = self.model.text_decoder.generate(
            input_ids=torch.full((len(tokens), 1), text.bos_token_id),
            eos_token_id=text.sep_token_id,
            pad_token_id=text.pad_token_id,
            encoder_hidden_states=tokens,
            encoder_attention_mask=torch.ones(tokens.shape[:-1], dtype=torch.long),
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            num_beams=beams,
            do_sample=False,
        )
        return ids[:, 1:]


def build(sides: str = "both", small: bool = False) -> tuple[Ours | None, Theirs | None, int]:
    """Both captioners with the same weights, or one of them, and the images' size."""
    import torch
    from hand_blip import copy_hf_captioner
    from transformers import BlipConfig, BlipForConditionalGeneration

    from mmzoo.models.blip import BLIPWriter
    from mmzoo.zoo import get_config

    benchlib.fix_threads()
    torch.manual_seed(0)
    size, depth = (64, 2) if small else (384, 12)
    # both spelled out: transformers' defaults are 8 heads and an epsilon of 1e-5
    text = {"num_attention_heads": 12, "num_hidden_layers": depth, "encoder_hidden_size": 768}
    vision = {"image_size": size, "layer_norm_eps": 1e-6, "num_hidden_layers": depth}
    hf = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision)).eval()
    with torch.no_grad():  # a word table of 0.02 makes all words nearly as likely
        hf.text_decoder.bert.embeddings.word_embeddings.weight.mul_(3)
    if sides == "theirs":
        return None, Theirs(hf), size
    config: Any = get_config("blip-base")
    parts = {
        "vision": _replace(config.vision, image_size=size, depth=depth),
        "text": _replace(config.text, depth=depth, cross_layers=tuple(range(depth))),
    }
    model = BLIPWriter(_replace(config, reads=False, **parts)).eval()
    copy_hf_captioner(model, hf)
    return Ours(model), (Theirs(hf) if sides == "both" else None), size


def _replace(config: Any, **changes: Any) -> Any:
    import dataclasses

    return dataclasses.replace(config, **changes)


def duel(ours: Ours, theirs: Theirs, size: int, batch: int, beams: int, rounds: int) -> list[benchlib.Duel]:
    """Rounds of both, seeing and writing timed apart."""
    import torch

    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))
    seconds: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    warmups = int(
        batch <= 2
    )  # of 8 images one round takes a minute and more, beside which a cold start is nothing
    for index in range(rounds + warmups):
        found = {}
        contenders: list[tuple[str, Any]] = [("ours", ours), ("theirs", theirs)]
        for name, side in contenders if index % 2 == 0 else reversed(contenders):
            gc.collect()
            start = time.process_time()
            tokens = side.see(images)
            middle = time.process_time()
            found[name] = side.write(tokens, beams)
            seconds[name].append((middle - start, time.process_time() - middle))
        if not torch.equal(found["ours"], found["theirs"]):
            raise SystemExit(f"{batch} images x {beams} beams: the ids differ; no ratio is given")
    rows = []
    for part, take in (("end to end", sum), ("writing alone", lambda pair: pair[1])):
        a, b = ([take(pair) for pair in seconds[name][warmups:]] for name in ("ours", "theirs"))
        ratios = [their / our for our, their in zip(a, b)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        rows.append(
            benchlib.Duel(
                f"{batch} images x {beams} beams, {part}",
                middle,
                (high - low) / middle,
                statistics.median(a),
                statistics.median(b),
                min(a),
                min(b),
                0.0,
                0.0,
                rounds,
            )
        )
    return rows


def hold(part: str, side: str, batch: int, beams: int, small: bool) -> Any:
    """What `benchlib.peak_memory` measures: seeing alone, writing what was seen before, or the whole."""
    import torch

    ours, theirs, size = build(side, small)
    chosen = ours if side == "ours" else theirs
    assert chosen is not None
    images = torch.randn(batch, 3, size, size)
    with torch.inference_mode():
        chosen.write(chosen.see(images[:1]), 1)
        tokens = chosen.see(images) if part == "write" else None

    @torch.inference_mode()
    def call() -> Any:
        if part == "see":
            return chosen.see(images)
        return chosen.write(chosen.see(images) if tokens is None else tokens, beams)

    return call


def memory(batch: int, beams: int, small: bool) -> list[benchlib.Memory]:
    """Peaks of both sides, by two accounts."""
    peaks = {
        (part, side): benchlib.peak_memory(hold, part, side, batch, beams, small)
        for part in ("see", "write", "whole")
        for side in ("ours", "theirs")
    }
    name = f"{batch} images x {beams} beams"
    more = [peaks["whole", side] - peaks["see", side] for side in ("ours", "theirs")]
    note = f"image tower alone: ours {peaks['see', 'ours']:.0f}, theirs {peaks['see', 'theirs']:.0f} MiB"
    return [
        benchlib.Memory(f"{name}, writing", peaks["write", "ours"], peaks["write", "theirs"]),
        benchlib.Memory(f"{name}, whole", peaks["whole", "ours"], peaks["whole", "theirs"]),
        benchlib.Memory(f"{name}, what the whole needs above its image tower alone", *more, note),
    ]


def limit(ours: Ours, size: int) -> list[benchlib.Fact]:
    """One decoding step of one beam, and the time to read the weights that it needs."""
    import torch

    model = ours.model
    spared = {id(p) for block in model.decoder.blocks for p in block.cross.kv.parameters()}
    spared.add(id(model.decoder.embed.pos.weight))
    weights = {
        id(p): p for part in (model.decoder, model.lm) for p in part.parameters() if id(p) not in spared
    }
    decoder = model.caption_decoder(torch.randn(1, 3, size, size))

    def read() -> None:
        for weight in weights.values():
            weight.sum()

    def step() -> None:
        decoder.step(torch.tensor([[1000]]))

    decoder.start(torch.zeros(1, dtype=torch.int64))
    timed: dict[Any, list[float]] = {read: [], step: []}
    for _ in range(11):
        for call, seconds in timed.items():
            start = time.process_time()
            call()
            seconds.append(time.process_time() - start)
    middle = {call: statistics.median(seconds) for call, seconds in timed.items()}
    mib = sum(p.numel() * p.element_size() for p in weights.values()) / 2**20
    note = f"{mib:.0f} MiB at {mib / 1024 / middle[read]:.1f} GiB/s, summed by torch"
    return [
        benchlib.Fact("reading the weights of one step once", middle[read] * 1e3, "ms", note),
        benchlib.Fact("one step, one image, one beam", middle[step] * 1e3, "ms"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", nargs="*", help="as 8x5, images x beams (the full grid)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (5)")
    parser.add_argument("--rounds-of-8", type=int, default=3, help="those of 8 images, at least 2 (3)")
    parser.add_argument("--memory", nargs="*", default=["8x5"], help="cases whose memory is measured (8x5)")
    parser.add_argument("--small", action="store_true", help="two layers and 64 pixels: does it run?")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()
    cases = FULL if args.cases is None else [_case(text) for text in args.cases]

    import torch

    ours, theirs, size = build(small=args.small)
    assert ours is not None
    assert theirs is not None
    rows: list[Any] = []
    status = 0
    with torch.inference_mode():
        rows += limit(ours, size)
        for batch, beams in cases:
            found = duel(ours, theirs, size, batch, beams, args.rounds_of_8 if batch > 2 else args.rounds)
            rows += found
            bars = BARS.get((batch, beams), (1.0, 0.0))
            status |= int(any(row.ratio < bar for row, bar in zip(found, bars)))
            print(*found, sep="\n", file=sys.stderr)
    for batch, beams in map(_case, args.memory):
        rows += memory(batch, beams, args.small)
    return benchlib.report(rows, args.json, packages=["transformers"]) or status


def _case(text: str) -> tuple[int, int]:
    batch, _, beams = text.partition("x")
    return int(batch), int(beams)


if __name__ == "__main__":
    sys.exit(main())
