"""Questions in the layouts in which they are published, and what is said of files that are something else."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from mmzoo.data.open_tasks import QUESTIONS, list_task_splits, open_questions
from mmzoo.data.sample import QuestionSource
from mmzoo.errors import UsageError, ZooError


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture
def official(tmp_path, picture):
    """Two questions of a validation split as visualqa.org packs them, and COCO's folder."""
    for name in ("COCO_val2014_000000000042.jpg", "COCO_val2014_000000000073.jpg"):
        file = tmp_path / "coco" / "val2014" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(int(name[-6:-4]), kind="JPEG"))
    asked = [
        {"image_id": 42, "question": "What color is it?", "question_id": 42000},
        {"image_id": 73, "question": "Is it wet?", "question_id": 73001},
    ]
    said = [["red"] * 7 + ["dark red"] * 3, ["yes"] * 10]
    answers = [
        {
            "question_type": "x",
            "multiple_choice_answer": s[0],
            "answers": [
                {"answer": a, "answer_confidence": "yes", "answer_id": i + 1} for i, a in enumerate(s)
            ],
            "image_id": q["image_id"],
            "answer_type": kind,
            "question_id": q["question_id"],
        }
        for q, s, kind in zip(asked, said, ("other", "yes/no"))
    ]
    head = {"info": {}, "license": {}, "data_subtype": "val2014"}
    write(tmp_path / "v2_mscoco_val2014_annotations.json", head | {"annotations": answers})
    return write(
        tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json",
        head | {"task_type": "Open-Ended", "data_type": "mscoco", "questions": asked},
    )


def test_the_official_layout(official, tmp_path):
    source = open_questions(official, images=tmp_path / "coco")
    assert isinstance(source, QuestionSource)
    assert (source.name, len(source), source.classes) == ("vqa:val2014", 2, None)
    first, second = source[0], source[1]
    assert first.question == "What color is it?"
    assert (first.answers, first.votes) == (("red", "dark red"), (7, 3))
    assert first.weights == pytest.approx((0.7, 0.3))
    assert first.said == ("red",) * 7 + ("dark red",) * 3
    assert (first.key, first.question_id, first.kind) == ("vqa/42000", 42000, "other")
    assert first.image == (tmp_path / "coco/val2014/COCO_val2014_000000000042.jpg").read_bytes()
    assert second.kind == "yes/no"
    assert source.told(0) == first.bare()
    assert pickle.loads(pickle.dumps(source))[1] == second
    flat = tmp_path / "flat"
    (tmp_path / "coco" / "val2014").rename(flat)
    assert open_questions(official, images=flat)[1].image == second.image


def test_test_splits_have_no_answers_and_share_their_pictures(tmp_path, picture):
    write(tmp_path / "coco/test2015/COCO_test2015_000000000001.jpg", "x").write_bytes(picture(1))
    file = write(
        tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json",
        {
            "data_subtype": "test-dev2015",
            "questions": [{"image_id": 1, "question": "Why?", "question_id": 5}],
        },
    )
    sample = open_questions(file, images=tmp_path / "coco")[0]
    assert sample.answers == sample.votes == sample.weights == sample.said == ()
    assert sample.image == picture(1)


def test_answers_of_another_split_are_refused(official, tmp_path):
    beside = tmp_path / "v2_mscoco_val2014_annotations.json"
    content = json.loads(beside.read_text())
    for row in content["annotations"]:
        row["question_id"] += 10**6
    beside.write_text(json.dumps(content))
    with pytest.raises(ZooError, match=r"answers none of the questions of .*they belong to other data"):
        open_questions(official, images=tmp_path / "coco")


def test_a_question_without_answers_among_others_is_counted(official, tmp_path, caplog):
    beside = tmp_path / "v2_mscoco_val2014_annotations.json"
    content = json.loads(beside.read_text())
    content["annotations"].pop()
    beside.write_text(json.dumps(content))
    source = open_questions(official, images=tmp_path / "coco")
    assert "1 of 2 questions have no answers" in caplog.text
    assert source[1].answers == ()


