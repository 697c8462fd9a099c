"""METEOR and SPICE where the kit or Java is missing."""

from __future__ import annotations

import importlib.util
import shutil

import pytest

from mmzoo.errors import ZooError
from mmzoo.metrics.caption_java import meteor, spice

ONE = ([["a", "cat"]], [[["a", "cat"]]])


@pytest.mark.parametrize(("score", "name"), [(meteor, "METEOR"), (spice, "SPICE")])
def test_without_the_package(monkeypatch, score, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(
        ZooError, match=rf"{name} needs the package pycocoevalcap: pip install 'mmzoo\[caption-java\]'"
    ):
        score(*ONE)


@pytest.mark.parametrize(("score", "name"), [(meteor, "METEOR"), (spice, "SPICE")])
def test_without_java(monkeypatch, score, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: package)
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(ZooError, match=rf"{name} runs in Java, and there is no `java` here"):
        score(*ONE)
