"""`mmzoo convert`: a checkpoint from any layout to any other of its family, with a report."""

from __future__ import annotations

from pathlib import Path

from mmzoo.conversion import Conversion, convert_with_report

__all__ = ["Conversion", "convert"]


def convert(
    source: str | Path,
    target: str | Path,
    *,
    layout: str,
    model: str | None = None,
    source_layout: str | None = None,
    dry_run: bool = False,
) -> Conversion:
    """Convert a checkpoint and say what was done. All files are written, or none; no dtype is changed.

    Args:
        source: A file or folder in any layout, which is recognised by its names.
        target: A folder; or a `.safetensors`, `.pt`, `.pth`, `.bin` or `.npz` file for the weights alone.
        layout: The target's layout: `"mmzoo"`, `"clip/transformers"`, ...
        model: A zoo name that tells what the file does not (activation, heads, preprocessing).
        source_layout: The source's layout where its names cannot tell.
        dry_run: Read and check everything, write nothing.

    Raises:
        UsageError: No such layout or model name, a layout of another family, or a target that is the source.
        ZooError: The source is missing, damaged or does not fit, something stays unknown, or the layout cannot say
            what the model is.
    """
    return convert_with_report(
        source, target, layout, model=model, source_layout=source_layout, dry_run=dry_run
    )
