"""Decoders whose every probability is known: for tests of searches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor


class ToyDecoder:
    """Logits that depend on the context and on every token so far, out of a table of random numbers.

    Attributes:
        widths: Rows of each step, in order: what a search computes.
    """

    bos_id, eos_id, pad_id = 0, 1, 0
    device = torch.device("cpu")

    def __init__(self, contexts: int, vocab: int, *, seed: int = 0, states: int = 997, spread: float = 2.0):
        self.vocab, self.context, self.states = vocab, 64, states
        g = torch.Generator().manual_seed(seed)
        self.table = torch.randn(contexts, states, vocab, generator=g, dtype=torch.float64) * spread
        self.widths: list[int] = []

    def __len__(self) -> int:
        return len(self.table)

    def start(self, reads: Tensor) -> None:
        assert bool((reads.diff() >= 0).all())
        self.reads, self.state = reads, torch.zeros_like(reads)

    def step(self, ids: Tensor) -> Tensor:
        assert ids.shape[0] == len(self.reads)
        self.widths.append(len(ids))
        for token in ids.T:
            self.state = (self.state * 131 + token * 7 + 3) % self.states
        return self.table[self.reads, self.state]

    def reorder(self, rows: Tensor) -> None:
        self.reads, self.state = self.reads[rows], self.state[rows]

    def log_shares(self, context: int, tokens: Sequence[int]) -> Tensor:
        """(V,) log-probabilities of what follows `tokens`, begin token included."""
        state = 0
        for token in tokens:
            state = (state * 131 + token * 7 + 3) % self.states
        return self.table[context, state].log_softmax(0)

    def texts(self, most: int) -> Iterator[tuple[int, ...]]:
        """Every text of at most `most` tokens: ended, or cut at the most."""
        words = [token for token in range(self.vocab) if token != self.eos_id]
        for length in range(most):
            for body in product(words, repeat=length):
                yield (*body, self.eos_id)
        yield from product(words, repeat=most)

    def log_probability(self, context: int, text: Sequence[int], prompt: Sequence[int] = ()) -> float:
        """Of a whole text after begin token and prompt."""
        held, total = [self.bos_id, *prompt], 0.0
        for token in text:
            total += float(self.log_shares(context, held)[token])
            held.append(token)
        return total
