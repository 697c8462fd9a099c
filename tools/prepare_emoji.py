"""Draw the emoji-850 atlases and their index from pinned npm packages.

    npm install --prefix /tmp/emoji @iconify-json/noto@1.2.9 @iconify-json/fluent-emoji-flat@1.2.6 \
        @iconify-json/twemoji@1.2.5 cldr-annotations-full@48.2.0
    pip install resvg-py==0.5.0
    python tools/prepare_emoji.py /tmp/emoji            # writes data/emoji
    python tools/prepare_emoji.py /tmp/emoji --check    # draws again and compares with data/emoji

The same versions give the same pixels on every run; the atlases' pixel hashes stand in `emoji.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

STYLES = {"noto": "noto", "fluent": "fluent-emoji-flat", "twemoji": "twemoji"}  # our name -> package
VERSIONS = {
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "@iconify-json/twemoji": "1.2.5",
    "cldr-annotations-full": "48.2.0",
}
GROUPS = ("Animals & Nature", "Food & Drink", "Objects", "Travel & Places", "Activities")
TILE, COLUMNS = 48, 34
FOLDS = 10  # fold 0 is never trained on, in any style
DATA = Path(__file__).resolve().parents[1] / "data" / "emoji"


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def check_versions(modules: Path) -> None:
    for name, version in VERSIONS.items():
        file = modules / name / "package.json"
        found = read_json(file)["version"] if file.is_file() else "nothing"
        if found != version:
            sys.exit(f"prepare_emoji: {modules} holds {found} of {name}, needed is {version}; see --help.")


def concepts(modules: Path) -> list[dict[str, Any]]:
    """The slugs drawn in every style, sorted, with CLDR's English name and keywords."""
    sets = {style: modules / "@iconify-json" / package for style, package in STYLES.items()}
    icons = [read_json(folder / "icons.json")["icons"] for folder in sets.values()]
    # The three packages file a few slugs under different groups (crab: animal or food); Noto's word holds.
    by_group = read_json(sets["noto"] / "metadata.json")["categories"]
    group_of = {slug: group for group in GROUPS for slug in by_group[group]}
    slugs = sorted(slug for slug in group_of if all(slug in drawn for drawn in icons))
    code_of = {slug: code for code, slug in read_json(sets["noto"] / "chars.json").items()}
    cldr = read_json(modules / "cldr-annotations-full/annotations/en/annotations.json")
    words = cldr["annotations"]["annotations"]
    by_hash = sorted(slugs, key=lambda slug: hashlib.sha256(slug.encode()).hexdigest())
    fold = {slug: rank * FOLDS // len(slugs) for rank, slug in enumerate(by_hash)}
    out = []
    for slug in slugs:
        # CLDR leaves the variation selector out of its keys
        char = "".join(chr(int(c, 16)) for c in code_of[slug].split("-")).replace("\ufe0f", "")
        name = words[char]["tts"][0]
        keywords = [k for k in words[char].get("default", []) if k.lower() != name.lower()]
        out.append(
            {
                "slug": slug,
                "name": name,
                "keywords": keywords,
                "group": group_of[slug],
                "code": code_of[slug],
                "fold": fold[slug],
            }
        )
    return out


def draw(body: str, left: float, top: float, width: float, height: float) -> Image.Image:
    """One icon on white, centred in a square (two of the icons are not square)."""
    import resvg_py

    side = max(width, height)
    box = f"{left - (side - width) / 2:g} {top - (side - height) / 2:g} {side:g} {side:g}"
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" width="{TILE}" height="{TILE}">{body}</svg>'
    )
    png = resvg_py.svg_to_bytes(
        svg_string=svg, background="#ffffff", width=TILE, height=TILE, skip_system_fonts=True
    )
    return Image.open(io.BytesIO(bytes(png))).convert("RGB")


def atlas(modules: Path, package: str, slugs: list[str]) -> Image.Image:
    data = read_json(modules / "@iconify-json" / package / "icons.json")
    sheet = Image.new("RGB", (COLUMNS * TILE, -(-len(slugs) // COLUMNS) * TILE), "white")
    for i, slug in enumerate(slugs):
        icon = data["icons"][slug]
        width, height = icon.get("width", data["width"]), icon.get("height", data["height"])
        tile = draw(icon["body"], icon.get("left", 0), icon.get("top", 0), width, height)
        sheet.paste(tile, (i % COLUMNS * TILE, i // COLUMNS * TILE))
    return sheet


def pixel_hash(image: Image.Image) -> str:
    return hashlib.sha256(np.asarray(image.convert("RGB")).tobytes()).hexdigest()


def render_index(rows: list[dict[str, Any]], pixels: dict[str, str]) -> str:
    """JSON with one concept a line, so that a change shows as a change of lines."""
    head = {"tile": TILE, "columns": COLUMNS, "groups": GROUPS, "packages": VERSIONS, "pixels": pixels}
    lines = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows)
    return json.dumps(head, indent=1, ensure_ascii=False)[:-2] + f',\n "concepts": [\n{lines}\n ]\n}}\n'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the npm packages are installed")
    parser.add_argument("--check", action="store_true", help="compare with data/emoji instead of writing it")
    args = parser.parse_args()
    modules = args.folder / "node_modules"
    check_versions(modules)
    rows = concepts(modules)
    sheets = {style: atlas(modules, package, [r["slug"] for r in rows]) for style, package in STYLES.items()}
    index = render_index(rows, {style: pixel_hash(sheet) for style, sheet in sheets.items()})
    if args.check:
        wrong = [s for s in STYLES if pixel_hash(Image.open(DATA / f"{s}.webp")) != pixel_hash(sheets[s])]
        wrong += [] if (DATA / "emoji.json").read_text(encoding="utf-8") == index else ["emoji.json"]
        sys.exit(f"prepare_emoji: differs from data/emoji: {', '.join(wrong)}" if wrong else 0)
    DATA.mkdir(parents=True, exist_ok=True)
    for style, sheet in sheets.items():
        sheet.save(DATA / f"{style}.webp", lossless=True, quality=100, method=6)
    (DATA / "emoji.json").write_text(index, encoding="utf-8")


if __name__ == "__main__":
    main()
