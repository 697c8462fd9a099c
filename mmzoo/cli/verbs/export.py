"""`mmzoo export`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmzoo.cli.parser import Parser
from mmzoo.cli.render import print_json, table

if TYPE_CHECKING:
    from mmzoo.apps.export import Exported

__all__ = ["main"]

EXAMPLES = """examples:
  mmzoo export runs/clip-tiny/export clip-tiny-onnx/
  mmzoo export clip-vit-b32 clip-onnx/ --pretrained openai --format onnx
"""


def main(argv: Sequence[str]) -> int:
    """Export encoders."""
    parser = Parser(
        "export", "A model's encoders as torch.export programs and ONNX, checked against it.", EXAMPLES
    )
    parser.add_argument("model", metavar="NAME", help="a name of the zoo, or a folder with a saved model")
    parser.add_argument("out", metavar="DIR", help="folder to write")
    parser.add_argument(
        "--pretrained", metavar="PATH", help="weights for a name of the zoo; without them they are random"
    )
    parser.add_argument(
        "--format", choices=["torch", "onnx"], metavar="F", help="only torch or only onnx (both by default)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.read(argv[1:])
    from mmzoo.apps.export import FORMATS, export  # torch, only once the words are known to be right

    done = export(
        args.model, args.out, pretrained=args.pretrained, formats=[args.format] if args.format else FORMATS
    )
    if args.json:
        print_json(done)
    else:
        print(_text(done))
    return 0


def _text(done: Exported) -> str:
    rows = [
        (
            str(one.file),
            ", ".join(f"{name} ({' x '.join(map(str, shape))})" for name, shape in one.inputs.items()),
            one.output,
            f"{one.error:.1e}",
        )
        for one in done.files
    ]
    return table(("file", "inputs", "output", "off by"), rows)
