"""`mmzoo doctor`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mmzoo.cli.parser import Parser
from mmzoo.cli.render import print_json, table

if TYPE_CHECKING:
    from mmzoo.apps.doctor import Diagnosis

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Print what to paste into a bug report."""
    parser = Parser("doctor", "Versions, devices, attention backends, extras and folders: for a bug report.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.read(argv[1:])
    from mmzoo.apps.doctor import doctor  # torch, only once the words are known to be right

    found = doctor()
    if args.json:
        print_json(found)
    else:
        print(_text(found))
    return 0


def _text(found: Diagnosis) -> str:
    attention: list[tuple[str, str, str]] = []
    for case in found.attention:
        name = case.name
        for backend in case.backends:
            free = "taken" if backend.name == case.taken else f"could, but {case.taken} is asked first"
            attention.append((name, backend.name, backend.refusal or free))
            name = ""
    extras = [
        (extra.name, f"lacks {', '.join(extra.missing)}: {extra.install}" if extra.missing else "installed")
        for extra in found.extras
    ]
    sections = {
        "versions": _pairs(found.versions),
        "machine": _pairs(found.machine),
        "devices": "\n".join(found.devices),
        "threads": _pairs(found.threads),
        "attention": table(("for", "backend", "why or why not"), attention),
        "extras": table(("extra", "state"), extras),
        "folders": _pairs(found.folders),
    }
    return "\n\n".join(f"[{name}]\n{text}" for name, text in sections.items())


def _pairs(data: Mapping[str, str]) -> str:
    width = max(map(len, data))
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in data.items())
