"""Questions, pairs and entailment as batches: what is in them, what is left out, and that runs resume."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device

from mmzoo.data.batch import CaptionBatch, PairBatch, QuestionBatch
from mmzoo.data.sources.common import stable_id
from mmzoo.data.task_modules import EntailmentData, PairsData, QuestionsData
from mmzoo.errors import UsageError, ZooError
from mmzoo.metrics.vqa import VQAAccuracy
from mmzoo.processing.augment import BatchAugment
from mmzoo.processing.image import ImageTransform
from mmzoo.processing.processor import Processor
from mmzoo.spec import TINY_VOCAB, ImageSpec, TextSpec


def processor(**changes):
    text = TextSpec("tiny", 20, TINY_VOCAB, **changes)
    return Processor(ImageSpec(16), text)


def ready(data, stage="fit", reads=None):
    data.processor = processor() if reads is None else reads
    data.setup(stage)
    return data


@pytest.fixture
def questions(tmp_path, picture):
    """Thirty questions about ten pictures, three annotators each; answers 0 to 4, and one that nobody else gives."""
    rows = []
    for i in range(30):
        (tmp_path / f"{i % 10}.png").write_bytes(picture(i % 10))
        said = [str(i % 5)] * 2 + [str((i + 1) % 5)]
        rows.append(
            {"image": f"{i % 10}.png", "question": f"how many {i}?", "answer": said, "question_id": i}
        )
    rows[7]["answer"] = ["nobody else"] * 3
    return save(tmp_path / "vqa_train.json", rows)


def save(file, rows):
    file.write_text(json.dumps(rows))
    return file


def edit(file, change):
    rows = json.loads(file.read_text())
    change(rows)
    return save(file, rows)


def answers(tmp_path, *texts):
    return str(save(tmp_path / "answers.json", texts or [str(i) for i in range(5)]))


def same(one, two):
    for a, b in zip(one, two, strict=True):
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
    return True


def test_closed_answers_are_soft_targets(questions, tmp_path, caplog):
    data = ready(QuestionsData(str(questions), answers=answers(tmp_path), batch_size=29, seed=0))
    with caplog.at_level(logging.WARNING):
        (batch,) = data.train_dataloader()
    assert isinstance(batch, QuestionBatch)
    assert batch.answers.shape == (29, 5)
    assert batch.answers.dtype == torch.float32
    assert batch.answer_weights is batch.answer_keep is batch.answer_rows is None
    for row, number, said in zip(batch.answers, batch.question_ids.tolist(), batch.said):
        expected = torch.zeros(5)
        expected[number % 5], expected[(number + 1) % 5] = 2 / 3, 1 / 3
        torch.testing.assert_close(row, expected)
        assert said == (str(number % 5),) * 2 + (str((number + 1) % 5),)
    assert batch.keys == [f"vqa/{number}" for number in batch.question_ids.tolist()]
    assert data.processor.decode(batch.ids)[0].replace(" ", "") == f"howmany{int(batch.question_ids[0])}?"
    assert data.processor.answers == data.answers.texts == ("0", "1", "2", "3", "4")


def test_an_answer_that_is_not_on_the_list(questions, tmp_path, caplog):
    """Left out of training and counted; held out it stays, with nothing that would be right."""
    with caplog.at_level(logging.WARNING):
        data = ready(
            QuestionsData(str(questions), val=str(questions), answers=answers(tmp_path), batch_size=5)
        )
    assert (
        "left out of training 1 of 30 samples, which have no answer that is among the 5 of the list"
        in caplog.text
    )
    assert len(data.train_source) == 29
    (held_out,) = data.val_dataloader()
    rows = {number: row for b in held_out for number, row in zip(b.question_ids.tolist(), b.answers)}
    assert sorted(rows) == list(range(30))
    assert rows[7].tolist() == [0] * 5
    with pytest.raises(
        ZooError, match="cannot be trained on: all of its 30 samples have no answer that is among the 1"
    ):
        ready(QuestionsData(str(questions), answers=answers(tmp_path, "zebra")))


def test_words_are_every_answer_with_its_share(questions):
    data = ready(QuestionsData(str(questions), targets="words", batch_size=30, seed=0))
    (batch,) = data.train_dataloader()
    assert batch.answer_rows.tolist() == sorted(batch.answer_rows.tolist())
    assert batch.answer_keep.shape == batch.answers.shape
    assert (
        len(batch.answers) == len(batch.answer_weights) == 59
    )  # two answers each, but for the one that has one
    words = data.processor.decode(batch.answers)
    for row, number in enumerate(batch.question_ids.tolist()):
        mine = (batch.answer_rows == row).nonzero()[:, 0].tolist()
        got = {words[i]: round(float(batch.answer_weights[i]), 4) for i in mine}
        expected = {str(number % 5): 0.6667, str((number + 1) % 5): 0.3333}
        assert got == ({"nobody else": 1.0} if number == 7 else expected)
    assert data.answers is None  # nothing to choose from was asked for


def test_answers_end_where_texts_do_not(questions):
    """A decoder must learn to stop, also the one of a model that reads questions without an end token."""
    edit(questions, lambda rows: rows[0].update(answer=["3.5"] * 3))
    reads = processor(sep=False, clean="albef")
    data = ready(QuestionsData(str(questions), targets="words", batch_size=30), reads=reads)
    (batch,) = data.train_dataloader()
    end = reads.tokenizer.eos_id
    assert not (batch.ids == end).any()
    last = batch.answer_keep.sum(1) - 1
    assert (batch.answers.gather(1, last[:, None]) == end).all()
    assert ((batch.answers == end).sum(1) == 1).all()
    assert "3.5" in [text.replace(" ", "") for text in reads.decode(batch.answers)]  # and is not cleaned up
    with_end = ready(QuestionsData(str(questions), targets="words", batch_size=30))
    (other,) = with_end.train_dataloader()
    assert ((other.answers == end).sum(1) == 1).all()


def test_where_the_closed_list_comes_from(questions, tmp_path):
    easy = ready(QuestionsData("easy-vqa", val_splits=("val",)))
    assert easy.answers.texts == easy.classes
    assert len(easy.answers) == 13
    with pytest.raises(ZooError, match="no answer is the most common one of 9 questions"):
        ready(QuestionsData(str(questions)))
    made = ready(QuestionsData(str(questions), at_least=6))
    assert set(made.answers.texts) == {"0", "1", "3", "4"}  # one question of "2" was spoilt
    # what is only tested has the list of its training data
    tested = ready(QuestionsData(str(questions), val=str(questions), at_least=6), "test")
    assert tested.answers.texts == made.answers.texts
    reads = processor()
    reads.answers = ("3", "4")
    assert ready(QuestionsData(str(questions)), reads=reads).answers.texts == ("3", "4")
    with pytest.raises(UsageError, match=r"lists 5 answers, and the model's outputs stand for 2"):
        ready(QuestionsData(str(questions), answers=answers(tmp_path)), reads=reads)


def test_weights_over_a_closed_list(questions, tmp_path):
    edit(questions, lambda rows: rows.append({"image": "0.png", "question": "one?", "answer": "4"}))
    data = ready(
        QuestionsData(str(questions), targets="weights", answers=answers(tmp_path), single_weight=0.2)
    )
    (batch,) = data._held_out(data.train_source)
    assert batch.answers[-1].tolist() == pytest.approx([0, 0, 0, 0, 0.2])
    assert batch.answers[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0, 0])


def test_a_question_without_words_is_named_and_passed_over(questions, tmp_path, caplog):
    edit(questions, lambda rows: rows[3].update(question=" ?! "))
    data = QuestionsData(
        str(questions), val=str(questions), answers=answers(tmp_path), batch_size=29, max_broken=0.1, seed=0
    )
    ready(data)
    (batch,) = data.train_dataloader()
    assert 3 not in batch.question_ids.tolist()
    (held_out,) = data.val_dataloader()
    assert 3 not in [n for b in held_out for n in b.question_ids.tolist()]
    assert "passed over vqa/3: a question without words" in caplog.text
    strict = ready(QuestionsData(str(questions), answers=answers(tmp_path), batch_size=29, max_broken=0.01))
    with pytest.raises(ZooError, match=r"1 of 30 samples are broken.*vqa/3 \(a question without words\)"):
        list(strict.train_dataloader())


@pytest.mark.parametrize("spoil", ["missing", "truncated"])
@pytest.mark.parametrize("cache", [False, True])
def test_a_picture_that_cannot_be_read_spoils_its_questions_only(questions, tmp_path, caplog, spoil, cache):
    file = tmp_path / "4.png"
    file.unlink() if spoil == "missing" else file.write_bytes(file.read_bytes()[:40])
    data = ready(
        QuestionsData(
            str(questions), answers=answers(tmp_path), cache_images=cache, batch_size=5, max_broken=0.2
        )
    )
    seen = {n for batch in data.train_dataloader() for n in batch.question_ids.tolist()}
    assert seen
    assert not {4, 14, 24} & seen
    named = "4.png: no such picture" if spoil == "missing" else "picture 4.png: "
    assert named in caplog.text


def test_held_out_questions_without_answers(questions, tmp_path):
    edit(questions, lambda rows: [row.pop("answer") for row in rows])
    with pytest.raises(
        ZooError, match="cannot be trained on: all of its 30 samples have no published answer"
    ):
        ready(QuestionsData(str(questions), targets="words"))
    data = QuestionsData(str(questions), val=str(questions), answers=answers(tmp_path))
    with pytest.raises(ZooError, match="cannot be validated on"):
        ready(data, "validate")
    (loader,) = ready(data, "predict").test_dataloader()
    assert sum(len(batch.keys) for batch in loader) == 30
    for targets in ("votes", "words"):
        data = QuestionsData(str(questions), val=str(questions), targets=targets, answers=answers(tmp_path))
        (loader,) = ready(data, "predict").test_dataloader()
        batch = next(iter(loader))
        assert set(batch.said) == {()}
        assert not batch.answers.any()


def test_a_picture_of_many_questions_is_held_once(questions, tmp_path):
    data = ready(QuestionsData(str(questions), answers=answers(tmp_path), cache_images=True, batch_size=29))
    loader = data.train_dataloader()
    held = loader._reads._loader.dataset._held
    assert len(held) == 29
    assert len({pixels.data_ptr() for _, (pixels,) in held}) == 10
    (batch,) = loader
    transform = ImageTransform(ImageSpec(16))
    for image, number in zip(batch.images, batch.question_ids.tolist()):
        assert torch.equal(image, transform.load_batch([tmp_path / f"{number % 10}.png"])[0])


def test_the_batch_serves_the_official_accuracy(questions, tmp_path):
    data = ready(QuestionsData(str(questions), val=str(questions), answers=answers(tmp_path)))
    metric = VQAAccuracy()
    for batch in data.val_dataloader()[0]:
        guesses = [data.answers.texts[i] for i in batch.answers.argmax(1).tolist()]
        metric.update(guesses, batch.said, batch.kinds)
    # two of three agree: leaving out one of them leaves 1/3, leaving out the third 2/3
    assert metric.compute().accuracy == pytest.approx((29 * (2 * (1 / 3) + 2 / 3) / 3 + 0) / 30)


@pytest.fixture
def pairs(tmp_path, picture):
    """Twelve sentences about three pairs of pictures."""
    rows = []
    for i in range(12):
        for side in (0, 1):
            (tmp_path / f"dev-{i % 3}-0-img{side}.png").write_bytes(picture(i % 3 + 50 * side))
        rows.append(
            {"identifier": f"dev-{i % 3}-0-{i}", "sentence": f"sentence {i}", "label": str(i % 2 == 0)}
        )
    file = tmp_path / "dev.json"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.mark.parametrize("cache", [False, True])
def test_pairs_keep_left_and_right_apart(pairs, tmp_path, cache):
    data = ready(PairsData(str(pairs), val=str(pairs), batch_size=5, cache_images=cache, seed=0))
    (held_out,) = data.val_dataloader()
    (batch,) = held_out
    assert isinstance(batch, PairBatch)
    assert batch.first.shape == batch.second.shape == (12, 3, 16, 16)
    transform = ImageTransform(ImageSpec(16))
    for i, key in enumerate(batch.keys):
        number = int(key.rsplit("-", 1)[1])
        for images, side in ((batch.first, 0), (batch.second, 1)):
            file = tmp_path / f"dev-{number % 3}-0-img{side}.png"
            assert torch.equal(images[i], transform.load_batch([file])[0])
        assert batch.labels[i] == int(number % 2 == 0)
        assert batch.groups[i] == stable_id(f"dev-{number % 3}-{number}")
    assert data.classes == ("false", "true")
    assert [len(b.keys) for b in data.train_dataloader()] == [5, 5]


def test_a_folder_of_splits_is_trained_and_validated_on(pairs, tmp_path):
    (tmp_path / "train.json").write_text(pairs.read_text())
    data = ready(PairsData(str(tmp_path), batch_size=4))
    assert (data.train_source.name, data.val_names) == ("train", ["dev"])
    assert data.val_sources["dev"].name == "dev"


def test_one_missing_picture_of_a_pair_is_named(pairs, tmp_path, caplog):
    (tmp_path / "dev-1-0-img1.png").unlink()
    (tmp_path / "dev-2-0-img0.png").write_bytes(b"no picture")
    data = ready(PairsData(str(pairs), val=str(pairs), batch_size=4, max_broken=0.9))
    (held_out,) = data.val_dataloader()
    (batch,) = held_out
    assert {key.split("-")[1] for key in batch.keys} == {"0"}
    assert len(batch.keys) == 4
    assert "dev-1-0-img1.png: no such picture" in caplog.text
    assert "passed over dev-2-0-2, picture dev/dev-2-0-img0.png: " in caplog.text
    with pytest.raises(ZooError, match="8 of 12 samples are broken"):
        list(ready(PairsData(str(pairs), val=str(pairs), batch_size=4)).val_dataloader()[0])


def test_pairs_without_a_label_are_not_trained_on(pairs, caplog):
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    del rows[2]["label"]
    pairs.write_text("\n".join(map(json.dumps, rows)))
    data = ready(PairsData(str(pairs), val=str(pairs), batch_size=11))
    assert "left out of training 1 of 12 samples, which have no published label" in caplog.text
    (batch,) = data.val_dataloader()[0]
    assert batch.labels[2] == -1
    (batch,) = data.train_dataloader()
    assert (batch.labels >= 0).all()


def test_entailment_is_captions_with_labels(tmp_path, picture):
    rows = []
    for i in range(8):
        (tmp_path / f"{i % 4}.jpg").write_bytes(picture(i % 4, kind="JPEG"))
        label = ("contradiction", "neutral", "entailment")[i % 3]
        rows.append({"image": str(i % 4), "sentence": f"sentence {i}", "label": label})
    file = save(tmp_path / "ve_train.json", rows)
    data = ready(EntailmentData(str(file), val=str(file), batch_size=8))
    (batch,) = data.val_dataloader()[0]
    assert isinstance(batch, CaptionBatch)
    assert batch.labels.tolist() == [i % 3 for i in range(8)]
    assert data.classes == ("contradiction", "neutral", "entailment")
    assert batch.image_ids[0] == batch.image_ids[4] != batch.image_ids[1]
    assert not (batch.text_ids[:, None] == batch.image_ids).any()  # nothing says that a sentence fits
    assert len(data.processor.decode(batch.ids)) == 8


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_epoch_resumes_exactly(questions, tmp_path, workers):
    def make():
        data = QuestionsData(
            str(questions),
            targets="words",
            batch_size=4,
            num_workers=workers,
            seed=3,
            augment=BatchAugment(rotate=20),
        )
        return ready(data)

    whole = make()
    loader = whole.train_dataloader()
    epochs = [list(loader), list(loader)]
    whole.teardown("fit")
    cut = make()
    loader = cut.train_dataloader()
    assert same(list(loader), epochs[0])
    passing = iter(loader)
    assert same([next(passing) for _ in range(3)], epochs[1][:3])
    state = loader.state_dict()
    cut.teardown("fit")
    again = make()
    loader = again.train_dataloader()
    loader.load_state_dict(state)
    assert same(list(loader), epochs[1][3:])
    again.teardown("fit")


def test_batches_survive_lightnings_transfer(questions, pairs, tmp_path):
    for data in (
        QuestionsData(str(questions), targets="words", batch_size=8),
        QuestionsData(str(questions), answers=answers(tmp_path), batch_size=8),
        PairsData(str(pairs), batch_size=8),
    ):
        batch = next(iter(ready(data).train_dataloader()))
        moved = move_data_to_device(batch, torch.device("cpu"))
        assert type(moved) is type(batch)
        assert same([moved], [batch])


def test_types_parse_on_a_command_line():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(QuestionsData, "vqa")
    parser.add_class_arguments(PairsData, "pairs")
    settings = {
        "vqa": {"source": ["a.json", "b.json"], "targets": "words", "images": "coco+vg"},
        "pairs": {"source": "train.json", "val_splits": ["dev"], "crop": {"scale": [0.5, 1.0]}},
    }
    made = parser.instantiate(parser.parse_object(settings))
    assert made.vqa.source == "a.json+b.json"
    assert made.pairs.val_splits == ("dev",)
    help_text = parser.format_help()
    assert "min(annotators / 3, 1)" in help_text
    assert "--pairs.images" in help_text
    assert "several joined by" in help_text
