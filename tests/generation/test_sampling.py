"""Sampling: the right distribution, the same text for the same seed and key, streamed as generated; contrast."""

from __future__ import annotations

import math

import pytest
import torch
from toy_decoder import ToyDecoder

from mmzoo.errors import UsageError, ZooError
from mmzoo.generation import ContrastiveDecoder, Decoder, GenerationConfig, generate, stream
from mmzoo.generation.rowwise import draw


def chi_square_bound(freedom: int, z: float) -> float:
    """The Wilson-Hilferty quantile of chi-square at the normal quantile `z`."""
    return freedom * (1 - 2 / (9 * freedom) + z * math.sqrt(2 / (9 * freedom))) ** 3


def chi_square(counts: dict[tuple[int, ...], int], expected: dict[tuple[int, ...], float]) -> float:
    return sum((counts.get(text, 0) - n) ** 2 / n for text, n in expected.items())


@pytest.mark.parametrize(("changes", "cut"), [
    ({}, None),
    ({"temperature": 0.8}, None),
    ({"top_k": 2}, 2),
])  # fmt: skip
def test_texts_are_drawn_by_their_probability(changes: dict[str, float], cut: int | None) -> None:
    """Chi-square over all texts of up to three of four words; a right sampler fails once in 30,000 seeds.

    Power: of 16,000 texts, those of a sampler whose temperature is off by half are told from the right ones by the
    same bound (the last line holds the statistic to it), at a noncentrality of more than twice the bound.
    """
    toy = ToyDecoder(1, 4, seed=1, spread=0.7)
    draws = 16_000
    config = GenerationConfig(max_new_tokens=3, sample=True, per_context=draws, seed=7, **changes)
    out = generate(toy, config=config)
    counts: dict[tuple[int, ...], int] = {}
    for row, length in zip(out.rows.tolist(), out.lengths.tolist()):
        counts[tuple(row[:length])] = counts.get(tuple(row[:length]), 0) + 1

    def expectation(temperature: float) -> dict[tuple[int, ...], float]:
        found = {}
        for text in toy.texts(3):
            share, held = 1.0, [toy.bos_id]
            for token in text:
                logits = toy.log_shares(0, held) / temperature
                if cut is not None:
                    logits = logits.masked_fill(logits < logits.topk(cut).values[-1], -torch.inf)
                share *= float(logits.softmax(0)[token])
                held.append(token)
            if share:
                found[text] = share * draws
        return found

    expected = expectation(float(changes.get("temperature", 1.0)))
    assert set(counts) <= set(expected)
    assert min(expected.values()) > 2
    bound = chi_square_bound(len(expected) - 1, 4.0)
    assert chi_square(counts, expected) < bound
    wrong = expectation(1.5 * float(changes.get("temperature", 1.0)))
    noncentrality = sum((expected[text] - n) ** 2 / n for text, n in wrong.items())
    assert noncentrality > 2 * bound
    assert chi_square(counts, wrong) > bound


def test_a_draw_is_the_inverse_of_the_summed_probabilities() -> None:
    scores = torch.tensor(
        [[-torch.inf, math.log(0.25), -torch.inf, math.log(0.5), math.log(0.25), -torch.inf]]
    )
    numbers = [0.0, 0.2499, 0.2501, 0.7499, 0.7501, 1 - 2**-52]
    words = draw(scores.expand(6, -1), torch.tensor(numbers, dtype=torch.float64))
    assert words.tolist() == [1, 1, 3, 3, 4, 4]  # never a word that is out


def test_seed_key_and_draw_say_the_text() -> None:
    toy = ToyDecoder(4, 30, seed=2)
    toy.table[:] = toy.table[:1]  # four times the same context

    def texts(seed: int, keys: list[int] | None = None, per_context: int = 1) -> list[list[int]]:
        config = GenerationConfig(max_new_tokens=10, sample=True, seed=seed, per_context=per_context)
        return generate(toy, config=config, keys=keys).rows.tolist()

    assert texts(0) == texts(0)
    assert texts(0) != texts(1)
    assert len({tuple(text) for text in texts(0)}) == 4
    assert len({tuple(text) for text in texts(0, [5, 5, 5, 5])}) == 1
    assert len({tuple(text) for text in texts(0, [5, 5, 5, 5], 3)}) == 3


