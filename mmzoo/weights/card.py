"""The model card: a README.md that tells what a saved model is and how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["model_card"]


def model_card(
    name: str,
    *,
    family: str,
    parameters: int,
    capabilities: tuple[str, ...],
    preprocessing: Mapping[str, Any],
    weights_sha256: str,
    training: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    origin: str = "",
    citation: str = "",
) -> str:
    """Write the card of a saved model as Markdown.

    Args:
        name: How the model is called.
        family: Its family, `"clip"`.
        parameters: Number of parameters.
        capabilities: Names of what it can do.
        preprocessing: The image specification as plain data.
        weights_sha256: `mmzoo.weights.io.weights_hash` of the weights.
        training: Recipe facts to print (config, steps, seed, versions), or None.
        metrics: Numbers to print, or None.
        origin: A sentence on where the weights come from, if not from training here.
        citation: The paper.
    """
    lines = [
        "---",
        "library_name: mmzoo",
        f"tags: [{family}]",
        "---",
        "",
        f"# {name}",
        "",
        f"A {family} model of {parameters:,} parameters. It {', '.join(capabilities) or 'gives features'}.",
        "",
        "```python",
        "import mmzoo",
        "",
        'model, processor = mmzoo.load("PATH/TO/THIS/FOLDER")',
        "```",
        "",
        "| | |",
        "| --- | --- |",
        f"| weights (sha256 of names, shapes and bytes) | `{weights_sha256}` |",
        *(f"| {key} | `{value}` |" for key, value in preprocessing.items()),
    ]
    for title, table in (("Training", training), ("Measured", metrics)):
        if table:
            lines += [
                "",
                f"## {title}",
                "",
                "| | |",
                "| --- | --- |",
                *(f"| {k} | {v} |" for k, v in table.items()),
            ]
    if not training:
        lines += ["", f"{origin} How these weights were trained is not recorded here.".lstrip()]
    if citation:
        lines += ["", "## Cite", "", citation]
    return "\n".join(lines) + "\n"
