"""Greedy search and sampling: every row goes its own way, and leaves the batch when it is over.

A word is drawn by its row's own random number, which is a function of the seed, the context's key, the number of the
draw and the place in the text. So a text does not depend on what else is in the batch (but for a word on the very edge
of its share, as the last bits of logits differ with the shape of a matrix product), nor on the device.

Legend: R rows, V words, n contexts of one prompt length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mmzoo.generation.config import GenerationConfig
from mmzoo.generation.processors import processors_for
from mmzoo.generation.protocol import Decoder
from mmzoo.generation.written import Generated, nothing_left, stops
from mmzoo.seeds import mix

__all__ = ["Step", "draw", "steps", "write_rows"]


class Step(NamedTuple):
    """One token for each row that is not over yet.

    Attributes:
        rows: (R',) int64, which rows: row `i * draws + j` is draw j of the i-th context.
        ids: (R',) int64, their tokens.
        token_scores: (R',) log-probabilities that the decoder gave them.
        ends: (R',) bool, whether the row ends with it (not: is cut after it).
    """

    rows: Tensor
    ids: Tensor
    token_scores: Tensor
    ends: Tensor


def draw(scores: Tensor, uniform: Tensor) -> Tensor:
    """Draw a word for each row: the first at which the summed probabilities exceed the row's random number.

    Args:
        scores: (R, V) logits, -inf for words that are out.
        uniform: (R,) float64 in [0, 1).

    Returns:
        (R,) int64.
    """
    # summed in double precision: 30,000 rounding errors of single precision would be worth a rare word
    held = scores.double().softmax(dim=1).cumsum(dim=1)
    found = torch.searchsorted(held, (uniform * held[:, -1])[:, None], right=True)[:, 0]
    return found.clamp(max=scores.shape[1] - 1)  # nan is more than any of them


def steps(
    decoder: Decoder, contexts: list[int], begun: Tensor, config: GenerationConfig, keys: list[int]
) -> Iterator[Step]:
    """Write the texts of some contexts step by step.

    Args:
        decoder: What to write with; nothing else may use it meanwhile.
        contexts: Numbers of n contexts.
        begun: (n, 1 + L) int64, begin token and prompt of each.
        config: How.
        keys: What each of the n contexts is drawn by.

    Yields:
        A `Step` for each token.

    Raises:
        ZooError: Every word of a row is forbidden.
    """
    c, device = config, decoder.device
    draws = c.draws if c.sample else 1
    prompt = begun.shape[1]
    process = processors_for(c, end=decoder.eos_id, prompt=prompt, device=device)
    decoder.start(torch.tensor(contexts, device=device))
    logits = decoder.step(begun)
    alive = torch.arange(len(contexts) * draws, device=device)
    history = begun
    if draws > 1:
        parents = alive // draws
        decoder.reorder(parents)
        logits, history = logits[parents], history[parents]
    for t in range(c.max_new_tokens):
        scores = logits
        for processor in process:
            scores = processor(scores, history)
        # nan is no ban: it goes on into the token scores, for whoever looks at them
        if process and bool((scores.amax(1) == -torch.inf).any()):
            stuck = int(alive[(scores.amax(1) == -torch.inf).nonzero()[0, 0]])
            raise nothing_left(contexts[stuck // draws])
        if c.sample:
            # 52 bits, so that no number rounds up to 1
            numbers = [(mix(c.seed, keys[i // draws], i % draws, t) >> 11) / 2**52 for i in alive.tolist()]
            ids = draw(scores, torch.tensor(numbers, dtype=torch.float64, device=device))
        else:
            ids = scores.argmax(1)
        said = logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(1)
        history = torch.cat([history, ids[:, None]], dim=1)
        ends = stops(history[:, prompt:], decoder.eos_id, c.stop)
        yield Step(alive, ids, said, ends)
        if t + 1 == c.max_new_tokens:
            return
        if bool(ends.any()):
            on = (~ends).nonzero()[:, 0]
            if not len(on):
                return
            decoder.reorder(on)
            alive, ids, history = alive[on], ids[on], history[on]
        logits = decoder.step(ids[:, None])


def write_rows(
    decoder: Decoder, contexts: list[int], begun: Tensor, config: GenerationConfig, keys: list[int]
) -> Generated:
    """Greedy search or sampling for contexts with prompts of one length; see `steps`.

    Returns:
        `per_context` texts of each, the best of those drawn.
    """
    c, device = config, decoder.device
    draws = c.draws if c.sample else 1
    count = len(contexts) * draws
    rows = torch.full((count, c.max_new_tokens), decoder.pad_id, device=device)
    lengths = torch.zeros(count, dtype=torch.int64, device=device)
    finished = torch.zeros(count, dtype=torch.bool, device=device)
    said: Tensor | None = None
    for t, step in enumerate(steps(decoder, contexts, begun, c, keys)):
        if said is None:
            said = step.token_scores.new_zeros(count, c.max_new_tokens)
        rows[step.rows, t] = step.ids
        said[step.rows, t] = step.token_scores
        lengths[step.rows] = t + 1
        finished[step.rows] = step.ends
    assert said is not None
    scores = said.sum(1) / lengths.to(said.dtype) ** c.length_penalty
    context = torch.tensor(contexts, device=device).repeat_interleave(draws)
    # drawn texts come best first, as those of beams do
    best = scores.view(-1, draws).argsort(dim=1, descending=True, stable=True)[:, : c.per_context]
    take = (best + torch.arange(len(contexts), device=device)[:, None] * draws).flatten()
    return Generated(rows[take], lengths[take], scores[take], said[take], context[take], finished[take])
