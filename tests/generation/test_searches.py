"""Searches against brute force: every text of a toy vocabulary, and plain searches written row by row in Python."""

from __future__ import annotations

import pytest
import torch
from toy_decoder import ToyDecoder

from mmzoo.errors import UsageError, ZooError
from mmzoo.generation import Generated, GenerationConfig, generate


def texts(out: Generated) -> list[list[int]]:
    return [row[:length].tolist() for row, length in zip(out.rows, out.lengths)]


def plain_beams(
    toy: ToyDecoder, context: int, config: GenerationConfig
) -> list[tuple[float, tuple[int, ...]]]:
    """Diverse beam search as its definition reads, one candidate at a time."""
    size, most = config.beams // config.groups, config.max_new_tokens
    running = [[(0.0, ())] for _ in range(config.groups)]
    finished: list[list[tuple[float, tuple[int, ...]]]] = [[] for _ in range(config.groups)]
    over = [False] * config.groups
    for t in range(1, most + 1):
        taken = [0] * toy.vocab
        for g in range(config.groups):
            candidates = []
            for total, text in running[g]:
                shares = toy.log_shares(context, (toy.bos_id, *text)).tolist()
                candidates += [
                    (total + share - config.diversity * taken[word], (*text, word))
                    for word, share in enumerate(shares)
                ]
            candidates = sorted(candidates, reverse=True)[: 2 * size]
            cut = [text[-1] == toy.eos_id or t == most for _, text in candidates]
            if not over[g]:
                new = [
                    (s / t**config.length_penalty, text) for (s, text), c in zip(candidates[:size], cut) if c
                ]
                finished[g] = sorted(finished[g] + new, reverse=True)[:size]
            running[g] = [candidate for candidate, c in zip(candidates, cut) if not c][:size]
            full = len(finished[g]) == size
            if full and config.early_stopping is not True and running[g]:
                length = most if config.early_stopping == "never" and config.length_penalty > 0 else t
                full = running[g][0][0] / length**config.length_penalty <= finished[g][-1][0]
            over[g] = over[g] or full
            for _, text in running[g]:
                taken[text[-1]] += not over[g]
        if all(over):
            break
    return sorted((found for group in finished for found in group), reverse=True)


def test_greedy_takes_the_likeliest_word_each_time() -> None:
    toy = ToyDecoder(3, 7)
    out = generate(toy, config=GenerationConfig(max_new_tokens=12))
    for context, text in enumerate(texts(out)):
        held = [toy.bos_id]
        while len(held) <= 12 and held[-1] != toy.eos_id:
            held.append(int(toy.log_shares(context, held).argmax()))
        assert text == held[1:]
        assert bool(out.finished[context]) == (text[-1] == toy.eos_id)
        said = sum(float(toy.log_shares(context, held[:i])[held[i]]) for i in range(1, len(held)))
        assert float(out.scores[context]) == pytest.approx(said / len(text), abs=1e-12)
        assert float(out.token_scores[context].sum()) == pytest.approx(said, abs=1e-12)


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0, 2.0, -1.0])
def test_beams_that_hold_everything_find_the_best_text_of_all(penalty: float) -> None:
    # four words and four tokens: 3 + 9 + 27 + 81 unfinished rows at most, which 81 beams hold
    toy = ToyDecoder(2, 4, seed=3)
    toy.vocab = 4
    wide = ToyDecoder(2, 100, seed=3)
    wide.table[
        :
    ] = -50.0  # words beside the four are next to impossible: the vocabulary only admits the beams
    wide.table[..., :4] = toy.table
    config = GenerationConfig(
        max_new_tokens=4, beams=81, length_penalty=penalty, early_stopping="never", per_context=3
    )
    out = generate(wide, config=config)
    for context in range(2):
        every = sorted(
            ((toy.log_probability(context, text) / len(text) ** penalty, text) for text in toy.texts(4)),
            reverse=True,
        )
        assert [tuple(t) for t in texts(out)[3 * context : 3 * context + 3]] == [
            text for _, text in every[:3]
        ]
        assert out.scores[3 * context : 3 * context + 3].tolist() == pytest.approx(
            [s for s, _ in every[:3]], abs=1e-9
        )


