"""Changing a model that is there: freeze parts, another head, LoRA, int8.

Parts are called by their names in the model: `vision`, `text.blocks.3`, `text.blocks.0-5` for six blocks,
`logit_scale` for a single parameter.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from mmzoo.errors import UsageError, ZooError, nearest
from mmzoo.layers.linear import Linear
from mmzoo.models.capabilities import EmbedsPairs, GivesFeatures, HasHead

if TYPE_CHECKING:
    from mmzoo.processing.processor import Texts

__all__ = [
    "Frozen",
    "Quantized",
    "add_lora",
    "freeze",
    "merge_lora",
    "parts_of",
    "quantize_int8",
    "replace_head",
]

_LINEAR = (nn.Linear, Linear)  # not heads and projections derived of them


class Frozen(NamedTuple):
    """How many numbers a model now trains.

    Attributes:
        frozen: Numbers in parameters that stay as they are.
        trainable: Numbers in parameters that are trained.
    """

    frozen: int
    trainable: int


def freeze(model: nn.Module, parts: Sequence[str], *, frozen: bool = True) -> Frozen:
    """Keep parts of a model from being trained, in place. Dropout in them stays as `model.train()` says.

    Args:
        model: Any module.
        parts: Names of parts, see above.
        frozen: False lets them be trained again.

    Returns:
        The counts for the whole model.

    Raises:
        UsageError: No such part; the message lists those that there are.
    """
    for part in parts_of(model, parts):
        part.requires_grad_(not frozen)
    numbers = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return Frozen(sum(n for n, train in numbers if not train), sum(n for n, train in numbers if train))


def _expand(name: str) -> Iterator[str]:
    """`text.blocks.0-2` to `text.blocks.0`, `text.blocks.1`, `text.blocks.2`."""
    match = re.search(r"(?:^|(?<=\.))(\d+)-(\d+)(?=\.|$)", name)
    if match is None:
        yield name
        return
    if int(match[1]) > int(match[2]):
        raise UsageError(f"the range {match[0]} of {name!r} runs backwards.")
    for i in range(int(match[1]), int(match[2]) + 1):
        yield from _expand(f"{name[: match.start()]}{i}{name[match.end() :]}")


def parts_of(model: nn.Module, names: Sequence[str]) -> list[nn.Module | nn.Parameter]:
    """The modules and parameters that names stand for, see above.

    Raises:
        UsageError: No such part; the message lists those that there are.
    """
    return [_part(model, one) for name in names for one in _expand(name)]


def _part(model: nn.Module, name: str) -> nn.Module | nn.Parameter:
    at: nn.Module = model
    walked: list[str] = []
    for word in name.split("."):
        children, own = dict(at.named_children()), dict(at.named_parameters(recurse=False))
        if word in own and ".".join([*walked, word]) == name:
            return own[word]
        if word not in children:
            where = ".".join(walked) or type(model).__name__
            known = [*children, *own]
            numbers = [k for k in known if k.isdigit()]
            shown = [f"{numbers[0]}-{numbers[-1]}"] if numbers and len(numbers) == len(known) else known
            raise UsageError(
                f"no part {name!r}: {where} has no {word!r}.{nearest(word, known)} "
                f"Its parts: {', '.join(shown) or 'none'}."
            )
        at = children[word]
        walked.append(word)
    return at


def replace_head(model: nn.Module, classes: int) -> nn.Module:
    """Give a model a new head of another size, in place, as its fine-tuning starts (Google's ViT: zeros).

    Args:
        model: A model that can (`reset_head`), such as a ViT.
        classes: Size of the new head; 0 takes the head away, and the model gives pooled features.

    Returns:
        The model, whose config says `classes`; `mmzoo.save` and `mmzoo.load` know it so.

    Raises:
        ZooError: The model has no head of classes.
        UsageError: The number is negative.
    """
    if not isinstance(model, HasHead):
        raise ZooError(
            f"a {type(model).__name__} has no head of classes; replace_head is for models that classify."
        )
    if classes < 0:
        raise UsageError(f"a head has 0 or more classes, asked for {classes}.")
    model.reset_head(classes)
    return model


# --- LoRA (extra `peft`) ------------------------------------------------------------------------------------------


def add_lora(
    model: nn.Module,
    targets: Sequence[str],
    rank: int,
    *,
    alpha: float | None = None,
    dropout: float = 0.0,
    layers: Sequence[str] = ("qkv", "out"),
) -> Frozen:
    """Put low-rank adapters (LoRA, Hu et al. 2022) beside linear layers, in place; only they are trained then.

    The model stays of its class and can do what it could. Before saving it, `merge_lora`.

    Args:
        model: A model of the zoo.
        targets: Parts that get adapters: `vision`, `text.blocks.6-11`.
        rank: Rank of the adapters.
        alpha: Their outputs are multiplied by `alpha / rank`; None is `rank`, so by 1.
        dropout: Dropout on the adapters' inputs.
        layers: Last names of the linear layers to adapt: `qkv`, `out`, `fc1`, `fc2`, and `q`, `kv` of
            cross-attention.

    Returns:
        How much is frozen and how much is trained.

    Raises:
        ZooError: The extra `peft` is missing, or the model has adapters already.
        UsageError: No such part, no linear layers of these names in it, or a rank below 1.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ZooError("LoRA needs the extra 'peft': pip install 'mmzoo[peft]'.") from None
    if rank < 1:
        raise UsageError(f"the rank of LoRA is at least 1, asked for {rank}.")
    if _adapted(model):
        raise ZooError("this model has LoRA adapters already: merge them first, by mmzoo.adapt.merge_lora.")
    inside = {
        id(m) for part in parts_of(model, targets) if isinstance(part, nn.Module) for m in part.modules()
    }
    # a subclass of Linear does more than a matrix (UnitProjection normalises), which an adapter would go past
    linear = [name for name, m in model.named_modules() if id(m) in inside and type(m) in _LINEAR]
    names = [name for name in linear if name.rsplit(".", 1)[-1] in layers]
    if not names:
        known = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise UsageError(
            f"{', '.join(targets)} holds no linear layers called {' or '.join(layers)}; it has "
            f"{', '.join(known) or 'none'}."
        )
    strength: Any = rank if alpha is None else alpha  # peft says int, and means a number
    config = LoraConfig(r=rank, lora_alpha=strength, lora_dropout=dropout, target_modules=names)
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    model.train(model.training)
    return freeze(model, [])


def _adapted(model: nn.Module) -> list[tuple[str, Any]]:
    """Layers with adapters, by name."""
    return [
        (name, m)
        for name, m in model.named_modules()
        if hasattr(m, "lora_A") and hasattr(m, "get_base_layer")
    ]


def merge_lora(model: nn.Module) -> nn.Module:
    """Add what adapters learned to the weights beside which they stand, and take them away, in place.

    Returns:
        The model, an ordinary one again: of its config's names and shapes, all of it trainable.

    Raises:
        ZooError: It has no adapters.
    """
    adapted = _adapted(model)
    if not adapted:
        raise ZooError("this model has no LoRA adapters to merge.")
    for name, layer in adapted:
        layer.merge(safe_merge=True)  # refuses what is not finite
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
    return model.requires_grad_(True)


# --- int8 (extra `quant`) -----------------------------------------------------------------------------------------


class Quantized(NamedTuple):
    """A model with int8 weights, and how close it comes to the one that it was made of.

    Attributes:
        model: The quantized copy.
        cosine: Smallest cosine between an embedding of the copy and of the original, over what was given.
        bytes_before: Bytes of the original's weights.
        bytes_after: Bytes of the copy's weights.
    """

    model: nn.Module
    cosine: float
    bytes_before: int
    bytes_after: int


def quantize_int8(
    model: nn.Module,
    images: Tensor,
    texts: Texts | None = None,
    *,
    parts: Sequence[str] = ("vision", "text"),
    floor: float = 0.99,
) -> Quantized:
    """Store the linear layers' weights as int8 with a scale per output, if the embeddings stay what they were.

    Args:
        model: A model that `EmbedsPairs` or `GivesFeatures`; it stays as it is.
        images: (B, 3, H, W), real ones, as the processor gives them.
        texts: Texts to compare as well, as the processor gives them.
        parts: Parts to quantize; those that the model lacks are left out if they are the default ones.
        floor: Smallest cosine allowed between an embedding before and after.

    Raises:
        ZooError: The extra `quant` is missing, the model gives no embeddings, or one of them comes below the floor.
        UsageError: No such part.
    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise ZooError("int8 needs the extra 'quant': pip install 'mmzoo[quant]'.") from None
    small = copy.deepcopy(model).eval()
    chosen = [name for name in parts if hasattr(model, name)] if tuple(parts) == ("vision", "text") else parts
    inside = {
        id(m) for part in parts_of(small, chosen) if isinstance(part, nn.Module) for m in part.modules()
    }
    quantize_(small, Int8WeightOnlyConfig(), filter_fn=lambda m, _: type(m) in _LINEAR and id(m) in inside)
    was_training = model.training
    model.eval()
    try:
        pairs = zip(_embeddings(model, images, texts), _embeddings(small, images, texts), strict=True)
        # torch's min, unlike Python's, does not step over a cosine that is not a number
        cosines = [
            nn.functional.cosine_similarity(a.flatten(1).double(), b.flatten(1).double()) for a, b in pairs
        ]
        cosine = float(torch.cat(cosines).min())
    finally:
        model.train(was_training)
    if not cosine >= floor:
        raise ZooError(
            f"int8 changes the embeddings too much: the smallest cosine to the original is {cosine:.4f}, below the "
            f"floor of {floor}. Quantize fewer parts ({', '.join(chosen)} were), or lower the floor."
        )
    return Quantized(small, cosine, _bytes(model), _bytes(small))


@torch.inference_mode()
def _embeddings(model: nn.Module, images: Tensor, texts: Texts | None) -> list[Tensor]:
    if isinstance(model, EmbedsPairs):
        return [model.encode_image(images), *([] if texts is None else [model.encode_text(*texts)])]
    if isinstance(model, GivesFeatures):
        return [model.features(images)[1]]
    raise ZooError(f"a {type(model).__name__} gives no embeddings by which to judge int8.")


def _bytes(model: nn.Module) -> int:
    total = 0
    for tensor in model.state_dict().values():
        inner = [getattr(tensor, name) for name in getattr(tensor, "tensor_data_names", ())]
        total += sum(t.numel() * t.element_size() for t in (inner or [tensor]) if isinstance(t, Tensor))
    return total
