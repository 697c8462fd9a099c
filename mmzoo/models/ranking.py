"""Ranks the answers of a list by a decoder that could write them: exact for the likeliest, in two steps.

First, the log-probability of every answer's first token, from one position of the decoder. Then only the k answers
whose first token is likeliest are read to their end, and their log-probabilities summed. The reference adds the first
token's to a sum that holds it already (salesforce/BLIP issue 208): answers with a likely beginning come out too high.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmzoo.errors import UsageError, ZooError
from mmzoo.layers.heads import MaskedWords
from mmzoo.layers.image_kv import ImageKV
from mmzoo.models.writing import word_head
from mmzoo.towers import TextBackbone, TextConfig
from mmzoo.towers.reader import Reader

__all__ = ["AnswersByDecoder", "rank_answers", "read_answers"]

_ROWS = 512  # answers in memory at once


class AnswersByDecoder(Reader):
    """A `Reader` of questions, and a decoder of answers that attends to what it read (ALBEF, BLIP).

    Capabilities: `RanksAnswers`, `SharesImages`.
    """

    decoder: TextBackbone
    lm: MaskedWords

    def add_decoder(self, config: TextConfig) -> None:
        """Build `decoder`, and `lm` over its words.

        Raises:
            ZooError: It is not causal, or does not fit the text half.
        """
        c, text = config, self.config.text
        if not c.causal or c.cross_width != text.width or c.vocab != text.vocab:
            raise ZooError(
                f"the answer decoder is causal and shares width {text.width} and {text.vocab} words with the text "
                f"half; found causal={c.causal}, cross_width {c.cross_width}, {c.vocab} words."
            )
        self.decoder = TextBackbone(c)
        self.lm = word_head(self.decoder)

    def begun(self, ids: Tensor) -> Tensor:
        """Answers (R, L) with the token that the decoder begins with: as they are, unless a family says otherwise."""
        return ids

    def read_question(
        self, images: Tensor | ImageKV, ids: Tensor, keep: Tensor, *, packed: bool = True
    ) -> ImageKV:
        """Read questions (B, L) with their images (arguments as of `forward`) for the decoder to attend to."""
        return self.decoder.project_context(self(images, ids, keep, packed=packed), keep=keep)

    def answer_states(self, question: ImageKV, ids: Tensor, question_index: Tensor | None = None) -> Tensor:
        """Read answers from left to right.

        Args:
            question: What `read_question` made of B questions.
            ids: (R, L) int64, each row begin token, answer, end token, padding.
            question_index: (R,) int64, the question of each answer; None: answer r to question r.

        Returns:
            (R, L, D): position l is for `lm` to name token l + 1.
        """
        return read_answers(self.decoder, question, self.begun(ids), question_index)

    def rank_answers(
        self,
        images: Tensor | ImageKV,
        ids: Tensor,
        keep: Tensor,
        answers: tuple[Tensor, Tensor],
        k: int = 128,
        *,
        first_token_twice: bool = False,
    ) -> Tensor:
        """Score every answer of a list, without gradients; see `mmzoo.models.ranking`.

        Args:
            images: (B, 3, H, W), or their `ImageKV`.
            ids: (B, L) int64 questions.
            keep: (B, L) bool.
            answers: Ids (A, La) int64 and keep (A, La) bool, from `Processor.framed`.
            k: How many to spell; all if there are no more.
            first_token_twice: Count the first token's log-probability twice, as the reference does by mistake.

        Returns:
            (B, A) log-probabilities; -inf where the first token alone ruled an answer out.
        """
        with torch.no_grad():
            question = self.read_question(images, ids, keep)
            spelt = self.begun(answers[0]), answers[1]
            return rank_answers(
                self.decoder, self.lm, question, spelt, k, first_token_twice=first_token_twice
            )


def read_answers(
    decoder: TextBackbone, question: ImageKV, ids: Tensor, question_index: Tensor | None = None
) -> Tensor:
    """Read answers from left to right.

    Args:
        decoder: A causal transformer with cross-attention.
        question: Its keys and values of B questions.
        ids: (R, L) int64, each row begin token, answer, end token, padding.
        question_index: (R,) int64, the question of each answer; None: answer r to question r.

    Returns:
        (R, L, D): position l tells of token l + 1.
    """
    return decoder(ids, context=question, context_index=question_index, right_padded=True).tokens


def rank_answers(
    decoder: TextBackbone,
    head: MaskedWords,
    question: ImageKV,
    answers: tuple[Tensor, Tensor],
    k: int,
    *,
    first_token_twice: bool = False,
) -> Tensor:
    """Score every answer to every question.

    Args:
        decoder: A causal transformer with cross-attention.
        head: Names its next token.
        question: Its keys and values of B questions.
        answers: Ids (A, L) int64 and keep (A, L) bool: begin token, answer, end token, padding.
        k: How many answers to read to their end; all if there are no more.
        first_token_twice: Repeat the reference's mistake.

    Returns:
        (B, A) log-probabilities; -inf where the first token alone ruled an answer out.

    Raises:
        UsageError: k is below 1, or an answer has no token after its begin token.
    """
    ids, keep = answers
    if k < 1:
        raise UsageError(f"k is {k}; it is a number of answers, at least 1.")
    if ids.shape[1] < 2 or not bool(keep[:, 1].all()):
        raise UsageError("every answer needs a token after its begin token: make them by Processor.framed.")
    opening = head.logits(read_answers(decoder, question, ids[0, 0].expand(len(question), 1))[:, 0])
    opening = opening.to(torch.promote_types(opening.dtype, torch.float32)).log_softmax(1)  # (B, V)
    first = opening[:, ids[:, 1]]  # (B, A)
    # a stable sort, so that of answers with the same first token those that stand first in the list are chosen
    chosen = first.sort(dim=1, descending=True, stable=True).indices[:, :k]  # (B, k)
    asked = torch.arange(len(question), device=ids.device).repeat_interleave(chosen.shape[1])
    whole, lengths = [], keep.sum(1)
    for index, answer in zip(asked.split(_ROWS), chosen.flatten().split(_ROWS), strict=True):
        width = int(lengths[answer].max())  # of this chunk: one long answer makes no other one longer
        words, real = ids[answer, :width], keep[answer, 1:width]
        states = read_answers(decoder, question, words, index)[:, :-1]
        found = head.log_likelihood(states[real], words[:, 1:][real])
        whole.append(found.new_zeros(real.shape).masked_scatter(real, found).sum(1))
    scores = torch.full_like(first, float("-inf"))
    scores.scatter_(1, chosen, torch.cat(whole).to(scores).view_as(chosen))
    return scores + first if first_token_twice else scores
