"""An image tower and a text transformer that reads with it: what ALBEF's and BLIP's models share.

Legend: B images, N image tokens, T texts, L tokens, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from mmzoo.errors import ZooError
from mmzoo.layers.image_kv import ImageKV
from mmzoo.spec import ImageSpec, TextSpec
from mmzoo.towers.text import TextBackbone, TextConfig
from mmzoo.towers.vision import VisionConfig, VisionTower

__all__ = ["ImageSide", "Reader", "ReaderConfig"]


@dataclass(frozen=True)
class ReaderConfig:
    """The two towers and their inputs.

    Attributes:
        vision: The image tower.
        text: Text half and fusion half in one: the layers before the first of `cross_layers` read the text alone
            (six of ALBEF's twelve, none of BLIP's).
        image: What the image tower expects of pixels.
        text_input: What the text half expects of words.
    """

    vision: VisionConfig
    text: TextConfig
    image: ImageSpec
    text_input: TextSpec


class ImageSide(nn.Module, ABC):
    """The image tower of a model whose text transformer, or transformers, attend to its tokens.

    Capability: `SharesImages`. A class that lacks `project` cannot be built.
    """

    def __init__(self, config: ReaderConfig):
        super().__init__()
        c = self.config = config
        first = c.text.cross_layers[0] if c.text.cross_layers else 0
        if c.text.cross_layers != tuple(range(first, c.text.depth)) or c.text.cross_width != c.vision.width:
            raise ZooError(
                f"the fusion half is the last layers of the text transformer, attending to tokens of width "
                f"{c.vision.width}; found cross_layers {c.text.cross_layers} of {c.text.depth} and cross_width "
                f"{c.text.cross_width}."
            )
        if c.text_input.vocab != c.text.vocab:
            raise ZooError(
                f"text_input has {c.text_input.vocab} words and the text tower {c.text.vocab}: make them equal."
            )
        self.first_fusion = first
        self.vision = VisionTower(c.vision)

    def image_tokens(self, images: Tensor) -> Tensor:
        """Encode `images` (B, 3, H, W) as tokens (B, N, D)."""
        return self.vision(images).tokens

    def pool_image(self, tokens: Tensor) -> Tensor:
        """One vector per image (B, D) of its tokens (B, N, D): the class token, or the mean of the patches."""
        vision = self.config.vision
        return tokens[:, 0] if vision.pool == "cls" else tokens[:, vision.prefix :].mean(1)

    @abstractmethod
    def project(self, tokens: Tensor) -> ImageKV:
        """Project image tokens (B, N, D) to the keys and values of every fusion layer, once for all their texts."""

    def project_images(self, images: Tensor) -> ImageKV:
        """Encode and project `images` (B, 3, H, W)."""
        return self.project(self.image_tokens(images))

    def fit_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resample a checkpoint's position table to this model's image size where they differ."""
        return self.vision.fit_state(state, "vision.")


class Reader(ImageSide):
    """An image tower, and a transformer whose first half reads a text alone and whose second reads it with the image.

    Padding can be left uncomputed (`packed`); the results at real tokens are equal, and there is one rule for what is
    done unless told otherwise. Methods that give logits or keys of real tokens alone (`match`, `entail`, ...) pack.
    Those that give states (`text_states`, `fuse`, `forward`), which packing makes zeros at padding, and `encode_text`,
    which must have fixed shapes to be exported, do not. A layer that is being watched needs `packed=False`.

    Capability: `SharesImages`.
    """

    def __init__(self, config: ReaderConfig):
        super().__init__(config)
        self.text = TextBackbone(config.text)

    def text_states(self, ids: Tensor, keep: Tensor, *, packed: bool = False) -> Tensor:
        """Read texts alone, up to where the fusion half begins.

        Args:
            ids: (T, L) int64.
            keep: (T, L) bool, True at real tokens.
            packed: Lay the real tokens of all texts end to end; states at padding are then zeros.

        Returns:
            (T, L, D).
        """
        return self.text(ids, keep=keep, layers=slice(0, self.first_fusion), packed=packed).tokens

    def project(self, tokens: Tensor) -> ImageKV:
        """Project image tokens (B, N, D) to the keys and values of every fusion layer, once for all their texts."""
        return self.text.project_context(tokens)

    def fuse(
        self,
        states: Tensor,
        keep: Tensor,
        kv: ImageKV,
        image_index: Tensor | None = None,
        *,
        packed: bool = False,
    ) -> Tensor:
        """Read texts with images.

        Args:
            states: (T, L, D), from `text_states`.
            keep: (T, L) bool.
            kv: The keys and values of B images.
            image_index: (T,) int64, the image that each text is read with; None: text t with image t.
            packed: As in `text_states`.

        Returns:
            (T, L, D).

        Raises:
            ZooError: There is no index and not as many images as texts.
        """
        if image_index is None and len(kv) != len(states):
            raise ZooError(
                f"{len(states)} texts and {len(kv)} images: say by image_index which text is read with which image."
            )
        half = slice(self.first_fusion, None)
        return self.text(
            embeds=states, keep=keep, context=kv, context_index=image_index, layers=half, packed=packed
        ).tokens

    def forward(
        self,
        images: Tensor | ImageKV,
        ids: Tensor,
        keep: Tensor,
        image_index: Tensor | None = None,
        *,
        packed: bool = False,
    ) -> Tensor:
        """Read texts with images, from words and pixels.

        Args:
            images: (B, 3, H, W), or what `project_images` made of them.
            ids: (T, L) int64.
            keep: (T, L) bool.
            image_index: (T,) int64, the image of each text; None: text t with image t.
            packed: As in `text_states`.

        Returns:
            (T, L, D).
        """
        kv = images if isinstance(images, ImageKV) else self.project_images(images)
        states = self.text_states(ids, keep, packed=packed)
        return self.fuse(states, keep, kv, image_index, packed=packed)
