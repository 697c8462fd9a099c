"""Where in a picture a model looks for each word: Grad-CAM on the attention of one layer (Selvaraju et al. 2017).

The map of a word is the attention from the word to the patches, times the positive part of the gradient of "they match"
with respect to it, averaged over heads. ALBEF takes its cross-attention (Li et al. 2021, appendix; layer 8 of 0 to 11);
where words and patches attend jointly (ViLT), the rows of words and columns of patches say the same.

Legend: T texts, L tokens, N patches of a grid (h, w), H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmzoo.errors import UsageError, ZooError
from mmzoo.layers.attention import CrossAttention, SelfAttention
from mmzoo.layers.watch import watch

__all__ = ["ExplainsByCross", "ExplainsByJoint", "grad_cam"]


def grad_cam(attention: SelfAttention | CrossAttention, match: Callable[[], Tensor]) -> Tensor:
    """Attention times the positive part of the gradient of "match", averaged over heads.

    Args:
        attention: The layer to look at.
        match: Runs the model; gives its logits (T, 2), column 1 = match.

    Returns:
        (T, queries, keys), not negative; no gradient is left on the model's parameters.
    """
    with torch.inference_mode(False), torch.enable_grad(), watch(attention) as seen:
        score = match()[:, 1].sum()
        (gradient,) = torch.autograd.grad(score, seen.weights)
    return (seen.weights.detach() * gradient.clamp(min=0)).mean(1)


class ExplainsByCross:
    """What makes a `mmzoo.towers.reader.Reader` that matches an `Explains`.

    In the last layer only the token that the matching head reads has a gradient, so words have no maps there.
    """

    @property
    def explain_layers(self: Any) -> range:
        """Layers that can be looked at."""
        return range(self.first_fusion, self.config.text.depth - 1)

    @property
    def explain_layer(self: Any) -> int:
        """The layer looked at unless another is asked for, a third of the way through the fusion half (ALBEF: 8)."""
        first: int = self.first_fusion
        return first + (self.config.text.depth - first) // 3

    def explain(self: Any, images: Tensor, ids: Tensor, keep: Tensor, layer: int | None = None) -> Tensor:
        """Where each word is looked for; see `mmzoo.models.capabilities.Explains`."""
        index, layer = _check(self, images, ids, layer)
        with torch.inference_mode(False), torch.no_grad():
            kv = self.project_images(images)[index]
        found = grad_cam(self.text.blocks[layer].cross, lambda: self.match(kv, ids, keep, packed=False))
        vision = self.config.vision
        return _maps(found[..., vision.prefix :], keep, vision.grid)


class ExplainsByJoint:
    """What makes a `mmzoo.models.vilt.Stack` that matches an `Explains`."""

    @property
    def explain_layers(self: Any) -> range:
        """Layers that can be looked at."""
        return range(self.config.vision.depth - 1)

    @property
    def explain_layer(self: Any) -> int:
        """The layer looked at unless another is asked for, two thirds of the way through the stack."""
        depth: int = self.config.vision.depth
        return 2 * depth // 3

    def explain(self: Any, images: Tensor, ids: Tensor, keep: Tensor, layer: int | None = None) -> Tensor:
        """Where each word is looked for; see `mmzoo.models.capabilities.Explains`."""
        index, layer = _check(self, images, ids, layer)
        with torch.inference_mode(False), torch.no_grad():
            patches = self.embed_images(images)
        patch = self.config.vision.patch
        grid = images.shape[2] // patch, images.shape[3] // patch
        if patches.ragged or patches.tokens.shape[1] != 1 + grid[0] * grid[1]:
            raise ZooError(
                "pictures of different sizes, or with patches left out, have no map: one at a time."
            )
        found = grad_cam(self.vision.blocks[layer].attn, lambda: self.match(patches, ids, keep, index))
        words = ids.shape[1]
        return _maps(found[:, :words, words + 1 :], keep, grid)


def _check(model: Any, images: Tensor, ids: Tensor, layer: int | None) -> tuple[Tensor, int]:
    """The image of each text, and the layer."""
    if len(images) not in (1, len(ids)):
        raise ZooError(f"{len(ids)} texts need one image for all or one each, found {len(images)}.")
    layers = model.explain_layers
    layer = model.explain_layer if layer is None else layer
    if layer not in layers:
        some = (
            f"from {layers[0]} to {layers[-1]}"
            if layers
            else "none, for the only one reads no word but the first"
        )
        raise UsageError(f"layer {layer} has no map of words: this model has layers {some}.")
    return torch.arange(len(ids), device=ids.device) % len(images), layer


def _maps(found: Tensor, keep: Tensor, grid: tuple[int, int]) -> Tensor:
    return found.masked_fill(~keep[..., None], 0.0).unflatten(2, grid)
