"""Where models meet weights: fills a model from any published layout.

The weights side knows names, shapes and plain data; the models side knows configs and classes. Only here, in
`mmzoo.conversion`, and in the zoo that calls them, do they see each other.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmzoo.config import from_dict, to_dict
from mmzoo.errors import UsageError, ZooError
from mmzoo.paths import find_weights
from mmzoo.weights.convert import Checkpoint, recognise
from mmzoo.weights.io import load_strictly, read_json
from mmzoo.weights.layout import Plain, Shapes, Unknown
from mmzoo.weights.layout import fill as fill_unknown
from mmzoo.weights.read import open_checkpoint
from mmzoo.weights.rules import Drop, TensorSource, apply
from mmzoo.zoo import FAMILIES, Family, config_from, model_class

__all__ = [
    "OpenedWeights",
    "fill",
    "fill_tower",
    "filled_model",
    "meta_model",
    "open_weights",
    "refuse_contradictions",
    "shapes_of",
    "words_of",
]


class OpenedWeights(NamedTuple):
    """A checkpoint in our own names or in a published layout.

    Attributes:
        source: Its tensors under our names, where it is our own.
        checkpoint: The recognised checkpoint, where it is not.
        config: The config that stands beside our own, or None.
    """

    source: TensorSource | None
    checkpoint: Checkpoint | None
    config: Any = None


def meta_model(family: Family, config: Any) -> nn.Module:
    """A model on the meta device: names and shapes without memory."""
    with torch.device("meta"):
        model: nn.Module = model_class(family, config)(config)
    return model


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors that a model saves."""
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


def _is_own(source: TensorSource) -> bool:
    """Whether a file is mmzoo's: it says so, or has names that no published layout has."""
    metadata = getattr(source, "metadata", {})
    if metadata.get("family") in FAMILIES and "sha256" in metadata:
        return True
    names = source.shapes()
    return any(n.startswith(("vision.blocks.", "vision.trunk.", "text.blocks.")) for n in names)


