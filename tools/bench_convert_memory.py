"""How much memory converting a checkpoint holds, against the size of the checkpoint.

    python tools/bench_convert_memory.py --json docs/benchmarks/convert_memory.json

A CLIP of random weights is written as transformers keeps it (query, key and value apart, so that tensors must be
fused), then converted, each time in a fresh process that has loaded every library and converted a toy before. Counted
is the peak of the process's resident memory (VmHWM) above that before the call; the pages of files that it maps count
too, whoever else could use them. Everything lies in a temporary folder, which is deleted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import benchlib

# blocks of the image tower and of the text tower, for so many gigabytes of float32
SIZES = {1.2: (1024, 14, 768, 12, 49408), 0.1: (384, 6, 384, 4, 3000), 0.001: (64, 1, 64, 1, 100)}


def config_of(gigabytes: float) -> Any:
    import dataclasses

    import mmzoo
    from mmzoo.spec import ImageSpec, TextSpec

    width, depth, text_width, text_depth, vocab = SIZES[gigabytes]
    base = mmzoo.get_config("clip-vit-b32")
    return dataclasses.replace(
        base,
        vision=dataclasses.replace(
            base.vision, patch=14, width=width, depth=depth, heads=width // 64, hidden=4 * width
        ),
        text=dataclasses.replace(
            base.text,
            vocab=vocab,
            width=text_width,
            depth=text_depth,
            heads=text_width // 64,
            hidden=4 * text_width,
        ),
        embed=text_width,
        image=ImageSpec(224),
        text_input=TextSpec("clip", 77, vocab),
    )


def write_source(folder: Path, gigabytes: float, ending: str) -> Path:
    """Random weights under transformers' names, tensor by tensor."""
    import torch

    from mmzoo.config import to_dict
    from mmzoo.interchange import meta_model, shapes_of
    from mmzoo.weights.convert import lay_out
    from mmzoo.weights.io import write_json
    from mmzoo.weights.maps import get_layout
    from mmzoo.weights.write import open_writer
    from mmzoo.zoo import FAMILIES

    config, layout = config_of(gigabytes), get_layout("clip/transformers")
    outlet = lay_out(layout, to_dict(config), shapes_of(meta_model(FAMILIES["clip"], config)))
    folder.mkdir(parents=True)
    for name, content in outlet.side.items():
        write_json(folder / name, content)
    file = folder / f"{'model' if ending == '.safetensors' else 'pytorch_model'}{ending}"
    with open_writer(file, outlet.shapes) as writer:
        for name, shape in outlet.shapes.items():
            writer.add(name, torch.randn(shape) * 0.02)
    return file


def converter(folder: str, toy: str, target: str, layout: str) -> Any:
    """What a fresh process measures; runs once at a toy size first."""
    import mmzoo

    place = Path(folder).parent
    mmzoo.convert(toy, place / f"toy-{target}", layout=layout)
    return lambda: mmzoo.convert(folder, place / target, layout=layout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--gigabytes",
        type=float,
        default=1.2,
        choices=[1.2, 0.1],
        help="size of the file (1.2); 0.1 tries two pairs of kinds instead of four",
    )
    parser.add_argument(
        "--bar", type=float, default=1.2, help="exit with 1 above this share of the file (1.2)"
    )
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()
    rows = []
    targets = [("mmzoo", "own.safetensors"), ("clip/open_clip", "out.pt")]
    with tempfile.TemporaryDirectory() as scratch:
        for ending in (".safetensors", ".bin"):
            folder, toy = Path(scratch) / f"source{ending[1:]}", Path(scratch) / f"toy{ending[1:]}"
            file = write_source(folder, args.gigabytes, ending)
            write_source(toy, 0.001, ending)
            size = file.stat().st_size
            for layout, target in targets if args.gigabytes > 1 else targets[ending == ".safetensors" :][:1]:
                peak = benchlib.peak_memory(converter, str(folder), str(toy), target, layout)
                written = Path(scratch) / target
                assert written.stat().st_size > 0.99 * size
                written.unlink()
                rows.append(
                    benchlib.Fact(
                        f"clip/transformers {ending} of {size / 1e9:.2f} GB to {layout} {written.suffix}",
                        peak * 2**20 / size,
                        "of the file",
                        f"peak resident memory {peak:.0f} MiB above the start, mapped pages counted",
                    )
                )
            file.unlink()
    status = benchlib.report(rows, args.json, packages=["safetensors"])
    return status or int(max(row.value for row in rows) > args.bar)


if __name__ == "__main__":
    sys.exit(main())
