"""Converting checkpoints between layouts, with a report of what was done.

A conversion that cannot be exact is refused: a name that no rule claims, a switch of the model that the target's files
have no word for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmzoo.config import from_dict, paths_of, to_dict
from mmzoo.errors import UsageError, ZooError
from mmzoo.interchange import meta_model, open_weights, shapes_of, words_of
from mmzoo.models.capabilities import capabilities_of
from mmzoo.paths import find_weights
from mmzoo.weights.card import model_card
from mmzoo.weights.convert import Dropped, Outlet, Rest, lay_out, rest_of, told_by
from mmzoo.weights.io import WeightsDigest, load_strictly, write_json
from mmzoo.weights.layout import Layout, Plain
from mmzoo.weights.maps import get_layout
from mmzoo.weights.rules import Absent, Rule, invert
from mmzoo.weights.write import is_file_name, open_writer, staged
from mmzoo.zoo import FAMILIES, config_from, describe_config, family_of, get_config

__all__ = ["Conversion", "convert", "convert_with_report"]


class Conversion(NamedTuple):
    """What a conversion did, or would do.

    Attributes:
        source: What was read.
        layout: The layout that it was found to have.
        family: Its family.
        files: What was written, the weights first.
        target_layout: The layout that was written.
        tensors_read: Tensors in the source.
        tensors: Tensors of the model.
        tensors_written: Tensors in the target.
        parameters: Numbers in the model's tensors.
        dtypes: How many of the model's tensors have which dtype; none is changed.
        dropped: Tensors of the source that a model of mmzoo does not hold, with the reason.
        copies: Tensors of the source that repeat another one, compared.
        constants: Tensors of the source that repeat what the config says, checked.
        unsaid: What the written files do not tell of the inputs, by its place in the config.
        sha256: Hash of the weights under mmzoo's names, as on the card.
        written: Whether the files were written.
    """

    source: str
    layout: str
    family: str
    files: tuple[Path, ...]
    target_layout: str
    tensors_read: int
    tensors: int
    tensors_written: int
    parameters: int
    dtypes: dict[str, int]
    dropped: tuple[Dropped, ...]
    copies: tuple[str, ...]
    constants: tuple[str, ...]
    unsaid: tuple[str, ...]
    sha256: str
    written: bool


def convert(
    source: str | Path,
    target: str | Path,
    layout: str,
    *,
    model: str | None = None,
    source_layout: str | None = None,
) -> Path:
    """Convert a checkpoint from any layout to any other of the same family.

    Tensors are read and written one at a time and keep their dtype. All files are written, or none.

    Args:
        source: A file or folder in any layout, or one inside an installed package (`pkg:PACKAGE/PATH`).
        target: A folder, which gets the weights under the layout's own file name and the files beside them; or a file
            name ending in `.safetensors`, `.pt`, `.pth`, `.bin` or `.npz`, for the weights alone.
        layout: The target's layout: `"mmzoo"`, `"clip/transformers"`, ...
        model: A zoo name that tells what the file does not (activation, heads, preprocessing).
        source_layout: The source's layout where its names cannot tell.

    Returns:
        The weights file that was written.

    Raises:
        UsageError: No such layout or model name, a layout of another family, or a target that is the source.
        ZooError: The source is missing, damaged or does not fit, something stays unknown, or the layout cannot say
            what the model is.
    """
    return convert_with_report(source, target, layout, model=model, source_layout=source_layout).files[0]


def convert_with_report(
    source: str | Path,
    target: str | Path,
    layout: str,
    *,
    model: str | None = None,
    source_layout: str | None = None,
    dry_run: bool = False,
) -> Conversion:
    """Convert as `convert` does, and say what was done.

    Args:
        source: As in `convert`.
        target: As in `convert`.
        layout: As in `convert`.
        model: As in `convert`.
        source_layout: As in `convert`.
        dry_run: Read and check everything, write nothing.
    """
    source, target = find_weights(source), Path(target)
    incoming = _incoming(source, model, source_layout)
    plain = to_dict(incoming.config)
    rules: list[Rule] | None = None
    names, unsaid = incoming.shapes, []
    weights, side = "model.safetensors", {"config.json": _config_file(incoming)}
    if layout != "mmzoo":
        to = get_layout(layout)
        if to.family != incoming.family:
            raise UsageError(
                f"{source} is a {incoming.family} model; the layout {layout} is for {to.family}."
            )
        outlet = lay_out(to, plain, incoming.shapes)
        unsaid = _unsaid(to, outlet, incoming)
        unsaid += [f"{r.target}: {r.op.why}" for r in outlet.rules if isinstance(r.op, Absent)]
        rules, names, weights, side = outlet.rules, outlet.shapes, to.weights, outlet.side
    folder = target
    if is_file_name(target):
        folder, weights, side = target.parent, target.name, {}
    elif layout == "mmzoo":
        side["processor.json"] = _processor_file(incoming)
    if weights.endswith(".npz") and (layout == "mmzoo" or not get_layout(layout).weights.endswith(".npz")):
        raise UsageError(f"{layout} is not an npz layout: end {target.name} in .safetensors or .pt.")
    if (folder / weights).exists() and source.exists() and _holds(source, folder / weights):
        raise UsageError(f"{folder / weights} is the source itself: convert to another place.")
    ledger = _Ledger()
    rows = ledger.watch(incoming.tensors())
    out = rows if rules is None else invert(rules, rows)
    card = layout == "mmzoo" and bool(side)
    if dry_run:
        for _ in out:
            pass
    else:
        metadata = {"family": incoming.family, "sha256": "0" * 64} if layout == "mmzoo" else {}
        with staged(folder) as stage:
            with open_writer(stage / weights, names, metadata) as writer:
                for name, tensor in out:
                    writer.add(name, tensor)
                if metadata:
                    writer.metadata["sha256"] = ledger.digest.hex()
            for file, content in side.items():
                write_json(stage / file, content)
            if card:
                (stage / "README.md").write_text(_card(incoming, target.name, ledger), encoding="utf-8")
    beside = [*side, "README.md"] if card else [*side]
    return Conversion(
        source=str(source),
        layout=incoming.layout,
        family=incoming.family,
        files=(folder / weights, *(folder / name for name in beside)),
        target_layout=layout,
        tensors_read=incoming.tensors_read,
        tensors=len(incoming.shapes),
        tensors_written=len(names),
        parameters=ledger.parameters,
        dtypes=dict(ledger.dtypes),
        dropped=incoming.rest.dropped,
        copies=incoming.rest.copies,
        constants=incoming.rest.constants,
        unsaid=tuple(unsaid),
        sha256=ledger.digest.hex(),
        written=not dry_run,
    )


class _Incoming(NamedTuple):
    """A source that is understood: which model it is, and how its tensors come under our names, sorted."""

    layout: str
    family: str
    config: Any
    shapes: dict[str, tuple[int, ...]]
    tensors_read: int
    rest: Rest
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    words: tuple[str, ...] | None = None  # of a closed list, where its files tell them


def _incoming(path: Path, model: str | None, layout: str | None) -> _Incoming:
    known = None if model is None else get_config(model)
    opened = open_weights(path, layout, None)
    if (checkpoint := opened.checkpoint) is not None:
        family = checkpoint.layout.family
        plain = checkpoint.describe(None if known is None else to_dict(known))
        config = config_from(family, plain, str(path), plain.pop("kind", None))
        shapes = shapes_of(meta_model(FAMILIES[family], config))
        names = list(checkpoint.source.shapes())
        rest = rest_of(checkpoint.layout.rules(to_dict(config)), names)

        def published() -> Iterator[tuple[str, Tensor]]:
            return checkpoint.tensors(to_dict(config), shapes)

        words = words_of(checkpoint, config)
        return _Incoming(checkpoint.layout.name, family, config, shapes, len(names), rest, published, words)
    source = opened.source
    assert source is not None
    config = opened.config if known is None else known
    if config is None:
        raise ZooError(
            f"{path} has no config.json beside it: name the model that it is, as in model='clip-tiny' (--model)."
        )
    family = family_of(config)
    meta = meta_model(FAMILIES[family], config)
    shapes, found = shapes_of(meta), source.shapes()
    if found != shapes:
        empty = {name: torch.empty(shape, device="meta") for name, shape in found.items()}
        load_strictly(meta, empty, str(path))  # says what differs

    def own() -> Iterator[tuple[str, Tensor]]:
        for name in sorted(shapes):
            yield name, source.tensor(name)

    return _Incoming("mmzoo", family, config, shapes, len(found), Rest(), own)


class _Ledger:
    """Counts and hashes tensors that pass by."""

    def __init__(self) -> None:
        self.dtypes: Counter[str] = Counter()
        self.parameters = 0
        self.digest = WeightsDigest()

    def watch(self, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Pass on what comes."""
        for name, tensor in tensors:
            self.dtypes[str(tensor.dtype).removeprefix("torch.")] += 1
            self.parameters += tensor.numel()
            self.digest.add(name, tensor)
            yield name, tensor