def _own_config(path: Path) -> Any:
    """The config that `mmzoo.save` wrote beside the weights, or None."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.is_file():
        return None
    told = read_json(file)
    if not isinstance(told, dict) or told.get("family") not in FAMILIES or "config" not in told:
        return None
    return config_from(told["family"], told["config"], str(file), told.get("kind"))


def open_weights(
    path: Path, layout: str | None, family: str | None, *, tower: str | None = None
) -> OpenedWeights:
    """Open a checkpoint and find out what it is.

    Args:
        path: A file or folder.
        layout: Its layout where the names cannot tell, or to insist; `"mmzoo"` for our own.
        family: The family that is wanted; a published file of another one is refused by name.
        tower: The only part of it that is wanted, None for all.

    Raises:
        UsageError: No such layout.
        ZooError: It cannot be read, is of no known layout or of another family, or is a checkpoint of `mmzoo fit`
            that lacks what is wanted.
    """
    source = open_checkpoint(path)
    _refuse_partial(path, getattr(source, "left_out", ()), tower)
    if layout in (None, "mmzoo"):
        if _is_own(source):
            return OpenedWeights(source, None, _own_config(path))
        if layout == "mmzoo":
            raise ZooError(f"{path} does not have mmzoo's own names; leave layout out to have it recognised.")
    return OpenedWeights(None, recognise(path, source, layout, family))


def _refuse_partial(path: Path, left_out: tuple[str, ...], tower: str | None) -> None:
    """Refuse a checkpoint of `mmzoo fit` that leaves out frozen weights which are wanted."""
    lacking = [name for name in left_out if tower is None or name.split(".")[0] == tower]
    if not lacking:
        return
    export = path.absolute().parent.parent / "export"
    whole = str(export) if export.is_dir() else "the folder export/ of its run"
    raise ZooError(
        f"{path} leaves out the {len(lacking)} tensors that its run kept frozen and took from another file "
        f"({', '.join(dict.fromkeys(name.split('.')[0] for name in lacking))}): it is for going on with that run. "
        f"The whole model is in {whole}."
    )


def _free(config: Any) -> dict[str, str]:
    """What a checkpoint may decide against the model's name: heads and their sizes.

    These are the fields of the config that name a tensor in their metadata (`{"free": "head.weight"}`), each with it.
    """
    return {f.name: f.metadata["free"] for f in dataclasses.fields(config) if "free" in f.metadata}


def _decided(config: Any, shapes: Shapes) -> Plain:
    """These fields as a file of ours tells them: whether the tensor is there, or how many rows it has."""
    kinds = {f.name: f.default for f in dataclasses.fields(config)}
    return {
        name: tensor in shapes
        if isinstance(kinds[name], bool)
        else shapes.get(tensor, (None if kinds[name] is None else 0,))[0]
        for name, tensor in _free(config).items()
    }


# what must agree, or the numbers would be silently wrong
_BINDING = ("act", "heads", "kv_heads", "rope_base", "norm", "norm_eps")


def _contradictions(told: Plain, ours: Plain, path: str = "") -> list[str]:
    found = []
    for key, value in told.items():
        if isinstance(value, dict) and isinstance(ours.get(key), dict):
            found += _contradictions(value, ours[key], f"{path}{key}.")
        elif key in _BINDING and not isinstance(value, Unknown) and value != ours.get(key):
            found.append(f"{path}{key} is {value!r} in the file and {ours.get(key)!r} in the model")
    return found


def _as_the_file_says(config: Any, told: Plain, *, image: bool) -> Plain:
    """A name's config with what the file, or the files beside it, say otherwise and no shape shows.

    Libraries publish the same network with another epsilon or preprocessing (transformers' ViT has 1e-12 where it was
    trained with 1e-6), and the numbers that people compare with are theirs.

    Args:
        config: The name's config.
        told: What the checkpoint tells.
        image: Whether it decides the preprocessing too; the size stays the name's.
    """
    plain = to_dict(config)
    out = plain | {key: told[key] for key in _free(config) if key in told}
    for part in ("vision", "text"):
        eps = told.get(part, {}).get("norm_eps")
        if isinstance(eps, float) and "norm_eps" in plain.get(part, {}):
            out[part] = plain[part] | {"norm_eps": eps}
    if image and isinstance(told.get("image"), dict):
        out["image"] = plain["image"] | told["image"] | {"size": plain["image"]["size"]}
    return out


def _head_hint(told: Plain, family: Family, config: Any) -> str:
    """A sentence for whoever wants another head than the file's."""
    for name in _free(config):
        found, wanted = told.get(name), getattr(config, name)
        if type(found) is type(wanted) is int and found != wanted:
            hint = (
                f" The file's head seems to have {found} {name}, not {wanted}: create the model with the file's own "
                f"head (leave config out, or set its {name} to {found}), then call "
            )
            if hasattr(model_class(family, config), "reset_head"):
                return f"{hint}mmzoo.adapt.replace_head(model, {wanted})."
            return f"{hint}mmzoo.start.grown(model, config) for one of {wanted}."
    return ""


def _foreign_state(
    name: str, family: Family, config: Any, given: bool, checkpoint: Checkpoint, *, image: bool
) -> tuple[Any, dict[str, Tensor]]:
    """The config to build and the state under our names, the file's own image size still in its table."""
    plain, told = to_dict(config), checkpoint.told()
    if told.get("kind", type(config).__name__) != type(config).__name__:
        raise ZooError(
            f"{checkpoint.where} holds another model of the family ({told['kind'].removesuffix('Config')}) than {name} "
            f"({type(config).__name__.removesuffix('Config')})."
        )
    if not given:
        plain = _as_the_file_says(config, told, image=image)
        config = from_dict(type(config), plain)
    # the file's position table may belong to another image size; the model resamples it afterwards
    of_file = (
        plain | {"vision": plain["vision"] | {"image_size": told["vision"]["image_size"]}}
        if "vision" in told
        else plain
    )
    wanted = shapes_of(meta_model(family, from_dict(type(config), of_file)))
    hint = _head_hint(told, family, config)
    state = dict(checkpoint.tensors(of_file, wanted, hint))
    if wrong := _contradictions(told, plain):
        raise ZooError(f"{checkpoint.where} is not {name}: {'; '.join(wrong)}.")
    return config, state


