"""Two transformers over one set of weights: BLIP's encoder and decoder share all but self-attention."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

from torch import Tensor, nn

__all__ = ["copy_self_attention", "save_once", "tie_except_self_attention"]

_OWN = ("attn", "attn_norm")


def tie_except_self_attention(encoder: nn.Module, decoder: nn.Module) -> tuple[str, ...]:
    """Make the modules of `decoder` those of `encoder`, except each block's self-attention and its norm.

    Those become copies, so that both begin alike (the reference fills both from BERT).

    Args:
        encoder: A `mmzoo.towers.text.TextBackbone`.
        decoder: One of the same shape; built on the meta device, it costs nothing.

    Returns:
        Names of the shared modules within the two, for `save_once`.
    """
    shared = []
    for name, child in list(encoder.named_children()):
        if name != "blocks":
            decoder.register_module(name, child)
            shared.append(name)
    blocks: Any = zip(encoder.get_submodule("blocks"), decoder.get_submodule("blocks"), strict=True)  # type: ignore[call-overload]
    for i, (block, other) in enumerate(blocks):
        for name, child in block.named_children():
            other.register_module(name, copy.deepcopy(child) if name in _OWN else child)
            if name not in _OWN:
                shared.append(f"blocks.{i}.{name}")
    return tuple(shared)


def copy_self_attention(encoder: nn.Module, decoder: nn.Module) -> None:
    """Give the decoder's self-attention the encoder's present weights."""
    blocks: Any = zip(encoder.get_submodule("blocks"), decoder.get_submodule("blocks"), strict=True)  # type: ignore[call-overload]
    for block, other in blocks:
        for name in _OWN:
            getattr(other, name).load_state_dict(getattr(block, name).state_dict())


def save_once(owner: nn.Module, origin: str, alias: str, parts: tuple[str, ...]) -> None:
    """Let a module that registers parts twice save and load them under one name.

    torch would write a shared tensor once for each name: for BLIP, every weight of its text transformer but the
    self-attention's.

    Args:
        owner: The module that holds both.
        origin: Where the parts are saved: `"text"`.
        alias: Where they are found again: `"decoder"`.
        parts: Their names in both.
    """
    pairs = tuple((f"{origin}.{part}.", f"{alias}.{part}.") for part in parts)
    owner.register_state_dict_post_hook(partial(_leave_out, pairs))
    owner.register_load_state_dict_pre_hook(partial(_put_in, pairs))


Pairs = tuple[tuple[str, str], ...]


def _leave_out(pairs: Pairs, owner: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    aliases = tuple(prefix + alias for _, alias in pairs)
    for name in [name for name in state if name.startswith(aliases)]:
        del state[name]


def _put_in(pairs: Pairs, owner: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for origin, alias in pairs:
        # a copy of the owner may have given up one of the two
        if hasattr(owner, alias.split(".")[0]):
            found = {name: t for name, t in state.items() if name.startswith(prefix + origin)}
            state.update({prefix + alias + name[len(prefix + origin) :]: t for name, t in found.items()})