# what a config says of the inputs, which some layouts keep elsewhere
_INPUTS = ("image.", "text_input.")


def _unsaid(to: Layout, outlet: Outlet, incoming: _Incoming) -> list[str]:
    """What the written files leave out of the config.

    Raises:
        ZooError: They would be taken for another model.
    """
    kind = type(incoming.config)
    ours = to_dict(incoming.config)
    told = told_by(to, outlet, ours)
    if told.pop("kind", kind.__name__) != kind.__name__:
        raise ZooError(f"the layout {to.name} would be read as another model than a {kind.__name__} builds.")
    read = to_dict(from_dict(kind, told, to.name))
    lost = _differences(ours, read, paths_of(incoming.config, "unkept"))
    if wrong := [line for path, line in lost.items() if not path.startswith(_INPUTS)]:
        raise ZooError(
            f"the layout {to.name} cannot say what this model is: {'; '.join(wrong)}. Its readers would compute "
            "something else."
        )
    return list(lost)


def _differences(ours: Plain, theirs: Plain, unkept: set[str], path: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in ours.items():
        other = theirs.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            found |= _differences(value, other, unkept, f"{path}{key}.")
        elif value != other and path + key not in unkept:
            found[path + key] = f"{path}{key} is {value!r} here and would be {other!r} there"
    return found


def _holds(source: Path, file: Path) -> bool:
    """Whether `file` is the source, or in it."""
    return any(p.exists() and p.samefile(file) for p in (source, source / file.name))


def _config_file(incoming: _Incoming) -> Plain:
    return describe_config(incoming.config)


def _processor_file(incoming: _Incoming) -> Plain:
    from mmzoo.processing.processor import Processor

    processor = Processor.of(incoming.config)
    processor.answers = incoming.words
    return processor.to_dict()


def _card(incoming: _Incoming, name: str, ledger: _Ledger) -> str:
    family = FAMILIES[incoming.family]
    return model_card(
        name,
        family=incoming.family,
        parameters=ledger.parameters,
        capabilities=capabilities_of(meta_model(family, incoming.config)),
        preprocessing=to_dict(getattr(incoming.config, "image", None) or incoming.config.text_input),
        weights_sha256=ledger.digest.hex(),
        origin=f"Converted from a file of the layout `{incoming.layout}`.",
        citation=family.paper,
    )
