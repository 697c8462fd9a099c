"""What stands on top of the towers: projections, poolers, classifiers and BERT's word head.

Legend: D width, V words, C classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmzoo.layers.init import init_bert
from mmzoo.layers.mlp import ACTIVATIONS, Activation
from mmzoo.layers.norm import LayerNorm
from mmzoo.ops.linear import linear

__all__ = ["Classifier", "MaskedWords", "Pooler", "UnitProjection", "multiplier"]


def multiplier(log_scale: Tensor) -> Tensor:
    """The exponential of a learned log-scale: a float32 scalar (float64 for a float64 one) whatever the autocast."""
    with torch.autocast(log_scale.device.type, enabled=False):
        return log_scale.to(torch.promote_types(log_scale.dtype, torch.float32)).exp()


class UnitProjection(nn.Linear):
    """A linear map into a common space whose outputs have unit length.

    The length is computed in float32 whatever the autocast: cosines are multiplied by up to 100 afterwards.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (..., in_features) to unit vectors (..., out_features), float32 (float64 for float64 weights)."""
        out = super().forward(x)
        return F.normalize(out.float() if out.dtype in (torch.float16, torch.bfloat16) else out, dim=-1)


class Pooler(nn.Module):
    """BERT's pooler: a linear map and tanh of the first token."""

    def __init__(self, width: int):
        super().__init__()
        self.dense = nn.Linear(width, width)
        if self.dense.weight.device.type != "meta":
            init_bert(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map `tokens` (B, L, D) to (B, D)."""
        return torch.tanh(self.dense(tokens[:, 0]))


class Classifier(nn.Module):
    """Two linear maps with an activation between them, and a LayerNorm before it where `norm_eps` is given.

    ALBEF puts ReLU between them; ViLT LayerNorm and GELU.

    Args:
        width: Size of the input.
        hidden: Size between the maps.
        classes: Number of logits C.
        act: Activation.
        norm_eps: Epsilon of the norm before the activation; None builds none.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        classes: int,
        *,
        act: Literal["relu", "gelu"],
        norm_eps: float | None = None,
    ):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.norm = None if norm_eps is None else LayerNorm(hidden, norm_eps)
        self.fc2 = nn.Linear(hidden, classes)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (..., width) to logits (..., C)."""
        x = self.fc1(x)
        return self.fc2(ACTIVATIONS[self.act](x if self.norm is None else self.norm(x)))


class MaskedWords(nn.Module):
    """BERT's head over the vocabulary: dense, activation, LayerNorm; then the decoder, a table of one row per word.

    It names masked words, and in a causal decoder the next one. `forward` stops before the decoder, because losses
    multiply only labelled rows with the V x D table, in chunks (`mmzoo.losses.words`).

    Args:
        width: Size of a token.
        vocab: Number of words V.
        eps: Epsilon of the norm.
        act: Activation.
        tied: The embedding whose table is also the decoder's (BERT, ALBEF, BLIP); None builds a table of its own
            (ViLT).
    """

    def __init__(
        self,
        width: int,
        vocab: int,
        *,
        eps: float,
        act: Activation = "gelu",
        tied: nn.Embedding | None = None,
    ):
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = LayerNorm(width, eps)
        self.bias = nn.Parameter(torch.zeros(vocab))
        if tied is None:
            self.decoder = nn.Linear(width, vocab, bias=False)
        # in a tuple, so that the table is not registered again: it is saved, counted and averaged once, and loading
        # a state, which may put another parameter into the embedding, cannot part the two
        self._tied = None if tied is None else (tied,)
        self.act = act
        if self.bias.device.type != "meta":
            init_bert(self)

    @property
    def weight(self) -> Tensor:
        """The decoder's table (V, D)."""
        return self.decoder.weight if self._tied is None else self._tied[0].weight

    def forward(self, states: Tensor) -> Tensor:
        """Map `states` (..., D) to what the decoder reads, (..., D)."""
        return self.norm(ACTIVATIONS[self.act](self.dense(states)))

    def logits(self, states: Tensor) -> Tensor:
        """Map `states` (..., D) to logits (..., V). For a few rows: V is tens of thousands."""
        return linear(self(states), self.weight, self.bias)

    def log_likelihood(self, states: Tensor, words: Tensor, *, chunk: int = 256) -> Tensor:
        """How likely each word is, without gradients and with the logits of `chunk` rows in memory at once.

        Args:
            states: (R, D).
            words: (R,) int64.
            chunk: Rows at once.

        Returns:
            (R,) log-probabilities, float32 (float64 for float64 states).
        """
        parts = zip(states.split(chunk), words.split(chunk), strict=True)
        with torch.no_grad():
            found = [self._log_likelihood(some, named) for some, named in parts]
        return torch.cat(found) if found else states.new_zeros(0)

    def _log_likelihood(self, states: Tensor, words: Tensor) -> Tensor:
        logits = self.logits(states)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.gather(1, words[:, None])[:, 0] - logits.logsumexp(1)
