"""Words as the COCO caption kit counts them: Stanford's Penn Treebank words, in lower case, without punctuation.

The kit (`ptbtokenizer.py` of github.com/tylin/coco-caption and of the package pycocoevalcap) runs Stanford CoreNLP
3.4.1's `PTBTokenizer -preserveLines -lowerCase` in Java and drops a list of punctuation. These are our own rules for
the same result, found by asking that program; they need no Java. `tests/metrics/test_caption_kit.py` holds them
against it, its oddities included: brackets stay as words (`-lrb-`, for the kit's list has them in capitals), so do
`!!`, `?!` and `:-rrb-` (a smiley), `end.The` is one word, and a quoted `'email'` becomes `'em ail`.

Known differences, none of them likely in captions:

- The kit lays all captions out as the lines of one file, where other ends of lines than a newline (U+0085, U+2028,
  U+2029, a carriage return, a form feed) shift everything after them to other pictures. Here they are spaces.
- Web addresses and markup with unusual characters, telephone numbers, rare smileys and XML entities, words run
  together with contractions (`brownn't`), apostrophes of other languages than English and signs of other scripts than
  Latin may be cut elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["ptb_tokenize", "split_words"]

NO_BREAK = "\xa0"
# The kit's list, less "-LRB-" and its kin: words are in lower case by then, so those never occur.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# Keep their period wherever they stand. Found by asking for every word of up to three letters, for BERT's vocabulary
# and for lists of titles, states, months, streets and companies.
ABBREVIATIONS = (
    "[a-z]|adj|adm|adv|al|ala|alex|apr|ariz|assn|assoc|attys?|aug|ave|bhd|bldg|blvd|brig|bros|calif|capt|cf|cie|cmdr|co|col|colo"
    "|comdr|conn|corp|cos|cpl|ct|dak|dec|dept|det|drs?|ens|esq|est|etc|ext|feb|fla|fri|ft|ga|gen|govs?|hon|inc|ind|intl|jan|jos"
    "|jr|jul|jun|kans?|ky|lieut|lt|ltd|maj|mar|md|messrs|mfg|mich|minn|mlle|mme|mo|mon|mont|mrs?|ms|msgr|mt|mtg|natl|neb|nev|nov"
    "|oct|okla|penn|pfc|ph|plc|pres|profs?|pte|pty|pvt|rd|reps?|rev|rt|sens?|sept?|seq|sfc|sgt|spc|sq|sr|ste?|supt|sys|tel|tenn"
    "|thu|thurs|tue|tues|univ|va|vs|vt|wed|wisc?|wm|wyo"
)
ABBREVIATED_NAMES = (
    "Ark|Az|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash"  # only with a capital, being words without one
)
BEFORE_NUMBERS = "art|ca|figs?|nos?|op|pp|prop"  # abbreviations only there
# Where one of these follows, with a capital or in capitals, a single letter ends a sentence and is no initial.
OPENERS = (
    "a about according additionally after an as at but earlier he her here however if in it last many more now once "
    "one other our she since so some such that the their then there these they this we what when while yet you"
)

L = r"(?:[^\W\d_ªº²³¹¼-¾⁰-₟⅐-ↈ①-⓿❶-➓]|[\u0300-\u036f])"  # a letter, with its accents
A = "['’]"
WORD = rf"{L}(?:{L}|\d)*(?:[.!?]{L}(?:{L}|\d)*)*"
CLITIC = rf"(?:'(?:[msdMSD]|re|RE|ve|VE|ll|LL)(?!{L})|’(?:[msdMSD]|re|RE|ve|VE|ll|LL))"
PART = rf"(?:{L}|\d)+"
NUMBER = r"(?:\d*(?:[.:,]\d+)+|\d+)"
SLASHED = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
OPENER = "|".join(form for word in OPENERS.split() for form in (word.capitalize(), word.upper()))
INITIALS = r"[A-Za-z](?:\.[A-Za-z])+"

# At each place the rule that matches most wins, and of equals the first. Group 1 is the token; what a rule matches
# beyond it counts for its length, but is read again.
RULES = tuple(
    re.compile(pattern)
    for pattern in (
        # markup, addresses, names and topics of social networks
        r"(</?[A-Za-z][\w:.-]*(?:[ \t]+[\w:.-]+(?:=(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s\"'<>]+))?)*[ \t]*/?>|<[!?][^<>\n]*>)",
        r"(&(?:(?i:amp|lt|gt|quot|apos|nbsp)|#\d+);)",
        r"(https?://[^\s\"<>|(){}]+[^\s\"<>|(){}.!?,;:'\-])",
        r"((?:[^\W_][\w-]*\.)+(?:com|net|org|edu)(?:/[^\s\"<>|(){}]+[^\s\"<>|(){}.!?,;:'\-])?)(?!\w)",
        r"(<[^\s<>@]+@[^\s<>@]+>)",
        r"([A-Za-z0-9][^\s\"<>|(){}@]*@[^\W_](?:[\w.-]*\w)?)",
        r"(@[A-Za-z_]\w*|#[A-Za-z]+)",
        # words that are two, 's, n't and the words before them
        r"((?i:can(?=not)|gon(?=na)|got(?=ta)|wan(?=na)|gim(?=me)|lem(?=me)))\w{2,3}(?!\w)",
        r"('[tT])(?:[iI][sS]|[wW][aA][sS])(?!\w)",
        rf"({WORD}){CLITIC}",
        rf"({L}+)[nN][`'’][tT]",
        rf"([nN][`'’][tT])(?!{L})",
        rf"({CLITIC})",
        # words with an apostrophe
        rf"([dDlLoO]{A}(?:{L}|\d){{2,}}(?:-{PART})*)",
        rf"([A-HJ-XZn]{A}{L}{{2,}}|{L}+[aeiouyAEIOUY]{A}[aeiouA-Z]{L}*)",
        rf"([dDjJlL]{A}|[yY]{A}(?={L}))",
        rf"((?i:c{A}mon|c{A}est|e{A}er|ol{A}|li{A}l|nat{A}l|ev{A}ry|s{A}mores|nor{A}easter|somethin{A}|dunkin{A}))",
        rf"((?i:{A}em|{A}till?|{A}cause)|{A}[2-9]0s|{A}\d\d(?![\w'’\"-])|{A}[nN](?:{A}|(?![\w.])))",
        # compounds
        rf"({PART}(?:-(?:[dDlLoO]{A})?{PART})+)",
        rf"([A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:{INITIALS}\.|[A-Za-z0-9]+))+)",
        rf"({SLASHED}(?:/{SLASHED}){{1,2}})",
        r"([A-Za-z0-9]+(?:[_-][A-Za-z0-9]+)+)",
        r"([A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+|[cC](?:\+\+|#))",
        r"((?i:anti|pro)-)",
        # abbreviations
        rf"({INITIALS}\.|[pP][hH]\.[dD]\.)",
        rf"((?i:{ABBREVIATIONS})\.|(?:{ABBREVIATED_NAMES}|{ABBREVIATED_NAMES.upper()})\.)",
        rf"([A-Za-z])\.\s+(?:{OPENER})\s",
        rf"((?i:{BEFORE_NUMBERS})\.)(?=\s?\d)",
        # numbers
        r"((?:\d{1,4}[ -])?\d{1,4}/\d{1,4})(?!\d)",
        r"(\(\d{2,3}\) ?\d{3,4}[- ]?\d{4}|\d{2,4} \d{3,4} \d{3,5})",
        rf"(\d+(?:\.\d+)*\.[xX](?!\w)|[-+]?{NUMBER})",
        r"([A-Z]+\$)",
        # words of letters, words of letters and digits, repeated signs, smileys
        rf"({WORD})",
        rf"({PART})",
        r"(\.{3,}|[?!]+|\*+|_+|#{2,}|@{2,}|<<|>>|-{5,}|-{2,4})",
        r"((?:[:;=]['’]?-?[()\[\]]|[:;=]-?[DPpO]|:3)(?!\w)|\^_\^|-_-)",
    )
)
# Most words of captions: letters that no rule treats in another way than to take all of them, and a sign after them.
PLAIN = re.compile(
    rf"(?!(?i:cannot|gonna|gotta|wanna|gimme|lemme|(?:{ABBREVIATIONS}|{ABBREVIATED_NAMES}|{BEFORE_NUMBERS})\.)(?![A-Za-z]))"
    r"([A-Za-z]+)(?:[.,;:!?]?(?=\s))"
)
LINE_END = re.compile(r"[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
SPACE = re.compile(r"[^\S\n]+|[\x00-\x09\x0e-\x1b\x7f]+")
# Tokens that are written otherwise.
WRITTEN = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "€": "$", "¤": "$", "£": "#",
    "¢": "cents", "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "---": "--", "----": "--", '"': "''",
    "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'", "&nbsp;": "",
    "n’t": "n't", "’s": "'s", "’m": "'m", "’d": "'d", "’re": "'re", "’ve": "'ve", "’ll": "'ll",
}  # fmt: skip
# Signs that are words. All others outside of ASCII are punctuation to the kit, or unknown, and dropped alike.
SIGNS = re.compile(
    r"[\x21-\x7e¡¥-©¬®-±²³´¶-¹¿×÷†‡‚„-•‰-‸※‾-⁂⁄⁺-⁾₊-₎℀℁℃-℆℈℉℔№-℘℞-℣℥℧℩℮℺℻⅀-⅄⅊-⅍⅏←-⑟⒜-ⓩ─-❵➔-⯿、。〒！-／：-＠［-｀｛-･￠￡￥￦]"
)


def ptb_tokenize(captions: Iterable[str]) -> list[list[str]]:
    """Cut captions into the words that the COCO caption kit scores.

    Args:
        captions: Any texts, in the order in which the kit would have them: it reads them as the lines of one file, so
            that in rare cases the beginning of a caption decides on the end of the one before. `the letter A.` ends in
            the word `a.`, but in `a` where the next line begins with `The`.

    Returns:
        The words of each, in lower case. A mixed number (`1 1/2`) is one word with a no-break space in it, at which
        BLEU and CIDEr cut it in the kit and ROUGE-L does not.

    Example:
        >>> ptb_tokenize(["A man's dog isn't here, on St. Mary's (yet)."])
        [['a', 'man', "'s", 'dog', 'is', "n't", 'here', 'on', 'st.', 'mary', "'s", '-lrb-', 'yet', '-rrb-']]
    """
    text = "".join(LINE_END.sub(" ", caption) + "\n" for caption in captions)
    lines: list[list[str]] = []
    words: list[str] = []
    place, end = 0, len(text)
    while place < end:
        if plain := PLAIN.match(text, place):  # nearly every word of a caption
            words.append(plain[1].lower())
            place = plain.end()
        elif gap := SPACE.match(text, place):
            place = gap.end()
        elif text[place] == "\n":
            lines.append(words)
            words, place = [], place + 1
        else:
            token = _longest(text, place)
            place += len(token)
            if written := _written(token):
                words.append(written)
    return lines


def split_words(words: Sequence[str]) -> list[str]:
    """Cut words at no-break spaces, as BLEU and CIDEr do."""
    return [part for word in words for part in word.split(NO_BREAK)]


def _longest(text: str, place: int) -> str:
    """The token at a place where there is no space."""
    best, length = text[place], 0
    for rule in RULES:
        found = rule.match(text, place)
        if found and found.end() - place > length:
            best, length = found[1], found.end() - place
    return best


def _written(token: str) -> str:
    """How a token is written; nothing if it is punctuation or an unknown sign."""
    low = token.lower()
    low = WRITTEN.get(low, low)
    if (
        not low.strip(".")
        or low in PUNCTUATION
        or (len(low) == 1 and not low.isalnum() and not SIGNS.match(low))
    ):
        return ""
    if len(low) == 1 or low[0] == "<":
        return low.replace(" ", NO_BREAK)
    return low.replace(" ", NO_BREAK).replace("(", "-lrb-").replace(")", "-rrb-")
