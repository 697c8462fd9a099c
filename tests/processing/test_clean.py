"""Texts without an end token, ALBEF's clean-up, and what a decoder spells."""

import pytest

from mmzoo.errors import UsageError, ZooError
from mmzoo.processing.clean import clean_albef, clean_blip, clean_blip_question
from mmzoo.processing.processor import Processor
from mmzoo.processing.text import Tokenizer, build_tokenizer, find_bert_vocabulary
from mmzoo.spec import BERT_VOCAB, CLIP_VOCAB, TINY_VOCAB, TextSpec

TINY = TextSpec("tiny", 12, TINY_VOCAB)
BARE = TextSpec("tiny", 12, TINY_VOCAB, sep=False)


def test_without_sep_only_the_end_token_goes():
    framed, bare = build_tokenizer(TINY), build_tokenizer(BARE)
    for text in ("a red apple", "", "cat"):
        with_end, without = framed([text]), bare([text])
        assert with_end.ids[0, -1] == framed.eos_id
        assert without.ids[0].tolist() == with_end.ids[0, :-1].tolist()
        assert bool(without.keep.all())
    long = bare(["cat " * 40])
    assert long.ids.shape == (1, 12)
    assert bare.eos_id not in long.ids
    assert bare.decode(long.ids) == ["cat " * 10 + "cat"]


def test_bert_without_sep_is_albefs_own_tokenizer():
    """Its `build_inputs_with_special_tokens` puts [CLS] before the words and nothing behind them."""
    from transformers import BertTokenizer

    vocabulary = find_bert_vocabulary()
    peer = BertTokenizer(str(vocabulary))
    ours = build_tokenizer(TextSpec("bert", 25, BERT_VOCAB, sep=False), vocabulary)
    for text in ("a man riding a wave on top of a surfboard", "zebras' unbelievable", "word " * 60):
        words = peer.convert_tokens_to_ids(peer.tokenize(text))
        assert ours([text]).ids[0].tolist() == [peer.cls_token_id, *words[:24]]


def test_the_choice_travels_with_the_processor():
    processor = Processor(None, TextSpec("tiny", 12, TINY_VOCAB, sep=False, clean="albef"))
    again = Processor.from_dict(processor.to_dict())
    assert again.text_spec == processor.text_spec
    texts = ["A red-apple!", "cat"]
    assert again.texts(texts).ids.tolist() == processor.texts(texts).ids.tolist()
    assert processor.decode(processor.texts(texts).ids) == ["a red apple", "cat"]
    # a file that was written with an end token is read without one where the spec says so
    stored = build_tokenizer(TINY).to_dict()
    assert Tokenizer.from_dict(stored, BARE)(["cat"]).ids.shape == (1, 2)


def test_only_wordpiece_can_leave_the_end_token_out():
    with pytest.raises(ZooError, match="WordPiece"):
        build_tokenizer(TextSpec("clip", 77, CLIP_VOCAB, sep=False))


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("A DOG, running...", "a dog running"),
        ('it\'s "quoted" (twice)*#1:; ~!?', "its quoted twice1"),
        ("well-known black/white", "well known black white"),
        ("<PERSON> and <person>'s hat", "person and persons hat"),
        ("  many \n\t spaces  ", "many spaces"),
        ("a < b & c_d", "a < b & c_d"),
        ("", ""),
        (".,!", ""),
        ("w " * 50, ("w " * 30).strip()),
    ],
)
def test_albefs_clean_up(text, clean):
    assert clean_albef(text) == clean


@pytest.mark.parametrize(
    ("text", "caption", "question"),
    [
        ("A DOG, running...", "a dog, running", "a dog, running"),
        ('it\'s "quoted" (twice)*#1:; ~!?', "it's quoted twice 1 ?", "it's quoted twice1 ?"),
        ("well-known black/white", "well-known black/white", "well-known black/white"),
        ("what:color is.it?", "what color is it?", "whatcolor isit?"),
        ("  many \n\t spaces  ", "many spaces", "many spaces"),
        (".!", "", ""),
        ("w " * 60, ("w " * 50).strip(), ("w " * 50).strip()),
    ],
)
def test_blips_clean_ups(text, caption, question):
    """Captions get a space for a sign, questions none; commas, hyphens and apostrophes stay (unlike ALBEF's)."""
    assert clean_blip(text) == caption
    assert clean_blip_question(text) == question


def test_what_a_decoder_spells_is_framed_and_not_cleaned():
    tokenizer = build_tokenizer(TextSpec("tiny", 6, TINY_VOCAB, sep=False, clean="albef"))
    ids, keep = tokenizer.framed(["yes", "1 / 2", "a b c d e f g h"])
    assert ids[:, 0].tolist() == [tokenizer.bos_id] * 3
    assert keep.sum(1).tolist() == [3, 5, 6]
    assert [row[n - 1] for row, n in zip(ids.tolist(), keep.sum(1).tolist(), strict=True)] == [
        tokenizer.eos_id
    ] * 3
    assert tokenizer.decode(ids) == ["yes", "1 / 2", "a b c d"]
    assert Processor(None, tokenizer.spec).framed(["yes"]).ids.tolist() == ids[:1, :3].tolist()
    with pytest.raises(UsageError, match="list of strings"):
        tokenizer.framed("yes")
