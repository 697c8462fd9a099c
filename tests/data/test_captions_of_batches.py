"""A caption batch carries everything that is said of its pictures, and training may keep to the plainest text."""

import pickle

import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device

from mmzoo import create_processor
from mmzoo.data.collate import CaptionCollate, Tokens
from mmzoo.data.modules import CaptionsData
from mmzoo.data.sample import Sample


@pytest.fixture
def tokens():
    return Tokens(create_processor("blip-tiny"))


def sample(key="a", texts=("a cat", " ", "the cat", "cat")):
    return Sample(key, b"", texts, tuple(range(len(texts))), (0,))


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_the_first_text_or_any(tokens, seed):
    drawn = CaptionCollate(tokens, with_labels=False).draw(sample(), seed)
    assert drawn.text == ("a cat", "the cat", "cat")[seed or 0]
    assert CaptionCollate(tokens, with_labels=False, first=True).draw(sample(), seed).text == "a cat"


def test_captions_travel_with_their_batch(tokens):
    collate = CaptionCollate(tokens, with_labels=False)
    batch = collate(
        [collate.draw(sample(), 1), collate.draw(sample("b", ("a dog",)), 1)], torch.zeros(2, 3, 4, 4)
    )
    batch = move_data_to_device(pickle.loads(pickle.dumps(batch)), torch.device("cpu"))
    assert batch.captions.each == [("a cat", "the cat", "cat"), ("a dog",)]


def test_a_data_module_keeps_to_first_texts_if_asked():
    for first, texts in ((True, 1), (False, 3)):
        data = CaptionsData("data/emoji", batch_size=64, first_text=first, cache_images=True)
        data.processor = create_processor("blip-tiny")
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        words = data.processor.decode(batch.ids)
        plain = [said[0].lower() for said in batch.captions.each]
        assert (sum(a.replace(" ", "") == b.replace(" ", "") for a, b in zip(words, plain)) >= 60) == first
        assert max(map(len, batch.captions.each)) >= texts
