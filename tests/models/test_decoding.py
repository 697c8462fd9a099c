"""BackboneDecoder: the logits of a transformer that remembers nothing, and transformers' captions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hand_blip import copy_hf_decoder
from hand_copy import shake
from torch import Tensor

from mmzoo.generation import Decoder, GenerationConfig, generate
from mmzoo.layers.heads import MaskedWords
from mmzoo.layers.image_kv import ImageKV
from mmzoo.models.decoding import BackboneDecoder
from mmzoo.models.writing import SpecialTokens
from mmzoo.towers.text import TextBackbone, TextConfig, bert_text

TOKENS = SpecialTokens(begin=30, encode=29, end=2, pad=3)
BERT = bert_text(
    vocab=31, context=40, width=32, depth=2, heads=4, hidden=64, token_types=0, causal=True, cross_layers=(0, 1),
    cross_width=24,
)  # fmt: skip
# another school: norms first, rotary positions, fewer key heads, only one layer that reads the context
LLAMA = TextConfig(
    vocab=31, context=40, width=32, depth=2, heads=4, hidden=64, norm="pre", norm_eps=1e-5, act="swiglu", init="bert",
    norm_kind="rms", positions="rope", final_norm=True, causal=True, kv_heads=2, bias=False, cross_layers=(1,),
    cross_width=24,
)  # fmt: skip


def build(
    config: TextConfig, contexts: int, *, masked: bool = False
) -> tuple[TextBackbone, MaskedWords, ImageKV]:
    torch.manual_seed(0)
    backbone = TextBackbone(config).double().eval()
    head = MaskedWords(config.width, config.vocab, eps=1e-12, tied=backbone.embed.tok).double()
    shake(backbone, 1, std=0.3), shake(head, 2, std=0.3)
    with torch.no_grad():
        for parameter in backbone.blocks.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)  # so that contexts matter
        head.bias[TOKENS.end] = 0.3
    keep = torch.arange(9) < torch.randint(1, 10, (contexts, 1)) if masked else None
    with torch.no_grad():
        kv = backbone.project_context(torch.randn(contexts, 9, 24, dtype=torch.float64) * 3, keep=keep)
    return backbone, head, kv


class Forgetful(BackboneDecoder):
    """Reads every row from its beginning at each step, with a copy of its context."""

    def start(self, reads: Tensor) -> None:
        self.reads, self.rows = reads, torch.zeros(len(reads), 0, dtype=torch.int64)

    def step(self, ids: Tensor) -> Tensor:
        self.rows = torch.cat([self.rows, ids], 1)
        with torch.no_grad():
            return self.head.logits(self.backbone(self.rows, context=self.kv[self.reads]).tokens[:, -1])

    def reorder(self, rows: Tensor) -> None:
        self.reads, self.rows = self.reads[rows], self.rows[rows]


# what searches ask for: beams that spring from one row, exchange, drop out; draws that leave one by one; contexts that
# leave at the front, in the middle and at the end; rows that come back in number; and prompts in the middle of a text
COURSES: dict[str, list[list[int] | int]] = {
    "greedy": [1, 1, [0, 2, 3], 1, [1, 2], 1, [1], 1],
    "beams": [3, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3], 1, [1, 1, 0, 3, 4, 3, 8, 7, 6, 9, 9, 9],
              1, [3, 4, 4, 9, 9, 10], 1],
    "draws": [2, [0, 0, 1, 1, 2, 2, 3, 3], 1, [0, 2, 3, 4, 6, 7], 1, [0, 1, 2, 4], 1, [0, 2, 2, 3], 1, [1, 2], 1],
    "prompts": [2, [0, 0, 1, 2, 3, 3, 3], 3, [0, 1, 1, 3, 4, 6, 5], 2, [6, 4], 1],
}  # fmt: skip


@pytest.mark.parametrize("course", COURSES)
@pytest.mark.parametrize("config", [BERT, LLAMA], ids=["bert", "llama"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reads", [[0, 1, 2, 3], [0, 2, 3, 4]])
def test_what_is_remembered_changes_nothing(
    course: str, config: TextConfig, masked: bool, reads: list[int]
) -> None:
    parts = build(config, 5, masked=masked)
    mine, plain = BackboneDecoder(*parts, TOKENS), Forgetful(*parts, TOKENS)
    assert isinstance(mine, Decoder)
    g = torch.Generator().manual_seed(3)
    for _ in range(2):  # a second text begins anew
        rows = 4
        for decoder in (mine, plain):
            decoder.start(torch.tensor(reads))
        for what in COURSES[course]:
            if isinstance(what, int):
                ids = torch.randint(0, 31, (rows, what), generator=g)
                torch.testing.assert_close(mine.step(ids), plain.step(ids), rtol=0, atol=1e-11)
            else:
                rows = len(what)
                for decoder in (mine, plain):
                    decoder.reorder(torch.tensor(what))


@pytest.mark.parametrize("config", [
    GenerationConfig(),
    GenerationConfig(beams=3),
    GenerationConfig(beams=4, groups=2, diversity=0.7, per_context=3),
    GenerationConfig(sample=True, per_context=3, temperature=0.8),
], ids=["greedy", "beams", "groups", "draws"])  # fmt: skip
@pytest.mark.parametrize("prompt", [None, [[4], [5, 6], [4, 9], [], [8, 8, 8]]], ids=["", "prompts"])
def test_searches_find_the_same_with_and_without_memory(config: GenerationConfig, prompt: Any) -> None:
    parts = build(BERT, 5)
    mine, plain = (generate(cls(*parts, TOKENS), prompt, config) for cls in (BackboneDecoder, Forgetful))
    assert torch.equal(mine.rows, plain.rows)
    torch.testing.assert_close(mine.scores, plain.scores, rtol=0, atol=1e-11)
    assert len(set(mine.lengths.tolist())) > 2
    alone = [generate(BackboneDecoder(*parts[:2], parts[2][i], TOKENS), prompt and prompt[i], config, keys=[i])
             for i in range(5)]  # fmt: skip
    for i, one in enumerate(alone):
        width = one.rows.shape[1]
        assert torch.equal(one.rows, mine.rows[mine.context == i][:, :width])


def test_no_key_is_copied_or_moved() -> None:
    decoder = BackboneDecoder(*build(BERT, 3), TOKENS)
    seen = []
    for block in decoder.backbone.blocks:
        block.cross.register_forward_pre_hook(
            lambda _, args: seen.append((args[0].shape, args[1].k.data_ptr()))
        )
    decoder.start(torch.arange(3))
    decoder.step(torch.full((3, 2), 4))
    decoder.reorder(torch.arange(3).repeat_interleave(4))
    decoder.step(torch.full((12, 1), 4))
    buffers = [layer._k.data_ptr() for layer in decoder._cache.layers if layer._k is not None]
    decoder.reorder(torch.tensor([3, 3, 0, 1, 4, 5, 5, 5, 9, 8, 9, 8]))
    decoder.step(torch.full((12, 1), 4))
    assert buffers == [layer._k.data_ptr() for layer in decoder._cache.layers if layer._k is not None]
    assert {pointer for _, pointer in seen} == {kv.k.data_ptr() for kv in decoder.kv.layers.values()}
    assert {tuple(shape) for shape, _ in seen} == {(3, 2, 32), (3, 4, 32)}
    assert decoder._cache.length == 2 + 4 + 4  # the prompt is held once for all beams


@pytest.mark.parametrize("options", [
    {},
    {"num_beams": 3},
    {"num_beams": 5, "length_penalty": 2.0, "num_return_sequences": 2},
    {"num_beams": 3, "early_stopping": True, "repetition_penalty": 1.4},
    {"num_beams": 5, "min_new_tokens": 12},
    {"num_beams": 3, "no_repeat_ngram_size": 2, "min_new_tokens": 5, "early_stopping": "never"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("prompt", [[], [4, 17, 9]], ids=["", "prompt"])
def test_captions_are_those_of_transformers(options: dict[str, Any], prompt: list[int]) -> None:
    from transformers.models.blip.configuration_blip import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

    torch.manual_seed(0)
    hf = BlipTextLMHeadModel(BlipTextConfig(
        vocab_size=31, hidden_size=32, encoder_hidden_size=24, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=40, bos_token_id=30, eos_token_id=2, sep_token_id=2,
        pad_token_id=3, is_decoder=True,
    )).double().eval()  # fmt: skip
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if "LayerNorm" not in name:
                parameter.mul_(9.0)  # as they start, all words are nearly as likely
        hf.cls.predictions.decoder.bias[2] += 2.0
    backbone = TextBackbone(replace(BERT, context=40)).double().eval()
    head = MaskedWords(32, 31, eps=1e-12, tied=backbone.embed.tok).double()
    copy_hf_decoder(backbone, head, hf)
    image = torch.randn(5, 7, 24, dtype=torch.float64) * 3
    names = {
        "num_beams": "beams",
        "num_return_sequences": "per_context",
        "no_repeat_ngram_size": "no_repeat_ngram",
    }
    config = GenerationConfig(
        max_new_tokens=12, **{names.get(key, key): value for key, value in options.items()}
    )
    with torch.no_grad():
        kv = backbone.project_context(image)
    out = generate(BackboneDecoder(backbone, head, kv, TOKENS), prompt, config)
    other = hf.generate(
        torch.tensor([[30, *prompt]]).repeat(5, 1), encoder_hidden_states=image,
        encoder_attention_mask=torch.ones(5, 7), eos_token_id=2, pad_token_id=3, max_new_tokens=12, **options,
    )[:, 1 + len(prompt) :]  # fmt: skip
    width = max(out.rows.shape[1], other.shape[1])
    mine, theirs = (torch.nn.functional.pad(x, (0, width - x.shape[1]), value=3) for x in (out.rows, other))
    assert torch.equal(mine, theirs)
