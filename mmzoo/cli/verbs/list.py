"""`mmzoo list`."""

from __future__ import annotations

from collections.abc import Sequence

from mmzoo.apps.list import list_models
from mmzoo.cli.parser import Parser
from mmzoo.cli.render import print_json, size, table

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Print the models that match a pattern."""
    parser = Parser("list", "The models of the zoo, with the licence of the weights published for each.")
    parser.add_argument(
        "pattern",
        nargs="?",
        default="*",
        metavar="PATTERN",
        help="shell pattern for names ('clip-*'), or a word: part of a name, a tag, a capability",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.read(argv[1:])
    models = list_models(args.pattern)
    if args.json:
        print_json(models)
        return 0
    rows = [
        (
            m.name,
            size(m.params),
            f"{m.image_size} px" if m.image_size else "",
            ", ".join(m.capabilities) or "gives features",
            _some(m.tags),
            m.licence,
        )
        for m in models
    ]
    print(table(("name", "params", "image", "can", "tags", "licence"), rows, right=(1, 2)))
    return 0


def _some(tags: tuple[str, ...]) -> str:
    return ", ".join(tags[:2]) + (f" and {len(tags) - 2} more" if len(tags) > 2 else "") or "-"
