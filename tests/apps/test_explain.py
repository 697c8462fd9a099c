"""`mmzoo explain` on a model whose heat is known, and on the tiny ones; what it says to wrong calls."""

from __future__ import annotations

import json

import pytest
import torch
from hand_copy import shake
from PIL import Image

import mmzoo
from mmzoo.apps.caption import caption
from mmzoo.apps.explain import explain, heat_picture, words_of
from mmzoo.cli.main import main
from mmzoo.errors import UsageError, ZooError
from mmzoo.generation import GenerationConfig, generate
from mmzoo.processing.processor import Processor
from mmzoo.processing.text import build_tokenizer
from mmzoo.spec import TINY_VOCAB, ImageSpec, TextSpec

SPEC = TextSpec("tiny", context=12, vocab=TINY_VOCAB)


class Pointer(torch.nn.Module):
    """Looks for word t in patch t of a row of eight, twice as hard as for the word before."""

    explain_layers = range(3)
    explain_layer = 1

    def match(self, images, ids, keep, image_index=None):
        return torch.tensor([[0.0, torch.log(torch.tensor(3.0))]]).expand(len(ids), 2)

    def explain(self, images, ids, keep, layer=None):
        maps = torch.zeros(*ids.shape, 2, 4)
        for token in range(ids.shape[1]):
            maps[:, token].flatten(1)[:, token % 8] = 2.0**token
        return maps


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", (120, 60), (200, 10, 10)).save(path)
    return path


def _pointer():
    return Pointer(), Processor(ImageSpec(8, fit="squash"), SPEC)


def test_pieces_are_joined_to_words():
    tokenizer = build_tokenizer(SPEC)
    pieces = tokenizer.tokens("a zebrafish swims")
    words = words_of(tokenizer, "a zebrafish swims")
    assert [word for word, _ in words] == ["a", "zebrafish", "swims"]
    assert sorted(place for _, places in words for place in places) == list(range(1, len(pieces) - 1))
    assert any(len(places) > 1 for _, places in words)
    assert words_of(tokenizer, "") == []


def test_each_word_gets_its_map(photo, tmp_path):
    found = explain(_pointer(), photo, "a red boat", out=tmp_path / "maps")
    assert [w.word for w in found.words] == ["a", "red", "boat"]
    assert found.match == pytest.approx(0.75)
    assert (found.layer, found.grid) == (1, (2, 4))
    assert [w.share for w in found.words] == pytest.approx([1 / 7, 2 / 7, 4 / 7])  # tokens 1, 2, 3
    assert [w.peak for w in found.words] == [(0.375, 0.25), (0.625, 0.25), (0.875, 0.25)]
    names = ["0-all-words.png", "1-a.png", "2-red.png", "3-boat.png"]
    assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == names
    for word in found.words:
        picture = Image.open(word.file)
        assert picture.size == (768, 384)
        spot = picture.getpixel((int(word.peak[0] * 768), int(word.peak[1] * 384)))
        cold = picture.getpixel((20, 370))
        assert len(set(cold)) == 1 or max(cold) - min(cold) < 40  # grey, at most tinged
        assert spot[0] > 200
        assert spot[0] - spot[2] > 50  # the ramp's hot end


def test_a_map_of_zeros_is_the_grey_picture():
    image = Image.new("RGB", (40, 20), (200, 10, 10))
    cold = heat_picture(image, torch.zeros(3, 3), side=80)
    assert cold.size == (80, 40)
    assert len(cold.getcolors()) == 1
    strip = heat_picture(Image.new("RGB", (3000, 1)), torch.ones(2, 2))
    assert strip.size == (768, 1)


def test_words_that_are_no_file_names(photo, tmp_path):
    found = explain(_pointer(), photo, "a/b ?", out=tmp_path)
    assert all(w.file.parent == tmp_path and w.file.exists() for w in found.words)


@pytest.mark.parametrize("name", ["albef-tiny", "vilt-tiny"])
def test_tiny_models_explain(name, photo, tmp_path, capsys):
    folder = tmp_path / "saved"
    torch.manual_seed(0)  # of some random weights nothing speaks for a match, and all maps are empty
    model = mmzoo.create_model(name)
    mmzoo.save(model, folder)
    words = [
        "explain",
        "--model",
        str(folder),
        str(photo),
        "a red zebrafish",
        "--out",
        str(tmp_path / "maps"),
    ]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [w["word"] for w in told["words"]] == ["a", "red", "zebrafish"]
    assert sum(w["share"] for w in told["words"]) == pytest.approx(1)
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert "zebrafish" in out
    assert "all words: " in out
    assert not err