@pytest.mark.parametrize("early", [False, True, "never"])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, -0.5])
@pytest.mark.parametrize(
    ("beams", "groups", "diversity"), [(2, 1, 0.0), (5, 1, 0.0), (4, 2, 0.8), (6, 3, 2.5), (4, 4, 1.0)]
)
def test_beam_search_is_what_its_definition_says(
    beams: int, groups: int, diversity: float, penalty: float, early: bool | str
) -> None:
    toy = ToyDecoder(6, 9, seed=beams)
    toy.table[..., toy.eos_id] += 2.5
    config = GenerationConfig(
        max_new_tokens=7, beams=beams, groups=groups, diversity=diversity, length_penalty=penalty,
        early_stopping=early, per_context=2,
    )  # fmt: skip
    out = generate(toy, config=config)
    found = iter(zip(texts(out), out.scores.tolist()))
    for context in range(6):
        for score, text in plain_beams(toy, context, config)[:2]:
            mine, mine_score = next(found)
            assert tuple(mine) == text
            assert mine_score == pytest.approx(score, abs=1e-9)
    if early is True:
        assert len(set(toy.widths[1:])) > 1  # contexts did leave at different times


def test_diversity_parts_the_groups_and_costs_likelihood() -> None:
    toy = ToyDecoder(4, 12, seed=1)
    near = generate(toy, config=GenerationConfig(max_new_tokens=6, beams=4, groups=4, per_context=4))
    far = generate(
        toy, config=GenerationConfig(max_new_tokens=6, beams=4, groups=4, diversity=50.0, per_context=4)
    )
    for context in range(4):
        assert len({tuple(t) for t in texts(near)[4 * context : 4 * context + 4]}) == 1
        assert len({t[0] for t in texts(far)[4 * context : 4 * context + 4]}) == 4


def test_one_beam_of_many_groups_is_greedy() -> None:
    toy = ToyDecoder(5, 9, seed=2)
    greedy = generate(toy, config=GenerationConfig(max_new_tokens=8))
    groups = generate(toy, config=GenerationConfig(max_new_tokens=8, beams=2, groups=2, early_stopping=True))
    assert texts(greedy) == texts(groups)


@pytest.mark.parametrize("config", [
    GenerationConfig(max_new_tokens=9),
    GenerationConfig(max_new_tokens=9, beams=3),
    GenerationConfig(max_new_tokens=9, beams=4, groups=2, diversity=1.0, per_context=2),
    GenerationConfig(max_new_tokens=9, sample=True, seed=5, per_context=3),
])  # fmt: skip
def test_a_text_does_not_depend_on_the_batch(config: GenerationConfig) -> None:
    toy, keys = ToyDecoder(6, 9, seed=4), [11, 12, 13, 14, 15, 16]
    together = generate(toy, config=config, keys=keys)
    for context in range(6):
        alone = ToyDecoder(6, 9, seed=4)
        alone.table = alone.table[context : context + 1]
        out = generate(alone, config=config, keys=keys[context : context + 1])
        mine = together.context == context
        assert texts(out) == [t for t, m in zip(texts(together), mine) if m]
        assert torch.equal(out.scores, together.scores[mine])


def test_what_is_over_leaves_the_batch() -> None:
    toy = ToyDecoder(8, 5, seed=6)
    out = generate(toy, config=GenerationConfig(max_new_tokens=30))
    unfinished = [int((out.lengths > t).sum()) for t in range(1, int(out.lengths.max()))]
    assert toy.widths == [8, *unfinished]
    assert len(set(unfinished)) > 2


def test_prompts_of_different_length_enter_without_padding() -> None:
    toy, prompts = ToyDecoder(5, 9, seed=7), [[2, 3], [], [4], [5, 2], [3]]
    for config in (GenerationConfig(max_new_tokens=6), GenerationConfig(max_new_tokens=6, beams=3)):
        out = generate(toy, prompts, config)
        assert out.context.tolist() == [0, 1, 2, 3, 4]
        for context, prompt in enumerate(prompts):
            alone = ToyDecoder(5, 9, seed=7)
            alone.table = alone.table[context : context + 1]
            assert texts(generate(alone, prompt, config))[0] == texts(out)[context]
        for row, length in zip(out.rows, out.lengths):
            assert bool((row[length:] == toy.pad_id).all())
    same = generate(toy, torch.tensor([2, 3]), GenerationConfig(max_new_tokens=6))
    assert texts(same)[0] == texts(generate(toy, [[2, 3]] * 5, GenerationConfig(max_new_tokens=6)))[0]