def filled_model(
    name: str, family: str, config: Any, pretrained: str | Path, layout: str | None, *, given: bool
) -> nn.Module:
    """Build a model without initialising it, and fill it strictly.

    Args:
        name: The zoo's name, for messages and the catalog.
        family: Its family.
        config: The name's config, or the variant that the caller gave.
        pretrained: A tag of the catalog, a file or a folder, or one inside an installed package (`pkg:PACKAGE/PATH`).
        layout: The layout where the names cannot tell.
        given: Whether the caller gave the config: then the file has no say in it.

    Returns:
        The model in the file's dtype, on the CPU.

    Raises:
        UsageError: No such tag or layout.
        ZooError: The weights are missing, damaged or do not fit; both sides are listed.
    """
    path, tagged = find_weights(pretrained), False
    if not path.exists():
        if isinstance(pretrained, Path) or path.suffix or len(path.parts) > 1:
            raise ZooError(f"no weights at {str(pretrained)!r}: no such file or folder.")
        from mmzoo.weights.catalog import find
        from mmzoo.weights.hub import fetch

        record, tagged = find(name, str(pretrained)), True
        path, layout = fetch(record), layout or record.layout
        if not given:
            config = from_dict(type(config), record.applied(to_dict(config)))
    opened = open_weights(path, layout, family)
    if opened.checkpoint is not None:
        config, state = _foreign_state(
            name, FAMILIES[family], config, given, opened.checkpoint, image=not tagged
        )
    else:
        assert opened.source is not None
        if opened.config is not None and (wrong := _contradictions(to_dict(opened.config), to_dict(config))):
            raise ZooError(f"{path} is not {name}: {'; '.join(wrong)}.")
        shapes = opened.source.shapes()
        decided = _decided(config, shapes)
        hint = _head_hint(decided, FAMILIES[family], config)
        if not given:
            config = dataclasses.replace(config, **decided)
        state = {n: opened.source.tensor(n) for n in shapes}
        if given and hint:
            try:
                return fill(FAMILIES[family], config, state, str(path))
            except ZooError as error:
                raise ZooError(f"{error}{hint}") from None
    model = fill(FAMILIES[family], config, state, str(path))
    if opened.checkpoint is not None and (words := words_of(opened.checkpoint, config)) is not None:
        model.answers = words  # type: ignore[assignment]
    return model


def words_of(checkpoint: Checkpoint, config: Any) -> tuple[str, ...] | None:
    """The words of a published model's closed list, if the files beside it name as many as the config says."""
    words = checkpoint.layout.words(checkpoint.side)
    return words if words is not None and len(words) == getattr(config, "answers", None) else None


def fill(family: Family, config: Any, state: dict[str, Tensor], where: str) -> nn.Module:
    """Build a model and fill it strictly from `state`, whose tensors become its own."""
    model = meta_model(family, config)
    # a guest tower may hold buffers that are computed at construction and stand in no file
    if any(name not in model.state_dict() for name, _ in model.named_buffers()):
        model = model_class(family, config)(config)
    fit = getattr(model, "fit_state", None)
    load_strictly(model, fit(state) if fit else state, where)
    return model


_OTHER_PART = Drop("another part of the model than the tower that is wanted")


