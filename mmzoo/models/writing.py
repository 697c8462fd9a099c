"""How a causal text transformer with cross-attention writes, and is taught to: BLIP's decoders."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmzoo.layers.cache import KVCache
from mmzoo.layers.heads import MaskedWords
from mmzoo.layers.image_kv import ImageKV
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


class BackboneDecoder:
    """Writes about contexts whose keys and values are there already. A `mmzoo.generation.protocol.Decoder`.

    All rows of a context form one sequence of queries against its keys (`mmzoo.ops.folding`), so beams and several
    texts of one image cost no copy of them.

    Args:
        backbone: A causal transformer with cross-attention.
        head: Names its next token.
        kv: Keys and values of C contexts, from `backbone.project_context`.
        tokens: Ids of what begins and ends a row, and of what fills it up.
    """

    def __init__(self, backbone: TextBackbone, head: MaskedWords, kv: ImageKV, tokens: SpecialTokens):
        self.backbone, self.head, self.kv = backbone, head, kv
        self.bos_id, self.eos_id, self.pad_id = tokens.begin, tokens.end, tokens.pad
        self.vocab, self.context = backbone.config.vocab, backbone.config.context
        self._cache = KVCache(backbone.config.depth)
        self._reads = torch.zeros(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.kv)

    @property
    def device(self) -> torch.device:
        """Where ids are expected and logits arrive."""
        return self.head.bias.device

    def start(self, reads: Tensor) -> None:
        """Begin anew: row r reads context `reads[r]` (R,) int64; rows of one context are adjacent."""
        self._cache = KVCache(self.backbone.config.depth)
        self._reads = reads

    def step(self, ids: Tensor) -> Tensor:
        """Append `ids` (R, L) int64 to the rows; logits (R, V) of what follows, float32 (float64 for float64)."""
        with torch.no_grad():
            tokens = self.backbone(ids, context=self.kv, context_index=self._reads, cache=self._cache).tokens
            logits = self.head.logits(tokens[:, -1])
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def reorder(self, rows: Tensor) -> None:
        """Let row r' go on from row `rows[r']` (R',) int64, and keep reading its context."""
        self._cache.reorder(rows)
        self._reads = self._reads[rows]


class WritesByDecoder(ImageSide):
    """What makes a model with a causal `decoder` over images, and its word head, a `WritesCaptions`."""

    decoder: TextBackbone
    lm: MaskedWords

    @property
    def tokens(self) -> SpecialTokens:
        """The special tokens of the vocabulary."""
        return self.config.tokens

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
