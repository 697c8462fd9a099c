"""`mmzoo evaluate captioning`: from a results file, and from a model."""

from __future__ import annotations

import json

import pytest

from mmzoo.apps.evaluate import evaluate
from mmzoo.cli.main import main
from mmzoo.errors import UsageError, ZooError
from mmzoo.metrics.caption import score_captions

REFERENCES = {
    i: [f"a {w} boat on the sea", f"one {w} boat"] for i, w in enumerate(["red", "blue", "old", "new", "big"])
}
CAPTIONS = {0: "a red boat", 1: "A blue boat on the sea.", 2: "an old ship", 3: "", 4: "one big boat"}
DOMAINS = ["in-domain", "out-domain", "in-domain", "out-domain", "out-domain"]


@pytest.fixture
def nocaps(tmp_path):
    """An annotation file, without any picture."""
    file = tmp_path / "nocaps_val.json"
    images = [{"id": i, "file_name": f"{i}.png", "domain": d} for i, d in enumerate(DOMAINS)]
    texts = [(i, text) for i, own in REFERENCES.items() for text in own]
    annotations = [{"id": n, "image_id": i, "caption": text} for n, (i, text) in enumerate(texts)]
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    return file


@pytest.fixture
def results(tmp_path):
    """A results file."""
    file = tmp_path / "captions.json"
    file.write_text(json.dumps([{"image_id": i, "caption": text} for i, text in CAPTIONS.items()]))
    return file


def test_a_results_file_needs_neither_model_nor_pictures(nocaps, results):
    found = evaluate("captioning", None, nocaps, predictions=results)
    expected = score_captions(CAPTIONS, REFERENCES).numbers
    assert {name: m.value for name, m in found.numbers.items() if "domain" not in name} == expected
    assert found.numbers["exact"].value == 2 / 5
    outside = [i for i, d in enumerate(DOMAINS) if d == "out-domain"]
    alone = score_captions({i: CAPTIONS[i] for i in outside}, {i: REFERENCES[i] for i in outside}).numbers
    assert found.numbers["out-domain_cider_d"].value == alone["cider_d"] > 0
    assert found.data["images"] == 5
    assert found.data["references"] == 10
    assert found.weights == "none"
    assert found.command == f"mmzoo evaluate captioning --data {nocaps} --predictions {results}"


def test_the_first_pictures(nocaps, results):
    found = evaluate("captioning", None, nocaps, predictions=results, limit=3)
    first = score_captions({i: CAPTIONS[i] for i in range(3)}, {i: REFERENCES[i] for i in range(3)})
    assert found.numbers["cider_d"].value == first.numbers["cider_d"]


def test_the_command(nocaps, results, capsys):
    assert (
        main(["evaluate", "captioning", "--data", str(nocaps), "--predictions", str(results), "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["numbers"]["exact"]["value"] == 0.4
    assert main(["evaluate", "captioning", "--data", str(nocaps), "--predictions", str(results)]) == 0
    shown = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines() if len(line.split()) > 2)
    scores = score_captions(CAPTIONS, REFERENCES).numbers
    assert shown["cider_d"] == f"{100 * scores['cider_d']:.1f}"  # no share: it may exceed 1
    assert shown["exact"] == "40.0"
    assert "out-domain_cider_d" in shown


def test_files_that_do_not_belong_together(nocaps, results):
    content = json.loads(results.read_text())
    results.write_text(json.dumps(content[:3]))
    with pytest.raises(
        ZooError, match=r"2 pictures have no caption in .*\(the first is 3\).*Is it of another split"
    ):
        evaluate("captioning", None, nocaps, predictions=results)
    results.write_text(json.dumps([*content, {"image_id": "x", "caption": "a"}]))
    with pytest.raises(ZooError, match=r"1 pictures are not in the data, but in .*'x'"):
        evaluate("captioning", None, nocaps, predictions=results)


def test_wrong_use(nocaps, results):
    with pytest.raises(UsageError, match="captioning needs --model MODEL, or --predictions FILE"):
        evaluate("captioning", None, nocaps)
    with pytest.raises(UsageError, match="--beams says how a model writes, and none is given"):
        evaluate("captioning", None, nocaps, predictions=results, beams=5)
    with pytest.raises(UsageError, match="--extra rouge: it takes meteor, spice"):
        evaluate("captioning", None, nocaps, predictions=results, extra="rouge")
    with pytest.raises(UsageError, match="vqa needs --model"):
        evaluate("vqa", None, nocaps)
    with pytest.raises(UsageError, match="--max-new-tokens belongs to captioning; vqa has no use for it"):
        evaluate("vqa", None, nocaps, max_new_tokens=3)


def test_a_model_writes_what_is_scored(tmp_path):
    out = tmp_path / "captions.json"
    arguments = {"split": "unseen-style", "limit": 5, "max_new_tokens": 4}
    found = evaluate("captioning", "blip-tiny", "data/emoji", predictions=out, batch_size=2, **arguments)
    assert found.predictions == out
    assert len(json.loads(out.read_text())) == 5
    assert found.protocol["beams"] == 3
    again = evaluate("captioning", None, "data/emoji", split="unseen-style", limit=5, predictions=out)
    assert again.numbers == found.numbers
    with pytest.raises(ZooError, match="clip-tiny cannot write captions"):
        evaluate("captioning", "clip-tiny", "data/emoji", **arguments)
