"""Processors against transformers' own, one by one and in their order."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from mmzoo.generation import processors as p
from mmzoo.generation.config import GenerationConfig


def inputs(rows: int = 8, vocab: int = 23, length: int = 12) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(rows, vocab, generator=g, dtype=torch.float64) * 2
    scores[0, 3:9] = -torch.inf  # words that something before has forbidden
    return scores, torch.randint(0, 6, (rows, length), generator=g)


def theirs() -> dict[str, tuple[p.Processor, object]]:
    from transformers.generation import logits_process as t

    words = [[4], [2, 5], [7], [1, 3], [0, 2, 4]]
    tables = p._by_length(tuple(tuple(word) for word in words), torch.device("cpu"))

    def bad_words(scores: Tensor, rows: Tensor) -> Tensor:
        for begun, last in tables:
            scores = p.forbid_words(scores, rows, begun=begun, last=last)
        return scores

    return {
        "repetition": (partial(p.penalize_repetition, penalty=1.7), t.RepetitionPenaltyLogitsProcessor(1.7)),
        "reward": (partial(p.penalize_repetition, penalty=0.6), t.RepetitionPenaltyLogitsProcessor(0.6)),
        "1-gram": (partial(p.forbid_repeated_ngrams, size=1), t.NoRepeatNGramLogitsProcessor(1)),
        "2-gram": (partial(p.forbid_repeated_ngrams, size=2), t.NoRepeatNGramLogitsProcessor(2)),
        "3-gram": (partial(p.forbid_repeated_ngrams, size=3), t.NoRepeatNGramLogitsProcessor(3)),
        "bad words": (bad_words, t.NoBadWordsLogitsProcessor(words, eos_token_id=22)),
        "min length": (
            partial(p.forbid_end, end=22, shorter=13),
            t.MinNewTokensLengthLogitsProcessor(2, 11, eos_token_id=22),
        ),
        "long enough": (
            partial(p.forbid_end, end=22, shorter=12),
            t.MinNewTokensLengthLogitsProcessor(2, 10, eos_token_id=22),
        ),
        "temperature": (partial(p.apply_temperature, temperature=0.7), t.TemperatureLogitsWarper(0.7)),
        "top-k": (partial(p.keep_top_k, k=4), t.TopKLogitsWarper(4)),
        "top-k beyond": (partial(p.keep_top_k, k=99), t.TopKLogitsWarper(99)),
        "top-p": (partial(p.keep_top_p, share=0.8), t.TopPLogitsWarper(0.8)),
        "top-p tiny": (partial(p.keep_top_p, share=0.01), t.TopPLogitsWarper(0.01)),
        "min-p": (partial(p.keep_min_p, share=0.15), t.MinPLogitsWarper(0.15)),
        "typical": (partial(p.keep_typical, share=0.6), t.TypicalLogitsWarper(0.6)),
        "typical tiny": (partial(p.keep_typical, share=0.01), t.TypicalLogitsWarper(0.01)),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(theirs()))
def test_each_processor_is_transformers(name: str) -> None:
    (mine, other), (scores, rows) = theirs()[name], inputs()
    before = scores.clone()
    out = mine(scores, rows)
    torch.testing.assert_close(out, other(rows, scores.clone()), rtol=1e-12, atol=0)
    assert torch.equal(scores, before)  # pure
    if name not in ("long enough", "top-k beyond"):
        assert not torch.equal(out, scores)
    for row in range(len(scores)):  # every row for itself
        assert torch.equal(mine(scores[row : row + 1], rows[row : row + 1])[0], out[row])


def test_short_rows_repeat_nothing() -> None:
    scores, rows = inputs(length=2)
    assert torch.equal(p.forbid_repeated_ngrams(scores, rows, size=3), scores)
    far = p.forbid_words(scores, rows, begun=torch.tensor([[0, 2, 4]]), last=torch.tensor([1]))
    assert torch.equal(far, scores)


def test_the_order_is_the_documented_one() -> None:
    config = GenerationConfig(
        sample=True, typical_p=0.9, min_p=0.1, top_p=0.9, top_k=9, temperature=0.5, min_new_tokens=2,
        bad_words=((3,),), no_repeat_ngram=2, repetition_penalty=1.3,
    )  # fmt: skip
    found = p.processors_for(config, end=1, prompt=1, device=torch.device("cpu"))
    assert [f.func.__name__ for f in found if isinstance(f, partial)] == [
        "penalize_repetition", "forbid_repeated_ngrams", "forbid_words", "forbid_end",
        "apply_temperature", "keep_top_k", "keep_top_p", "keep_min_p", "keep_typical",
    ]  # fmt: skip
    assert p.processors_for(GenerationConfig(), end=1, prompt=1, device=torch.device("cpu")) == []


def test_the_whole_chain_is_transformers() -> None:
    from transformers import GenerationConfig as TheirConfig
    from transformers import GenerationMixin

    config = GenerationConfig(
        sample=True, typical_p=0.8, min_p=0.02, top_p=0.9, top_k=15, temperature=1.7, min_new_tokens=3,
        bad_words=((3,), (2, 5)), no_repeat_ngram=2, repetition_penalty=1.3,
    )  # fmt: skip
    their_config = TheirConfig(
        do_sample=True, typical_p=0.8, min_p=0.02, top_p=0.9, top_k=15, temperature=1.7, min_new_tokens=3,
        bad_words_ids=[[3], [2, 5]], no_repeat_ngram_size=2, repetition_penalty=1.3,
    )  # fmt: skip
    their_config._eos_token_tensor = torch.tensor([22])

    class Bare(GenerationMixin):
        class config:
            is_encoder_decoder = False

    chain = Bare()._get_logits_processor(their_config, input_ids_seq_length=10)
    scores, rows = inputs()
    out = scores
    for f in p.processors_for(config, end=22, prompt=10, device=torch.device("cpu")):
        out = f(out, rows)
    torch.testing.assert_close(out, chain(rows, scores), rtol=1e-12, atol=0)
    assert 1 < int((out > -torch.inf).sum(1).max()) < 15