def test_a_model_explains_its_own_caption(photo, tmp_path, capsys):
    torch.manual_seed(0)
    model = shake(mmzoo.create_model("blip-tiny"), seed=2)
    processor = mmzoo.create_processor(model)
    found = explain((model, processor), photo, out=tmp_path / "maps")
    [said] = caption((model, processor), [photo]).captions
    assert found.written
    assert found.text == said.captions[0]
    assert found.cut is not said.finished[0]
    assert found.match is None
    assert found.layer == 1
    # the same words as of the text, which here is read again; the prompt has no maps
    assert "".join(w.word for w in found.words) == found.text.replace(" ", "")
    assert sum(w.share for w in found.words) == pytest.approx(1)
    assert len(list((tmp_path / "maps").iterdir())) == len(found.words) + 1
    # each map is the mean of its pieces' maps at their places behind the prompt
    ids = processor.framed(["a picture of"]).ids
    pixels = processor.images([Image.open(photo)])
    made = generate(
        model.caption_decoder(pixels), ids[0, 1:-1], GenerationConfig(beams=3, min_new_tokens=1)
    ).rows[0]
    made = made[made != processor.tokenizer.eos_id]
    whole = torch.cat([ids[0, :-1], made])[None]
    maps = model.explain_caption(pixels, whole, torch.ones_like(whole, dtype=torch.bool), 0)[0, 4:]
    assert len(maps) == len(made)
    again = explain((model, processor), photo, out=tmp_path / "maps", layer=0)
    entries = processor.tokenizer.vocabulary()
    owners = torch.tensor([not entries[i].startswith("##") for i in made.tolist()]).cumsum(0) - 1
    owners -= owners[0].clone()
    heat = torch.stack([maps[owners == i].mean(0).sum() for i in range(len(again.words))])
    assert [w.share for w in again.words] == pytest.approx((heat / heat.sum()).tolist(), abs=1e-4)

    folder = tmp_path / "saved"
    mmzoo.save(model, folder)
    words = ["explain", "--model", str(folder), str(photo), "--out", str(tmp_path / "maps")]
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["text"] == found.text
    assert ("the caption was cut" in err) == found.cut
    assert main(words) == 0
    assert f"wrote {found.text!r}; layer 1, 4 x 4 patches" in capsys.readouterr().out


def test_an_empty_caption_has_nothing_to_explain(photo, tmp_path, monkeypatch):
    from mmzoo.apps import explain as app
    from mmzoo.apps.writing import Text

    monkeypatch.setattr(app, "write_texts", lambda *args: [(Text("", (), 0.0, True),)])
    with pytest.raises(ZooError, match="writes an empty caption"):
        explain("blip-tiny", photo, out=tmp_path)


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        ([], 2, "arguments are required: IMAGE"),
        (["PHOTO"], 2, "albef-tiny cannot write a caption to be explained"),
        (["PHOTO", "--model", "blip-tiny", "--layer", "2"], 2, "layer 2 has no map of words"),
        (["PHOTO", " "], 2, "there is no word in ' '"),
        (["nowhere.png", "cat"], 1, "nowhere.png: No such file"),
        (["PHOTO", "cat", "--layer", "3"], 2, "layer 3 has no map of words"),
        (["PHOTO", "cat", "--layer", "two"], 2, "'two' is not a whole number from 0 on"),
        (["PHOTO", "cat", "--model", "clip-tiny"], 1, "clip-tiny cannot show where it looks"),
        (["PHOTO", "cat", "--model", "albef-tinny"], 2, "Did you mean albef-tiny"),
        (["PHOTO", "cat", "--out", "PHOTO"], 1, "cannot be written"),
        (["PHOTO", "cat", "dog"], 2, "no use for the argument 'dog'"),
    ],
)
def test_wrong_calls_get_one_sentence(words, status, told, photo, capsys):
    words = [str(photo) if word == "PHOTO" else word for word in words]
    model = [] if "--model" in words else ["--model", "albef-tiny"]
    assert main(["explain", *model, *words]) == status
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1


def test_random_weights_and_cut_texts_are_mentioned(photo, tmp_path, capsys):
    assert main(["explain", "--model", "vilt-tiny", str(photo), "cat " * 40, "--out", str(tmp_path)]) == 0
    err = capsys.readouterr().err
    assert "the text is longer than vilt-tiny reads" in err
    assert "random weights" in err


def test_python_callers_get_exceptions(photo, tmp_path):
    with pytest.raises(UsageError, match="there is no word"):
        explain(_pointer(), photo, "", out=tmp_path)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(ZooError, match=r"broken\.png"):
        explain(_pointer(), broken, "cat", out=tmp_path)
