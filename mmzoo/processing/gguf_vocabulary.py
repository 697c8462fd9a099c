"""The tokenizer inside a GGUF file of the SmolLM family. The adapter of the extra package gguf, for words."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers

from mmzoo.errors import ZooError

__all__ = ["read_gguf_vocabulary"]

_CONTROL = 3  # llama.cpp's type of a token that text never contains


def read_gguf_vocabulary(path: Path) -> Core:
    """Build the byte-pair encoding of a GGUF file.

    Args:
        path: A file whose metadata hold a vocabulary of the model `gpt2` with the pre-tokenizer `smollm`: digits one by
            one, then GPT-2's words.

    Raises:
        ZooError: No package gguf, or the file is damaged or holds another kind of vocabulary.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ZooError(f"reading {path} needs the package gguf: pip install 'mmzoo[weights]'.") from None
    try:
        fields = GGUFReader(path).fields
        kind = tuple(fields[f"tokenizer.ggml.{key}"].contents() for key in ("model", "pre"))
        tokens, merges, types = (
            fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "merges", "token_type")
        )
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ZooError(f"{path} holds no vocabulary that can be read ({error}): it may be damaged.") from None
    if kind != ("gpt2", "smollm"):
        raise ZooError(f"{path} holds a vocabulary of the kind {'/'.join(map(str, kind))}, not gpt2/smollm.")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    core = Core(models.BPE(vocab=vocabulary, merges=[tuple(pair.split(" ")) for pair in merges]))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(
        [token for token, number in zip(tokens, types, strict=True) if number == _CONTROL]
    )
    return core
