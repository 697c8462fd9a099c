"""`mmzoo answer`: a classifier's list, ranked lists, written answers, against the model asked directly."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace

import pytest
import torch
from hand_copy import shake
from PIL import Image

import mmzoo
from mmzoo.apps.answer import answer
from mmzoo.cli.main import main
from mmzoo.errors import UsageError, ZooError
from mmzoo.generation import GenerationConfig, generate
from mmzoo.models.albef import ALBEFVQA, ALBEFVQAConfig
from mmzoo.models.blip import BLIPVQA, BLIPVQAConfig
from mmzoo.models.vilt import ViLTVQA, ViLTVQAConfig
from mmzoo.models.writing import TINY_TOKENS
from mmzoo.processing.processor import Processor
from mmzoo.towers.reader import ReaderConfig

WORDS = ("yes", "no", "red", "two cats", "blue")
ASKED = "what is in the picture?"


def parts(name, kind=ReaderConfig):
    config = mmzoo.get_config(name)
    return {f.name: getattr(config, f.name) for f in fields(kind) if hasattr(config, f.name)}


def ready(model, answers=None):
    processor = Processor.of(model.config)
    processor.answers = answers
    return shake(model.eval(), seed=2), processor


def vilt(answers=WORDS):
    return ready(ViLTVQA(ViLTVQAConfig(**(parts("vilt-tiny", ViLTVQAConfig) | {"answers": 5}))), answers)


def albef(answers=None):
    known = parts("albef-tiny")
    width = known["text"].width
    decoder = replace(known["text"], depth=2, cross_layers=(0, 1), cross_width=width, causal=True)
    return ready(ALBEFVQA(ALBEFVQAConfig(**known, decoder=decoder)), answers)


def blip(answers=None):
    known = parts("blip-tiny")
    decoder = replace(known["text"], causal=True)
    return ready(BLIPVQA(BLIPVQAConfig(**known, decoder=decoder, tokens=TINY_TOKENS)), answers)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    pixels = torch.randint(256, (6, 6, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).resize((60, 40)).save(path)
    return path


def inputs(processor, photo):
    return processor.images([Image.open(photo).convert("RGB")]), *processor.texts([ASKED])


def test_a_classifier_chooses_from_its_list(photo):
    model, processor = vilt()
    found = answer((model, processor), photo, ASKED, top_k=3)
    with torch.no_grad():
        logits = model.answer_logits(*inputs(processor, photo))[0]
    best = logits.argsort(descending=True)[:3].tolist()
    assert [one.answer for one in found.answers] == [WORDS[i] for i in best]
    assert [one.score for one in found.answers] == pytest.approx(logits[best].tolist(), abs=1e-5)
    assert [one.share for one in found.answers] == pytest.approx(logits[best].sigmoid().tolist(), abs=1e-6)
    assert (found.way, found.choices, found.cut) == ("chosen", 5, False)
    some = answer((model, processor), photo, ASKED, answers=["Two cats.", "no"])
    both = logits[[3, 1]]
    assert [one.answer for one in some.answers] == (
        ["two cats", "no"] if both[0] > both[1] else ["no", "two cats"]
    )
    assert some.choices == 2
    with pytest.raises(UsageError, match="'green' is none of the 5 answers that ViLTVQA knows"):
        answer((model, processor), photo, ASKED, answers="no,green")
    processor.answers = None
    assert answer((model, processor), photo, ASKED, answers=WORDS, top_k=3).answers == found.answers
    with pytest.raises(UsageError, match="has 5 outputs and the list 2 answers"):
        answer((model, processor), photo, ASKED, answers="yes,no")
    with pytest.raises(UsageError, match=r"has none of its own: give --answers yes,no or a file\.$"):
        answer((model, processor), photo, ASKED)


@pytest.mark.parametrize("build", [albef, blip])
def test_any_list_is_ranked(build, photo, tmp_path):
    model, processor = build()
    found = answer((model, processor), photo, ASKED, answers=",".join(WORDS))
    scores = model.rank_answers(*inputs(processor, photo), processor.framed(WORDS), 128)[0].double()
    order = scores.argsort(descending=True).tolist()
    assert [one.answer for one in found.answers] == [WORDS[i] for i in order]
    assert [one.score for one in found.answers] == pytest.approx(scores[order].tolist(), abs=1e-4)
    assert sum(one.share for one in found.answers) == pytest.approx(1)
    assert (found.way, found.choices) == ("ranked", 5)
    file = tmp_path / "list.json"
    file.write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    assert answer((model, processor), photo, ASKED, answers=file).answers == found.answers
    processor.answers = WORDS
    assert answer((model, processor), photo, ASKED, top_k=2).answers == found.answers[:2]
    # of a long list only so many are read to their end
    many = [f"a{i} b{i}" for i in range(200)]
    assert len(answer((model, processor), photo, ASKED, answers=many, top_k=200).answers) == 200
    assert len(answer((model, processor), photo, ASKED, answers=many, top_k=3).answers) == 3


def test_blip_writes_answers(photo):
    model, processor = blip()
    found = answer((model, processor), photo, ASKED, generate=True, top_k=2)
    made = generate(
        model.answer_decoder(*inputs(processor, photo)),
        None,
        GenerationConfig(max_new_tokens=10, min_new_tokens=1, beams=3, per_context=2),
    )
    assert [one.answer for one in found.answers] == processor.decode(made.rows)
    sums = made.token_scores.sum(1).tolist()
    assert [one.score for one in found.answers] == pytest.approx(sums, abs=1e-3)
    assert [one.share for one in found.answers] == pytest.approx([math.exp(s) for s in sums], rel=1e-2)
    assert (found.way, found.choices) == ("written", None)
    with pytest.raises(UsageError, match=r"give --answers yes,no or a file, or --generate\.$"):
        answer((model, processor), photo, ASKED)
    with pytest.raises(ZooError, match=r"ALBEFVQA cannot write answers .* Models that can: blip-base-vqa"):
        answer(albef(), photo, ASKED, generate=True)


def test_damaged_weights_are_noticed(photo):
    model, processor = albef()
    model.lm.bias.data.fill_(torch.nan)
    with pytest.raises(ZooError, match="not finite"):
        answer((model, processor), photo, ASKED, answers="yes,no")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vilt") / "saved"
    model, processor = vilt()
    mmzoo.save(model, folder, processor)
    return str(folder)


def test_on_the_command_line(saved, photo, capsys):
    assert main(["answer", "--model", saved, str(photo), ASKED, "--top-k", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert err == ""
    assert (told["way"], told["choices"], len(told["answers"])) == ("chosen", 5, 2)
    assert set(told["answers"][0]) == {"answer", "share", "score"}
    assert main(["answer", "--model", saved, str(photo), f"{ASKED} " * 20, "--answers", "yes,no"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].endswith("chosen of 2")
    assert out.splitlines()[1].split() == ["answer", "share", "score"]
    assert {line.split()[0] for line in out.splitlines()[2:]} == {"yes", "no"}
    assert "the question is longer than" in err


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["PHOTO"], 2, "arguments are required: QUESTION"),
        (["PHOTO", " "], 2, "there is no word in ' '"),
        (["PHOTO", "a?", "b?"], 2, "no use for the argument 'b?'"),
        (["nowhere.png", "what?"], 1, "nowhere.png: No such file"),
        (["PHOTO", "what?", "--top-k", "0"], 2, "'0' is not a whole number of at least 1"),
        (["PHOTO", "what?", "--answers", "nowhere.txt"], 2, "no file nowhere.txt"),
        (["PHOTO", "what?", "--answers", "yes,yes"], 2, "'yes' stands twice"),
        (["PHOTO", "what?", "--answers", "yes,no", "--generate"], 2, "leave one out"),
        (["PHOTO", "what?", "--generate"], 1, "cannot write answers"),
        (["PHOTO", "what?", "--model", "clip-tiny"], 1, "Models that can: vilt-b32-vqa, "),
        (["PHOTO", "what?", "--model", "vilt-b32-vka"], 2, "Did you mean vilt-b32-vqa"),
    ],
)
def test_wrong_calls_get_one_sentence(words, status, told, saved, photo, capsys):
    words = [str(photo) if word == "PHOTO" else word for word in words]
    model = [] if "--model" in words else ["--model", saved]
    assert main(["answer", *model, *words]) == status
    out, err = capsys.readouterr()
    assert told in err
    assert out == ""
    assert err.count("\n") == 1
