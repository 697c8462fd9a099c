"""`mmzoo show`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mmzoo.apps.report.shares import percent
from mmzoo.apps.show import Shown, show
from mmzoo.cli.parser import Parser
from mmzoo.cli.render import plain, print_json, table
from mmzoo.zoo import get_config

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Print everything about one model."""
    parser = Parser("show", "One model: config, parameters of each part, preprocessing, citation.")
    parser.add_argument("name", metavar="NAME", help="a model of the zoo: mmzoo list")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--yaml", action="store_true", help="print the config as YAML, to edit and train from")
    args = parser.read(argv[1:])
    shown = show(args.name)
    if args.json:
        print_json(shown)
    elif args.yaml:
        import yaml

        # as a config of `mmzoo fit` wants it, which tells unions apart by their fields and not by "kind"
        config = plain(dataclasses.asdict(get_config(args.name)))
        print(f"# {shown.name}, {shown.params:,} parameters; belongs under model.init_args.model of a config")
        print(yaml.safe_dump(config, sort_keys=False, default_flow_style=None), end="")
    else:
        print(_text(shown))
    return 0


def _text(shown: Shown) -> str:
    parts = [(name, f"{count:,}", percent(count / shown.params)) for name, count in shown.parts.items()]
    return "\n".join(
        [
            f"{shown.name} ({shown.family}): {', '.join(shown.capabilities) or 'gives features'}",
            "",
            table(("part", "parameters", "share"), [*parts, ("all", f"{shown.params:,}", "")], right=(1, 2)),
            "",
            "preprocessing",
            *_lines(shown.preprocessing),
            "",
            "config",
            *_lines(shown.config),
            "",
            *_weights(shown),
            f"cite: {shown.citation}",
        ]
    )


def _weights(shown: Shown) -> list[str]:
    if not shown.weights:
        return ["no weights are published for it", f"licence: {shown.licence or 'unknown'}"]
    rows = [
        (w.tag, w.layout, f"{w.size / 1e6:,.0f} MB" if w.size else "-", w.licence, w.verified, w.source)
        for w in shown.weights
    ]
    lines = table(("weights", "layout", "size", "licence", "verified", "published at"), rows, right=(2,))
    notes = [f"{w.tag}: {w.note}" for w in shown.weights if w.note]
    return [
        lines,
        "verified: real = these weights gave the published numbers here; synthetic = the layout is proven at this size",
        *notes,
        "",
    ]


def _lines(data: Mapping[str, Any], indent: str = "  ") -> list[str]:
    lines: list[str] = []
    for name, value in data.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{name}", *_lines(value, indent + "  ")]
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            lines.append(f"{indent}{name}: {text or 'none'}")
    return lines
