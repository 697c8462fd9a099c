"""Text models without an image side: BERT (Devlin et al. 2019), MiniLM sentence vectors, and a small Llama.

    encoder:  ids -> transformer -> first token or mean over kept tokens -> one vector per text
    decoder:  ids -> causal transformer -> embedding table again -> logits of the next token

They are what other families are built on: BERT starts the text side of ALBEF and BLIP, MiniLM is a frozen text tower
for CLIP, and SmolLM2 a language model that reads image tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmzoo.errors import ZooError
from mmzoo.layers.cache import KVCache
from mmzoo.spec import BERT_VOCAB, TextSpec
from mmzoo.towers import TextBackbone, TextConfig
from mmzoo.towers.text import bert_text, llama_text

__all__ = ["VARIANTS", "TextModel", "TextModelConfig"]


@dataclass(frozen=True)
class TextModelConfig:
    """A bare text transformer.

    Attributes:
        text: The transformer.
        text_input: What it expects of words.
        unit: Whether `encode_text` gives unit vectors (sentence-transformers).
    """

    text: TextConfig
    text_input: TextSpec
    unit: bool = False


_BERT = TextSpec("bert", context=512, vocab=BERT_VOCAB)
_SMOLLM_CONTEXT = 8192

VARIANTS: dict[str, TextModelConfig] = {
    "bert-base": TextModelConfig(bert_text(), _BERT),
    # sentence-transformers/all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957), trained on texts of up to 256 tokens
    "minilm-l6": TextModelConfig(
        bert_text(width=384, depth=6, hidden=1536, pool="mean"),
        TextSpec("bert", context=256, vocab=BERT_VOCAB),
        unit=True,
    ),
    # HuggingFaceTB/SmolLM2-135M (Allal et al. 2025, arXiv:2502.02737)
    "smollm2-135m": TextModelConfig(
        llama_text(context=_SMOLLM_CONTEXT, rope_base=100_000.0),
        TextSpec("smollm", context=_SMOLLM_CONTEXT, vocab=49_152),
    ),
}


class TextModel(nn.Module):
    """A text transformer that gives vectors, and, where it is causal, next-token logits."""

    def __init__(self, config: TextModelConfig):
        super().__init__()
        c = self.config = config
        if c.text_input.vocab != c.text.vocab:
            raise ZooError(
                f"text_input has {c.text_input.vocab} words and the transformer {c.text.vocab}: make them equal."
            )
        self.text = TextBackbone(c.text)

    def encode_text(self, ids: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encode texts.

        Args:
            ids: (T, L) int64.
            keep: (T, L) bool, True at real tokens; None means all.

        Returns:
            (T, D), of unit length where the config says so.
        """
        pooled = self.text(ids, keep=keep).pooled
        if not self.config.unit:
            return pooled
        with torch.autocast(pooled.device.type, enabled=False):
            return F.normalize(pooled.to(torch.promote_types(pooled.dtype, torch.float32)), dim=-1)

    def logits(self, ids: Tensor, keep: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Score what comes next.

        Args:
            ids: (B, L) int64; with a cache, the tokens that follow those it holds.
            keep: (B, L) bool, True at real tokens (with a cache: over cached and new tokens); None means all.
            cache: The caller's keys and values, `KVCache(model.config.text.depth)`.

        Returns:
            (B, L, vocab) logits of the token after each one, by the embedding table.

        Raises:
            ZooError: The transformer is not causal: it sees what it should guess.
        """
        if not self.config.text.causal:
            raise ZooError("this text model is not causal: it encodes texts, but cannot say what comes next.")
        tokens = self.text(ids, keep=keep, cache=cache).tokens
        return F.linear(tokens, self.text.embed.tok.weight)

    def forward(self, ids: Tensor, keep: Tensor | None = None) -> Tensor:
        """Logits (B, L, vocab) of a causal model, one vector per text (B, D) of an encoder."""
        return self.logits(ids, keep) if self.config.text.causal else self.encode_text(ids, keep)
