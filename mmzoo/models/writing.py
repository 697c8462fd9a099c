"""How a causal text transformer with cross-attention writes, and is taught to: BLIP's decoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmzoo.layers.heads import MaskedWords
from mmzoo.layers.image_kv import ImageKV
from mmzoo.models.decoding import BackboneDecoder
from mmzoo.models.explaining import ExplainsByDecoder
from mmzoo.spec import BERT_VOCAB
from mmzoo.towers import TextBackbone
from mmzoo.towers.reader import ImageSide

__all__ = [
    "BERT_TOKENS",
    "TINY_TOKENS",
    "BackboneDecoder",
    "SpecialTokens",
    "WritesByDecoder",
    "led_by",
    "word_head",
]


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of BLIP's special tokens, those of BERT's vocabulary with [DEC] and [ENC] appended.

    Attributes:
        begin: [DEC], before what is written.
        encode: [ENC], before what is read with an image.
        end: [SEP], behind both.
        pad: [PAD].
    """

    begin: int = BERT_VOCAB
    encode: int = BERT_VOCAB + 1
    end: int = 102
    pad: int = 0


BERT_TOKENS = SpecialTokens()
TINY_TOKENS = SpecialTokens(begin=5, encode=6, end=3, pad=0)  # processing/assets/tiny_vocab.txt


class WritesByDecoder(ExplainsByDecoder, ImageSide):
    """What makes a model with a causal `decoder` over images, and its word head, a `WritesCaptions`.

    Capabilities: `WritesCaptions`, `ExplainsCaptions`.
    """

    config: Any  # a `ReaderConfig` that has `tokens` and `prompt`
    decoder: TextBackbone
    lm: MaskedWords

    @property
    def tokens(self) -> SpecialTokens:
        """The special tokens of the vocabulary."""
        return self.config.tokens

    @property
    def caption_prompt(self) -> str:
        """What captions begin with unless told otherwise."""
        prompt: str = self.config.prompt
        return prompt

    def write_states(
        self, kv: ImageKV, ids: Tensor, image_index: Tensor | None = None, *, keep: Tensor | None = None
    ) -> Tensor:
        """Read texts from left to right, as if the model were writing them.

        Args:
            kv: The keys and values of B images, from `project`.
            ids: (T, L) int64; the first token is exchanged for [DEC]; padding stands behind the texts.
            image_index: (T,) int64, the image of each text; None: text t with image t.
            keep: (T, L) bool, True at real tokens: then padding is not computed, and its states are zeros.

        Returns:
            (T, L, D): position l is for `lm` to name token l + 1.
        """
        return self.decoder(
            led_by(self.tokens.begin, ids), keep=keep, context=kv, context_index=image_index,
            right_padded=True, packed=keep is not None,
        ).tokens  # fmt: skip

    def caption_decoder(self, images: Tensor | ImageKV) -> BackboneDecoder:
        """What `mmzoo.generation.generate` writes with about `images` (B, 3, H, W), or their keys and values."""
        with torch.no_grad():
            kv = images if isinstance(images, ImageKV) else self.project_images(images)
        return BackboneDecoder(self.decoder, self.lm, kv, self.tokens)


def led_by(token: int, ids: Tensor) -> Tensor:
    """Texts (T, L) with `token` in place of their first one."""
    return torch.cat([torch.full_like(ids[:, :1], token), ids[:, 1:]], 1)


def word_head(backbone: TextBackbone) -> MaskedWords:
    """BERT's head over the words of a backbone, its table that of the word embeddings."""
    c = backbone.config
    return MaskedWords(c.width, c.vocab, eps=c.norm_eps, tied=backbone.embed.tok)
