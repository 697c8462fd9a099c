"""How to write: which search, what is forbidden, when to stop. Every combination that makes no sense is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

from torch import Tensor

from mmzoo.errors import UsageError

__all__ = ["GenerationConfig", "Stop"]

Stop: TypeAlias = tuple[tuple[int, ...], ...] | Callable[[Tensor], Tensor]

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "best_of")


@dataclass(frozen=True)
class GenerationConfig:
    """What `mmzoo.generation.generate` does. Without changes: greedy search, 20 tokens at most.

    Attributes:
        max_new_tokens: Most tokens written after the prompt, the end token included.
        min_new_tokens: The end token may not be among the first so many.
        beams: Width of beam search; 1 is greedy search, or sampling.
        groups: Diverse beam search: so many groups of beams, each kept off the words of the ones before it.
        diversity: What a word loses in log-probability for each beam of an earlier group that writes it now.
        sample: Draw words instead of taking the likeliest.
        temperature: Divides the logits before drawing; below 1 is bolder, above 1 more even.
        top_k: Draw among the k likeliest only; 0 means all.
        top_p: Draw among the fewest words that hold this share of the probability (nucleus).
        min_p: Draw among words at least this share as likely as the likeliest.
        typical_p: Draw among the words whose surprise is nearest to the expected one, up to this share.
        best_of: Texts drawn for each context, of which the `per_context` with the highest scores are returned.
        repetition_penalty: Above 1 makes every token that the row (begin token and prompt included) already holds less
            likely: a positive logit is divided by it, a negative one multiplied (CTRL).
        no_repeat_ngram: No sequence of so many tokens twice in a row; 0 allows all.
        bad_words: Token sequences that are never written.
        length_penalty: Exponent of the length, end token included, that divides a text's log-probability.
        early_stopping: When beam search is over for a context. True: as soon as there are as many finished texts as
            beams. False: once the best unfinished beam, at its length of now, is not better than the worst of them.
            "never": the same, at the length that would favour it most.
        per_context: Texts returned for each context.
        stop: Token sequences that end a row, or a function of the written tokens (R, t) int64, prompt left out, that
            says (R,) bool which rows end. What ended the row stays in it.
        seed: Of sampling; a text depends on it and on the context's key.

    Raises:
        UsageError: A value is out of range, or contradicts another.
    """

    max_new_tokens: int = 20
    min_new_tokens: int = 0
    beams: int = 1
    groups: int = 1
    diversity: float = 0.0
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    best_of: int | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    per_context: int = 1
    stop: Stop = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("bad_words", "stop"):  # lists, as a YAML file holds them, become tuples
            words = getattr(self, name)
            if not callable(words):
                object.__setattr__(self, name, tuple(tuple(word) for word in words))
                if not all(getattr(self, name)):
                    raise UsageError(
                        f"{name} holds an empty sequence of tokens: leave it out, or give it tokens."
                    )
        self._check_ranges()
        self._check_search()

    @property
    def draws(self) -> int:
        """Texts drawn for each context when sampling."""
        return self.per_context if self.best_of is None else self.best_of

    def _check_ranges(self) -> None:
        for name in ("max_new_tokens", "beams", "groups", "per_context"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} is too few: at least 1.")
        for name in ("min_new_tokens", "top_k", "no_repeat_ngram", "diversity"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name}={getattr(self, name)} must be 0 (off) or more.")
        for name in ("temperature", "repetition_penalty"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name}={getattr(self, name)} must lie above 0; 1 changes nothing.")
        for name in ("top_p", "typical_p"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"{name}={getattr(self, name)} is a share: above 0, and at most 1 (all).")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"min_p={self.min_p} is a share: between 0 (all) and 1.")
        if not math.isfinite(self.length_penalty):
            raise UsageError(
                f"length_penalty={self.length_penalty} must be a finite number; 0 ignores lengths."
            )
        if self.early_stopping not in (True, False, "never"):
            raise UsageError(f"early_stopping={self.early_stopping!r}: choose True, False or 'never'.")
        if self.min_new_tokens > self.max_new_tokens:
            raise UsageError(
                f"min_new_tokens={self.min_new_tokens} is more than max_new_tokens={self.max_new_tokens}: raise the "
                "maximum, or lower the minimum."
            )

    def _check_search(self) -> None:
        if self.sample and self.beams > 1:
            raise UsageError(
                "sampling and beam search are two ways to write: take sample=True with per_context or best_of for "
                "several texts, or beams without sample."
            )
        plain = {field.name: field.default for field in fields(self)}
        idle = [name for name in _SAMPLING if getattr(self, name) != plain[name]]
        if idle and not self.sample:
            raise UsageError(
                f"{', '.join(idle)} say how to draw words, and nothing is drawn: add sample=True, or leave them out."
            )
        if self.beams % self.groups:
            raise UsageError(f"{self.beams} beams do not divide into {self.groups} groups: change one.")
        if self.diversity and self.groups == 1:
            raise UsageError(f"diversity={self.diversity} works between groups of beams: give groups.")
        if self.beams > 1 and self.per_context > self.beams:
            raise UsageError(
                f"per_context={self.per_context} is more than the {self.beams} beams that could give texts: widen "
                "the search, or ask for fewer."
            )
        if self.beams == 1 and not self.sample and self.per_context > 1:
            raise UsageError(
                f"greedy search gives one text for each context, not {self.per_context}: take sample=True, or beams."
            )
        if self.best_of is not None and self.best_of < self.per_context:
            raise UsageError(
                f"the {self.per_context} best of best_of={self.best_of} texts cannot be returned: draw more."
            )
