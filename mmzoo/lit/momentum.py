"""The momentum teacher and the queue of its embeddings (MoCo, arXiv 1911.05722; ALBEF, arXiv 2107.07651)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmzoo import dist
from mmzoo.adapt import parts_of
from mmzoo.errors import UsageError, ZooError
from mmzoo.losses.queued import Queued
from mmzoo.ops.pairs import NO_ID, widen

__all__ = ["EmbeddingQueue", "MomentumCopy", "ramped"]

HALVES = (torch.bfloat16, torch.float16)


def ramped(alpha: float, step: int, steps: int) -> float:
    """The teacher's share at an optimizer step, growing from 0 to `alpha` over the first `steps` (0: at once)."""
    return alpha * min(1.0, step / steps) if steps > 0 else alpha


class MomentumCopy(nn.Module):
    """A teacher: a copy of a model whose weights trail behind it.

    It is no average kept for evaluation (that is `Ema`), but a model that answers during training. It does not train,
    and drops nothing out unless told to, for ALBEF's teacher runs with dropout (its issue 124). Its weights are
    float32 at least, for steps of half a percent vanish in bfloat16.

    Args:
        model: The student, as it stands.
        decay: Share of the old weights that stays at each update, in [0, 1].
        leave_out: Modules that the teacher does not need, by their names in the model; they become None in it.
        dropout: Follow the student's training mode instead of staying in evaluation.

    Attributes:
        model: The teacher. Call it under `torch.no_grad()`.

    Raises:
        UsageError: No such module to leave out, or no such decay.
    """

    def __init__(
        self, model: nn.Module, *, decay: float = 0.995, leave_out: Sequence[str] = (), dropout: bool = False
    ):
        super().__init__()
        if not 0 <= decay <= 1:
            raise UsageError(f"the teacher's decay is {decay}, but must lie in [0, 1]; ALBEF's is 0.995.")
        self.decay, self.dropout = decay, dropout
        # what deepcopy finds in its memo it does not copy: left-out modules never exist twice
        self.model = copy.deepcopy(model, {id(part): None for part in parts_of(model, leave_out)})
        self.model.requires_grad_(False)
        for p in self.model.parameters():
            if p.dtype in HALVES:
                p.data = p.data.float()  # in place, so that tied weights stay tied
        self._student = (model,)  # in a tuple, so that it is no part of this module
        self.train(model.training)

    def train(self, mode: bool = True) -> MomentumCopy:
        """Stay in evaluation, unless `dropout`."""
        super().train(mode)
        self.model.train(mode and self.dropout)
        return self

    @torch.no_grad()
    def update(self) -> None:
        """Move the weights towards the student's, and take over its buffers. Call it after each optimizer step.

        ALBEF updates before each forward pass instead, which gives every step the same teacher.
        """
        student = dict(self._student[0].named_parameters(remove_duplicate=False))
        if any(p.dtype in HALVES for p in self.model.parameters()):
            raise ZooError(
                "the teacher has been turned to 16 bits, where its small steps vanish: train with "
                "--trainer.precision bf16-mixed, which keeps weights in 32."
            )
        pairs = [(p, student[name].to(p)) for name, p in self.model.named_parameters()]
        # one fused pass over all tensors instead of several small ones for each
        torch._foreach_lerp_([p for p, _ in pairs], [s for _, s in pairs], 1 - self.decay)
        buffers = dict(self._student[0].named_buffers())
        for name, buffer in self.model.named_buffers():
            buffer.copy_(buffers[name])


