"""Batches as NamedTuples of tensors: torch's pinning and Lightning's device transfer both understand them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["CaptionBatch", "ClassBatch"]


class CaptionBatch(NamedTuple):
    """B pictures with one text each.

    Attributes:
        images: (B, 3, H, W) float32, normalised as the model expects.
        ids: (B, L) int64 token ids; L is the longest text of this batch.
        keep: (B, L) bool, True = real token.
        image_ids: (B, m) int64, everything each picture is an instance of; -1 pads.
        text_ids: (B,) int64, what each text is about. Text j fits picture i iff `text_ids[j]` is in
            `image_ids[i]`.
        labels: (B,) int64 class indices, or None where the source has no classes.
        keys: B readable names.
    """

    images: Tensor
    ids: Tensor
    keep: Tensor
    image_ids: Tensor
    text_ids: Tensor
    labels: Tensor | None
    keys: list[str]


class ClassBatch(NamedTuple):
    """B pictures with one class each.

    Attributes:
        images: (B, 3, H, W) float32, normalised as the model expects.
        labels: (B,) int64 class indices.
        keys: B readable names.
    """

    images: Tensor
    labels: Tensor
    keys: list[str]