def fill_tower(model: nn.Module, part: str, weights: str | Path) -> frozenset[str]:
    """Fill one tower of a model, strictly, from weights of any family that has such a tower.

    What else the checkpoint holds (heads, the other tower) is left aside. A position table of another image size is
    resampled as the tower's config says. Parts that the tower declares as `fresh` (the cross-attention of a text
    transformer) may be missing, all of them, and then stay as they are.

    Args:
        model: A model of the zoo; its tower changes in place and keeps its dtype.
        part: `"vision"` or `"text"`.
        weights: A file or folder in any layout, or one inside an installed package (`pkg:PACKAGE/PATH`).

    Returns:
        Names in the model of what was filled.

    Raises:
        UsageError: The model has no such tower, or there is no such package.
        ZooError: The weights are missing, damaged, without such a tower, or do not fit it.
    """
    tower = getattr(model, part, None)
    if part not in ("vision", "text") or not isinstance(tower, nn.Module):
        raise UsageError(
            f"a {type(model).__name__} has no tower {part!r}: towers are called vision and text."
        )
    path, config, own = find_weights(weights), tower.config, tower.state_dict()
    fresh = {name for name in own if name.startswith(tuple(f"{p}." for p in getattr(tower, "fresh", ())))}
    opened = open_weights(path, None, None, tower=part)
    if opened.checkpoint is not None:
        state = _tower_state(opened.checkpoint, part, type(tower), config, fresh)
    else:
        assert opened.source is not None
        names = [name for name in opened.source.shapes() if name.startswith(f"{part}.")]
        state = {name.removeprefix(f"{part}."): opened.source.tensor(name) for name in names}
        told = {} if opened.config is None else to_dict(opened.config)
        refuse_contradictions(told.get(part, {}), config, f"{path}: its {part} tower")
    if not state:
        raise ZooError(f"{path} has no {part} tower.")
    like = next(tower.parameters())
    filled = frozenset(f"{part}.{name}" for name in state)
    state = {name: tensor.to(like) for name, tensor in state.items()}
    if not fresh & state.keys():
        state |= {name: own[name] for name in fresh}
    fit: Any = getattr(tower, "fit_state", None)
    load_strictly(tower, fit(state) if fit else state, f"{path} ({part})")
    on_filled: Any = getattr(model, "tower_filled", None)
    if on_filled is not None:
        on_filled(part)
    return filled


def _tower_state(
    checkpoint: Checkpoint, part: str, kind: type[nn.Module], config: Any, fresh: set[str]
) -> dict[str, Tensor]:
    """A tower's tensors under its own names, out of a published checkpoint."""
    told = checkpoint.told()
    if part not in told:
        raise ZooError(f"{checkpoint.where} ({checkpoint.layout.name}) has no {part} tower.")
    refuse_contradictions(told[part], config, f"{checkpoint.where}: its {part} tower")
    plain = fill_unknown({part: told[part]}, {part: to_dict(config)}, checkpoint.where)
    size = {"image_size": plain[part]["image_size"]} if part == "vision" else {}
    with torch.device("meta"):
        empty = kind(dataclasses.replace(config, **size))
    bare = not told[part].get("cross_layers")  # a layout of fusion models tells of theirs
    names = {name: shape for name, shape in shapes_of(empty).items() if not (bare and name in fresh)}
    wanted = {f"{part}.{name}": shape for name, shape in names.items()}
    rules = [
        rule
        if rule.target is not None and rule.target.startswith(f"{part}.")
        else rule._replace(op=_OTHER_PART)
        for rule in checkpoint.layout.rules(told | plain)
    ]
    rows = apply(rules, checkpoint.source, wanted, f"{checkpoint.where} ({checkpoint.layout.name})")
    return {name.removeprefix(f"{part}."): tensor for name, tensor in rows}


def refuse_contradictions(told: Plain, config: Any, where: str) -> None:
    """Refuse weights of which is known that they were trained for another function than a config's.

    Args:
        told: Plain data of their config, as far as it is known.
        config: What is to be filled.
        where: What to call them in a message.

    Raises:
        ZooError: They contradict each other where no shape would tell.
    """
    if wrong := _contradictions(told, to_dict(config)):
        raise ZooError(f"{where} does not fit: {'; '.join(wrong)}.")
