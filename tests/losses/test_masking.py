"""Masking words: how many, how, which never, and whole words."""

import pytest
import torch

from mmzoo.losses.masking import NO_LABEL, MaskVocabulary, mask_words

TOKENS = [
    "[PAD]",
    "a",
    "[UNK]",
    "b",
    "##c",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "d",
    "##e",
    "f",
    "g",
    "##h",
    "i",
    "j",
    "[DEC]",
]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]")
VOCABULARY = MaskVocabulary.from_tokens(TOKENS, mask="[MASK]", special=SPECIAL)
ORDINARY = [i for i, token in enumerate(TOKENS) if token not in SPECIAL]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def texts(count=4000, length=20, seed=5):
    """[CLS] words... [SEP] [PAD]..., with an [UNK] here and there."""
    source = generator(seed)
    ids = torch.tensor([*ORDINARY, 2])[torch.randint(len(ORDINARY) + 1, (count, length), generator=source)]
    lengths = torch.randint(3, length + 1, (count, 1), generator=source)
    place = torch.arange(length)
    ids[:, 0] = 5
    ids[place == lengths - 1] = 6
    keep = place < lengths
    return ids.masked_fill(~keep, 0), keep


def near(share, p, n):
    """Within 4 standard errors."""
    return abs(share - p) < 4 * (p * (1 - p) / n) ** 0.5


def test_reads_a_wordpiece_vocabulary():
    assert VOCABULARY.mask_id == 7
    assert VOCABULARY.special_ids == (0, 2, 5, 6, 7, 15)
    assert VOCABULARY.size == 16
    assert VOCABULARY.continues.nonzero().flatten().tolist() == [4, 9, 12]


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("p", [0.15, 0.5])
def test_shares(p, whole_words):
    ids, keep = texts()
    out = mask_words(ids, keep, vocabulary=VOCABULARY, generator=generator(), p=p, whole_words=whole_words)
    hidden = out.labels != NO_LABEL
    candidates = torch.isin(ids, torch.tensor(ORDINARY)) & keep
    # of whole words several tokens fall together: more variance, at most that of words of one kind of length
    n = candidates.sum().item() / (4 if whole_words else 1)
    assert near(hidden.sum().item() / candidates.sum().item(), p, n)
    assert not (hidden & ~candidates).any()
    assert torch.equal(out.labels[hidden], ids[hidden])
    assert torch.equal(out.ids[~hidden], ids[~hidden])
    n = hidden.sum().item()
    masked = (out.ids[hidden] == 7).sum().item() / n
    assert near(masked, 0.8, n)
    same = (out.ids[hidden] == ids[hidden]).sum().item() / n
    assert near(same, 0.1 + 0.1 / len(ORDINARY), n)


def test_random_ids_are_all_but_special_and_equally_likely():
    ids = torch.full((3000, 20), 1)
    out = mask_words(ids, ids > 0, vocabulary=VOCABULARY, generator=generator(), p=1.0)
    other = out.ids[(out.ids != 7) & (out.ids != 1)]
    counts = torch.bincount(other, minlength=16)
    assert counts.nonzero().flatten().tolist() == [i for i in ORDINARY if i != 1]
    expected = len(other) / (len(ORDINARY) - 1)
    chi = ((counts[counts > 0] - expected) ** 2 / expected).sum()
    assert chi < 29.9  # 8 degrees of freedom, once in 4,600


def test_whole_words_fall_together_and_words_apart():
    ids, keep = texts()
    out = mask_words(ids, keep, vocabulary=VOCABULARY, generator=generator(), p=0.5, whole_words=True)
    hidden = (out.labels != NO_LABEL).tolist()
    inside = across = across_same = 0
    for row, real, hid in zip(ids.tolist(), keep.tolist(), hidden, strict=True):
        for j in range(1, len(row)):
            if not real[j] or row[j] not in ORDINARY or row[j - 1] not in ORDINARY:
                continue
            if TOKENS[row[j]].startswith("##"):
                assert hid[j] == hid[j - 1]
                inside += 1
            else:
                across += 1
                across_same += hid[j] == hid[j - 1]
    assert inside > 5_000
    assert near(across_same / across, 0.5, across), "neighbouring words are drawn apart"
    plain = mask_words(ids, keep, vocabulary=VOCABULARY, generator=generator(), p=0.5)
    assert not torch.equal(plain.labels, out.labels)


def test_a_word_does_not_continue_over_a_special_token():
    # [CLS] ##c | a ##c [UNK] ##c | ##e : the pieces after specials are words of their own
    ids = torch.tensor([[5, 4, 1, 4, 2, 4, 9]]).repeat(4000, 1)
    out = mask_words(ids, ids > 0, vocabulary=VOCABULARY, generator=generator(), p=0.5, whole_words=True)
    hidden = out.labels != NO_LABEL
    assert torch.equal(hidden[:, 2], hidden[:, 3])
    assert torch.equal(hidden[:, 5], hidden[:, 6])
    for a, b in ((1, 2), (3, 5)):
        assert near((hidden[:, a] == hidden[:, b]).double().mean().item(), 0.5, 4000)
    assert not hidden[:, [0, 4]].any()


@pytest.mark.parametrize("whole_words", [False, True])
def test_texts_of_nothing_and_shares_of_nothing(whole_words):
    options = {"vocabulary": VOCABULARY, "generator": generator(), "whole_words": whole_words}
    empty = torch.tensor([[5, 6, 0]])
    out = mask_words(empty, empty > 0, p=1.0, **options)
    assert torch.equal(out.ids, empty)
    assert (out.labels == NO_LABEL).all()
    ids, keep = texts(50)
    out = mask_words(ids, keep, p=0.0, **options)
    assert torch.equal(out.ids, ids)
    assert (out.labels == NO_LABEL).all()
    assert mask_words(ids[:0], keep[:0], **options).ids.shape == (0, 20)
    short = mask_words(torch.tensor([[5, 1, 6]] * 100), torch.ones(100, 3).bool(), **options)
    assert (short.labels == NO_LABEL).all(1).any(), "a short text may keep all its words"


def test_padding_is_not_masked_whatever_its_id():
    ids = torch.ones(10, 6, dtype=torch.int64)
    keep = torch.arange(6).expand(10, 6) < 3
    out = mask_words(ids, keep, vocabulary=VOCABULARY, generator=generator(), p=1.0)
    assert (out.labels[keep] == 1).all()
    assert (out.labels[~keep] == NO_LABEL).all()
    assert (out.ids[~keep] == 1).all()


def test_the_mask_need_not_be_named_special():
    vocabulary = MaskVocabulary(3, (), 4)
    ids = torch.tensor([[3, 0, 1, 2]] * 500)
    out = mask_words(ids, ids >= 0, vocabulary=vocabulary, generator=generator(), p=1.0)
    assert (out.labels[:, 0] == NO_LABEL).all()
    assert set(out.ids[:, 1:].flatten().tolist()) == {0, 1, 2, 3}


def test_the_same_generator_masks_the_same():
    ids, keep = texts(50)
    first, again, other = (
        mask_words(ids, keep, vocabulary=VOCABULARY, generator=generator(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first.ids, again.ids)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.labels, other.labels)


def test_the_given_texts_stay_as_they_are():
    ids, keep = texts(20)
    before = ids.clone(), keep.clone()
    mask_words(ids, keep, vocabulary=VOCABULARY, generator=generator(), p=1.0, whole_words=True)
    assert torch.equal(ids, before[0])
    assert torch.equal(keep, before[1])
