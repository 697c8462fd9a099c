"""Ids equal those of transformers' `generate`, with the same tiny BLIP decoder in float64 behind both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmzoo.generation import Generated, GenerationConfig, generate

# padding is not 0: transformers 5.23 then fills up with the end token ("pad_token_id or eos_token_id")
BOS, EOS, PAD, VOCAB, IMAGES = 30, 2, 3, 31, 5


def build() -> Any:
    from transformers.models.blip.configuration_blip import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

    torch.manual_seed(0)
    config = BlipTextConfig(
        vocab_size=VOCAB, hidden_size=32, encoder_hidden_size=24, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, bos_token_id=BOS, eos_token_id=EOS, sep_token_id=EOS,
        pad_token_id=PAD, is_decoder=True,
    )  # fmt: skip
    model = BlipTextLMHeadModel(config).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm" not in name:
                parameter.mul_(9.0)  # as they start, all words are nearly as likely
        model.cls.predictions.decoder.bias[EOS] += 2.0
    return model


class Wrapped:
    """The model as a `Decoder` without any cache: every step reads the rows from their beginning."""

    bos_id, eos_id, pad_id, vocab, context = BOS, EOS, PAD, VOCAB, 64
    device = torch.device("cpu")

    def __init__(self, model: Any, image: Tensor):
        self.model, self.image = model, image

    def __len__(self) -> int:
        return len(self.image)

    def start(self, reads: Tensor) -> None:
        self.reads, self.rows = reads, torch.zeros(len(reads), 0, dtype=torch.int64)

    def step(self, ids: Tensor) -> Tensor:
        self.rows = torch.cat([self.rows, ids], 1)
        image = self.image[self.reads]
        return self.model(
            self.rows, encoder_hidden_states=image, encoder_attention_mask=torch.ones(image.shape[:2]),
            use_cache=False,
        ).logits[:, -1]  # fmt: skip

    def reorder(self, rows: Tensor) -> None:
        self.reads, self.rows = self.reads[rows], self.rows[rows]


@pytest.fixture(scope="module")
def model() -> Any:
    return build()


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(IMAGES, 7, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3


def theirs(model: Any, image: Tensor, prompt: list[int], **options: Any) -> Any:
    begun = torch.tensor([[BOS, *prompt]]).repeat(len(image), 1)
    return model.generate(
        begun, encoder_hidden_states=image, encoder_attention_mask=torch.ones(image.shape[:2]),
        eos_token_id=EOS, pad_token_id=PAD, return_dict_in_generate=True, output_scores=True, **options,
    )  # fmt: skip


def compare(out: Generated, other: Any, prompt: int) -> None:
    ids = other.sequences[:, 1 + prompt :]
    width = max(ids.shape[1], out.rows.shape[1])
    mine, their = (torch.nn.functional.pad(x, (0, width - x.shape[1]), value=PAD) for x in (out.rows, ids))
    assert torch.equal(mine, their)
    if getattr(other, "sequences_scores", None) is not None:
        torch.testing.assert_close(out.scores.float(), other.sequences_scores, rtol=1e-5, atol=1e-6)


SEARCHES: list[dict[str, Any]] = [
    {},
    {"num_beams": 3},
    {"num_beams": 5},
    {"num_beams": 3, "length_penalty": 0.0},
    {"num_beams": 3, "length_penalty": 2.0},
    {"num_beams": 5, "length_penalty": -1.0},
    {"num_beams": 3, "early_stopping": True},
    {"num_beams": 5, "early_stopping": True, "length_penalty": 0.5},
    {"num_beams": 4, "early_stopping": "never"},
    {"num_beams": 4, "early_stopping": "never", "length_penalty": -0.5},
    {"num_beams": 5, "num_return_sequences": 5},
    {"num_beams": 3, "num_return_sequences": 2, "early_stopping": True},
]
CHANGES: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.8},
    {"repetition_penalty": 0.7},
    {"min_new_tokens": 6},
    {"min_new_tokens": 12},  # forced length
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2, "repetition_penalty": 1.2, "min_new_tokens": 3},
    {"bad_words_ids": [[5], [7, 9], [11, 3]]},
]


def ours(options: dict[str, Any]) -> GenerationConfig:
    names = {
        "num_beams": "beams", "num_return_sequences": "per_context", "no_repeat_ngram_size": "no_repeat_ngram",
        "bad_words_ids": "bad_words",
    }  # fmt: skip
    return GenerationConfig(
        max_new_tokens=12, **{names.get(name, name): value for name, value in options.items()}
    )


@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_ids_are_those_of_transformers(
    model: Any, image: Tensor, search: dict[str, Any], changes: dict[str, Any]
) -> None:
    options = {**search, **changes}
    out = generate(Wrapped(model, image), config=ours(options))
    compare(out, theirs(model, image, [], max_new_tokens=12, **options), 0)


def test_the_texts_of_that_test_end_in_many_ways(model: Any, image: Tensor) -> None:
    lengths = {
        int(n) for search in SEARCHES for n in generate(Wrapped(model, image), config=ours(search)).lengths
    }
    assert len(lengths) > 4
    assert 12 in lengths


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"num_beams": 5, "length_penalty": 2.0}], ids=str)
def test_prompts_are_those_of_transformers(model: Any, image: Tensor, search: dict[str, Any]) -> None:
    prompt = [4, 17, 9]
    options = {**search, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2}
    out = generate(Wrapped(model, image), prompt, ours(options))
    compare(out, theirs(model, image, prompt, max_new_tokens=12, **options), 3)


def test_beam_sums_are_those_that_transformers_recomputes(model: Any, image: Tensor) -> None:
    out = generate(Wrapped(model, image), config=ours({"num_beams": 3}))
    other = theirs(model, image, [], max_new_tokens=12, num_beams=3)
    said = model.compute_transition_scores(other.sequences, other.scores, other.beam_indices)
    width = out.rows.shape[1]
    mine = out.token_scores.float()
    torch.testing.assert_close(mine, said[:, :width], rtol=1e-5, atol=1e-5)
