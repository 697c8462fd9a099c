"""A pre-trained ALBEF as the start of a model for one task.

    VQA:    the decoder starts as the fusion half: layers 6-11 become 0-5, with word embeddings and word head; what
            projects image tokens there projects the question here, and starts at random where their widths differ
    NLVR2:  each fusion layer becomes two neighbours: 6 + i becomes 6 + 2i and 7 + 2i
    others: the same layers

Heads that both models have are kept, and the image's position table is resampled to the new size. salesforce/ALBEF
renames tensors of its checkpoint to this effect in each fine-tuning script.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from mmzoo.errors import ZooError
from mmzoo.models.albef import (
    ALBEF,
    ALBEFNLVR2,
    ALBEFVE,
    ALBEFVQA,
    ALBEFConfig,
    ALBEFNLVR2Config,
    ALBEFVEConfig,
    ALBEFVQAConfig,
)
from mmzoo.towers.reader import Reader, ReaderConfig

__all__ = ["for_task"]

_CLASSES: dict[type[ReaderConfig], type[Reader]] = {
    ALBEFConfig: ALBEF,
    ALBEFVQAConfig: ALBEFVQA,
    ALBEFNLVR2Config: ALBEFNLVR2,
    ALBEFVEConfig: ALBEFVE,
}
_BLOCK = re.compile(r"(text|decoder)\.blocks\.(\d+)\.(.+)")


def for_task(model: Reader, config: ReaderConfig) -> Any:
    """Build a model for a task and start it from a trained one.

    Args:
        model: An `ALBEF`, or an `ALBEFNLVR2` that was trained to assign texts; it stays as it is.
        config: What to build.

    Returns:
        A new model in the old one's dtype, device and mode; heads that the old one lacks start at random.

    Raises:
        ZooError: The towers do not fit: another width, or another number of layers.
    """
    like = next(model.parameters())
    new = _CLASSES[type(config)](config).to(device=like.device, dtype=like.dtype).train(model.training)
    old, state = new.vision.fit_state(model.state_dict(), "vision."), new.state_dict()
    started = {name: old.get(_origin(name, model, new)) for name in state}
    if config.vision.width != config.text.width:
        for name in [n for n in state if n.startswith("decoder.") and ".cross.kv." in n]:
            started[name] = state[name]
    unfit = [
        name
        for name, tensor in started.items()
        if name.startswith(("vision.", "text.", "decoder."))
        and (tensor is None or tensor.shape != state[name].shape)
    ]
    if unfit:
        raise ZooError(
            f"a {type(new).__name__} cannot start from this {type(model).__name__}: their towers differ "
            f"({len(unfit)} tensors, {unfit[0]} first)."
        )
    with torch.no_grad():
        for name, tensor in started.items():
            if tensor is not None and tensor.shape == state[name].shape:
                state[name].copy_(tensor)
    return new


def _origin(name: str, old: Reader, new: Reader) -> str:
    """The old model's name of the tensor that `name` starts as."""
    found = _BLOCK.fullmatch(name)
    if found is None:
        if name.startswith("decoder.embed."):
            return name.replace("decoder.", "text.", 1)
        return name.replace("lm.", "mlm.", 1) if name.startswith("lm.") else name
    part, layer, rest = found[1], int(found[2]), found[3]
    if part == "decoder":
        layer += old.first_fusion
    elif isinstance(new, ALBEFNLVR2) and not isinstance(old, ALBEFNLVR2) and layer >= new.first_fusion:
        layer = new.first_fusion + (layer - new.first_fusion) // 2
    return f"text.blocks.{layer}.{rest}"
