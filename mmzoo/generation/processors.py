"""What is done to the scores of the next word before one is chosen. Pure functions, all rows at once.

They run in this order, which `processors_for` fixes: repetition penalty, no repeated n-gram, bad words, minimal length;
and for sampling temperature, top-k, top-p, min-p, typical. So a penalty is worth the same at every temperature, what is
forbidden takes no share of the nucleus, and each cut sees what the ones before it left. It is transformers' order.

Scores are logits in greedy search and sampling, log-probabilities in beam search (as in transformers): that matters to
the repetition penalty only, which divides what is positive and multiplies what is negative.

Legend: R rows, V words, L tokens of a row so far, begin token and prompt included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from mmzoo.generation.config import GenerationConfig

__all__ = [
    "Processor",
    "apply_temperature",
    "forbid_end",
    "forbid_repeated_ngrams",
    "forbid_words",
    "keep_min_p",
    "keep_top_k",
    "keep_top_p",
    "keep_typical",
    "penalize_repetition",
    "processors_for",
]

Processor: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # scores (R, V), rows (R, L) -> scores (R, V)


def penalize_repetition(scores: Tensor, rows: Tensor, *, penalty: float) -> Tensor:
    """Make tokens that a row already holds less likely (Keskar et al. 2019, CTRL)."""
    held = scores.gather(1, rows)
    return scores.scatter(1, rows, torch.where(held < 0, held * penalty, held / penalty))


def forbid_repeated_ngrams(scores: Tensor, rows: Tensor, *, size: int) -> Tensor:
    """Forbid each token that would complete a sequence of `size` tokens that the row already holds."""
    if rows.shape[1] < size:
        return scores
    begun = rows[:, rows.shape[1] - size + 1 :]  # (R, size - 1), what the next token would complete
    grams = rows.unfold(1, size, 1)  # (R, L - size + 1, size)
    again = (grams[..., :-1] == begun[:, None]).all(-1)
    # where nothing repeats, a column beside the vocabulary is struck out
    last = grams[..., -1].where(again, scores.shape[1])
    struck = torch.zeros(scores.shape[0], scores.shape[1] + 1, dtype=torch.bool, device=scores.device)
    return scores.masked_fill(struck.scatter_(1, last, True)[:, :-1], -torch.inf)


def forbid_words(scores: Tensor, rows: Tensor, *, begun: Tensor, last: Tensor) -> Tensor:
    """Forbid the last tokens of words whose other tokens the row ends with.

    Args:
        scores: (R, V).
        rows: (R, L).
        begun: (W, k) int64, the first k tokens of W words; k = 0 forbids them always.
        last: (W,) int64, the tokens that complete them.

    Returns:
        (R, V) scores.
    """
    size = begun.shape[1]
    if rows.shape[1] < size:
        return scores
    near = (rows[:, None, rows.shape[1] - size :] == begun).all(-1)  # (R, W)
    column = last.expand_as(near).where(near, scores.shape[1])
    struck = torch.zeros(scores.shape[0], scores.shape[1] + 1, dtype=torch.bool, device=scores.device)
    return scores.masked_fill(struck.scatter_(1, column, True)[:, :-1], -torch.inf)


def forbid_end(scores: Tensor, rows: Tensor, *, end: int, shorter: int) -> Tensor:
    """Forbid the token `end` in rows of fewer than `shorter` tokens."""
    if rows.shape[1] >= shorter:
        return scores
    return scores.index_fill(1, torch.tensor([end], device=scores.device), -torch.inf)


def apply_temperature(scores: Tensor, rows: Tensor, *, temperature: float) -> Tensor:
    """Divide the scores."""
    return scores / temperature


def keep_top_k(scores: Tensor, rows: Tensor, *, k: int) -> Tensor:
    """Keep the k likeliest words, and others just as likely as the last of them."""
    least = scores.topk(min(k, scores.shape[1]), dim=1).values[:, -1:]
    return scores.masked_fill(scores < least, -torch.inf)


def keep_top_p(scores: Tensor, rows: Tensor, *, share: float) -> Tensor:
    """Keep the fewest words that together hold `share` of the probability (Holtzman et al. 2020, nucleus)."""
    ranked, order = scores.sort(dim=1, descending=True)
    shares = ranked.softmax(dim=1)
    # a word stays if those before it do not yet hold the share; the first always does
    drop = shares.cumsum(dim=1) - shares >= share
    drop[:, 0] = False
    return scores.masked_fill(torch.empty_like(drop).scatter_(1, order, drop), -torch.inf)


def keep_min_p(scores: Tensor, rows: Tensor, *, share: float) -> Tensor:
    """Keep words at least `share` as likely as the likeliest (Nguyen et al. 2024)."""
    shares = scores.softmax(dim=1)
    return scores.masked_fill(shares < share * shares.amax(dim=1, keepdim=True), -torch.inf)


def keep_typical(scores: Tensor, rows: Tensor, *, share: float) -> Tensor:
    """Keep the words whose surprise is nearest to the expected one, up to `share` (Meister et al. 2023)."""
    log_shares = scores.log_softmax(dim=1)
    shares = log_shares.exp()
    expected = -(shares * log_shares).nansum(dim=1, keepdim=True)  # nan: a forbidden word, 0 * -inf
    distance, order = (log_shares + expected).abs().sort(dim=1, stable=True)
    held = shares.gather(1, order).cumsum(dim=1)
    last = (held < share).sum(dim=1, keepdim=True).clamp(max=scores.shape[1] - 1)
    drop = distance > distance.gather(1, last)
    return scores.masked_fill(torch.empty_like(drop).scatter_(1, order, drop), -torch.inf)


def processors_for(
    config: GenerationConfig, *, end: int, prompt: int, device: torch.device
) -> list[Processor]:
    """The processors that `config` asks for, in their order.

    Args:
        config: What to do.
        end: The end token.
        prompt: Tokens of a row before it is written, begin token included.
        device: Of the scores.

    Returns:
        Functions of scores (R, V) and rows (R, L).
    """
    c = config
    found: list[Processor] = []
    if c.repetition_penalty != 1:
        found.append(partial(penalize_repetition, penalty=c.repetition_penalty))
    if c.no_repeat_ngram:
        found.append(partial(forbid_repeated_ngrams, size=c.no_repeat_ngram))
    found += [partial(forbid_words, begun=a, last=b) for a, b in _by_length(c.bad_words, device)]
    if c.min_new_tokens:
        found.append(partial(forbid_end, end=end, shorter=prompt + c.min_new_tokens))
    if c.temperature != 1:
        found.append(partial(apply_temperature, temperature=c.temperature))
    if c.top_k:
        found.append(partial(keep_top_k, k=c.top_k))
    if c.top_p < 1:
        found.append(partial(keep_top_p, share=c.top_p))
    if c.min_p:
        found.append(partial(keep_min_p, share=c.min_p))
    if c.typical_p < 1:
        found.append(partial(keep_typical, share=c.typical_p))
    return found


def _by_length(words: Sequence[tuple[int, ...]], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Words as tables (W, k) of their first tokens and (W,) of their last ones, one for each length."""
    tables = []
    for length in sorted({len(word) for word in words}):
        table = torch.tensor([word for word in words if len(word) == length], device=device)
        tables.append((table[:, :-1], table[:, -1]))
    return tables
