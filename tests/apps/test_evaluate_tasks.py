"""`mmzoo evaluate` of questions, pairs and entailment, against the model asked for one sample at a time."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields, replace

import pytest
import torch
from hand_copy import shake
from PIL import Image

import mmzoo
from mmzoo.apps.evaluate import evaluate
from mmzoo.apps.zeroshot import zeroshot
from mmzoo.cli.main import main
from mmzoo.data.open_tasks import open_questions
from mmzoo.errors import UsageError, ZooError
from mmzoo.metrics.vqa import answer_accuracy
from mmzoo.models.albef import (
    ALBEFNLVR2,
    ALBEFVE,
    ALBEFVQA,
    ALBEFNLVR2Config,
    ALBEFVEConfig,
    ALBEFVQAConfig,
)
from mmzoo.models.vilt import ViLTNLVR2, ViLTNLVR2Config, ViLTVQA, ViLTVQAConfig
from mmzoo.processing.processor import Processor
from mmzoo.towers.reader import ReaderConfig

WORDS = ("yes", "no", "red", "two cats", "blue")


def towers(name, kind):
    config = mmzoo.get_config(name)
    return {f.name: getattr(config, f.name) for f in fields(kind)}


def ready(model, answers=None):
    processor = Processor.of(model.config)
    processor.answers = answers
    return shake(model.eval(), seed=2), processor


def albef_vqa(answers=None):
    parts = towers("albef-tiny", ReaderConfig)
    text = parts["text"]
    decoder = replace(text, depth=2, cross_layers=(0, 1), cross_width=text.width, causal=True)
    return ready(ALBEFVQA(ALBEFVQAConfig(**parts, decoder=decoder)), answers)


def albef_nlvr2(task="compare"):
    parts = towers("albef-tiny", ReaderConfig)
    parts["text"] = replace(parts["text"], depth=6, cross_layers=(2, 3, 4, 5))
    return ready(ALBEFNLVR2(ALBEFNLVR2Config(**parts, embed=32, task=task)))


def albef_ve(answers=None):
    return ready(ALBEFVE(ALBEFVEConfig(**towers("albef-tiny", ReaderConfig))), answers)


def vilt(kind, config, **changes):
    return ready(
        kind(config(**(towers("vilt-tiny", ViLTNLVR2Config) | changes))), WORDS if kind is ViLTVQA else None
    )


def noise(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = torch.randint(256, (6, 6, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).resize((40 + seed % 3 * 20, 40)).save(path)


def inputs(processor, pictures, text):
    images = [processor.images([Image.open(p).convert("RGB")]) for p in pictures]
    return *images, *processor.texts([text])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# -- questions ----------------------------------------------------------------------------------------------


@pytest.fixture
def questions(tmp_path):
    """VQA's official layout: seven questions about five pictures, the last of them without answers."""
    rows, answers = [], []
    for i in range(7):
        picture = i % 5
        noise(tmp_path / "val2014" / f"COCO_val2014_{picture:012}.jpg", picture)
        rows.append(
            {"question_id": 70 - i, "image_id": picture, "question": f"Is {WORDS[i % 5]} a cat or {i}?"}
        )
        said = [WORDS[i % 5]] * 6 + [WORDS[(i + 1) % 5]] * 2 + ["Yes."] * 2
        kind = "yes/no" if i % 2 else "other"
        if i < 6:
            told = [{"answer": a, "answer_confidence": "yes"} for a in said]
            answers.append({"question_id": 70 - i, "answer_type": kind, "answers": told})
    file = tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json"
    file.write_text(json.dumps({"data_subtype": "val2014", "questions": rows}))
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": answers}))
    return file


def alone(opened, source, folder, words):
    """The answer to each question, asked alone."""
    model, processor = opened
    found = {}
    with torch.no_grad():
        for i in range(len(source)):
            sample = source.told(i)
            asked = inputs(processor, [folder / sample.image_key], sample.question)
            if isinstance(model, ViLTVQA):
                scores = model.answer_logits(*asked)
            else:
                scores = model.rank_answers(*asked, processor.framed(words))
            found[sample.question_id] = words[int(scores.argmax())]
    return found


@pytest.mark.parametrize("family", ["albef", "vilt"])
def test_vqa_equals_asking_one_by_one(questions, tmp_path, family):
    words = WORDS
    opened = albef_vqa() if family == "albef" else vilt(ViLTVQA, ViLTVQAConfig, answers=len(WORDS))
    listed, out = tmp_path / "answers.json", tmp_path / "out" / "predictions.json"
    listed.write_text(json.dumps(words))
    found = evaluate(
        "vqa", opened, questions, answers=listed, predictions=out, batch_size=3, device="cpu"
    )  # fmt: skip
    source = open_questions(questions)
    given = alone(opened, source, tmp_path, words)
    told = json.loads(out.read_text())
    assert told == [{"question_id": n, "answer": given[n]} for n in sorted(given)]
    assert found.predictions == out
    samples = [source.told(i) for i in range(6)]
    worth = [answer_accuracy(given[s.question_id], s.said) for s in samples]
    assert found.numbers["accuracy"].value == pytest.approx(sum(worth) / 6)
    for kind in ("yes/no", "other"):
        own = [w for w, s in zip(worth, samples) if s.kind == kind]
        assert found.numbers[f"accuracy_{kind}"].value == pytest.approx(sum(own) / len(own))
    most = Counter(a for s in samples for a in s.said)
    always = min(most, key=lambda a: (-most[a], a))
    assert found.numbers["accuracy"].chance == pytest.approx(
        sum(answer_accuracy(always, s.said) for s in samples) / 6
    )
    assert found.data["questions"] == 6
    assert "questions without published answers, not counted: 1." in found.notes
    assert found.protocol["answers"] == len(words)


