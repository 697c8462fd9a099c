"""`mmzoo retrieve`: the order of a full sort, from pictures, captions, data sets and files of embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mmzoo.apps.embed import embed
from mmzoo.apps.retrieve import retrieve
from mmzoo.cli.main import main
from mmzoo.errors import UsageError, ZooError
from mmzoo.processing.image import decode_image


def cosine(colours, text: str, picture: str) -> float:
    """What the model says of one pair, without any of the machinery."""
    model, processor = colours
    words = processor.texts([text])
    image = model.encode_image(processor.images([decode_image(picture)]))
    return float((image.double() @ model.encode_text(*words).double().T)[0, 0])


def test_texts_find_pictures_in_the_order_of_all_cosines(colours, photos):
    texts = ["red", "green thing"]
    found = retrieve(colours, texts=texts, images=[photos], top_k=7, batch_size=2)
    pictures = sorted(map(str, photos.rglob("*.png")))
    assert [(f.query, f.kind, f.finds) for f in found.found] == [(t, "text", "image") for t in texts]
    for entry in found.found:
        expected = sorted(pictures, key=lambda p: -cosine(colours, entry.query, p))
        assert [h.score for h in entry.hits] == pytest.approx(
            [cosine(colours, entry.query, p) for p in expected], abs=1e-6
        )
        assert {h.key for h in entry.hits} == set(pictures)
        assert [cosine(colours, entry.query, h.key) for h in entry.hits] == pytest.approx(
            [h.score for h in entry.hits], abs=1e-6
        )


def test_pictures_find_captions_and_pictures(colours, photos, tmp_path):
    lines = tmp_path / "captions.txt"
    lines.write_text("a red one\na green one\n\na blue one\na red one\n", encoding="utf-8")
    red = photos / "red" / "0.png"
    captions = retrieve(colours, image=[red], captions=lines, top_k=1)
    assert captions.found[0].hits[0].key == "a red one"
    assert captions.searched[0].size == 3, "equal captions are searched once"
    alike = retrieve(colours, image=[red], images=[photos], top_k=1)
    assert alike.found[0].hits[0].key == str(red)
    assert alike.found[0].hits[0].score == pytest.approx(1.0, abs=1e-6)


def test_a_file_of_embeddings_gives_the_same_and_is_refused_of_another_model(colours, photos, tmp_path):
    index = embed(colours, [photos], out=tmp_path / "x.safetensors").out
    direct = retrieve(colours, texts=["blue"], images=[photos], top_k=3)
    stored = retrieve(colours, texts=["blue"], images=[index], top_k=3)
    assert [(h.key, h.score) for h in stored.found[0].hits] == [
        (h.key, h.score) for h in direct.found[0].hits
    ]
    model, processor = colours
    with torch.no_grad():
        model.logit_scale += 1
    with pytest.raises(ZooError, match=r"made by ColourModel .* not by ColourModel"):
        retrieve((model, processor), texts=["blue"], images=[index])
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(index.read_bytes()[:-10])
    with pytest.raises(ZooError, match=r"cut\.safetensors"):
        retrieve(colours, texts=["blue"], images=[cut])


class Matcher(nn.Module):
    """Embeds everything alike, and matches by colour: so only re-ranking can order."""

    def __init__(self, colours) -> None:
        super().__init__()
        self.inner, self.logit_scale = colours[0], nn.Parameter(torch.tensor(1.0))
        self.asked = 0

    def encode_image(self, images: Tensor) -> Tensor:
        return torch.ones(len(images), 3) / 3**0.5

    def encode_text(self, ids: Tensor, keep: Tensor) -> Tensor:
        return torch.ones(len(ids), 3) / 3**0.5

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        return image @ text.T

    def match(self, images: Tensor, ids: Tensor, keep: Tensor, image_index: Tensor | None = None) -> Tensor:
        self.asked += len(ids)
        image = self.inner.encode_image(images)
        image = image if image_index is None else image[image_index]
        score = (image * self.inner.encode_text(ids, keep)).sum(1)
        return torch.stack([-score, score], 1)


def test_reranking_orders_what_cosines_cannot(colours, photos):
    model = Matcher(colours)
    found = retrieve((model, colours[1]), texts=["blue"], images=[photos], top_k=1, rerank=7)
    (hit,) = found.found[0].hits
    assert Path(hit.key).parent.name == "blue"
    assert 0.5 < hit.match <= 1
    assert model.asked == 7, "each pair once"
    with pytest.raises(ZooError, match="re-rank"):
        retrieve(colours, texts=["blue"], images=[photos], rerank=5)


def test_broken_pictures_are_named_and_the_rest_is_searched(colours, photos):
    (photos / "red" / "bad.png").write_text("no picture")
    found = retrieve(colours, texts=["red"], images=[photos], top_k=7)
    assert [Path(b.key).name for b in found.broken] == ["bad.png"]
    assert len(found.found[0].hits) == 7
    for folder in photos.iterdir():
        for file in folder.iterdir():
            file.write_text("no picture")
    with pytest.raises(ZooError):
        retrieve(colours, texts=["red"], images=[photos])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "nothing to search by"),
        ({"texts": ["red"]}, "one thing to search"),
        ({"texts": ["red", " "], "images": ["."]}, "entry 2 is empty"),
        ({"texts": "red", "images": ["."]}, "a list of texts"),
        ({"texts": ["red"], "images": ["."], "captions": ["x"]}, "one thing to search"),
        ({"texts": ["red"], "images": ["."], "split": "val"}, "belongs to --data"),
        ({"texts": ["red"], "images": ["nowhere"]}, "nowhere"),
    ],
)
def test_wrong_calls_say_what_is_wrong(colours, arguments, says):
    with pytest.raises((UsageError, ZooError), match=says):
        retrieve(colours, **arguments)


def test_bounds(colours, photos):
    with pytest.raises(UsageError, match="there are 7 pictures"):
        retrieve(colours, texts=["red"], images=[photos], top_k=8)
    with pytest.raises(UsageError, match="fewer than the 5"):
        retrieve(colours, texts=["red"], images=[photos], rerank=2)
    with pytest.raises(ZooError, match="cannot"):
        retrieve("vit-tiny", texts=["red"], images=[photos], device="cpu")


def test_the_command(photos, tmp_path, capsys):
    page = tmp_path / "page.html"
    words = [
        "retrieve",
        "--model",
        "clip-tiny",
        "-t",
        "a red square",
        "--images",
        str(photos),
        "--top-k",
        "2",
    ]
    assert main([*words, "--json", "--html", str(page)]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert [len(entry["hits"]) for entry in told["found"]] == [2]
    assert "random weights" in err
    assert "a red square" in page.read_text(encoding="utf-8")
    assert main(words) == 0
    assert "a red square" in capsys.readouterr().out
    assert main([*words[:-1], "99"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["retrieve", "--model", "clip-tiny"]) == 2