class EmbeddingQueue(nn.Module):
    """The latest embeddings of images and texts of all ranks, the same on every rank, in a ring.

    Its tensors go into the state dict and move with the module, but are not among its buffers: DDP would send all of
    them from rank 0 at every forward pass.

    Args:
        size: How many pairs it holds.
        embed: Width of the embeddings.
    """

    _TENSORS = ("image", "text", "image_ids", "text_ids")

    def __init__(self, size: int, embed: int):
        super().__init__()
        if size < 1:
            raise UsageError(
                f"a queue of {size} pairs holds nothing; leave it out, or give it a size from 1."
            )
        self.image, self.text = torch.zeros(2, size, embed)
        self.image_ids = torch.full((size, 1), NO_ID)  # as wide as the most ids that an image had so far
        self.text_ids = torch.full((size,), NO_ID)
        self.pushed = 0

    @property
    def size(self) -> int:
        """How many pairs fit."""
        return len(self.image)

    @property
    def count(self) -> int:
        """How many pairs it holds; they lie in its first rows."""
        return min(self.pushed, self.size)

    def view(self) -> Queued:
        """The queue's own tensors, not copies: valid until the next push."""
        return Queued(self.image, self.text, self.image_ids, self.text_ids, self.count)

    @torch.no_grad()
    def push(
        self, image: Tensor, text: Tensor, image_ids: Tensor | None = None, text_ids: Tensor | None = None
    ) -> None:
        """Add this step's pairs of all ranks in rank order, over the oldest. Every rank calls it, with any number.

        Args:
            image: (B, E) the teacher's embeddings of this rank's images.
            text: (B, E) and texts, row i beside image i.
            image_ids: (B,) or (B, m) int64 ids; None: without ids, and no positive of anything.
            text_ids: (B,) int64.

        Raises:
            ZooError: The shapes do not fit each other or the queue.
        """
        width = self.image.shape[1]
        if image.shape != text.shape or image.shape[1:] != (width,):
            raise ZooError(
                f"a queue of width {width} takes as many images as texts, (B, {width}) each, not "
                f"{tuple(image.shape)} and {tuple(text.shape)}."
            )
        if image_ids is None:
            image_ids = self.image_ids.new_full((len(image), 1), NO_ID)
        if text_ids is None:
            text_ids = self.text_ids.new_full((len(text),), NO_ID)
        sizes = dist.gather_sizes(len(image), image.device)
        image_ids = image_ids if image_ids.ndim == 2 else image_ids[:, None]
        most = max(image_ids.shape[1], self.image_ids.shape[1])
        if dist.world() > 1:
            most = int(dist.max_over_ranks(torch.tensor(most, device=image.device)))
        self.image_ids = widen(self.image_ids, most)
        rows = {
            "image": image.to(self.image),
            "text": text.to(self.text),
            "image_ids": widen(image_ids, most),
            "text_ids": text_ids,
        }
        for name, new in rows.items():
            self._write(getattr(self, name), dist.gather_no_grad(new, sizes))
        self.pushed += sum(sizes)

    def _write(self, ring: Tensor, new: Tensor) -> None:
        start = self.pushed + max(0, len(new) - self.size)  # of more than fits, the latest stay
        new, start = new[-self.size :], start % self.size
        until_end = min(len(new), self.size - start)
        ring[start : start + until_end] = new[:until_end]
        ring[: len(new) - until_end] = new[until_end:]

    # -- what buffers would do, seen by all but DDP ---------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EmbeddingQueue:
        super()._apply(fn, recurse)
        for name in self._TENSORS:
            setattr(self, name, fn(getattr(self, name)))
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self._TENSORS:
            destination[prefix + name] = getattr(self, name)
        destination[prefix + "pushed"] = torch.tensor(self.pushed)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name in (*self._TENSORS, "pushed"):
            if prefix + name not in state_dict:
                missing_keys.append(prefix + name)
                continue
            value = state_dict[prefix + name]
            if name == "pushed":
                self.pushed = int(value)
            elif name == "image_ids" and value.ndim == 2 and len(value) == self.size:
                self.image_ids = value.to(self.image_ids, copy=True)
            elif value.shape != getattr(self, name).shape:
                error_msgs.append(
                    f"the queue's {name} is {tuple(value.shape)} in the checkpoint and "
                    f"{tuple(getattr(self, name).shape)} here: set the same queue size as the run that wrote it."
                )
            else:
                getattr(self, name).copy_(value)
        known = {prefix + name for name in (*self._TENSORS, "pushed")}
        if strict:
            unexpected_keys += [key for key in state_dict if key.startswith(prefix) and key not in known]