def test_vqa_takes_the_models_list_or_the_datas(questions):
    own = evaluate("vqa", albef_vqa(WORDS), questions, device="cpu")
    assert own.protocol["answers"] == 5
    easy = evaluate("vqa", albef_vqa(), "easy-vqa", split="val", limit=20, device="cpu")
    assert (easy.protocol["answers"], easy.data["questions"]) == (13, 20)
    with pytest.raises(UsageError, match="give --answers FILE"):
        evaluate("vqa", albef_vqa(), questions, device="cpu")


def test_vqa_refuses_lists_that_are_not_the_models(questions, tmp_path):
    listed = tmp_path / "answers.txt"
    listed.write_text("yes\nno\n")
    opened = vilt(ViLTVQA, ViLTVQAConfig, answers=5)
    with pytest.raises(UsageError, match="lists 2 answers, and the outputs of ViLTVQA stand for 5"):
        evaluate("vqa", opened, questions, answers=listed, device="cpu")
    opened[1].answers = None
    with pytest.raises(ZooError, match="has 5 outputs and the list 2 answers"):
        evaluate("vqa", opened, questions, answers=listed, device="cpu")


def test_vqa_without_published_answers_writes_predictions_only(questions, tmp_path):
    (tmp_path / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(ZooError, match=r"no answers are published for its 7 questions.*--predictions"):
        evaluate("vqa", albef_vqa(WORDS), questions, device="cpu")
    with pytest.raises(UsageError, match="is a folder"):
        evaluate("vqa", albef_vqa(WORDS), questions, predictions=tmp_path, device="cpu")
    found = evaluate("vqa", albef_vqa(WORDS), questions, predictions=tmp_path / "p.json", device="cpu")
    assert found.numbers == {}
    assert len(json.loads((tmp_path / "p.json").read_text())) == 7


def test_questions_that_cannot_be_asked_are_named(questions, tmp_path):
    content = json.loads(questions.read_text())
    content["questions"][0]["question"] = "?!"
    questions.write_text(json.dumps(content))
    (tmp_path / "val2014" / "COCO_val2014_000000000001.jpg").unlink()  # of questions 1 and 6
    found = evaluate("vqa", albef_vqa(WORDS), questions, predictions=tmp_path / "p.json", device="cpu")
    assert sorted(item.reason for item in found.broken) == [
        "a question without words",
        *["no such picture"] * 2,
    ]
    assert found.notes[0].startswith("3 of 7 questions cannot be used")
    assert found.data["questions"] == 4
    assert len(json.loads((tmp_path / "p.json").read_text())) == 4


# -- pairs --------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path):
    """NLVR2's official lines: four sentences about two pairs each; the last label is not published."""
    rows = []
    for i in range(8):
        sentence, pair = i // 2, i % 2
        for side in (0, 1):
            noise(tmp_path / "dev" / f"dev-{sentence}-{pair}-img{side}.png", 10 * i + side)
        row = {"identifier": f"dev-{sentence}-{pair}-0", "sentence": f"A {WORDS[sentence]} is big."}
        rows.append(row | ({} if i == 7 else {"label": str(i % 3 > 0)}))
    (tmp_path / "dev.json").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return tmp_path / "dev.json"


@pytest.mark.parametrize("family", ["albef", "vilt"])
def test_nlvr2_equals_judging_one_by_one(pairs, family):
    opened = albef_nlvr2() if family == "albef" else vilt(ViLTNLVR2, ViLTNLVR2Config)
    right = {}
    with torch.no_grad():
        for row in map(json.loads, pairs.read_text().splitlines()):
            if "label" in row:
                stem = row["identifier"].rpartition("-")[0]
                sides = [pairs.parent / "dev" / f"{stem}-img{side}.png" for side in (0, 1)]
                first, second, ids, keep = inputs(opened[1], sides, row["sentence"])
                verdict = int(opened[0].compare(first, second, ids, keep).argmax())
                right[row["identifier"]] = verdict == (row["label"] == "True")
    found = evaluate("nlvr2", opened, pairs, batch_size=3, device="cpu")
    assert found.numbers["accuracy"].value == pytest.approx(sum(right.values()) / 7)
    groups = {}
    for name, hit in right.items():
        groups.setdefault(name.split("-")[1], []).append(hit)
    assert found.numbers["consistency"].value == pytest.approx(sum(map(all, groups.values())) / 4)
    labels = [row.get("label") for row in map(json.loads, pairs.read_text().splitlines())]
    assert found.numbers["accuracy"].chance == pytest.approx(max(map(labels.count, ("True", "False"))) / 7)
    assert (found.data["pairs"], found.data["sentences"]) == (7, 4)
    assert "pairs without a published label, not counted: 1." in found.notes


def test_a_pair_with_one_picture_missing_is_named(pairs):
    (pairs.parent / "dev" / "dev-0-0-img1.png").unlink()
    found = evaluate("nlvr2", albef_nlvr2(), pairs, device="cpu")
    assert [item.key.rsplit("/")[-1] for item in found.broken] == ["dev-0-0-img1.png"]
    assert found.data["pairs"] == 6
    assert found.notes[0].startswith("1 of 8 pairs cannot be used")


def test_pairs_without_labels_and_models_without_the_head_are_refused(pairs):
    with pytest.raises(ZooError, match="assigns texts to images"):
        evaluate("nlvr2", albef_nlvr2("assign"), pairs, device="cpu")
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    pairs.write_text("\n".join(json.dumps({k: row[k] for k in ("identifier", "sentence")}) for row in rows))
    with pytest.raises(ZooError, match="no labels are published for its 8 pairs"):
        evaluate("nlvr2", albef_nlvr2(), pairs, device="cpu")


# -- entailment ---------------------------------------------------------------------------------------------

RELATIONS = ("contradiction", "neutral", "entailment")


@pytest.fixture
def relations(tmp_path):
    """SNLI-VE's official lines: seven sentences about three pictures."""
    rows = []
    for i in range(7):
        noise(tmp_path / f"{i % 3}.jpg", i % 3)
        rows.append(
            {
                "Flickr30K_ID": str(i % 3),
                "sentence2": f"A {WORDS[i % 5]} {i}.",
                "gold_label": RELATIONS[i % 3],
            }
        )
    (tmp_path / "snli_ve_dev.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return tmp_path / "snli_ve_dev.jsonl"


@pytest.mark.parametrize("order", [None, RELATIONS, RELATIONS[::-1]])
def test_entailment_equals_judging_one_by_one(relations, order):
    opened = albef_ve(order)
    right = []
    with torch.no_grad():
        for row in map(json.loads, relations.read_text().splitlines()):
            asked = inputs(opened[1], [relations.parent / f"{row['Flickr30K_ID']}.jpg"], row["sentence2"])
            verdict = (order or RELATIONS)[int(opened[0].entail(*asked).argmax())]
            right.append((row["gold_label"], verdict == row["gold_label"]))
    found = evaluate("ve", opened, relations, batch_size=2, device="cpu")
    assert found.numbers["accuracy"].value == pytest.approx(sum(hit for _, hit in right) / 7)
    assert found.numbers["accuracy"].chance == pytest.approx(3 / 7)
    for relation in RELATIONS:
        own = [hit for label, hit in right if label == relation]
        assert found.numbers[f"accuracy_{relation}"].value == pytest.approx(sum(own) / len(own))
    assert found.data["sentences"] == 7


def test_entailment_of_other_relations_is_refused(relations):
    with pytest.raises(ZooError, match="knows the relations yes, no, maybe"):
        evaluate("ve", albef_ve(("yes", "no", "maybe")), relations, device="cpu")
    for picture in relations.parent.glob("*.jpg"):
        picture.write_text("no picture")
    with pytest.raises(ZooError, match="none of its 7 samples can be used"):
        evaluate("ve", albef_ve(), relations, device="cpu")


# -- zero-shot, and the command ---------------------------------------------------------------------------------


def test_zeroshot_is_that_of_the_verb():
    model = mmzoo.create_model("clip-tiny")
    opened = model, mmzoo.create_processor(model)
    data = {"data": "data/emoji", "split": "unseen-concepts", "by": "group"}
    found = evaluate("zeroshot", opened, **data, device="cpu")
    there = {
        number.name.replace(" ", "_"): number for number in zeroshot(opened, **data, device="cpu").numbers
    }
    assert {"top-1_accuracy", "mean_recall_of_classes"} == found.numbers.keys()
    for name, measure in found.numbers.items():
        assert measure[:2] == there[name][1:3]
    assert found.protocol["labels"] == 5


def test_the_command_writes_the_answers(questions, tmp_path, capsys):
    model, processor = albef_vqa(WORDS)
    mmzoo.save(model, tmp_path / "m", processor)
    out = tmp_path / "p.json"
    words = ["evaluate", "vqa", "--model", str(tmp_path / "m"), "--device", "cpu", "--data", str(questions)]
    assert main([*words, "--predictions", str(out), "--json"]) == 0
    printed, err = capsys.readouterr()
    told = json.loads(printed)
    assert told["predictions"] == str(out)
    assert told["numbers"].keys() == {"accuracy", "accuracy_yes/no", "accuracy_other"}
    assert f"predictions: {out}" in err
    assert len(json.loads(out.read_text())) == 7
