"""Answers are read in chunks, each no wider than its longest answer, with the scores of reading all at once."""

from __future__ import annotations

from dataclasses import replace

import torch

from mmzoo.models import ranking
from mmzoo.models.albef import ALBEFVQA, VARIANTS, ALBEFVQAConfig


def _model():
    torch.manual_seed(0)
    c = VARIANTS["albef-tiny"]
    layers = tuple(range(c.text.depth))
    decoder = replace(c.text, causal=True, cross_layers=layers, cross_width=c.text.width)
    return ALBEFVQA(ALBEFVQAConfig(c.vision, c.text, c.image, c.text_input, decoder)).double().eval()


def test_a_chunk_is_as_wide_as_its_longest_answer(monkeypatch):
    model, generator = _model(), torch.Generator().manual_seed(1)
    lengths = torch.tensor([3, 12, 4, 3, 5, 3])
    keep = torch.arange(12) < lengths[:, None]
    ids = torch.randint(7, 50, (6, 12), generator=generator) * keep
    ids[:, 0] = 2
    asked = torch.randint(7, 50, (2, 5), generator=generator)
    images = torch.randn(2, 3, 24, 24, generator=generator, dtype=torch.float64)
    question = (images, asked, torch.ones_like(asked, dtype=torch.bool))
    whole = model.rank_answers(*question, (ids, keep), k=6)
    read, widths = ranking.read_answers, []

    def spy(decoder, question, words, index=None):
        widths.append((len(words), words.shape[1]))
        return read(decoder, question, words, index)

    monkeypatch.setattr(ranking, "read_answers", spy)
    monkeypatch.setattr(ranking, "_ROWS", 2)
    found = model.rank_answers(*question, (ids, keep), k=6)
    torch.testing.assert_close(found, whole, rtol=1e-11, atol=1e-11)
    assert widths[0] == (2, 1)  # the first token, from one position of each question
    assert [rows for rows, _ in widths[1:]] == [2] * 6
    # the longest answer is asked of each of two questions: no other chunk pays for it
    assert 1 <= sum(width == 12 for _, width in widths[1:]) <= 2
    assert min(width for _, width in widths[1:]) < 12
