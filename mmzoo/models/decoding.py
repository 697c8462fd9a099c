"""How a causal text transformer with cross-attention writes for `mmzoo.generation`, keeping what it read and wrote.

The rows of one context run as tokens of one sequence that do not see each other. So they share the keys of the context
and of their common prompt without a copy, and no key is ever moved: each stays where it was written, and going on from
another row is a matter of what a row sees.

Moving keys instead, by `index_select` after each step, took 2 to 3 % longer for 1, 2 and 8 images of 5 beams and more
memory (BLIP-base, one core of an AMD EPYC, torch 2.14.1). Laying a picture's keys out head by head first gained less
than it cost: 33 ms a picture, for at most 2 ms of each step.

Legend: C contexts, R rows, A contexts that rows read (one sequence each), K places of a sequence, L new tokens, N keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mmzoo.layers.cache import KVCache
from mmzoo.layers.heads import MaskedWords
from mmzoo.layers.image_kv import ImageKV
from mmzoo.ops.attention import CAUSAL, AttnMask
from mmzoo.ops.folding import Fold, fold
from mmzoo.towers import TextBackbone

if TYPE_CHECKING:
    from mmzoo.models.writing import SpecialTokens

__all__ = ["BackboneDecoder"]


class _Rows(NamedTuple):
    """Where R rows stand.

    Attributes:
        reads: (A,) int64, the context of each sequence.
        room: K, the most rows that read one context.
        places: (R,) int64, each row's place among A * K; None where row r has place r. Other places are idle.
    """

    reads: Tensor
    room: int
    places: Tensor | None

    @classmethod
    def of(cls, reads: Tensor, counts: Tensor) -> _Rows:
        """Place `counts` (A,) rows of each context."""
        room = int(counts.max()) if len(counts) else 0
        if bool((counts == room).all()):
            return cls(reads, room, None)
        first = torch.arange(len(counts), device=counts.device) * room - (counts.cumsum(0) - counts)
        places = torch.arange(int(counts.sum()), device=counts.device) + first.repeat_interleave(counts)
        return cls(reads, room, places)

    def spread(self, x: Tensor, idle: int) -> Tensor:
        """Put `x` (R, n) in place: (A * K, n), with `idle` in idle places."""
        if self.places is None:
            return x
        return x.new_full((len(self.reads) * self.room, x.shape[1]), idle).index_copy(0, self.places, x)


class BackboneDecoder:
    """Writes about contexts whose keys and values are there already. A `mmzoo.generation.protocol.Decoder`.

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
        self.start(torch.zeros(0, dtype=torch.int64, device=self.device))

    def __len__(self) -> int:
        return len(self.kv)

    @property
    def device(self) -> torch.device:
        """Where ids are expected and logits arrive."""
        return self.head.bias.device

    def start(self, reads: Tensor) -> None:
        """Begin anew: row r reads context `reads[r]` (R,) int64; rows of one context are adjacent."""
        self._cache = KVCache(self.backbone.config.depth)
        self._length = 0
        self._seen: Tensor | None = None  # (A, K, N) bool, keys that each place sees; None: all
        self._arrange(*reads.unique_consecutive(return_counts=True))

    def step(self, ids: Tensor) -> Tensor:
        """Append `ids` (R, L) int64 to the rows; logits (R, V) of what follows, float32 (float64 for float64)."""
        backbone, rows, length = self.backbone, self._rows, ids.shape[1]
        positions = torch.arange(self._length, self._length + length, device=ids.device)
        with torch.no_grad():
            x = backbone.embed(rows.spread(ids, self.pad_id), start=self._length)
            x = x.view(len(rows.reads), rows.room * length, -1)
            places = self._fold(length)
            x = backbone.blocks(
                x,
                mask=self._look(length, x.dtype),
                rope=backbone.rope(positions.repeat(rows.room)),
                context=self.kv,
                context_mask=places.mask(self.kv.keep),
                fold=places,
                cache=self._cache,
            )
            # only the last position is asked for what follows
            x = x.view(len(rows.reads) * rows.room, length, -1)[:, -1]
            if rows.places is not None:
                x = x[rows.places]
            logits = self.head.logits(backbone.norm(x) if backbone.config.final_norm else x)
        self._length += length
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def reorder(self, rows: Tensor) -> None:
        """Let row r' go on from row `rows[r']` (R',) int64, and keep reading its context."""
        old = self._rows
        parents = rows if old.places is None else old.places[rows]
        sequences, counts = (parents // max(old.room, 1)).unique_consecutive(return_counts=True)
        moved = len(sequences) != len(old.reads) or bool((sequences.diff() != 1).any())
        seen = self._seen
        if moved or old.places is not None or bool((counts != old.room).any()):
            if moved:
                self._cache.reorder(sequences)
            self._arrange(old.reads[sequences], counts)
        new = self._rows
        if seen is None and new.room > 1:
            seen = torch.ones(
                len(old.reads), old.room, self._cache.length, dtype=torch.bool, device=rows.device
            )
        if seen is not None:
            seen = new.spread(seen.flatten(0, 1)[parents], False).unflatten(0, (len(new.reads), new.room))
        self._seen = seen

    def _arrange(self, reads: Tensor, counts: Tensor) -> None:
        self._rows = _Rows.of(reads, counts)
        self._folds: dict[int, Fold] = {}

    def _fold(self, length: int) -> Fold:
        """Where `length` new tokens of each place find their context; looked up once for as long as no row leaves."""
        if length not in self._folds:
            c, rows = self.backbone.config, self._rows
            channels = c.heads * (c.head_dim or c.width // c.heads)
            reads = rows.reads.repeat_interleave(rows.room * length)
            self._folds[length] = fold(reads, len(self.kv), keys=self.kv.tokens, channels=channels)
        return self._folds[length]

    def _look(self, length: int, dtype: torch.dtype) -> AttnMask:
        """What `length` new tokens of each place see; from now on their keys are seen by who goes on from them."""
        reads, room, _ = self._rows
        if room == 1 and self._seen is None:
            return CAUSAL
        device = reads.device
        one = torch.eye(room, dtype=torch.bool, device=device)
        upto = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        own = (one[:, None, :, None] & upto[None, :, None, :]).flatten(2).flatten(0, 1)  # (K * L, K * L)
        seen = self._seen
        if seen is None:
            seen = one.new_ones(len(reads), room, self._cache.length)
        seen = torch.cat([seen.repeat_interleave(length, dim=1), own.expand(len(reads), -1, -1)], dim=2)
        self._seen = seen[:, length - 1 :: length]
        hidden = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, -torch.inf)
        return AttnMask(bias=hidden[:, None])
