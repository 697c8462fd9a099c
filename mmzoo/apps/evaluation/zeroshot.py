"""Zero-shot classification as `mmzoo zeroshot` does it, reported as an evaluation."""

from __future__ import annotations

from mmzoo.apps.evaluation.request import Measure, Outcome, Request
from mmzoo.apps.opening import Opened
from mmzoo.apps.zeroshot import zeroshot
from mmzoo.data.open import open_source
from mmzoo.data.sample import Source
from mmzoo.errors import ZooError

__all__ = ["open_classes", "run_zeroshot"]


def open_classes(request: Request) -> Source:
    """Open pictures with classes.

    Raises:
        ZooError: There are no classes.
    """
    source = open_source(request.data, split=request.split, by=request.by)
    if source.classes is None:
        raise ZooError(
            f"{source.name} has no classes, so no label is right or wrong; zeroshot reads class folders."
        )
    return source


def run_zeroshot(request: Request, opened: Opened, source: Source) -> Outcome:
    """Measure top-1 and top-5 accuracy over the classes.

    Every process does all of it.

    Args:
        request: What is asked.
        opened: A model that `EmbedsPairs`.
        source: Pictures with classes.
    """
    result = zeroshot(
        (opened.model, opened.processor),
        data=request.data,
        split=request.split,
        by=request.by,
        labels=request.labels,
        templates="auto" if request.templates is None else request.templates,
        batch_size=request.batch_size,
        device=opened.device,
        progress=request.progress,
    )
    accuracies = [number for number in result.numbers if "R@" not in number.name]
    if not accuracies:
        raise ZooError(f"{source.name}: none of its pictures has a label, so nothing can be counted.")
    notes = [f"{number.name}: {number.note}." for number in accuracies if number.note]
    if result.broken:
        notes.append(f"{len(result.broken)} of {len(source)} pictures cannot be read and are left out.")
    return Outcome(
        numbers={
            number.name.replace(" ", "_"): Measure(number.value, number.chance) for number in accuracies
        },
        data={"source": source.name, "images": len(result.predictions), "broken": len(result.broken)},
        protocol={"labels": len(result.labels), "templates": list(result.templates)},
        notes=notes,
        broken=result.broken,
    )
