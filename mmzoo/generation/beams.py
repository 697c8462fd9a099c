"""Beam search, and diverse beam search over groups of beams (Vijayakumar et al. 2016).

What a candidate is worth, when a context is over and what is kept follows transformers 5.23, so that ids are equal; how
it is computed does not. One row per context reads the prompt; rows meet their parents through `Decoder.reorder`; and a
context that is over leaves the batch.

transformers 5 has no diverse beams any more. Here, as in its version 4: groups search one after the other, each for
itself, a word losing `diversity` for each beam of an earlier group of the same context that writes it in this step; and
the texts of all groups are ranked together.

Legend: A contexts still searched, G groups, S beams of a group, K = G * S, V words, T the most tokens written.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmzoo.errors import UsageError
from mmzoo.generation.config import GenerationConfig
from mmzoo.generation.processors import processors_for
from mmzoo.generation.protocol import Decoder
from mmzoo.generation.written import Generated, nothing_left, stops

__all__ = ["write_beams"]


@dataclass
class _Finished:
    """The best S texts of each group so far: rows, token scores (A, G, S, T); score, length, ended (A, G, S)."""

    rows: Tensor
    said: Tensor
    score: Tensor
    length: Tensor
    ended: Tensor

    @classmethod
    def none(cls, shape: tuple[int, int, int], most: int, like: Tensor) -> _Finished:
        device = like.device
        return cls(
            rows=torch.zeros((*shape, most), dtype=torch.int64, device=device),
            said=like.new_zeros(*shape, most),
            score=like.new_full(shape, -torch.inf),
            length=torch.zeros(shape, dtype=torch.int64, device=device),
            ended=torch.zeros(shape, dtype=torch.bool, device=device),
        )

    def take(self, contexts: Tensor) -> _Finished:
        return _Finished(*(getattr(self, name)[contexts] for name in self.__dataclass_fields__))

    def put(self, contexts: Tensor, other: _Finished) -> None:
        for name in self.__dataclass_fields__:
            getattr(self, name)[contexts] = getattr(other, name)

    def merge(self, group: int, rows: Tensor, said: Tensor, score: Tensor, ended: Tensor) -> None:
        """Keep the best S of a group's texts and of S candidates, all t tokens long.

        Args:
            group: Number of the group.
            rows: (A, S, t) tokens of the candidates.
            said: (A, S, t) their token scores.
            score: (A, S), -inf for a candidate that is none.
            ended: (A, S) bool.
        """
        length = rows.shape[2]
        beyond = self.rows.shape[-1] - length
        parts = {
            "rows": F.pad(rows, (0, beyond)),
            "said": F.pad(said, (0, beyond)),
            "length": torch.full_like(rows[..., 0], length),
            "ended": ended,
        }
        self.score[:, group], best = torch.cat([self.score[:, group], score], 1).topk(score.shape[1], dim=1)
        for name, part in parts.items():
            mine = getattr(self, name)
            both = torch.cat([mine[:, group], part], dim=1)
            index = best if both.dim() == 2 else best[..., None].expand(-1, -1, both.shape[2])
            mine[:, group] = both.gather(1, index)


def write_beams(decoder: Decoder, contexts: list[int], begun: Tensor, config: GenerationConfig) -> Generated:
    """Search the best texts of some contexts.

    Args:
        decoder: What to write with.
        contexts: Numbers of n contexts.
        begun: (n, 1 + L) int64, begin token and prompt of each.
        config: How; `beams` > 1.

    Returns:
        `per_context` texts of each context.

    Raises:
        UsageError: The vocabulary has too few words for so many beams.
        ZooError: Every word is forbidden for all beams of a context.
    """
    if config.beams >= decoder.vocab:
        raise UsageError(
            f"{config.beams} beams cannot begin with different words of a vocabulary of {decoder.vocab}, its end token "
            f"left out: at most {decoder.vocab - 1}."
        )
    found = _Search(decoder, contexts, begun, config).run()
    shape, most = (len(contexts), config.beams), found.rows.shape[-1]
    scores, best = found.score.view(shape).sort(dim=1, descending=True, stable=True)
    scores, best = scores[:, : config.per_context], best[:, : config.per_context]
    if bool((scores[:, 0] == -torch.inf).any()):
        raise nothing_left(contexts[int((scores[:, 0] == -torch.inf).nonzero()[0, 0])])
    wide = best[..., None].expand(-1, -1, most)
    lengths = found.length.view(shape).gather(1, best).flatten()
    rows = found.rows.view(*shape, most).gather(1, wide).flatten(0, 1)
    beyond = torch.arange(most, device=rows.device) >= lengths[:, None]
    return Generated(
        rows=rows.masked_fill(beyond, decoder.pad_id),
        lengths=lengths,
        scores=scores.flatten(),
        token_scores=found.said.view(*shape, most).gather(1, wide).flatten(0, 1),
        context=torch.tensor(contexts, device=rows.device).repeat_interleave(config.per_context),
        finished=found.ended.view(shape).gather(1, best).flatten(),
    )


class _Search:
    """Beam search over contexts that shrink in number as they finish.

    B beams of a context run: one before the first word, K after it.

    Attributes:
        alive: (A,) int64, places of the contexts still searched among all n.
        over: (A, G) bool, groups that are over while others of their context go on.
        logits: (A * B, V) of the next word.
        history: (A, B, L + t) int64, begin token, prompt and t written tokens of the running beams.
        said: (A, B, t) log-probabilities of the written tokens, before processors.
        running: (A, B) summed scores, each group's best first; -inf where nothing is left.
        finished: The best texts of the A contexts.
        done: The best texts of all n, filled in as contexts leave.
    """

    def __init__(self, decoder: Decoder, contexts: list[int], begun: Tensor, config: GenerationConfig):
        self.decoder, self.config, self.prompt = decoder, config, begun.shape[1]
        self.groups, self.size = config.groups, config.beams // config.groups
        n, device = len(contexts), decoder.device
        self.process = processors_for(config, end=decoder.eos_id, prompt=self.prompt, device=device)
        decoder.start(torch.tensor(contexts, device=device))
        self.logits = decoder.step(begun)
        self.alive = torch.arange(n, device=device)
        self.over = torch.zeros(n, self.groups, dtype=torch.bool, device=device)
        self.history = begun[:, None]
        self.said = self.logits.new_zeros(n, 1, 0)
        self.running = self.logits.new_zeros(n, 1)
        shape = (n, self.groups, self.size)
        self.finished = _Finished.none(shape, config.max_new_tokens, self.logits)
        self.done = _Finished.none(shape, config.max_new_tokens, self.logits)

    def run(self) -> _Finished:
        """Search until no context is left."""
        while True:
            rows = self._advance()
            left = self.over.all(1)
            if bool(left.any()):
                self.done.put(self.alive[left], self.finished.take(left))
                if bool(left.all()):
                    return self.done
                on = ~left
                self.alive, self.over, self.finished = self.alive[on], self.over[on], self.finished.take(on)
                self.history, self.said, self.running = self.history[on], self.said[on], self.running[on]
                rows = rows[on]
            self.decoder.reorder(rows.flatten())
            self.logits = self.decoder.step(self.history[..., -1].reshape(-1, 1))

    def _advance(self) -> Tensor:
        """Choose the next word of all groups. Returns the row (A, K) that each beam goes on from."""
        A, B = self.running.shape
        log_shares = self.logits.log_softmax(dim=1)
        scores, history = log_shares, self.history.flatten(0, 1)
        for processor in self.process:
            scores = processor(scores, history)
        scores, log_shares = scores.view(A, B, -1), log_shares.view(A, B, -1)
        taken = scores.new_zeros(A, 1, scores.shape[2]) if self.config.diversity else None
        chosen = []
        for group in range(self.groups):
            beams = slice(0, 1) if B == 1 else slice(group * self.size, (group + 1) * self.size)
            seen = scores[:, beams] if taken is None else scores[:, beams] - self.config.diversity * taken
            chosen.append(self._choose(group, beams, seen, log_shares))
            if taken is not None:
                words = chosen[-1][1][..., -1]
                votes = (~self.over[:, group, None]).to(taken.dtype).expand(words.shape)
                taken[:, 0].scatter_add_(1, words, votes)
        parents, self.history, self.said, self.running = (torch.cat(parts, 1) for parts in zip(*chosen))
        return parents + torch.arange(A, device=parents.device)[:, None] * B

    def _choose(
        self, group: int, beams: slice, scores: Tensor, log_shares: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Choose the next word of one group, and judge whether the group is over.

        Args:
            group: Its number.
            beams: Its running beams among the B.
            scores: (A, beams, V) of their next words.
            log_shares: (A, B, V) before processors.

        Returns:
            The group's next running beams: parent (A, S), history (A, S, L), token scores (A, S, t), running (A, S).
        """
        c, S, V = self.config, self.size, scores.shape[2]
        # twice as many as are needed: at most one word of each beam is the end token, so S of them can go on. None is
        # among the best of all that is not among the best of its beam, so sums over the vocabulary need not be made.
        most = min(2 * S, V)
        best, words = scores.topk(most, dim=2)
        total, place = (best + self.running[:, beams, None]).flatten(1).topk(most, dim=1)
        parent, ids = beams.start + place // most, words.flatten(1).gather(1, place)
        history = torch.cat([_rows(self.history, parent), ids[..., None]], dim=2)
        new = log_shares.flatten(1).gather(1, parent * V + ids)
        said = torch.cat([_rows(self.said, parent), new[..., None]], dim=2)

        length = said.shape[2]
        written = history[..., self.prompt :]
        ends = stops(written.flatten(0, 1), self.decoder.eos_id, c.stop).view_as(ids)
        cut = ends if length < c.max_new_tokens else torch.ones_like(ends)
        none = ~cut[:, :S] | self.over[:, group, None]
        value = (total[:, :S] / length**c.length_penalty).masked_fill(none, -torch.inf)
        self.finished.merge(group, written[:, :S], said[:, :S], value, ends[:, :S])

        on = cut.to(torch.int8).argsort(dim=1, stable=True)[:, :S]  # those that go on, the best first
        running = total.masked_fill(cut, -torch.inf).gather(1, on)
        self._judge(group, running[:, 0], length)
        return parent.gather(1, on), _rows(history, on), _rows(said, on), running

    def _judge(self, group: int, best: Tensor, length: int) -> None:
        """Set `over` where the best running beam (A,) of a group can, or may, no longer change its texts."""
        c = self.config
        worst = self.finished.score[:, group].amin(1)  # -inf until there are S of them
        full = worst > -torch.inf
        if c.early_stopping is not True:
            hoped = c.max_new_tokens if c.early_stopping == "never" and c.length_penalty > 0 else length
            full &= best / hoped**c.length_penalty <= worst
        self.over[:, group] |= full | (best == -torch.inf)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """`x` (A, B, t), of which each context takes the beams that `index` (A, S) names."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
