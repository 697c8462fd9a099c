"""Converting: reports, refusals of what a layout cannot say, and nothing half-written whatever goes wrong.

That the converted files give the other libraries' numbers is shown in tests/parity/test_layouts.py.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import zipfile

import numpy as np
import pytest
import torch
from hand_copy import shake
from safetensors.torch import load_file, save_file

import mmzoo
from mmzoo.cli.main import main
from mmzoo.conversion import convert_with_report
from mmzoo.errors import UsageError, ZooError
from mmzoo.spec import HALF, ImageSpec
from mmzoo.weights import write
from mmzoo.weights.io import weights_hash


def vit(**changes):
    """A small ViT that every layout of the family can say."""
    base = mmzoo.get_config("vit-b16-224")
    vision = dataclasses.replace(base.vision, image_size=16, patch=4, width=24, depth=2, heads=3, hidden=96)
    settings = {"vision": vision, "image": ImageSpec(16, HALF, HALF), "classes": 5} | changes
    return dataclasses.replace(base, **settings)


def clip(name, vocab=49_408):
    """A small CLIP with the whole vocabulary, as OpenAI's code can say it: one head of 64."""
    base = mmzoo.get_config(name)
    return dataclasses.replace(
        base,
        vision=dataclasses.replace(
            base.vision, image_size=8, patch=4, width=64, depth=1, heads=1, hidden=256
        ),
        text=dataclasses.replace(base.text, width=64, depth=1, heads=1, hidden=256, vocab=vocab),
        embed=8,
        image=ImageSpec(8),
        text_input=dataclasses.replace(base.text_input, vocab=vocab),
    )


@pytest.fixture
def saved(tmp_path):
    """A saved model, alone in its folder."""
    model = shake(mmzoo.create_model("vit-b16-224", config=vit()))
    mmzoo.save(model, tmp_path / "saved")
    return model


