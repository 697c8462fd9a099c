"""`mmzoo retrieve`: the order of a full sort, from pictures, captions, data sets and files of embeddings."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import mmzoo
from mmzoo.apps import retrieve as module
from mmzoo.apps.embed import embed
from mmzoo.apps.embeddings import open_embeddings, write_embeddings
from mmzoo.apps.opening import open_model
from mmzoo.apps.retrieve import Retrieved, retrieve
from mmzoo.apps.searched import Rows
from mmzoo.errors import UsageError, ZooError
from mmzoo.metrics.topk import TopK
from mmzoo.processing.image import decode_image
from mmzoo.processing.processor import Processor

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


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


@pytest.fixture(scope="module")
def clip() -> tuple[nn.Module, Processor]:
    """A CLIP with random weights: what it finds means nothing, but the order is as well defined."""
    torch.manual_seed(3)
    model = mmzoo.create_model("clip-tiny")
    return model, mmzoo.create_processor(model)


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """Forty pictures of coloured tiles, of which 03, 13, 23 and 33 are the same."""
    folder = tmp_path / "noise"
    folder.mkdir()
    for i in range(40):
        generator = torch.Generator().manual_seed(3 if i % 10 == 3 else i)
        pixels = torch.randint(256, (6, 6, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).resize((64, 64)).save(folder / f"{i:02}.png")
    return folder


TEXTS = ["a red apple", "something blue", "a boat", "cat"]


def brute_force(queries: Tensor, items: Tensor, k: int) -> tuple[list[list[int]], Tensor]:
    """One matrix of all cosines, made in float64 and rounded, sorted stably."""
    ranked = (queries.double() @ items.double().T).float().sort(dim=1, descending=True, stable=True)
    return ranked.indices[:, :k].tolist(), ranked.values[:, :k]


def places(found: Retrieved) -> list[list[int]]:
    return [[hit.place for hit in entry.hits] for entry in found.found]


@pytest.mark.parametrize("rows", [1, 7, 8192])
@pytest.mark.parametrize("ending", ["safetensors", "parquet"])
def test_a_search_of_embeddings_equals_brute_force(clip, noise, tmp_path, rows, ending, monkeypatch):
    monkeypatch.setattr(module, "ROWS", rows)
    index = embed(clip, [noise], texts=TEXTS, out=tmp_path / f"x.{ending}", batch_size=1).out
    file = open_embeddings(index)
    image, text = (torch.cat(list(file.blocks(kind, 99))) for kind in ("image", "text"))
    for k in (1, 5, 40):
        found = retrieve(clip, texts=TEXTS, images=[index], top_k=k, batch_size=1)
        expected, scores = brute_force(text, image, k)
        assert places(found) == expected
        assert [[h.score for h in f.hits] for f in found.found] == scores.tolist()
        assert [h.key for h in found.found[0].hits] == [file.keys("image")[p] for p in expected[0]]
    # equal pictures stand in their order, wherever blocks end
    order = [p for p in places(found)[0] if p in (3, 13, 23, 33)]
    assert order == [3, 13, 23, 33]
    assert len({found.found[0].hits[places(found)[0].index(p)].score for p in order}) == 1
    pictures = sorted(noise.iterdir())[10:14]
    asked = retrieve(clip, image=pictures, captions=index, top_k=3, batch_size=1)
    assert places(asked) == brute_force(image[10:14], text, 3)[0]
    alike = retrieve(clip, image=pictures, images=[index], top_k=9, batch_size=1)
    assert places(alike) == brute_force(image[10:14], image, 9)[0]
    assert places(alike)[3][:4] == [3, 13, 23, 33]


def test_a_folder_and_its_embeddings_give_the_same(clip, noise, tmp_path):
    index = embed(clip, [noise], out=tmp_path / "x.safetensors", batch_size=8).out
    folder = retrieve(clip, texts=TEXTS, images=[noise], top_k=40, batch_size=8)
    stored = retrieve(clip, texts=TEXTS, images=[index], top_k=40)
    assert folder.found == stored.found
    assert (folder.searched[0], stored.searched[0]) == (
        (str(noise), "image", 40),
        ("x.safetensors", "image", 40),
    )


def captioned(folder: Path, pictures: bool = True) -> Path:
    folder.mkdir()
    lines = []
    for name, colour in COLOURS.items():
        if pictures:
            Image.new("RGB", (16, 16), colour).save(folder / f"{name}.png")
        lines.append(json.dumps({"image": f"{name}.png", "captions": [name, "a thing", f"{name} thing"]}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


def test_a_data_set_is_searched_both_ways(colours, photos, tmp_path):
    data = captioned(tmp_path / "data")
    found = retrieve(colours, texts=["green"], image=[photos / "blue"], data=data, top_k=2)
    words, image = found.found
    assert (words.kind, words.finds, words.hits[0].key) == ("text", "image", "green.png")
    assert (image.kind, image.finds, [h.key for h in image.hits]) == ("image", "text", ["blue", "blue thing"])
    assert found.searched == [("data", "image", 3), ("data", "text", 7)]


def test_captions_are_read_without_their_pictures(colours, photos, tmp_path):
    data = captioned(tmp_path / "data", pictures=False)
    for where in (data, data / "captions.jsonl"):
        found = retrieve(colours, image=[photos / "blue"], captions=where, top_k=1)
        assert found.found[0].hits[0].key == "blue"


def test_texts_may_search_captions(colours):
    found = retrieve(colours, texts=["red"], captions=["blue", "red thing", "green"], top_k=1)
    assert found.found[0].hits[0].key == "red thing"


def test_texts_longer_than_the_model_reads(clip, photos, capsys):
    long = "cat " * 100
    with pytest.raises(UsageError, match=r"texts: entry 2 \('cat cat .*longer than CLIP reads \(32 tokens\)"):
        retrieve(clip, texts=["cat", long], images=[photos])
    found = retrieve(clip, image=[photos / "blue"], captions=["cat", long, "dog"])
    assert found.cut == 1
    assert len(found.found[0].hits) == 3


def test_several_vectors_per_picture(colours, photos, tmp_path):
    """As BLIP-2 has them: the model compares a text with each and takes the best."""

    class Several(nn.Module):
        logit_scale = torch.tensor(0.0)

        def encode_image(self, images: Tensor) -> Tensor:
            return colours[0].encode_image(images)[:, None] * torch.tensor([[1.0], [-1.0]])

        def encode_text(self, ids: Tensor, keep: Tensor) -> Tensor:
            return -colours[0].encode_text(ids, keep)

        def similarity(self, image: Tensor, text: Tensor) -> Tensor:
            return (image @ text.T).amax(1)

    model = (Several(), colours[1])
    index = embed(model, [photos], out=tmp_path / "x.safetensors").out
    for images in ([photos], [index]):
        found = retrieve(model, texts=["blue", "red"], images=images, top_k=1)
        assert [Path(f.hits[0].key).parent.name for f in found.found] == ["blue", "red"]
    back = retrieve(model, image=[photos / "blue"], captions=["red", "blue"], top_k=1)
    assert back.found[0].hits[0].key == "blue"
    with pytest.raises(
        ZooError, match="several vectors per picture, so it cannot compare pictures with pictures"
    ):
        retrieve(model, image=[photos / "blue"], images=[index])


def test_scores_in_memory_are_bounded(colours, photos, tmp_path, monkeypatch):
    """However many queries there are, and however many vectors a picture has."""
    shapes = []
    add = TopK.add
    monkeypatch.setattr(
        TopK, "add", lambda best, scores: (shapes.append(tuple(scores.shape)), add(best, scores))
    )
    monkeypatch.setattr(module, "CELLS", 8)
    index = embed(colours, [photos], texts=["red", "blue"], out=tmp_path / "x.safetensors").out
    for where in ({"images": [index]}, {"images": [photos]}, {"captions": index}):
        retrieve(colours, texts=["red", "green", "blue", "a thing"], top_k=1, **where)
    assert shapes == [(4, 2), (4, 2), (4, 2), (4, 1)] * 2 + [(4, 2)]
    path = tmp_path / "several.safetensors"
    keys = {"image": list("abcdefg"), "text": []}
    write_embeddings(path, {"image": torch.ones(7, 2, 3)}, keys, model="m", weights_sha256="0")
    rows = Rows(open_embeddings(path), "image")
    assert [len(block) for block in rows.blocks(open_model(colours, device="cpu"), 6, [])] == [3, 3, 1]


def test_embeddings_of_another_width_or_not_finite(colours, photos, tmp_path):
    digest = open_model(colours, device="cpu").digest()
    for vectors, sentence in (
        (torch.ones(2, 4), r"x\.safetensors holds vectors of 4 numbers, but ColourModel makes 3"),
        (torch.full((2, 3), torch.nan), r"x\.safetensors holds numbers that are not finite; embed again\."),
    ):
        path = tmp_path / "x.safetensors"
        write_embeddings(
            path, {"image": vectors}, {"image": ["a", "b"], "text": []}, model="m", weights_sha256=digest
        )
        with pytest.raises(ZooError, match=sentence):
            retrieve(colours, texts=["red"], images=[path])
        with pytest.raises(ZooError, match=r"x\.safetensors holds pictures only, no texts to search\."):
            retrieve(colours, image=[photos], captions=path)
        with pytest.raises(UsageError, match=r"x\.safetensors holds embeddings and is searched alone"):
            retrieve(colours, texts=["red"], images=[path, photos])


class Sharer(Matcher):
    """Makes keys and values of its pictures once."""

    def project_images(self, images: Tensor) -> Tensor:
        self.projected = getattr(self, "projected", 0) + len(images)
        return images + 1

    def match(self, images: Tensor, ids: Tensor, keep: Tensor, image_index: Tensor | None = None) -> Tensor:
        return super().match(images - 1, ids, keep, image_index)


def test_reranking_projects_each_picture_once_both_ways(colours, photos):
    model = Sharer(colours)
    found = retrieve((model, colours[1]), texts=list(COLOURS), images=[photos], rerank=7, batch_size=4)
    assert (model.projected, model.asked) == (7, 21)
    assert [Path(f.hits[0].key).parent.name for f in found.found] == list(COLOURS)
    for entry in found.found:
        assert [h.match for h in entry.hits] == sorted((h.match for h in entry.hits), reverse=True)
    model.projected = model.asked = 0
    back = retrieve((model, colours[1]), image=[photos], captions=["red", "blue", "green"], top_k=1, rerank=3)
    assert (model.projected, model.asked) == (7, 21)
    assert [f.hits[0].key for f in back.found] == ["blue", "green", "green", "red", "red", "red", "green"]
    expected = 1 / (1 + math.exp(-2))  # pure blue and "blue": logits -1 and 1
    assert back.found[0].hits[0].match == pytest.approx(expected)


def test_reranking_equal_matches_keep_the_order_of_cosines(colours, photos):
    class Indifferent(Matcher):
        encode_image = property(lambda self: self.inner.encode_image)
        encode_text = property(lambda self: self.inner.encode_text)

        def match(self, images, ids, keep, image_index=None):
            return torch.zeros(len(ids), 2)

    plain = retrieve(colours, texts=["red"], images=[photos], top_k=5)
    again = retrieve((Indifferent(colours), colours[1]), texts=["red"], images=[photos], rerank=128)
    assert places(again) == places(plain)
    assert {h.match for h in again.found[0].hits} == {0.5}


def test_reranking_reads_the_pictures_of_embeddings_again(colours, photos, tmp_path):
    model = (Matcher(colours), colours[1])
    index = embed(model, [photos], out=tmp_path / "x.safetensors").out
    (photos / "red" / "0.png").unlink()
    found = retrieve(model, texts=["blue"], images=[index], top_k=1, rerank=7)
    assert Path(found.found[0].hits[0].key).parent.name == "blue"
    assert [(Path(b.key).name, b.reason) for b in found.broken] == [("0.png", "No such file or directory")]
    shutil.rmtree(photos)
    with pytest.raises(ZooError, match=r"--rerank: none of 7 pictures could be read again; .* from here\.$"):
        retrieve(model, texts=["blue"], images=[index], rerank=7)


def test_reranking_wants_a_picture_and_a_text(colours, photos):
    model = (Matcher(colours), colours[1])
    with pytest.raises(UsageError, match="here both sides are of one kind"):
        retrieve(model, image=[photos / "blue"], images=[photos], rerank=7)
    with pytest.raises(UsageError, match="here both sides are of one kind"):
        retrieve(model, texts=["red"], captions=["red"], rerank=7)


def test_the_page_shows_queries_and_what_they_found(colours, photos, tmp_path, monkeypatch):
    model = (Matcher(colours), colours[1])
    page = tmp_path / "out"
    result = retrieve(model, texts=["blue <b>"], images=[photos], top_k=3, rerank=7, html=page)
    text = (page / "index.html").read_text()
    assert result.html == page / "index.html"
    assert text.count("data:image/") == 3
    for words in (
        "blue &lt;b&gt;",
        "best 7 of each",
        "A percentage is the model",
        "--rerank 7",
        result.weights_sha256[:16],
    ):
        assert words in text
    assert text.index("blue/0.png") < text.index("red/")
    both = retrieve(colours, image=[photos], captions=["red", "a <i> thing"], html=page)
    text = both.html.read_text()
    assert text.count("data:image/") == 7
    assert text.count("a &lt;i&gt; thing") == 7
    assert "7 queries, 2 captions" in text
    monkeypatch.setattr("mmzoo.apps.report.retrieve.QUERIES", 2)
    text = retrieve(colours, image=[photos], captions=["red"], html=page).html.read_text()
    assert text.count("data:image/") == 2
    assert "The first 2 of 7 queries." in text
    index = embed(colours, [photos], out=tmp_path / "x.safetensors").out
    shutil.rmtree(photos)
    text = retrieve(colours, texts=["red"], images=[index], html=page).html.read_text()
    assert text.count("no thumbnail") == 5


def test_progress_and_the_command_that_does_the_same(colours, photos):
    seen = []
    result = retrieve(
        colours, texts=["red", "a b"], images=[photos], batch_size=3, progress=lambda *step: seen.append(step)
    )
    assert seen == [(3, 7), (6, 7), (7, 7)]
    assert result.command == f"mmzoo retrieve --model ColourModel --texts red 'a b' --images {photos}"
    assert [len(f.hits) for f in result.found] == [5, 5]
    few = retrieve(colours, texts=["red"], images=[photos / "blue"])
    assert [len(f.hits) for f in few.found] == [1]  # without a number, as many as there are
