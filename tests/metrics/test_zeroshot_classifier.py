"""The zero-shot classifier: trimming, sorting and de-duplication change the work, never the result."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import mmzoo
from mmzoo.metrics import zeroshot
from mmzoo.metrics.zeroshot import build_classifier, encode_texts
from mmzoo.processing.templates import TEMPLATES, expand, imagenet_names
from mmzoo.processing.text import build_tokenizer
from mmzoo.spec import TextSpec

NAMES = ["cat", "golden retriever", "ice-cream", "a very long name of a thing that nobody has seen", "dog"]


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    model = mmzoo.create_model("clip-tiny", dtype=torch.float64)
    return model, mmzoo.create_processor(model)


class Recorder:
    """A model whose calls are written down."""

    def __init__(self, model):
        self.model = model
        self.shapes: list[tuple[int, ...]] = []

    def encode_text(self, ids, keep):
        self.shapes.append(tuple(ids.shape))
        return self.model.encode_text(ids, keep)


def padded_definition(model, processor, names, templates):
    """Every prompt in one batch with a text that fills the context, then the mean of unit vectors."""
    longest = "a " * 100
    rows = []
    for name in names:
        ids, keep = processor.texts([*(template.replace("{}", name) for template in templates), longest])
        assert ids.shape[1] == processor.text_spec.context
        vectors = F.normalize(model.encode_text(ids, keep)[:-1], dim=-1)
        rows.append(F.normalize(vectors.mean(0), dim=-1))
    return torch.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 7, 128])
def test_equals_the_padded_definition(clip, batch_size):
    model, processor = clip
    templates = TEMPLATES["general"]
    with torch.no_grad():
        expected = padded_definition(model, processor, NAMES, templates)
    found = build_classifier(model, processor, NAMES, templates, batch_size=batch_size)
    assert found.shape == (5, model.config.embed)
    assert (found - expected).abs().max() < 1e-12
    assert (found.norm(dim=1) - 1).abs().max() < 1e-12


def test_equals_the_padded_definition_in_float32(clip):
    model = mmzoo.create_model("clip-tiny")
    model.load_state_dict(clip[0].state_dict())
    with torch.no_grad():
        expected = padded_definition(model, clip[1], NAMES, TEMPLATES["general"])
    assert (build_classifier(model, clip[1], NAMES, TEMPLATES["general"]) - expected).abs().max() < 1e-6


class TwoWords:
    """A vocabulary of two words, one axis each, whose texts are as long as their number of words."""

    def __init__(self, pad_to_context: bool = False) -> None:
        self.text_spec = TextSpec("tiny", 12, 3, pad_to_context=pad_to_context)
        self.shapes: list[tuple[int, ...]] = []

    def texts(self, texts):
        rows = [[1 if word == "red" else 2 for word in text.split()] for text in texts]
        length = 12 if self.text_spec.pad_to_context else max(map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        return ids, ids > 0

    def encode_text(self, ids, keep):
        self.shapes.append(tuple(ids.shape))
        return torch.stack([(ids == 1).sum(1), (ids == 2).sum(1)], 1).double()


def test_is_the_mean_of_unit_vectors_and_no_other_mean():
    words = TwoWords()
    found = build_classifier(words, words, ["red"], ["{}", "{} and and and"])
    # unit vectors (1, 0) and (1, 3) / sqrt(10); the mean of the raw vectors would lean to (2, 3)
    mean = torch.tensor([1 + 10**-0.5, 3 * 10**-0.5], dtype=torch.float64)
    assert torch.allclose(found[0], mean / mean.norm(), rtol=0, atol=1e-15)


def test_slabs_change_nothing(clip, monkeypatch):
    model, processor = clip
    whole = build_classifier(model, processor, NAMES, TEMPLATES["drawing"])
    monkeypatch.setattr(zeroshot, "SLAB", 6)  # two classes of three templates at a time
    recorder = Recorder(model)
    assert (build_classifier(recorder, processor, NAMES, TEMPLATES["drawing"]) - whole).abs().max() < 1e-12
    assert [shape[0] for shape in recorder.shapes] == [6, 6, 3]


def test_texts_are_encoded_once_in_order_of_length_without_padding(clip):
    model, processor = clip
    texts = ["cat", "a picture of a cat on a mat in a house", "cat", "dog", "a picture of a dog", "cat"]
    recorder = Recorder(model)
    found = encode_texts(recorder, processor, texts, batch_size=2)
    lengths = sorted((len(processor.texts([text]).ids[0]) for text in set(texts)), reverse=True)
    assert recorder.shapes == [(2, lengths[0]), (2, lengths[2])]
    assert lengths[2] < lengths[0]
    with torch.no_grad():
        for text, row in zip(texts, found, strict=True):
            assert (model.encode_text(*processor.texts([text]))[0] - row).abs().max() < 1e-12


def test_padding_stays_where_it_is_part_of_the_function():
    padded, trimmed = TwoWords(pad_to_context=True), TwoWords()
    for words in (padded, trimmed):
        encode_texts(words, words, ["red", "red and red", "and"], batch_size=2)
    assert padded.shapes == [(2, 12), (1, 12)]
    assert trimmed.shapes == [(2, 3), (1, 1)]


def test_imagenet_prompts_take_few_tokens():
    """What the speed rests on: 80 templates of a class, sorted, need an eighth of the padded tokens."""
    spec = TextSpec("clip", 77, 49408)
    texts = expand(imagenet_names()[::100], TEMPLATES["imagenet"])
    tokenizer = build_tokenizer(spec)

    class Tokens:
        text_spec = spec

        def texts(self, texts):
            return tokenizer(texts)

    class Counter:
        tokens = 0

        def encode_text(self, ids, keep):
            self.tokens += ids.numel()
            return torch.zeros(len(ids), 2)

    counter = Counter()
    encode_texts(counter, Tokens(), texts)
    assert counter.tokens * 6.5 < 77 * len(texts)