def listing(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


# --- what is done, and what is told of it -------------------------------------------------------------------------


def test_a_folder_of_ours_comes_out_as_save_writes_it(saved, tmp_path):
    done = convert_with_report(tmp_path / "saved", tmp_path / "own", "mmzoo")
    assert listing(tmp_path / "own") == ["README.md", "config.json", "model.safetensors", "processor.json"]
    assert {p.name for p in done.files} == set(listing(tmp_path / "own"))
    again, _ = mmzoo.load(tmp_path / "own")
    assert weights_hash(again.state_dict()) == weights_hash(saved.state_dict()) == done.sha256
    assert done.sha256 in (tmp_path / "own" / "README.md").read_text()
    for name in ("config.json", "processor.json"):
        assert (tmp_path / "own" / name).read_text() == (tmp_path / "saved" / name).read_text()


def test_the_report(saved, tmp_path):
    mmzoo.convert(tmp_path / "saved", tmp_path / "hf", layout="vit/transformers")
    file = tmp_path / "hf" / "model.safetensors"
    state = load_file(file) | {"vit.embeddings.mask_token": torch.zeros(1, 1, 24)}
    state["classifier.weight"] = state["classifier.weight"].half()
    save_file(state, file)
    done = convert_with_report(tmp_path / "hf", tmp_path / "x.pt", "vit/timm", dry_run=True)
    assert not (tmp_path / "x.pt").exists()
    assert (done.layout, done.target_layout, done.family) == ("vit/transformers", "vit/timm", "vit")
    assert done.dropped == (("vit.embeddings.mask_token", "only masked-image pre-training reads it"),)
    assert done.tensors_read == len(state)
    assert done.tensors == len(saved.state_dict()) == done.tensors_written
    assert done.parameters == sum(p.numel() for p in saved.parameters())
    assert done.dtypes == {"float32": done.tensors - 1, "float16": 1}
    assert not done.written
    real = convert_with_report(tmp_path / "hf", tmp_path / "x.pt", "vit/timm")
    assert real == done._replace(written=True)
    found = torch.load(tmp_path / "x.pt", weights_only=True)
    assert len(found) == done.tensors_written
    assert found["head.weight"].dtype == torch.float16


def test_constants_are_reported(tmp_path):
    model = shake(mmzoo.create_model("clip-vit-b32", config=clip("clip-vit-b32")))
    mmzoo.save(model, tmp_path / "own")
    mmzoo.convert(tmp_path / "own", tmp_path / "openai.pt", layout="clip/openai")
    done = convert_with_report(tmp_path / "openai.pt", tmp_path / "again", "mmzoo")
    assert done.constants == ("input_resolution", "context_length", "vocab_size")
    assert done.layout == "clip/openai"
    assert weights_hash(mmzoo.load(tmp_path / "again")[0].state_dict()) == weights_hash(model.state_dict())


def test_what_a_layout_leaves_out_of_the_inputs_is_told(tmp_path):
    config = vit(image=ImageSpec(16, HALF, HALF, fit="squash"))
    mmzoo.save(mmzoo.create_model("vit-b16-224", config=config), tmp_path / "own")
    done = convert_with_report(tmp_path / "own", tmp_path / "timm", "vit/timm", dry_run=True)
    assert done.unsaid == ("image.fit",)


def test_the_command(saved, tmp_path, capsys):
    assert (
        main(["convert", str(tmp_path / "saved"), str(tmp_path / "t"), "--layout", "vit/timm", "--dry-run"])
        == 0
    )
    out, err = capsys.readouterr()
    assert err == ""
    assert "would write" in out
    assert not (tmp_path / "t").exists()
    assert (
        main(["convert", str(tmp_path / "saved"), str(tmp_path / "t"), "--layout", "vit/timm", "--json"]) == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told["written"] is True
    assert told["layout"] == "mmzoo"
    assert told["files"] == [str(tmp_path / "t" / "model.safetensors"), str(tmp_path / "t" / "config.json")]
    assert (
        main(
            [
                "convert",
                str(tmp_path / "t"),
                str(tmp_path / "b.pt"),
                "--layout",
                "mmzoo",
                "--model",
                "vit-b16-224",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    for words in ("vit/timm", "sha256", told["sha256"], f"{told['parameters']:,} parameters"):
        assert words in out


# --- what a layout cannot say -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "layout", "word"),
    [
        ({"pool": "mean"}, "vit/timm", "vision.pool is 'mean' here and would be 'cls' there"),
        ({"act": "gelu_tanh"}, "vit/timm", "vision.act"),
        ({"norm_eps": 1e-5}, "vit/timm", "vision.norm_eps"),
        ({"norm_eps": 1e-5}, "vit/google", "vision.norm_eps"),
        (
            {"positions": "rope"},
            "vit/transformers",
            "does not fit: 1 missing: vit.embeddings.position_embeddings",
        ),
        ({"registers": 2}, "vit/timm", "no place for vision.registers"),
    ],
)
def test_a_switch_without_a_word_is_refused(change, layout, word, tmp_path):
    """Weights that fit in every shape, and give other numbers there: the silent fault of every converter."""
    config = vit()
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, **change))
    mmzoo.save(mmzoo.create_model("vit-b16-224", config=config), tmp_path / "own")
    with pytest.raises(ZooError) as error:
        mmzoo.convert(tmp_path / "own", tmp_path / "out", layout=layout)
    assert word in str(error.value)
    assert listing(tmp_path) == ["own", *(f"own/{name}" for name in listing(tmp_path / "own"))]


def test_a_gelu_model_is_no_openai_model(tmp_path):
    config = clip("clip-vit-b32-laion")
    mmzoo.save(mmzoo.create_model("clip-vit-b32-laion", config=config), tmp_path / "own")
    with pytest.raises(ZooError, match=r"vision\.act is 'gelu' here and would be 'quick_gelu' there"):
        mmzoo.convert(tmp_path / "own", tmp_path / "x.pt", layout="clip/openai")
    mmzoo.convert(tmp_path / "own", tmp_path / "hub", layout="clip/open_clip")


# --- bad input: one sentence, exit status, nothing half-written, through the command ------------------------------


@pytest.fixture
def refused(tmp_path, capsys):
    """Run `mmzoo convert SRC out ...`, expect a refusal with these words, and nothing left behind."""

    def run(source, *words, layout="vit/timm", target="out", status=1, options=()):
        before = listing(tmp_path)
        assert main(["convert", str(source), str(tmp_path / target), "--layout", layout, *options]) == status
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("mmzoo: ")
        assert err.count("\n") == 1
        for word in words:
            assert word in err
        assert listing(tmp_path) == before

    return run


def test_truncated(saved, tmp_path, refused):
    file = tmp_path / "saved" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    refused(tmp_path / "saved", "model.safetensors", "truncated")


def test_a_zip_bomb(tmp_path, refused):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("a.npy", bytes(80 << 20))
    refused(tmp_path / "bomb.npz", "is refused", "83,886,080")


def test_a_shard_index_that_leads_out(saved, tmp_path, refused):
    (tmp_path / "in").mkdir()
    index = {"weight_map": {"a": "../saved/model.safetensors"}}
    (tmp_path / "in" / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(tmp_path / "in", "names the shard '../saved/model.safetensors', which is not beside it: refused")


def test_another_family(saved, tmp_path, refused):
    refused(
        tmp_path / "saved",
        "is a vit model; the layout clip/open_clip is for clip",
        layout="clip/open_clip",
        status=2,
    )
    mmzoo.convert(tmp_path / "saved", tmp_path / "timm", layout="vit/timm")
    with pytest.raises(ZooError, match=r"is a vit checkpoint \(vit/timm\), not one of the family clip"):
        mmzoo.create_model("clip-vit-b32", pretrained=tmp_path / "timm")


def test_unknown_names(saved, tmp_path, refused):
    refused(tmp_path / "saved", "no layout 'vit/tim'. Did you mean vit/timm", layout="vit/tim", status=2)
    refused(tmp_path / "saved", "no model named 'vit-tinny'", options=("--model", "vit-tinny"), status=2)
    refused(tmp_path / "nothing", "no file or folder")


def test_unknown_tag():
    with pytest.raises(
        UsageError, match=r"clip-vit-b32 has no weights 'opnai'\. Did you mean openai.* There are: openai"
    ):
        mmzoo.create_model("clip-vit-b32", pretrained="opnai")
    with pytest.raises(UsageError, match="no weights are published for 'clip-tiny'"):
        mmzoo.create_model("clip-tiny", pretrained="openai")


def test_two_layouts_that_both_fit(tmp_path, refused):
    """Only names that OpenAI's files and open_clip's share, and no number that tells them apart."""
    torch.save(
        {"visual.class_embedding": torch.zeros(8), "token_embedding.weight": torch.zeros(9, 8)},
        tmp_path / "w.pt",
    )
    refused(tmp_path / "w.pt", "fits clip/openai and clip/open_clip alike", "--source-layout", layout="mmzoo")
    refused(
        tmp_path / "w.pt",
        "(clip/openai) does not fit: 1 missing",
        layout="mmzoo",
        options=("--source-layout", "clip/openai"),
    )
    with pytest.raises(ZooError, match="say which with layout="):
        mmzoo.create_model("clip-vit-b32", pretrained=tmp_path / "w.pt")


def test_wrong_vocabulary_size(tmp_path):
    model = mmzoo.create_model("clip-vit-b32", config=clip("clip-vit-b32", 49_409))
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ZooError, match=r"text\.embed\.tok\.weight is \(49409, 64\), wanted \(49408, 64\)"):
        mmzoo.create_model("clip-vit-b32", config=clip("clip-vit-b32"), pretrained=tmp_path / "w.safetensors")
    state = {"token_embedding.weight": torch.zeros(49_409, 64)}
    mmzoo.save(mmzoo.create_model("clip-vit-b32", config=clip("clip-vit-b32")), tmp_path / "own")
    published = mmzoo.convert(tmp_path / "own", tmp_path / "openai.pt", layout="clip/openai")
    torch.save(torch.load(published, weights_only=True) | state, published)
    with pytest.raises(
        ZooError, match=r"token_embedding\.weight \(49409, 64\) does not make .*\(49408, 64\)"
    ):
        mmzoo.create_model("clip-vit-b32", config=clip("clip-vit-b32"), pretrained=published)


def test_missing_side_config(saved, tmp_path, refused):
    mmzoo.convert(tmp_path / "saved", tmp_path / "w.pt", layout="vit/timm")
    refused(
        tmp_path / "w.pt",
        "w.pt does not tell its heads (vision.heads)",
        "(--model)",
        layout="vit/transformers",
    )
    (tmp_path / "saved" / "config.json").unlink()
    refused(tmp_path / "saved", "has no config.json beside it", "(--model)")


def test_a_pickle_that_runs_code(tmp_path, refused):
    class Evil:
        def __reduce__(self):
            return (np.save, (str(tmp_path / "ran.npy"), np.zeros(1)))

    torch.save({"state_dict": {"a": torch.zeros(1)}, "x": Evil()}, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", "wants to run code while it is read", "never allows")


def test_in_place_is_refused(saved, tmp_path, refused):
    refused(tmp_path / "saved", "is the source itself", target="saved", layout="mmzoo", status=2)
    refused(tmp_path / "saved" / "model.safetensors", "itself", target="saved", layout="mmzoo", status=2)


@pytest.mark.parametrize("target", ["out", "out.pt", "out.safetensors"])
def test_a_full_disk(target, saved, tmp_path, refused, monkeypatch):
    """The third tensor does not fit any more."""
    for kind in (write.SafetensorsWriter, write.TorchWriter):
        add, count = kind.add, []

        def full(self, name, tensor, add=add, count=count):
            count.append(name)
            if len(count) == 3:
                raise OSError(errno.ENOSPC, "No space left on device")
            add(self, name, tensor)

        monkeypatch.setattr(kind, "add", full)
    refused(tmp_path / "saved", "the disk is full", target=target)


def test_a_full_disk_after_the_weights(saved, tmp_path, refused, monkeypatch):
    """config.json comes last and does not fit: the weights go too."""
    import mmzoo.conversion as conversion

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(conversion, "write_json", full)
    refused(tmp_path / "saved", "the disk is full")


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_target_that_cannot_be_written(code, saved, tmp_path, refused, monkeypatch):
    """As root, rights stop nobody: the refusal comes from where the kernel's would."""
    import tempfile

    def closed(*args, **kwargs):
        raise OSError(
            code, "Read-only file system" if code == errno.EROFS else "Permission denied", str(kwargs["dir"])
        )

    monkeypatch.setattr(tempfile, "mkdtemp", closed)
    refused(
        tmp_path / "saved",
        "read-only file system" if code == errno.EROFS else "permission denied",
        "new/deep/out).",
        target="new/deep/out",
    )


def test_a_target_under_a_file(saved, tmp_path, refused):
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "saved", "not a directory", target="file/out")


def test_a_tied_copy_that_differs_leaves_nothing(tmp_path):
    """Found only while tensors are read, when files have been begun."""
    from mmzoo.weights import convert as module
    from mmzoo.weights.rules import Rule, Tie

    mmzoo.save(shake(mmzoo.create_model("vit-b16-224", config=vit())), tmp_path / "own")
    mmzoo.convert(tmp_path / "own", tmp_path / "timm", layout="vit/timm")
    layout = module.LAYOUTS["vit/timm"]
    tied = layout._replace(
        rules=lambda config: [*layout.rules(config), Rule("zz_copy", "vision.norm.weight", Tie())]
    )
    state = load_file(tmp_path / "timm" / "model.safetensors")
    save_file(state | {"zz_copy": state["norm.weight"] + 1}, tmp_path / "timm" / "model.safetensors")
    before = listing(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module.LAYOUTS, "vit/timm", tied)
        with pytest.raises(ZooError, match=r"zz_copy should equal norm\.weight"):
            mmzoo.convert(tmp_path / "timm", tmp_path / "out", layout="mmzoo", model="vit-b16-224")
    assert listing(tmp_path) == before