@pytest.fixture
def lists(tmp_path, picture):
    """ALBEF's lists of VQA and of Visual Genome, the pictures of each in a folder of its own."""
    for name in ("coco/train2014/a.jpg", "vg/VG_100K_2/7.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(picture(len(name)))
    vqa = [
        {
            "question_id": 9,
            "question": "how many?",
            "answer": ["2", "2", "two", "", "2"],
            "image": "train2014/a.jpg",
            "dataset": "vqa",
        }
    ]
    vg = [{"image": "7.jpg", "question": "Who?", "answer": "A man.", "dataset": "vg"}]
    return write(tmp_path / "vqa_train.json", vqa), write(tmp_path / "vg_qa.json", vg)


def test_lists_of_albef(lists, tmp_path):
    vqa = open_questions(lists[0], images=tmp_path / "coco")[0]
    assert (vqa.answers, vqa.votes) == (("2", "two"), (3, 1))  # the blank answer counts for nobody
    assert vqa.weights == (0.75, 0.25)
    assert (vqa.key, vqa.question_id) == ("vqa/9", 9)
    both = open_questions(
        f"{lists[0]}+{lists[1]}", images=f"{tmp_path / 'coco'}+{tmp_path / 'vg'}", single_weight=0.2
    )
    assert (len(both), both.name) == (2, "vqa_train+vg_qa")
    assert both[0] == vqa
    vg = both[1]
    assert (vg.answers, vg.votes, vg.weights) == (("A man.",), (1,), (0.2,))
    assert vg.image == (tmp_path / "vg/VG_100K_2/7.jpg").read_bytes()
    assert 0 <= vg.question_id < 2**63
    assert both.told(1) == vg.bare()
    with pytest.raises(IndexError):
        both[2]


def test_a_list_that_gives_weights(tmp_path, picture):
    (tmp_path / "a.png").write_bytes(picture(1))
    row = {
        "image": "a.png",
        "question": "how?",
        "answer": ["so", "thus"],
        "weights": [0.6, 0.3],
        "question_id": 1,
    }
    sample = open_questions(write(tmp_path / "list.json", [row]))[0]
    assert (sample.weights, sample.votes) == ((0.6, 0.3), (6, 3))
    with pytest.raises(ZooError, match="record 0: ValueError weights are one for each"):
        open_questions(write(tmp_path / "list.json", [row | {"weights": [1.0]}]))


def test_visual_genome(tmp_path, picture):
    for folder, name in (("VG_100K", 1), ("VG_100K_2", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.jpg").write_bytes(picture(name))
    rows = [
        {"id": i, "qas": [{"qa_id": 10 * i + j, "question": f"q{j}?", "answer": "So."} for j in range(2)]}
        for i in (1, 2)
    ]
    source = open_questions(write(tmp_path / "question_answers.json", rows))
    assert [source.told(i).question_id for i in range(4)] == [10, 11, 20, 21]
    assert [source[i].image for i in range(4)] == [picture(1)] * 2 + [picture(2)] * 2
    assert source[0].weights == (0.5,)
    assert source[0].image_key == source[1].image_key != source[2].image_key


def test_a_folder_with_a_file_for_each_split(lists, official, tmp_path):
    folder = tmp_path / "ann"
    folder.mkdir()
    (folder / "answer_list.json").write_text('["2", "two"]')
    lists[0].rename(folder / "vqa_train.json")
    official.rename(folder / official.name)
    assert list_task_splits(folder, QUESTIONS) == ("val", "train")
    assert len(open_questions(folder, split="train", images=tmp_path / "coco")) == 1
    assert open_questions(folder, split="val", images=tmp_path / "coco").name == "vqa:val2014"
    with pytest.raises(UsageError, match="holds the splits val, train; say which"):
        open_questions(folder)
    with pytest.raises(UsageError, match="no split 'test'"):
        open_questions(folder, split="test")
    (folder / "vqa_train_more.json").write_text((folder / "vqa_train.json").read_text())
    with pytest.raises(UsageError, match="are both train"):
        open_questions(folder, split="train")


LIST = [{"image": "a.jpg", "question": "what?", "answer": ["x"]}]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "file.json is empty. Looked for VQA's questions in the official layout"),
        ("[]", "holds none of the known layouts"),
        ("{}", "holds none of the known layouts"),
        (LIST, r"none of its pictures \(a.jpg, ...\) lies in .*; set images to their folder"),
        ([{"image": "a.jpg", "question": "what?", "answer": [1]}], "record 0: TypeError answers are strings"),
        ([*LIST, {"image": "a.jpg"}], "record 1: KeyError 'question'; expected .*found .*a.jpg"),
        (json.dumps(LIST)[:-3], "broken JSON .* at line 1"),
        ([{"image": "../a.jpg", "question": "what?", "answer": ["x"]}], "leads out of the data folder"),
        (
            [{"images": ["a", "b"], "sentence": "s", "label": "True"}],
            "holds NLVR2's pairs in a list.*QuestionsData reads",
        ),
        ('{"identifier": "dev-1-0-0", "sentence": "s"}', "holds NLVR2's pairs in the official layout"),
        ('{"gold_label": "neutral", "sentence2": "s"}', "holds SNLI-VE's sentences"),
        ([{"image": "a", "sentence": "s", "label": "neutral"}], "holds SNLI-VE's sentences in a list"),
        ([{"image": "a.jpg", "caption": "s"}], "holds captions. QuestionsData reads VQA's questions"),
        ({"images": [{"sentences": [{"raw": "s"}], "filename": "x"}]}, "holds captions"),
        (
            {"annotations": [{"multiple_choice_answer": "x"}]},
            "holds VQA's answers .* read along with its questions",
        ),
        ({"questions": [{"question_id": 1, "image_id": "x", "question": "?"}]}, "record 0: ValueError"),
        ({"questions": [], "question_id": 0}, "holds no records"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, content, says):
    file = write(tmp_path / "file.json", content)
    with pytest.raises(ZooError, match=says):
        open_questions(file)


def test_places_where_nothing_lies(tmp_path, lists):
    for path, words in [
        (tmp_path / "no.json", "no annotations at .*no.json"),
        (f"{lists[0]}+{tmp_path / 'no.json'}", "no annotations at .*no.json"),
        (tmp_path / "coco", "no annotations of a split. Looked for files such as"),
    ]:
        with pytest.raises(ZooError, match=words):
            open_questions(path, images=tmp_path / "coco")
    with pytest.raises(ZooError, match=r"no folder of pictures at .*nowhere"):
        open_questions(lists[0], images=tmp_path / "nowhere")
    with pytest.raises(UsageError, match="has no splits, so 'val' cannot be opened"):
        open_questions(lists[0], images=tmp_path / "coco", split="val")


def test_a_link_out_of_the_folder_is_not_followed(tmp_path, lists, picture):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(picture(3))
    (tmp_path / "coco/train2014/a.jpg").unlink()
    (tmp_path / "coco/train2014/a.jpg").symlink_to(secret)
    with pytest.raises(ZooError, match="leads out of the data folder"):
        open_questions(lists[0], images=tmp_path / "coco")[0]
