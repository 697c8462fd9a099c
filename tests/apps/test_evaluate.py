"""`mmzoo evaluate retrieval` against ranks of a full matrix that is sorted; what it records, refuses and prints."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import statistics
import tarfile
import weakref

import pytest
import torch
from hand_copy import shake
from PIL import Image

import mmzoo
from mmzoo.apps import rerank as module
from mmzoo.apps.evaluate import TASKS, evaluate
from mmzoo.apps.opening import open_model
from mmzoo.apps.rerank import match_logits
from mmzoo.cli.main import main
from mmzoo.errors import UsageError, ZooError
from mmzoo.layers.image_kv import ImageKV
from mmzoo.models.capabilities import CAPABILITIES
from mmzoo.processing.processor import Processor

WORDS = ("apple", "boat", "cat", "dog", "red", "blue", "a", "small", "big", "house", "tree", "fish")

COUNT = 8


class DoubleProcessor(Processor):
    """Pixels in float64, so that results can be compared closely."""

    def images(self, images):
        return super().images(images).double()


def double(name):
    """A tiny model with weights far from their start, in float64."""
    torch.manual_seed(0)
    model = shake(mmzoo.create_model(name).double(), seed=3)
    return model, DoubleProcessor.of(model.config)


def noise(path, seed):
    pixels = torch.randint(256, (6, 6, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).resize((40 + seed % 3 * 20, 40)).save(path)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Eight pictures with one to three captions; the last two show the same thing."""
    folder = tmp_path_factory.mktemp("evaluate") / "captioned"
    folder.mkdir()
    draw = torch.Generator().manual_seed(0)
    lines = []
    for i in range(COUNT):
        noise(folder / f"{i}.png", i)
        captions = [
            " ".join(WORDS[w] for w in torch.randint(len(WORDS), (1 + int(n),), generator=draw).tolist())
            for n in torch.randint(1, 6, (1 + i % 3,), generator=draw)
        ]
        lines.append(json.dumps({"image": f"{i}.png", "captions": captions, "id": min(i, COUNT - 2)}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def captioned(original, tmp_path):
    """The same, to be changed."""
    return shutil.copytree(original, tmp_path / "captioned")


@pytest.fixture(scope="module", params=["albef-tiny"])
def measured(original, request):
    """A model, and what it makes of each pair of picture and caption when asked for that pair alone."""
    opened = double(request.param)
    pictures, texts, fits = read(original)
    return opened, pictures, texts, fits, *tables(opened, pictures, texts)


def read(folder):
    """Pictures, captions, and which fit (B, T)."""
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    pictures = [Image.open(folder / row["image"]).convert("RGB") for row in rows]
    texts = [(text, row["id"]) for row in rows for text in row["captions"]]
    fits = torch.tensor([[row["id"] == identity for _, identity in texts] for row in rows])
    return pictures, [text for text, _ in texts], fits


def tables(opened, pictures, texts):
    """Logits of a match and, where there are any, cosines (B, T): one pair at a time."""
    model, processor = opened
    with torch.no_grad():
        images = [processor.images([picture]) for picture in pictures]
        words = [processor.texts([text]) for text in texts]
        logits = torch.tensor([[model.match(image, *w)[0, 1] for w in words] for image in images]).double()
        if not hasattr(model, "encode_image"):
            return logits, None
        image = torch.cat([model.encode_image(image) for image in images])
        text = torch.cat([model.encode_text(*w) for w in words])
        return logits, image @ text.T


def ranks(orders, fits):
    """Rank of the first right item in each list of items."""
    return [1 + next(i for i, item in enumerate(order) if fit[item]) for order, fit in zip(orders, fits)]


def two_stages(cosines, scores, k):
    """The k best by cosine sorted by score, then the others by cosine."""
    orders = []
    for cosine, score in zip(cosines, scores):
        first = cosine.argsort(descending=True, stable=True).tolist()
        orders.append(sorted(first[:k], key=lambda i: -float(score[i])) + first[k:])
    return orders


def check(numbers, prefix, orders, fits):
    found = ranks(orders, fits)
    for k in (1, 5, 10):
        assert numbers[f"{prefix}_r{k}"].value == pytest.approx(sum(r <= k for r in found) / len(found))
    assert numbers[f"{prefix}_mean_rank"].value == pytest.approx(statistics.fmean(found))
    assert numbers[f"{prefix}_median_rank"].value == statistics.median(found)


@pytest.mark.parametrize("score", ["itm", "itm+itc"])
@pytest.mark.parametrize("k", [1, 3, 99])
def test_two_stages_equal_sorting_everything(captioned, measured, k, score):
    opened, _, texts, fits, logits, cosines = measured
    found = evaluate("retrieval", opened, captioned, rerank=k, score=score, batch_size=4, device="cpu")
    scores = logits if score == "itm" else logits + cosines
    check(found.numbers, "i2t", two_stages(cosines, cosines, 0), fits)
    check(found.numbers, "t2i", two_stages(cosines.T, cosines.T, 0), fits.T)
    check(found.numbers, "reranked_i2t", two_stages(cosines, scores, k), fits)
    check(found.numbers, "reranked_t2i", two_stages(cosines.T, scores.T, k), fits.T)
    assert found.protocol["score"] == score
    assert found.protocol["candidates"] == {"texts": min(k, len(texts)), "images": min(k, COUNT)}
    assert found.protocol["pairs"] <= k * (COUNT + len(texts))
    assert [f"there are {n}" in " ".join(found.notes) for n in (len(texts), COUNT)] == [
        k > len(texts),
        k > COUNT,
    ]
    assert (found.data["images"], found.data["texts"]) == (COUNT, len(texts))
    assert found.numbers["i2t_r1"].chance == pytest.approx(float(fits.double().mean(1).mean()))


@pytest.mark.parametrize("measured", ["albef-tiny", "blip-tiny"], indirect=True)
def test_logits_equal_those_of_one_pair_at_a_time(measured, monkeypatch):
    given, pictures, texts, _, logits, _ = measured
    opened = open_model(given, device="cpu")
    pairs = torch.cartesian_prod(torch.arange(COUNT), torch.arange(len(texts)))[::2]
    asked = (opened, *pairs.unbind(1), pictures.__getitem__, list(map(str, range(COUNT))), texts)
    with torch.inference_mode():
        shared = match_logits(*asked, batch_size=64, broken=[])
        monkeypatch.setattr(module, "STATES", 0)
        apart = match_logits(*asked, batch_size=3, broken=[])
    for found in (shared, apart):
        torch.testing.assert_close(found[:, 1], logits[pairs[:, 0], pairs[:, 1]], rtol=1e-9, atol=1e-9)


def test_each_pair_is_matched_once_and_few_pictures_are_held(captioned, monkeypatch):
    model, processor = double("albef-tiny")
    pairs, alive, most = [], [], []
    project, match = model.project, model.match_states

    def projecting(tokens):
        alive[:] = [kv for kv in alive if kv() is not None]
        made = project(tokens)
        alive.append(weakref.ref(made.layers[2].k))
        most.append(len(alive) * len(made))
        return made

    def matching(states, keep, kv: ImageKV, image_index=None, *, packed=False):
        pairs.append(len(keep))
        return match(states, keep, kv, image_index, packed=packed)

    monkeypatch.setattr(model, "project", projecting)
    monkeypatch.setattr(model, "match_states", matching)
    monkeypatch.setattr(module, "PICTURES", 2)
    found = evaluate("retrieval", (model, processor), captioned, rerank=4, device="cpu")
    assert sum(pairs) == found.protocol["pairs"]
    assert max(most) == 2
    assert len(most) == COUNT / 2, "each picture once"


@pytest.mark.parametrize("measured", ["vilt-tiny"], indirect=True)
def test_a_model_without_embeddings_matches_every_pair(captioned, measured):
    opened, _, texts, fits, logits, _ = measured
    said = []
    found = evaluate("retrieval", opened, captioned, batch_size=5, device="cpu", say=said.append)
    check(found.numbers, "i2t", two_stages(logits, logits, 0), fits)
    check(found.numbers, "t2i", two_stages(logits.T, logits.T, 0), fits.T)
    assert f"{COUNT * len(texts):,} pairs" in said[0]
    assert "about " in said[0]
    assert "--limit N" in said[0]
    with pytest.raises(UsageError, match="every pair is matched"):
        evaluate("retrieval", opened, captioned, rerank=3, device="cpu")


def test_families_are_scored_as_their_papers_do(captioned):
    for name, score in (("albef-tiny", "itm"), ("blip-tiny", "itm+itc")):
        assert (
            evaluate("retrieval", name, captioned, rerank=2, limit=3, device="cpu").protocol["score"] == score
        )


def test_a_part_of_the_data_is_said_to_be_one(captioned):
    found = evaluate("retrieval", double("albef-tiny"), captioned, limit=4, device="cpu")
    assert (found.data["limit"], found.data["images"], found.data["texts"]) == (4, 4, 1 + 2 + 3 + 1)
    assert "--limit 4" in found.command
    assert any("--rerank" in note for note in found.notes)


def test_broken_pictures_are_left_out_with_their_captions(captioned):
    (captioned / "3.png").write_text("no picture")
    (captioned / "5.png").unlink()
    found = evaluate("retrieval", double("albef-tiny"), captioned, rerank=2, device="cpu")
    assert sorted(item.key.rsplit("/")[-1] for item in found.broken) == ["3.png", "5.png"]
    assert (found.data["images"], found.data["broken"]) == (COUNT - 2, 2)
    assert found.data["texts"] == len(read_lines(captioned)) - 1 - 3
    assert found.notes[0].startswith("2 of 8 pictures cannot be read")


def test_blank_captions_are_left_out(captioned):
    lines = (captioned / "captions.jsonl").read_text().splitlines()
    lines[0] = json.dumps({"image": "0.png", "captions": [" "]})
    (captioned / "captions.jsonl").write_text("\n".join(lines))
    found = evaluate("retrieval", double("albef-tiny"), captioned, device="cpu")
    assert found.data["texts"] == len(read_lines(captioned)) - 1
    assert "captions without words, left out: 1." in found.notes
    with pytest.raises(ZooError, match="has no captions"):
        evaluate("retrieval", double("albef-tiny"), captioned, limit=1, device="cpu")


def read_lines(folder):
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    return [text for row in rows for text in row["captions"]]


def test_the_record_holds_what_decides_the_numbers(captioned, tmp_path):
    torch.manual_seed(1)
    model = mmzoo.create_model("albef-tiny")
    mmzoo.save(model, tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    found = evaluate("retrieval", str(tmp_path / "m"), captioned, seed=5, device="cpu")
    assert found.weights_file == (str(file), hashlib.sha256(file.read_bytes()).hexdigest())
    assert found.weights_sha256 in (tmp_path / "m" / "README.md").read_text()
    assert found.versions == {
        "mmzoo": mmzoo.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    assert (found.task, found.seed, found.data["path"]) == ("retrieval", 5, str(captioned))
    assert found.seconds > 0
    given = evaluate("retrieval", "albef-tiny", captioned, pretrained=file, device="cpu")
    assert given.weights_file == found.weights_file
    assert given.numbers == found.numbers
    assert evaluate("retrieval", "albef-tiny", captioned, device="cpu").weights_file is None


def test_numbers_that_are_not_finite_are_refused(captioned):
    model, processor = double("albef-tiny")
    with torch.no_grad():
        model.match_head.bias += float("nan")
    with pytest.raises(ZooError, match="not finite"):
        evaluate("retrieval", (model, processor), captioned, rerank=2, device="cpu")


def test_the_table_names_capabilities_and_options_that_exist():
    import inspect

    options = set(inspect.signature(evaluate).parameters)
    for task in TASKS.values():
        assert set(task.needs) <= set(CAPABILITIES)
        assert task.options <= options


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (
            ["retreival", "--model", "albef-tiny", "--data", "captioned"],
            2,
            "no task 'retreival'. Did you mean retrieval",
        ),
        (["retrieval", "--model", "albef-tiny", "--data", "nowhere"], 1, "no data at nowhere"),
        (["retrieval", "--model", "albef-tiny", "--data", "empty"], 1, "empty is empty."),
        (["retrieval", "--model", "albef-tiny", "--data", "bare.tar"], 1, "bare.tar: no captions"),
        (["retrieval", "--model", "albef-tiny", "--data", "nlvr2.json"], 1, "nlvr2.json"),
        (["retrieval", "--model", "albef-tinny", "--data", "captioned"], 2, "Did you mean albef-tiny"),
        (
            ["retrieval", "--model", "vit-tiny", "--data", "captioned"],
            1,
            "vit-tiny cannot find pictures by texts (it cl",
        ),
        (
            ["retrieval", "--model", "clip-tiny", "--data", "captioned", "--rerank"],
            1,
            "clip-tiny cannot re-rank (it em",
        ),
        (
            ["retrieval", "--model", "albef-tiny", "--data", "captioned", "--score", "itm"],
            2,
            "give --rerank too",
        ),
        (
            ["retrieval", "--model", "albef-tiny", "--data", "captioned", "--rerank", "2", "--score", "itc"],
            2,
            "it is one of itm, itm+itc",
        ),
        (
            ["retrieval", "--model", "albef-tiny", "--data", "captioned", "--answers", "x"],
            2,
            "--answers belongs to vqa",
        ),
        (["retrieval", "--model", "albef-tiny", "--data", "captioned", "--rerank", "0"], 2, "at least 1"),
        (["zeroshot", "--model", "clip-tiny", "--data", "captioned"], 1, "has no classes"),
        (
            ["vqa", "--model", "albef-tiny", "--data", "easy-vqa", "--split", "val"],
            1,
            "albef-tiny cannot answer questions",
        ),
        (["vqa", "--model", "albef-tiny", "--data", "nlvr2.json"], 1, "nlvr2.json holds NLVR2's pairs"),
        (["nlvr2", "--model", "albef-tiny", "--data", "captioned/captions.jsonl"], 1, "holds captions"),
        (["nlvr2", "--model", "albef-tiny", "--data", "nlvr2.json"], 1, "none of its pictures"),
        (["ve", "--model", "albef-tiny", "--data", "nlvr2.json"], 1, "nlvr2.json holds NLVR2's pairs"),
    ],
)
def test_command_refuses_in_one_sentence(words, status, sentence, captioned, monkeypatch, capsys):
    monkeypatch.chdir(captioned.parent)
    (captioned.parent / "empty").mkdir()
    with tarfile.open("bare.tar", "w") as tar:
        tar.add(captioned / "0.png", "0.png")
    row = {"identifier": "dev-1-0-0", "sentence": "A cat.", "label": "True"}
    (captioned.parent / "nlvr2.json").write_text(json.dumps(row) + "\n")
    assert main(["evaluate", *words, "--device", "cpu"]) == status
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("mmzoo: ")
    assert sentence in err


def test_the_command(captioned, capsys):
    words = ["evaluate", "retrieval", "--model", "albef-tiny", "--device", "cpu", "--data", str(captioned)]
    assert main([*words, "--rerank", "30", "--json"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["numbers"]["reranked_t2i_r1"].keys() == {"value", "chance", "unit"}
    assert {
        "task",
        "model",
        "weights_sha256",
        "versions",
        "seed",
        "data",
        "protocol",
        "seconds",
    } <= told.keys()
    assert told["protocol"]["score"] == "itm"
    assert "there are 8 images only" in err
    assert "random weights" in err
    assert main(words) == 0
    table = capsys.readouterr().out
    assert table.startswith("albef-tiny on captioned: 8 images, ")
    assert "t2i_median_rank" in table
