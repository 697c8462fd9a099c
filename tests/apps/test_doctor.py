"""The doctor tells the truth about what is here."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

from mmzoo.apps.doctor import doctor
from mmzoo.ops.attention import BACKENDS


def test_versions_devices_and_threads():
    found = doctor()
    assert found.versions["torch"] == metadata.version("torch")
    assert found.versions["python"] == platform.python_version()
    assert not [name for name, version in found.versions.items() if version == "not installed"]
    assert found.devices[-1] == "cpu"
    assert len([name for name in found.devices if name.startswith("cuda")]) == torch.cuda.device_count()
    assert found.threads["torch"] == str(torch.get_num_threads())
    assert found.threads.get("OMP_NUM_THREADS") == os.environ.get("OMP_NUM_THREADS")


def test_every_case_asks_every_backend_and_one_is_taken():
    found = doctor()
    assert {case.name for case in found.attention} == {
        "images",
        "texts, causal",
        "texts, padded",
        "texts, packed",
        "with dropout",
    }
    for case in found.attention:
        assert [backend.name for backend in case.backends] == [backend.name for backend in BACKENDS]
        assert case.taken == next(backend.name for backend in case.backends if backend.refusal is None)
    images = next(case for case in found.attention if case.name == "images")
    assert dict(images.backends)["varlen"] == "nothing is packed"


def test_extras_say_what_is_missing(monkeypatch):
    found = {extra.name: extra for extra in doctor().extras}
    assert {"plots", "stream", "parquet"} <= set(found)
    assert found["plots"].needs == ("matplotlib",)
    real = metadata.version

    def without_matplotlib(name: str) -> str:
        if name == "matplotlib":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", without_matplotlib)
    extra = next(extra for extra in doctor().extras if extra.name == "plots")
    assert extra.missing == ("matplotlib",)
    assert extra.install == "pip install 'mmzoo[plots]'"


def test_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("MMZOO_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    folders = doctor().folders
    assert folders["cache"] == str(tmp_path / "own")
    assert folders["downloads"] == str(tmp_path / "hub")
    assert (Path(folders["mmzoo"]) / "zoo.py").is_file()
    assert (Path(folders["configs and data"].split(", ")[0]) / "data" / "emoji").is_dir()
