"""`mmzoo embed`."""

from __future__ import annotations

from collections.abc import Sequence

from mmzoo.cli.parser import Parser, add_model_options
from mmzoo.cli.render import print_json, progress_bar, say, say_broken

__all__ = ["main"]

EXAMPLES = """examples:
  mmzoo embed --model runs/clip-tiny/export --out photos.safetensors photos/
  mmzoo embed --model clip-vit-b32 --pretrained clip.safetensors --out words.safetensors --texts words.txt
"""


def main(argv: Sequence[str]) -> int:
    """Write embeddings of pictures and texts."""
    parser = Parser("embed", "Embeddings of pictures and texts, in one file.", EXAMPLES)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="files, folders, shell patterns")
    add_model_options(parser)
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help="what to write: .safetensors, or .parquet (extra 'parquet')",
    )
    parser.add_argument("--texts", metavar="FILE", help="a file with one text per line")
    parser.add_argument("--data", metavar="DATA", help="a data set: pictures and texts")
    parser.add_argument("--split", metavar="NAME", help="split of the data set")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.read(argv[1:])
    from mmzoo.apps.embed import embed  # torch, only once the words are known to be right
    from mmzoo.apps.labels import read_lines

    with progress_bar("embedding") as progress:
        done = embed(
            args.model,
            args.images,
            out=args.out,
            texts=read_lines(args.texts) if args.texts else (),
            data=args.data,
            split=args.split,
            pretrained=args.pretrained,
            batch_size=args.batch_size,
            device=args.device,
            overwrite=args.overwrite,
            progress=progress,
        )
    say_broken(done.broken)
    if args.json:
        print_json(done)
    else:
        say(f"{done.images} pictures and {done.texts} texts, {done.width} numbers each")
        print(done.out)
    return 0
