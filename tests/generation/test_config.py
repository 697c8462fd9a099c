"""Configs that make no sense are refused where they are made, in one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from mmzoo.errors import UsageError
from mmzoo.generation import GenerationConfig


@pytest.mark.parametrize(("changes", "said"), [
    ({"max_new_tokens": 0}, "max_new_tokens=0 is too few"),
    ({"beams": 0}, "beams=0 is too few"),
    ({"groups": -1}, "groups=-1 is too few"),
    ({"per_context": 0}, "per_context=0 is too few"),
    ({"min_new_tokens": 30}, "min_new_tokens=30 is more than max_new_tokens=20"),
    ({"min_new_tokens": -1}, "min_new_tokens=-1 must be 0"),
    ({"temperature": 0.0, "sample": True}, "temperature=0.0 must lie above 0"),
    ({"temperature": -1.0, "sample": True}, "temperature=-1.0 must lie above 0"),
    ({"temperature": float("nan"), "sample": True}, "temperature=nan must lie above 0"),
    ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must lie above 0"),
    ({"top_k": -1, "sample": True}, "top_k=-1 must be 0"),
    ({"top_p": 0.0, "sample": True}, "top_p=0.0 is a share"),
    ({"top_p": 1.1, "sample": True}, "top_p=1.1 is a share"),
    ({"typical_p": 0.0, "sample": True}, "typical_p=0.0 is a share"),
    ({"min_p": 1.5, "sample": True}, "min_p=1.5 is a share"),
    ({"length_penalty": float("inf")}, "length_penalty=inf must be a finite number"),
    ({"early_stopping": "always"}, "early_stopping='always': choose"),
    ({"no_repeat_ngram": -2}, "no_repeat_ngram=-2 must be 0"),
    ({"bad_words": ((),)}, "bad_words holds an empty sequence"),
    ({"stop": ((3,), ())}, "stop holds an empty sequence"),
    ({"beams": 3, "sample": True}, "sampling and beam search are two ways to write"),
    ({"temperature": 0.7, "top_p": 0.9}, "temperature, top_p say how to draw words, and nothing is drawn"),
    ({"best_of": 4}, "best_of say how to draw words"),
    ({"beams": 5, "groups": 2}, "5 beams do not divide into 2 groups"),
    ({"beams": 4, "diversity": 0.5}, "diversity=0.5 works between groups"),
    ({"beams": 3, "per_context": 4}, "per_context=4 is more than the 3 beams"),
    ({"per_context": 2}, "greedy search gives one text"),
    ({"sample": True, "per_context": 3, "best_of": 2}, "the 3 best of best_of=2"),
])  # fmt: skip
def test_nonsense_is_refused_in_one_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as error:
        GenerationConfig(**changes)
    assert str(error.value).startswith(said)
    assert str(error.value).count(". ") == 0
    assert str(error.value).endswith(".")


def test_lists_as_yaml_gives_them_become_tuples() -> None:
    config = GenerationConfig(bad_words=[[3, 4]], stop=[[5]])  # type: ignore[arg-type]
    assert (config.bad_words, config.stop) == (((3, 4),), ((5,),))
    hash(config)
