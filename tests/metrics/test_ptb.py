"""Cutting captions into words as the COCO caption kit does. What is expected here is what the Java program answers."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from mmzoo.metrics.ptb import ptb_tokenize, split_words

GOLDEN = Path(__file__).with_name("caption_kit.json")

CASES = {  # caption to words, spaces between
    "A man's dog isn't here.": "a man 's dog is n't here",
    "the dogs' bowls, the 'dog' and \"dog\"": "the dogs bowls the dog and dog",
    "it'd he'll they've I'm you're DON'T CAN'T won't": "it 'd he 'll they 've i 'm you 're do n't ca n't wo n't",
    "couldn't've y'all'd cannot gonna GOTTA wannabe": "could n't 've y' all 'd can not gon na got ta wannabe",
    "'tis 'twas 'til 'em 'email' 'n' salt 'n pepper": "'t is 't was 'til 'em 'em ail 'n' salt 'n pepper",
    "o'clock O'Brien ma'am rock'n'roll s'mores ol' goin'": "o'clock o'brien ma'am rock 'n' roll s'mores ol' goin",
    "letter 'S' and 'T', A's 80's '90s '80's 5's": "letter 's and t a 's 80 's '90s 80 's 5 's",
    "it’s don’t “hi” ‘hi’ O’Brien": "it 's do n't hi hi o’brien",
    "black-and-white T-shirt anti- pre- -ing a--b a - b": "black-and-white t-shirt anti- pre ing a b a b",
    "a—b a–b a---b ----- x": "a b a b a b ----- x",
    "and/or w/ w/o cat/ a/b/c/d 24/7": "and/or w / w/o cat / a/b/c / d 24/7",
    "3.5 .5 5. 1,000 5:30pm 5p.m. 10% #5 $5.00 US$5": "3.5 .5 5 1,000 5:30 pm 5p m. 10 % # 5 $ 5.00 us$ 5",
    "5'10\" 6'2 2'x4' 3/4-inch 1st +5 -5 ...5": "5 10 6 2 2 x4 3/4-inch 1st +5 -5 5",
    "U.S. U.S a.m. D.C., J.K. Ph.D. Ph. D. a.b.c": "u.s. u.s a.m. d.c. j.k. ph.d. ph. d. a.b.c",
    "St. Louis Mr. Smith's etc. oz. No. 5 no. five no.": "st. louis mr. smith 's etc. oz no. 5 no five no",
    "Mass. mass. Tex. tex. fig. 3 fig. three": "mass. mass tex. tex fig. 3 fig three",
    "end.The end. The hat.another !! ?! what?!": "end.the end the hat.another !! ?! what ?!",
    "(a) [a] {a} <a> a<b > :) :( :D (555) 555-5555": (
        "-lrb- a -rrb- -lsb- a -rsb- -lcb- a -rcb- <a> a <b\xa0> :-rrb- :-lrb- :d -lrb-555-rrb-\xa0555-5555"
    ),
    "R&B M&M's black&white C++ a&b &amp; AT&T": "r&b m&m 's black & white c++ a & b & at&t",
    "a_b _a __ * ** #tag @me x@y.com www.foo.com/bar": "a_b _ a __ * ** #tag @me x@y.com www.foo.com/bar",
    "½ cup, 1½, 20°C €5 £5 5¢ café naïve ñ 日本": "1/2 cup 1 1/2 20 ° c $ 5 # 5 5 cents café naïve ñ 日本",
    "a🙂b … ☃ ❤": "a b ☃ ❤",
    "1 1/2 cups": "1\xa01/2 cups",
    "": "",
    " . ": "",
    "tab\there  two": "tab here two",
    "one\ntwo\r\nthree\u2028four": "one two three four",
}


@pytest.mark.parametrize("caption", CASES)
def test_hard_cases(caption):
    (found,) = ptb_tokenize([caption])
    assert " ".join(found) == CASES[caption]


def test_words_of_the_kit():
    """Four hundred captions with many odd signs, cut by the Java program (tests/support/caption_kit.py)."""
    expected = json.loads(GOLDEN.read_text())["words"]
    assert len(expected) == 400
    assert ptb_tokenize([text for text, _ in expected]) == [words for _, words in expected]


def test_captions_are_the_lines_of_one_file():
    assert ptb_tokenize(["the letter A.", "The dog"]) == [["the", "letter", "a"], ["the", "dog"]]
    assert ptb_tokenize(["the letter A.", "Dogs"]) == [["the", "letter", "a."], ["dogs"]]
    assert ptb_tokenize(["number no.", "5 dogs"]) == [["number", "no."], ["5", "dogs"]]
    assert ptb_tokenize(["", "a", "", ""]) == [[], ["a"], [], []]  # as many as there were
    assert ptb_tokenize([]) == []


def test_no_break_spaces_are_cut_on_demand():
    assert split_words(ptb_tokenize(["1 1/2 cups"])[0]) == ["1", "1/2", "cups"]


def test_time_is_bounded_for_hostile_texts():
    def seconds(text: str) -> float:
        started = time.process_time()
        ptb_tokenize([text])
        return time.process_time() - started

    hostile = (
        "a." * 400,
        "a-" * 400,
        "<a " * 300,
        "'" * 800,
        "1," * 400,
        "a@" * 400,
        "x/" * 400,
        "a" * 3000 + "'",
    )
    assert max(map(seconds, hostile)) < 2.0
