"""`mmzoo convert`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmzoo.cli.parser import Parser
from mmzoo.cli.render import print_json, table

if TYPE_CHECKING:
    from mmzoo.apps.convert import Conversion

__all__ = ["main"]

EXAMPLES = """examples:
  mmzoo convert runs/clip-tiny/export clip-tiny-backup.safetensors --layout mmzoo
  mmzoo convert ViT-B-32.pt clip-hf/ --layout clip/transformers --model clip-vit-b32 --dry-run
"""


def main(argv: Sequence[str]) -> int:
    """Convert a checkpoint, or say what that would do."""
    parser = Parser("convert", "A checkpoint from any layout to any other of its family, exactly.", EXAMPLES)
    parser.add_argument(
        "source", metavar="SRC", help="a file or folder in any published layout, or mmzoo's own"
    )
    parser.add_argument(
        "target",
        metavar="DST",
        help="a folder; or a .safetensors, .pt, .pth, .bin or .npz file for the weights alone",
    )
    parser.add_argument(
        "--layout", required=True, metavar="L", help="layout to write: mmzoo, clip/transformers, ..."
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the zoo's name of it, for what a file does not tell (activation, heads)",
    )
    parser.add_argument("--source-layout", metavar="L", help="layout of SRC, where its names cannot tell")
    parser.add_argument("--dry-run", action="store_true", help="read and check everything, write nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.read(argv[1:])
    from mmzoo.apps.convert import convert  # torch, only once the words are known to be right

    done = convert(
        args.source,
        args.target,
        layout=args.layout,
        model=args.model,
        source_layout=args.source_layout,
        dry_run=args.dry_run,
    )
    if args.json:
        print_json(done)
    else:
        print(_text(done))
    return 0


def _text(done: Conversion) -> str:
    dtypes = ", ".join(f"{count} {name}" for name, count in sorted(done.dtypes.items()))
    rows = [
        ("read", done.source, f"{done.layout}, {done.tensors_read} tensors"),
        ("model", done.family, f"{done.parameters:,} parameters in {done.tensors} tensors ({dtypes})"),
        (
            "written" if done.written else "would write",
            str(done.files[0]),
            f"{done.target_layout}, {done.tensors_written} tensors",
        ),
        *(("", str(file), "") for file in done.files[1:]),
        *(("dropped", one.name, one.why) for one in done.dropped),
        *(("compared", name, "a second copy, equal") for name in done.copies),
        *(("checked", name, "repeats what the config says") for name in done.constants),
        *(("not told", what, f"{done.target_layout} has no word for it") for what in done.unsaid),
        ("sha256", done.sha256, "of the weights under mmzoo's names"),
    ]
    return table(("", "what", ""), rows)
