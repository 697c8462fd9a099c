"""`mmzoo capfilt` with a small BLIP of random weights: scores, bytes, selections anew, and input that is broken."""

import errno
import io
import json
import random
import tarfile

import pytest
import torch
from PIL import Image, ImageDraw

import mmzoo
from mmzoo.apps.capfilt import capfilt, records, work
from mmzoo.apps.capfilt.records import read_records
from mmzoo.cli.main import main
from mmzoo.data.open import open_source
from mmzoo.errors import UsageError, ZooError

pq = pytest.importorskip("pyarrow.parquet", reason="extra capfilt")


def picture(number, size=24):
    chance = random.Random(number)
    image = Image.new("RGB", (size, size), tuple(chance.randrange(256) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    for _ in range(3):
        x, y = chance.randrange(size), chance.randrange(size)
        pen.rectangle((x, y, x + 8, y + 5), fill=tuple(chance.randrange(256) for _ in range(3)))
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def blip():
    torch.manual_seed(0)
    model = mmzoo.create_model("blip-tiny")
    with torch.no_grad():  # as drawn, nothing differs by more than a hair
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model, mmzoo.create_processor(model)


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(1)
    model = mmzoo.create_model("clip-tiny")
    return model, mmzoo.create_processor(model)


@pytest.fixture
def photos(tmp_path):
    """Seven pictures with none to three captions each."""
    folder = tmp_path / "in"
    (folder / "a").mkdir(parents=True)
    said = [
        ["a red square", "two boxes on a wall"],
        ["boat"],
        ["a dog"],
        [],
        ["one", "two", "three"],
        ["sun"],
        ["x y"],
    ]
    with (folder / "captions.jsonl").open("w") as lines:
        for i, texts in enumerate(said):
            (folder / f"a/{i}.png").write_bytes(picture(i))
            lines.write(json.dumps({"image": f"a/{i}.png", "captions": texts, "id": i}) + "\n")
    return folder


def run(source, out, blip, **more):
    return capfilt(
        source, out, **{"model": blip, "shard_size": 3, "batch_size": 2, "workers": 1, "html": False} | more
    )


def rows_of(out):
    return [row for path in sorted((out / "records").iterdir()) for row in read_records(path)]


def files_of(out, *, skip=("log.jsonl", "report.json", "report.html", "manifest.json")):
    names = sorted(p for p in out.rglob("*") if p.is_file() and p.name not in skip)
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in names}


def test_scores_equal_the_naive_path(photos, tmp_path, blip, clip):
    run(photos, tmp_path / "out", blip, clip=clip, num_captions=2)
    rows = rows_of(tmp_path / "out")
    assert [row.source for row in rows].count("web") == 9
    assert [row.source for row in rows].count("synthetic") == 14
    (model, processor), (other, reader) = blip, clip
    with torch.inference_mode():
        for row in rows:  # each text with its picture, all anew
            image = Image.open(photos / row.key).convert("RGB")
            pixels, (ids, keep) = processor.images([image]), processor.texts([row.text])
            match = model.match(pixels, ids, keep).softmax(1)[0, 1].item()
            cosine = (model.encode_image(pixels) @ model.encode_text(ids, keep).T).item()
            clips = (
                other.encode_image(reader.images([image])) @ other.encode_text(*reader.texts([row.text])).T
            ).item()
            assert row.itm_prob == pytest.approx(match, abs=2e-5)
            assert row.itc_cos == pytest.approx(cosine, abs=2e-5)
            assert row.clip_cos == pytest.approx(clips, abs=2e-5)
    assert len({row.itm_prob for row in rows}) > 15
    assert len({row.weights for row in rows if row.source == "synthetic"}) == 1
    assert all(row.model is None and row.seed is None for row in rows if row.source == "web")
    assert json.loads(rows[-1].sampling)["top_p"] == 0.9


def test_each_picture_is_seen_once_by_each_model(photos, tmp_path, blip, monkeypatch):
    seen = {"image_tokens": 0, "project": 0}
    for name in seen:
        real = getattr(type(blip[0]), name)

        def counted(self, x, real=real, name=name):
            seen[name] += len(x)
            return real(self, x)

        monkeypatch.setattr(type(blip[0]), name, counted)
    run(photos, tmp_path / "out", blip, num_captions=3)
    assert seen == {"image_tokens": 7, "project": 7}


def test_stages_alone_give_the_same_bytes_as_together(photos, tmp_path, blip):
    run(photos, tmp_path / "whole", blip)
    for stage in ("caption", "score", "select"):
        run(photos, tmp_path / "parts", blip, stages=[stage])
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


def test_a_caption_depends_on_seed_and_key_not_on_what_stands_beside_it(photos, tmp_path, blip):
    one = run(photos, tmp_path / "one", blip)
    run(photos, tmp_path / "two", blip, shard_size=7, batch_size=7)
    run(photos, tmp_path / "three", blip, seed=1)
    first, second, third = (
        {row.key: row.text for row in rows_of(tmp_path / name) if row.source == "synthetic"}
        for name in ("one", "two", "three")
    )
    assert first == second
    assert sum(first[key] != third[key] for key in first) >= 5
    assert len(set(first.values())) >= 5
    assert (one.shards, one.done) == (3, 3)


def test_a_second_run_does_nothing_and_changes_nothing(photos, tmp_path, blip, monkeypatch):
    run(photos, tmp_path / "out", blip, write=["jsonl", "tar"])
    before = files_of(tmp_path / "out")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out/records").iterdir()}
    monkeypatch.setattr(work, "look", None)  # no model may be asked
    assert run(photos, tmp_path / "out", blip, write=["jsonl", "tar"]).done == 0
    assert files_of(tmp_path / "out") == before
    assert {p: p.stat().st_mtime_ns for p in times} == times


def test_selecting_anew_runs_no_model_and_reads_the_records_alone(photos, tmp_path, blip, monkeypatch):
    out = tmp_path / "out"
    run(photos, out, blip, num_captions=2, threshold=0.5)
    scores = sorted(row.itm_prob for row in rows_of(out))
    middle = scores[len(scores) // 2]
    monkeypatch.setattr("mmzoo.apps.capfilt.run.Models", None)
    chosen = capfilt(None, out, stages=["select"], threshold=middle, html=False)
    rows = rows_of(out)
    assert [row.kept for row in rows] == [row.itm_prob >= middle for row in rows]
    assert {row.reason for row in rows} == {None, "below threshold"}
    assert chosen.summary.kept == sum(row.kept for row in rows)
    capfilt(None, out, stages=["select"], best=1, by="itc", html=False)
    best = {}
    for row in rows:
        best[row.key] = max(best.get(row.key, -2), row.itc_cos)
    assert [row.kept for row in rows_of(out)] == [row.itc_cos == best[row.key] for row in rows]


def test_what_is_kept_can_be_trained_on(photos, tmp_path, blip):
    out = tmp_path / "out"
    run(photos, out, blip, threshold=0.0, write=["jsonl", "tar"])
    kept = {}
    for row in rows_of(out):
        kept.setdefault(row.key, []).append(row.text)
    from_lines, from_tar = open_source(out), open_source(str(out / "tar"))
    assert [list(from_lines[i].texts) for i in range(7)] == list(kept.values())
    assert [list(from_tar[i].texts) for i in range(7)] == list(kept.values())
    assert [from_lines[i].image for i in range(7)] == [picture(i) for i in range(7)]
    # a stricter choice takes away what the first had written
    capfilt(None, out, stages=["select"], threshold=1.0, write=["jsonl", "tar"], html=False)
    assert (out / "captions.jsonl").read_bytes() == b""
    assert not list((out / "tar").glob("*.tar"))
    assert not list(out.glob("images/*/*"))


def test_a_bare_folder_captions_beside_pictures_and_no_captioner(photos, tmp_path, blip):
    (photos / "captions.jsonl").unlink()
    (photos / "a/2.txt").write_text("a text beside it\n")
    run(photos, tmp_path / "out", blip, stages=["score", "select"], threshold=0)
    assert [(row.key, row.text, row.source) for row in rows_of(tmp_path / "out")] == [
        ("a/2.png", "a text beside it", "web")
    ]
    run(photos, tmp_path / "human", blip, texts="human", threshold=1.0)
    assert {(row.source, row.kept) for row in rows_of(tmp_path / "human")} == {
        ("human", True),
        ("synthetic", False),
    }


def test_a_parquet_list_of_local_pictures(photos, tmp_path, blip):
    import pyarrow

    table = {
        "url": [f"http://x/{i}" for i in range(7)],
        "path": [f"a/{i}.png" for i in range(7)],
        "caption": ["c"] * 7,
    }
    table["path"][4] = None
    pq.write_table(pyarrow.table(table), photos / "list.parquet", row_group_size=4)
    result = run(photos / "list.parquet", tmp_path / "out", blip, stages=["score", "select"], threshold=0)
    rows = rows_of(tmp_path / "out")
    assert [row.url for row in rows] == [f"http://x/{i}" for i in (0, 1, 2, 3, 5, 6)]
    assert result.shards == 3  # of 3, 1 and 3 rows: no shard crosses a row group
    assert result.summary.fault_counts == {"record": 1}


def test_lines_that_are_broken_are_named_and_cost_nothing_else(photos, tmp_path, blip):
    long, rtl, emoji = "word " * 20_000, "\u202bכלב על ספה\u202c", "🐶🛋️❤️"
    lines = [
        {"image": "a/0.png", "captions": ["", "  ...  ", long, rtl, emoji, "lone \ud800 surrogate"]},
        {"image": "gone.png", "captions": ["a text"]},
        {"image": "../secret.png", "captions": ["a text"]},
        {"image": "a/0.png", "captions": ["again"]},
        {"image": "a/1.png", "captions": 5},
        {"captions": ["no picture"]},
    ]
    (photos / "a/2.png").write_bytes(picture(2)[:60])
    text = "\n".join(
        [*map(json.dumps, lines), "{broken", json.dumps({"image": "a/2.png", "captions": ["half"]})]
    )
    (photos / "captions.jsonl").write_text(text)
    result = run(
        photos, tmp_path / "out", blip, stages=["score", "select"], threshold=0, shard_size=100, html=True
    )
    summary = result.summary
    assert summary.fault_counts == {"picture": 3, "duplicate key": 1, "record": 3}
    named = {key: reason for _, key, reason in summary.faults}
    assert named["gone.png"] == "No such file or directory"
    assert "leads out of the data folder" in named["../secret.png"]
    assert "a/2.png" in named
    rows = rows_of(tmp_path / "out")
    assert [(row.text, row.reason) for row in rows] == [
        ("", "empty"), ("  ...  ", "empty"), (long, "too long"), (rtl, None), (emoji, None),
        ("lone ? surrogate", None), ("again", None),
    ]  # fmt: skip
    assert [row.itm_prob is None for row in rows] == [True, True] + [False] * 5
    page = (tmp_path / "out/report.html").read_text()
    assert rtl in page and "gone.png" in page  # noqa: PT018
    assert "half" not in page


def test_a_key_that_stands_in_two_shards_is_counted_and_named(photos, tmp_path, blip):
    lines = (photos / "captions.jsonl").read_text()
    (photos / "captions.jsonl").write_text(lines + lines.splitlines()[0] + "\n")
    result = run(photos, tmp_path / "out", blip, stages=["score", "select"], threshold=0)
    assert result.summary.fault_counts == {"duplicate key": 1}
    assert result.summary.faults == [("duplicate key", "a/0.png", "stands in several shards")]
    rows = rows_of(tmp_path / "out")
    assert [row.reason for row in rows if row.key == "a/0.png"] == [None, None, "duplicate", "duplicate"]


def tar_of(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_a_tar_cut_off_in_the_middle_gives_what_is_whole(tmp_path, blip):
    for shard in range(2):
        members = []
        for i in range(4):
            members += [(f"{i}.png", picture(10 * shard + i)), (f"{i}.txt", f"text {i}".encode())]
        if shard == 0:
            members.append(("1.png", picture(77)))  # a second picture under one key
            members.append(("9.txt", b"no picture"))
        tar_of(tmp_path / f"{shard}.tar", members)
    whole = (tmp_path / "1.tar").read_bytes()
    with tarfile.open(tmp_path / "1.tar") as tar:
        third = tar.getmember("2.png")
    (tmp_path / "1.tar").write_bytes(whole[: third.offset_data + third.size // 2])
    result = run(str(tmp_path / "*.tar"), tmp_path / "out", blip, stages=["score", "select"], threshold=0)
    assert [row.key for row in rows_of(tmp_path / "out")] == ["0/0", "0/1", "0/1", "0/2", "0/3", "1/0", "1/1"]
    assert result.summary.fault_counts == {"duplicate key": 1, "picture": 1, "shard": 1}
    assert ("shard", "1.tar", "cut off inside 2.png") in result.summary.faults


def test_a_full_disk_loses_one_shard_and_the_next_run_makes_up_for_it(photos, tmp_path, blip, monkeypatch):
    run(photos, tmp_path / "whole", blip)
    real = records._write

    def full(table, path):
        if path.name == "00001.parquet" and not (tmp_path / "out/records/00001.parquet").exists():
            with records.atomic_path(path) as part:
                part.write_bytes(b"PAR1 half")
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(table, path)

    monkeypatch.setattr(records, "_write", full)
    result = run(photos, tmp_path / "out", blip)
    assert result.failed == [("shard 1", "No space left on device")]
    assert result.summary.shards == (2, 3)
    assert json.loads((tmp_path / "out/report.json").read_text())["failed"] == [
        ["shard 1", "No space left on device"]
    ]
    assert sorted(p.name for p in (tmp_path / "out/records").iterdir()) == ["00000.parquet", "00002.parquet"]
    monkeypatch.setattr(records, "_write", real)
    assert run(photos, tmp_path / "out", blip).done == 1
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_folder_holds_one_way_of_captioning_unless_told_again(photos, tmp_path, blip):
    out = tmp_path / "out"
    run(photos, out, blip)
    before = {row.key: row.text for row in rows_of(out)}
    with pytest.raises(UsageError, match="another seed"):
        run(photos, out, blip, seed=5)
    with pytest.raises(UsageError, match="shard size 3, not 4"):
        run(photos, out, blip, shard_size=4)
    run(photos, out, blip, seed=5, again=True)
    assert {row.key: row.text for row in rows_of(out)} != before


def test_an_input_that_changed_is_refused(photos, tmp_path, blip):
    run(photos, tmp_path / "out", blip, stages=["caption"])
    with (photos / "captions.jsonl").open("a") as file:
        file.write('{"image": "a/0.png", "captions": ["new"]}\n')
    result = run(photos, tmp_path / "out", blip, stages=["score"])
    assert len(result.failed) == 3
    assert "has changed since the run began" in result.failed[0][1]


def test_words_that_mean_nothing_and_models_that_cannot(photos, tmp_path, blip, clip):
    for wrong, told in (
        ({"stages": ["scores"]}, "no 'scores'. Did you mean score"),
        ({"write": ["csv"]}, "no 'csv'"),
        ({"engine": "spark"}, "no 'spark'"),
        ({"beams": 3, "top_p": 0.5}, "draws none"),
        ({"num_captions": 0}, "too few"),
        ({"model": None}, "needs --captioner"),
    ):
        with pytest.raises(UsageError, match=told):
            run(photos, tmp_path / "out", blip, **wrong)
    with pytest.raises(ZooError, match="cannot write captions"):
        run(photos, tmp_path / "out", clip)
    for source in (photos, photos / "captions.jsonl"):
        with pytest.raises(UsageError, match="where the input lies"):
            run(source, photos, blip)
    (tmp_path / "none").mkdir()
    with pytest.raises(ZooError, match="is empty"):
        run(tmp_path / "none", tmp_path / "out", blip)
    with pytest.raises(UsageError, match="holds no run to go on with"):
        capfilt(None, tmp_path / "new", stages=["select"])


def test_the_command_with_a_config(photos, tmp_path, blip, capsys):
    mmzoo.save(blip[0], tmp_path / "m", processor=blip[1])
    words = ["capfilt", str(photos), str(tmp_path / "out"), "--model", str(tmp_path / "m"), "--workers", "1"]
    assert main([*words, "-c", "capfilt/blip", "--threshold", "0"]) == 0
    told = capsys.readouterr()
    assert "web: kept 9 of 9 texts (100.0 %)" in told.out
    assert "synthetic: kept 7 of 7" in told.out
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["select"]["threshold"] == 0
    sampling = manifest["caption"]["sampling"]
    assert {name: sampling[name] for name in ("sample", "top_p", "top_k", "repetition_penalty", "per_context")} == {
        "sample": True, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.1, "per_context": 1,
    }  # fmt: skip
    assert main(["capfilt", str(tmp_path / "out"), "--stages", "select", "--threshold", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["kept"] == 0
    (tmp_path / "own.yaml").write_text("treshold: 0.5\n")
    assert main([*words, "-c", str(tmp_path / "own.yaml")]) == 2
    assert "Did you mean threshold" in capsys.readouterr().err