@pytest.mark.parametrize("config", [
    GenerationConfig(max_new_tokens=8),
    GenerationConfig(max_new_tokens=8, sample=True, seed=3, min_new_tokens=2),
])  # fmt: skip
def test_a_stream_is_what_generate_writes(config: GenerationConfig) -> None:
    toy, prompts = ToyDecoder(4, 7, seed=5), [[2], [], [3], [4, 2]]
    out = generate(toy, prompts, config)
    said: dict[int, list[int]] = {}
    last: dict[int, bool] = {}
    for word in stream(toy, prompts, config):
        assert not last.get(word.context, False)
        place = len(said.setdefault(word.context, []))
        assert word.score == float(out.token_scores[word.context, place])
        said[word.context].append(word.token)
        last[word.context] = word.last
    assert all(last.values())
    assert [said[i] for i in range(4)] == [row[:n].tolist() for row, n in zip(out.rows, out.lengths)]


def test_a_stream_writes_no_further_than_it_is_read() -> None:
    toy = ToyDecoder(1, 7, seed=5)
    toy.table[..., toy.eos_id] = -50.0
    words = stream(toy, config=GenerationConfig(max_new_tokens=20))
    next(words), next(words)
    assert len(toy.widths) == 2
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    with pytest.raises(UsageError, match="beams and best_of know their text only at its end"):
        stream(toy, config=GenerationConfig(beams=2))


def test_draws_of_a_stream_are_told_apart() -> None:
    toy = ToyDecoder(2, 7, seed=6)
    config = GenerationConfig(max_new_tokens=6, sample=True, per_context=3)
    found: dict[tuple[int, int], list[int]] = {}
    for word in stream(toy, config=config):
        found.setdefault((word.context, word.draw), []).append(word.token)
    assert set(found) == {(context, number) for context in range(2) for number in range(3)}
    out = generate(toy, config=config)
    mine = sorted(row[:n].tolist() for row, n, c in zip(out.rows, out.lengths, out.context) if c == 0)
    assert sorted(text for (context, _), text in found.items() if context == 0) == mine


def test_contrast_takes_what_the_amateur_does_not_expect() -> None:
    expert, amateur = ToyDecoder(3, 8, seed=1), ToyDecoder(3, 8, seed=2)
    both = ContrastiveDecoder(expert, amateur, plausible=0.3)
    assert isinstance(both, Decoder)
    out = generate(both, config=GenerationConfig(max_new_tokens=6))
    differs = 0
    for context in range(3):
        held = [0]
        while len(held) <= 6 and held[-1] != 1:
            mine, other = expert.log_shares(context, held), amateur.log_shares(context, held)
            best = max(
                (float(mine[w] - other[w]), w) for w in range(8) if mine[w] >= mine.max() + math.log(0.3)
            )[1]
            differs += best != int(mine.argmax())
            held.append(best)
        assert out.rows[context, : int(out.lengths[context])].tolist() == held[1:]
    assert differs
    alone = ContrastiveDecoder(expert, amateur, strength=0.0)
    config = GenerationConfig(max_new_tokens=6)
    assert torch.equal(generate(alone, config=config).rows, generate(expert, config=config).rows)
    beams = generate(both, config=GenerationConfig(max_new_tokens=6, beams=3, per_context=2))
    assert bool((beams.scores > -torch.inf).all())


def test_contrast_of_strangers_is_refused() -> None:
    toy = ToyDecoder(2, 8)
    for other, said in ((ToyDecoder(2, 9), "vocab is 8 and 9"), (ToyDecoder(3, 8), "they have 2 and 3")):
        with pytest.raises(ZooError, match=said):
            ContrastiveDecoder(toy, other)
    with pytest.raises(UsageError, match="plausible=0 is a share"):
        ContrastiveDecoder(toy, toy, plausible=0)
    with pytest.raises(UsageError, match="strength=-1 must be 0"):
        ContrastiveDecoder(toy, toy, strength=-1)