def test_stop_sequences_and_functions_end_a_row_and_stay_in_it() -> None:
    toy = ToyDecoder(20, 6, seed=8)
    toy.table[..., toy.eos_id] = -100.0
    free = texts(generate(toy, config=GenerationConfig(max_new_tokens=20)))
    ended = generate(toy, config=GenerationConfig(max_new_tokens=20, stop=((2, 3), (4,))))
    said = generate(toy, config=GenerationConfig(max_new_tokens=20, stop=lambda rows: rows.sum(1) > 15))
    for context, text in enumerate(free):
        until = next((i for i in range(1, 21) if text[i - 1] == 4 or text[max(i - 2, 0) : i] == [2, 3]), 20)
        assert texts(ended)[context] == text[:until]
        assert bool(ended.finished[context]) == (text[until - 1] == 4 or text[until - 2 : until] == [2, 3])
        until = next((i for i in range(1, 21) if sum(text[:i]) > 15), 20)
        assert texts(said)[context] == text[:until]
    beams = generate(toy, config=GenerationConfig(max_new_tokens=20, beams=3, stop=((4,),)))
    assert all(4 not in text[:-1] for text in texts(beams))
    with pytest.raises(ZooError, match=r"stop must say for each of 20 rows"):
        generate(toy, config=GenerationConfig(stop=lambda rows: rows))


def test_a_stop_prompt_is_not_read_as_written() -> None:
    toy = ToyDecoder(3, 6, seed=9)
    toy.table[..., toy.eos_id] = -100.0
    out = generate(toy, [4, 4], GenerationConfig(max_new_tokens=5, stop=((4, 4, 4),)))
    assert all(text[-3:] == [4, 4, 4] or len(text) == 5 for text in texts(out))


def test_best_of_returns_the_likeliest_of_what_was_drawn() -> None:
    toy = ToyDecoder(4, 9, seed=10)
    every = generate(toy, config=GenerationConfig(sample=True, per_context=6, seed=1))
    best = generate(toy, config=GenerationConfig(sample=True, best_of=6, per_context=2, seed=1))
    for context in range(4):
        scores = every.scores[every.context == context]
        assert bool((scores.diff() <= 0).all())
        assert torch.equal(best.scores[best.context == context], scores[:2])
        mine = [t for t, c in zip(texts(every), every.context) if c == context]
        assert [t for t, c in zip(texts(best), best.context) if c == context] == mine[:2]


def test_what_cannot_be_written_is_said() -> None:
    toy = ToyDecoder(2, 6)
    everything = tuple((token,) for token in (0, 2, 3, 4, 5))
    for beams in (1, 2):
        with pytest.raises(ZooError, match=r"nothing is left to write for context 0: bad_words"):
            generate(toy, config=GenerationConfig(min_new_tokens=2, bad_words=everything, beams=beams))
    with pytest.raises(
        UsageError, match=r"6 beams cannot begin with different words of a vocabulary of 6.*at most 5"
    ):
        generate(toy, config=GenerationConfig(beams=6))
    with pytest.raises(ZooError, match=r"a prompt of 50 tokens and 20 new ones do not fit .* context of 64"):
        generate(toy, [2] * 50)
    assert len(generate(toy, [2] * 44)) == 2  # begin token, prompt, and 19 tokens that are read: 64
    with pytest.raises(ZooError, match=r"prompt of context 1 holds token 6, outside 0 to 5"):
        generate(toy, [[2], [6]])
    with pytest.raises(ZooError, match=r"3 prompts for 2 contexts"):
        generate(toy, [[2], [3], [4]])
    with pytest.raises(ZooError, match=r"1 keys for 2 contexts"):
        generate(toy, keys=[1])
    with pytest.raises(UsageError, match=r"bad_words forbids the end token"):
        generate(toy, config=GenerationConfig(bad_words=((1,),)))
    with pytest.raises(UsageError, match=r"bad_words holds token 6, outside 0 to 5"):
        generate(toy, config=GenerationConfig(bad_words=((2, 6),)))
    with pytest.raises(ZooError, match=r"no context"):
        generate(ToyDecoder(0, 6))
