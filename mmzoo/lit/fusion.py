"""What the training of models that read an image and a text together shares: vocabulary of masks, held-out numbers."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from mmzoo import dist
from mmzoo.data.batch import CaptionBatch
from mmzoo.errors import UsageError
from mmzoo.layers.image_kv import ImageKV
from mmzoo.lit.heldout import HeldOutClasses, HeldOutPairs, Numbers
from mmzoo.losses.masking import MaskVocabulary
from mmzoo.metrics.rerank import choose, reranked
from mmzoo.processing.text import Tokenizer

__all__ = ["HeldOutFusion", "Matches", "mask_vocabulary", "steps_of"]


def steps_of(trainer: Trainer, epochs: float) -> int:
    """How many optimizer steps so many epochs take.

    Raises:
        UsageError: The length of an epoch is unknown.
    """
    batches = trainer.num_training_batches
    if epochs == 0:
        return 0
    if math.isinf(batches):
        raise UsageError(
            "alpha grows over alpha_epochs, and the length of this stream's epochs is unknown: set alpha_epochs to 0, "
            "or trainer.limit_train_batches."
        )
    return round(epochs * math.ceil(batches / trainer.accumulate_grad_batches))


# every step asks, and of 30,522 words the answer takes tens of milliseconds
_VOCABULARIES: WeakKeyDictionary[Tokenizer, MaskVocabulary] = WeakKeyDictionary()


def mask_vocabulary(tokenizer: Tokenizer) -> MaskVocabulary:
    """What masking needs to know of a tokenizer; read off once.

    Raises:
        UsageError: Its vocabulary has no mask token.
    """
    if tokenizer.mask_id is None:
        raise UsageError("this model's vocabulary has no [MASK], so no word can be hidden from it.")
    if tokenizer not in _VOCABULARIES:
        special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]")
        words = tokenizer.vocabulary()
        _VOCABULARIES[tokenizer] = MaskVocabulary.from_tokens(words, mask="[MASK]", special=special)
    return _VOCABULARIES[tokenizer]


class Matches(Protocol):
    """What re-ranking needs of a model: `mmzoo.models.albef.ALBEF` and its like."""

    def project(self, tokens: Tensor) -> ImageKV:
        """Image tokens (B, N, D) to keys and values."""
        ...

    def text_states(self, ids: Tensor, keep: Tensor) -> Tensor:
        """Texts (T, L) to states (T, L, D)."""
        ...

    def match_states(
        self, states: Tensor, keep: Tensor, kv: ImageKV, image_index: Tensor | None = None
    ) -> Tensor:
        """States and images to logits (T, 2)."""
        ...


class _Seen(NamedTuple):
    tokens: Tensor
    ids: Tensor
    keep: Tensor


class HeldOutFusion(HeldOutPairs):
    """A split's embeddings, and what re-ranking them takes; matching and masked words beside.

    Args:
        model: Matches images with texts.
        rerank: How many candidates of each image and each text are matched; 0 for none. Image tokens of the whole split
            are held in memory for it.
        ranks_by: What orders candidates: whether they match (ALBEF), or the logit of that plus the cosine (BLIP).
        word_task: What the numbers of words are called.

    Attributes:
        matching: Takes logits (R, 2) of pairs, half of them hard negatives.
        words: Takes logits (R, V) of words.
    """

    def __init__(
        self,
        model: Matches,
        rerank: int,
        *,
        ranks_by: Literal["itm", "itm+itc"] = "itm",
        word_task: str = "mlm",
    ) -> None:
        super().__init__()
        self.score = ("i2t_r1", "t2i_r1") if rerank == 0 else ("reranked_i2t_r1", "reranked_t2i_r1")
        self.matching, self.words = HeldOutClasses(), HeldOutClasses()
        self._model, self._rerank = model, rerank
        self._ranks_by, self._word_task = ranks_by, word_task
        self._seen: list[_Seen] = []

    def hold(self, tokens: Tensor, batch: CaptionBatch) -> None:
        """Keep image tokens (B, N, D) and texts for re-ranking."""
        if self._rerank:
            self._seen.append(_Seen(tokens, batch.ids, batch.keep))

    def numbers(self) -> Numbers:
        """Recall by cosine, recall after re-ranking, accuracy of matching and of words."""
        found = super().numbers()
        if self._rerank:
            chances = {name: chance for name, (_, chance) in found.items()}
            found |= {f"reranked_{n}": (value, chances[n]) for n, value in self._reranked().items()}
        for name, collector in (("itm", self.matching), (self._word_task, self.words)):
            if not collector.empty:
                found |= {f"{name}_{metric}": number for metric, number in collector.numbers().items()}
        return found

    @torch.no_grad()
    def _reranked(self) -> dict[str, float]:
        """Every process matches the candidates of its own images; pairs are exchanged, images are not."""
        image, text, image_ids, text_ids, _ = self.gathered()
        tokens = [seen.tokens for seen in self._seen]
        ids, keep = _padded(self._seen)
        sizes = dist.gather_sizes(sum(map(len, tokens)), image.device)
        first = sum(sizes[: dist.rank()])
        chosen = choose(image, text, self._rerank)
        # texts are few numbers; images stay where they are
        states = self._states(dist.gather_no_grad(ids), dist.gather_no_grad(keep))
        scores = image.new_zeros(len(chosen.image))
        for part in tokens:
            mine = ((chosen.image >= first) & (chosen.image < first + len(part))).nonzero()[:, 0]
            kv = self._model.project(part)
            for some in mine.split(1024):
                which, row = chosen.text[some], chosen.image[some] - first
                logits = self._model.match_states(states[0][which], states[1][which], kv, row)
                if self._ranks_by == "itm":
                    scores[some] = (logits[:, 1] - logits[:, 0]).to(scores)
                else:
                    cosines = torch.linalg.vecdot(image[chosen.image[some]], text[which])
                    scores[some] = logits[:, 1].to(scores) + cosines
            first += len(part)
        if dist.world() > 1:
            torch.distributed.all_reduce(scores)  # each pair was scored by one process, and is 0 elsewhere
        return reranked(chosen, scores, image_ids, text_ids)

    def _states(self, ids: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        parts = [self._model.text_states(*some) for some in zip(ids.split(256), keep.split(256), strict=True)]
        return torch.cat(parts), keep


def _padded(seen: list[_Seen]) -> tuple[Tensor, Tensor]:
    """All texts at the length of the longest of all processes."""
    length = max(part.ids.shape[1] for part in seen)
    if dist.world() > 1:
        length = int(dist.max_over_ranks(torch.tensor(length, device=seen[0].ids.device)))

    def pad(x: Tensor, value: Any) -> Tensor:
        return torch.nn.functional.pad(x, (0, length - x.shape[1]), value=value)

    return torch.cat([pad(s.ids, 0) for s in seen]), torch.cat([pad(s.keep, False) for s in seen])
