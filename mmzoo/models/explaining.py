"""Where in a picture a model looks for each word that it reads or writes: Grad-CAM on one layer's attention.

Grad-CAM is of Selvaraju et al. (2017).

The map of a word is the attention from the word to the patches, times the positive part of the gradient of "they match"
with respect to it, averaged over heads. ALBEF takes its cross-attention (Li et al. 2021, appendix; layer 8 of 0 to 11);
where words and patches attend jointly (ViLT), the rows of words and columns of patches say the same.

Of a caption, each written word has a map: its logit takes the place of "they match", and the row is the one that it was
written from, the last that the decoder had read by then.

Legend: T texts, L tokens, N patches of a grid (h, w), H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmzoo.errors import UsageError, ZooError
from mmzoo.layers.attention import CrossAttention, SelfAttention
from mmzoo.layers.image_kv import ImageKV
from mmzoo.layers.watch import watch

__all__ = ["ExplainsByCross", "ExplainsByDecoder", "ExplainsByJoint", "grad_cam"]


def grad_cam(attention: SelfAttention | CrossAttention, score: Callable[[], Tensor]) -> Tensor:
    """Attention times the positive part of the gradient of a score, averaged over heads.

    Args:
        attention: The layer to look at.
        score: Runs the model; gives what to explain of each text, one number each.

    Returns:
        (T, queries, keys), not negative; no gradient is left on the model's parameters.
    """
    with torch.inference_mode(False), torch.enable_grad(), watch(attention) as seen:
        (gradient,) = torch.autograd.grad(score().sum(), seen.weights)
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
        index, layer = _check(images, ids, layer, self.explain_layers, self.explain_layer)
        with torch.inference_mode(False), torch.no_grad():
            kv = self.project_images(images)[index]
        found = grad_cam(self.text.blocks[layer].cross, lambda: self.match(kv, ids, keep, packed=False)[:, 1])
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
        index, layer = _check(images, ids, layer, self.explain_layers, self.explain_layer)
        with torch.inference_mode(False), torch.no_grad():
            patches = self.embed_images(images)
        patch = self.config.vision.patch
        grid = images.shape[2] // patch, images.shape[3] // patch
        if patches.ragged or patches.tokens.shape[1] != 1 + grid[0] * grid[1]:
            raise ZooError(
                "pictures of different sizes, or with patches left out, have no map: one at a time."
            )
        found = grad_cam(self.vision.blocks[layer].attn, lambda: self.match(patches, ids, keep, index)[:, 1])
        words = ids.shape[1]
        return _maps(found[:, :words, words + 1 :], keep, grid)


class ExplainsByDecoder:
    """What makes a model with a causal `decoder` over images, and its word head `lm`, an `ExplainsCaptions`."""

    @property
    def caption_layers(self: Any) -> range:
        """Layers that can be looked at."""
        return range(self.decoder.config.depth)

    @property
    def caption_layer(self: Any) -> int:
        """The layer looked at unless another is asked for, two thirds of the way through the decoder."""
        depth: int = self.decoder.config.depth
        return 2 * depth // 3

    def explain_caption(
        self: Any, images: Tensor, ids: Tensor, keep: Tensor, layer: int | None = None
    ) -> Tensor:
        """Where the decoder looked for each token; see `mmzoo.models.capabilities.ExplainsCaptions`."""
        index, layer = _check(images, ids, layer, self.caption_layers, self.caption_layer)
        with torch.inference_mode(False), torch.no_grad():
            kv = self.project_images(images)[index]
        cross, vision = self.decoder.blocks[layer].cross, self.config.vision
        maps = torch.zeros(*ids.shape, kv.tokens, device=ids.device, dtype=self.lm.bias.dtype)
        for place in range(1, ids.shape[1]):
            logit = partial(self._logit, kv, ids[:, :place], ids[:, place])
            # one by one: a word is explained by what had been read when it was written
            maps[:, place] = grad_cam(cross, logit)[:, -1]
        return _maps(maps[..., vision.prefix :], keep, vision.grid)

    def _logit(self: Any, kv: ImageKV, before: Tensor, word: Tensor) -> Tensor:
        """The logits (T,) of the tokens `word` (T,) where texts (T, l) have been read so far."""
        logits: Tensor = self.lm.logits(self.write_states(kv, before)[:, -1])
        return logits.gather(1, word[:, None])[:, 0]


def _check(images: Tensor, ids: Tensor, layer: int | None, layers: range, usual: int) -> tuple[Tensor, int]:
    """The image of each text, and the layer."""
    if len(images) not in (1, len(ids)):
        raise ZooError(f"{len(ids)} texts need one image for all or one each, found {len(images)}.")
    layer = usual if layer is None else layer
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
