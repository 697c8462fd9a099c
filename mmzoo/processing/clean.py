"""What is done to a text before it is cut into tokens: each tokenizer family's own, and a model's clean-up."""

from __future__ import annotations

import html
import re
from functools import cache
from typing import Any

__all__ = [
    "CLEAN_UPS",
    "CLIP_BEGIN",
    "CLIP_END",
    "LONGEST_WORD",
    "PREPARE",
    "clean_albef",
    "clean_blip",
    "clean_blip_question",
]

LONGEST_WORD = 100  # BERT's own limit in characters; a longer word is unknown
CLIP_BEGIN, CLIP_END = "<start_of_text>", "<end_of_text>"
_ENDLESS = re.compile(rf"(\S{{{LONGEST_WORD}}})(?=\S)")


def _clip_words(letters: str, digits: str) -> str:
    """CLIP's word pattern: contractions, runs of letters, single digits, runs of any other visible signs."""
    return rf"{CLIP_BEGIN}|{CLIP_END}|'s|'t|'re|'ve|'m|'ll|'d|[{letters}]+|[{digits}]|[^\s{letters}{digits}]+"


_ASCII_WORDS = re.compile(_clip_words("a-z", "0-9"))


@cache
def _unicode_words() -> Any:
    import regex  # knows \p{L}; comes with open_clip, as does ftfy

    return regex.compile(_clip_words(r"\p{L}", r"\p{N}"), regex.IGNORECASE)


def _prepare_clip(text: str) -> str:
    """Clean as open_clip does (encoding, HTML entities, white space, case) and put one word on a line."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return "\n".join(_ASCII_WORDS.findall(text.lower()))  # nothing here that ftfy or html would change
    import ftfy

    clean = html.unescape(html.unescape(ftfy.fix_text(text)))
    return "\n".join(_unicode_words().findall(" ".join(clean.split()).lower()))


def _prepare_tiny(text: str) -> str:
    """As `bert`, but break endless words, which would be unknown, so that ASCII text never is."""
    return _ENDLESS.sub(r"\1 ", _prepare_bert(text))


def _prepare_bert(text: str) -> str:
    """Join surrogate pairs and replace lone ones, which cannot be written as UTF-8."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


_MARKS = str.maketrans(dict.fromkeys(",.'!?\"()*#:;~", "") | {"-": " ", "/": " "})
_MOST_WORDS = 30


def clean_albef(text: str) -> str:
    """Clean a caption as salesforce/ALBEF does (`dataset/utils.py`).

    Lower case; no punctuation of `, . ' ! ? " ( ) * # : ; ~`; a space for a hyphen or a slash; the name tag of
    Conceptual Captions as a word; the first 30 words.

    Example:
        >>> clean_albef("A well-known <PERSON>'s dog, running!")
        'a well known persons dog running'
    """
    words = text.lower().translate(_MARKS).replace("<person>", "person").split()
    return " ".join(words[:_MOST_WORDS])


_BLIP_MARKS = '.!"()*#:;~'
_BLIP_APART = str.maketrans(dict.fromkeys(_BLIP_MARKS, " "))
_BLIP_TOGETHER = str.maketrans(dict.fromkeys(_BLIP_MARKS, ""))
_BLIP_MOST_WORDS = 50


def clean_blip(text: str) -> str:
    """Clean a caption as salesforce/BLIP does (`data/utils.py`).

    Lower case; a space for each of `. ! " ( ) * # : ; ~`; single spaces; the first 50 words.

    Example:
        >>> clean_blip("A well-known dog (running), isn't it?")
        "a well-known dog running , isn't it?"
    """
    return " ".join(text.lower().translate(_BLIP_APART).split()[:_BLIP_MOST_WORDS])


def clean_blip_question(text: str) -> str:
    """Clean a question as salesforce/BLIP does: as a caption, but the signs go without leaving a space."""
    return " ".join(text.lower().translate(_BLIP_TOGETHER).split()[:_BLIP_MOST_WORDS])


PREPARE = {"clip": _prepare_clip, "bert": _prepare_bert, "smollm": _prepare_bert, "tiny": _prepare_tiny}
CLEAN_UPS = {"albef": clean_albef, "blip": clean_blip, "blip_question": clean_blip_question}
