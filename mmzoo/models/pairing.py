"""What ALBEF's and BLIP's models do alike on top of a `Reader`: embed and match pairs, and compare two images.

Legend: B images, T texts, N image tokens, L tokens, D width, E embedding width.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmzoo.config import UNKEPT
from mmzoo.errors import ZooError
from mmzoo.layers.heads import Classifier, UnitProjection, multiplier
from mmzoo.layers.image_kv import ImageKV
from mmzoo.models.explaining import ExplainsByCross
from mmzoo.towers.reader import Reader, ReaderConfig

__all__ = ["PairComparer", "PairConfig", "PairReader"]


@dataclass(frozen=True)
class PairConfig(ReaderConfig):
    """Towers and heads of a model that embeds and matches pairs.

    Attributes:
        embed: Width E of the common space.
        logit_scale: Start of the learned log-scale.
    """

    embed: int = 256
    logit_scale: float = field(default=math.log(1 / 0.07), kw_only=True, metadata=UNKEPT)


class PairReader(ExplainsByCross, Reader):
    """Embeds and matches pairs; a family says how a text alone is embedded.

    Capabilities: `EmbedsPairs`, `ScoresPairs`, `SharesImages`, `SharesTexts`, `Explains`.

    Attributes:
        logit_scale: Learned log of the multiplier of the cosines (the references learn its inverse).
    """

    config: PairConfig

    def __init__(self, config: PairConfig):
        super().__init__(config)
        c = config
        self.vision_proj = UnitProjection(c.vision.width, c.embed)
        self.text_proj = UnitProjection(c.text.width, c.embed)
        self.logit_scale = nn.Parameter(torch.tensor(c.logit_scale))
        self.match_head = nn.Linear(c.text.width, 2)

    @property
    def scale(self) -> Tensor:
        """The multiplier of the cosines, `exp(logit_scale)`, a float32 scalar whatever the autocast."""
        return multiplier(self.logit_scale)

    def embed_image(self, tokens: Tensor) -> Tensor:
        """Image tokens (B, N, D) to unit vectors (B, E)."""
        return self.vision_proj(self.pool_image(tokens))

    def encode_image(self, images: Tensor) -> Tensor:
        """Embed `images` (B, 3, H, W) as unit vectors (B, E)."""
        return self.embed_image(self.image_tokens(images))

    @abstractmethod
    def encode_text(self, ids: Tensor, keep: Tensor, *, packed: bool = False) -> Tensor:
        """Embed texts (T, L) as unit vectors (T, E); `packed` computes no padding."""

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        """Cosines (B, T) of unit vectors (B, E) and (T, E)."""
        return image @ text.T

    def match(
        self,
        images: Tensor | ImageKV,
        ids: Tensor,
        keep: Tensor,
        image_index: Tensor | None = None,
        *,
        packed: bool = True,
    ) -> Tensor:
        """Say whether texts and images match; arguments as of `forward`.

        Returns:
            Logits (T, 2), column 1 = match.
        """
        kv = images if isinstance(images, ImageKV) else self.project_images(images)
        states = self.text_states(ids, keep, packed=packed)
        return self.match_states(states, keep, kv, image_index, packed=packed)

    def match_states(
        self,
        states: Tensor,
        keep: Tensor,
        kv: ImageKV,
        image_index: Tensor | None = None,
        *,
        packed: bool = True,
    ) -> Tensor:
        """As `match`, from what `text_states` gave; arguments as of `fuse`."""
        return self.match_head(self.fuse(states, keep, kv, image_index, packed=packed)[:, 0])


class PairComparer(Reader):
    """Reads a sentence with two images; a family says how it reads them.

    Capabilities: `ComparesImages`, `SharesImages`.
    """

    compare_head: Classifier

    def pair(self, first: Tensor | ImageKV, second: Tensor | ImageKV) -> ImageKV:
        """Keys and values of pairs of images.

        Args:
            first: (B, 3, H, W), or what `project_images` made of them.
            second: As many.

        Raises:
            ZooError: There are not as many second images as first ones.
        """
        if len(first) != len(second):
            raise ZooError(f"{len(first)} first and {len(second)} second images: they are compared in pairs.")
        if isinstance(first, Tensor) and isinstance(second, Tensor):
            return self.project_pairs(self.image_tokens(torch.cat([first, second])))
        one, two = (x if isinstance(x, ImageKV) else self.project_images(x) for x in (first, second))
        return self.join(one, two)

    def project_pairs(self, tokens: Tensor) -> ImageKV:
        """Keys and values of B pairs out of the tokens (2 B, N, D) of the first images, then of the second ones."""
        kv, half = self.project(tokens), len(tokens) // 2
        return self.join(kv[:half], kv[half:])

    @abstractmethod
    def join(self, first: ImageKV, second: ImageKV) -> ImageKV:
        """Make B pairs of B first and B second images, each projected for either place."""

    def compare(
        self,
        first: Tensor | ImageKV,
        second: Tensor | ImageKV,
        ids: Tensor,
        keep: Tensor,
        *,
        packed: bool = True,
    ) -> Tensor:
        """Say whether sentences are true of pairs of images.

        Args:
            first: (B, 3, H, W), or their `ImageKV`.
            second: As many.
            ids: (B, L) int64.
            keep: (B, L) bool.
            packed: As of `forward`.

        Returns:
            Logits (B, 2), column 1 = true.
        """
        return self.compare_head(self(self.pair(first, second), ids, keep, packed=packed)[:, 0])
