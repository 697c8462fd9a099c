"""Teaching a decoder to write about images: what BLIP's pre-training and its fine-tuning on captions share.

Legend: B images, T texts, L tokens, P tokens of a prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmzoo.layers.image_kv import ImageKV
from mmzoo.losses.masking import NO_LABEL
from mmzoo.losses.words import WordLoss, word_loss
from mmzoo.models.writing import WritesByDecoder

__all__ = ["next_words", "prompted"]


def next_words(
    model: WritesByDecoder,
    kv: ImageKV,
    ids: Tensor,
    keep: Tensor,
    *,
    image_index: Tensor | None = None,
    given: int = 0,
    label_smoothing: float = 0.0,
    text_weight: Tensor | None = None,
    over_ranks: bool = True,
) -> WordLoss:
    """Name every token of every text out of its image and the tokens before it.

    Args:
        model: Has a causal decoder and a word head.
        kv: Keys and values of B images.
        ids: (T, L) int64, begin token, text, end token, padding.
        keep: (T, L) bool, True at real tokens.
        image_index: (T,) int64, the image of each text; None: text t with image t.
        given: How many tokens after the first are not asked for: those of a prompt.
        label_smoothing: Share of a token's mass that is spread over all words.
        text_weight: (T,) what each token of a text counts, for a weighted sum in place of the mean over tokens.
        over_ranks: Count the tokens of all ranks, as training does.
    """
    labels = ids[:, 1:].masked_fill(~keep[:, 1:], NO_LABEL)
    labels[:, :given] = NO_LABEL
    asked = labels != NO_LABEL
    states = model.write_states(kv, ids, image_index, keep=keep)[:, :-1][asked]
    weight = None if text_weight is None else text_weight[:, None].expand_as(labels)[asked]
    head = model.lm
    return word_loss(
        head(states), head.weight, head.bias, labels[asked], label_smoothing=label_smoothing, row_weight=weight,
        over_ranks=over_ranks,
    )  # fmt: skip


def prompted(ids: Tensor, keep: Tensor, prompt: Tensor, *, most: int, end: int) -> tuple[Tensor, Tensor]:
    """Put a prompt between the begin token of every text and the rest, as if they were one sentence.

    Args:
        ids: (T, L) int64, begin token, text, end token, padding.
        keep: (T, L) bool.
        prompt: (P,) int64, without begin and end token.
        most: Tokens that a text may have; what is longer is cut, and ends with the end token all the same.
        end: The end token.

    Returns:
        Ids and keep, (T, L + P) or (T, most).
    """
    front = prompt.to(ids).expand(len(ids), -1)
    ids = torch.cat([ids[:, :1], front, ids[:, 1:]], 1)
    keep = torch.cat([keep[:, :1], torch.ones_like(front, dtype=torch.bool), keep[:, 1:]], 1)
    if ids.shape[1] > most:
        long = keep[:, most]
        ids, keep = ids[:, :most].clone(), keep[:, :most]
        ids[long, -1] = end
    return ids, keep
