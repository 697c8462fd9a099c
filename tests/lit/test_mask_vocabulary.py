"""What masking knows of a vocabulary is read off it once, not at every step."""

from __future__ import annotations

import gc
from dataclasses import replace

import torch

from mmzoo.lit import fusion
from mmzoo.models.albef import VARIANTS
from mmzoo.processing.text import Tokenizer, build_tokenizer


def test_a_tokenizer_is_asked_once(monkeypatch):
    asked, read = [], Tokenizer.vocabulary
    monkeypatch.setattr(Tokenizer, "vocabulary", lambda self: asked.append(self) or read(self))
    spec = VARIANTS["albef-tiny"].text_input
    one, other = build_tokenizer(spec), build_tokenizer(replace(spec, context=9))
    first = fusion.mask_vocabulary(one)
    assert fusion.mask_vocabulary(one) is first
    again = fusion.mask_vocabulary(other)
    assert asked == [one, other]
    assert again is not first
    assert again.special_ids == first.special_ids
    assert torch.equal(again.continues, first.continues)
    held = len(fusion._VOCABULARIES)
    asked.clear()
    del other
    gc.collect()
    assert len(fusion._VOCABULARIES) == held - 1
