"""`manifest.json`: what a run reads, in which shards, and how it captions and scores.

Which shards are done, their own files say, so nothing here can contradict them after a kill.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmzoo.apps.capfilt.plan import Shard, plan
from mmzoo.apps.capfilt.rules import Rules
from mmzoo.apps.capfilt.settings import Captioning, Scoring, sampling_of
from mmzoo.apps.capfilt.work import Outcome
from mmzoo.errors import UsageError
from mmzoo.files import atomic_path

__all__ = ["LOG", "Manifest", "open_manifest"]

VERSION = 1
NAME, LOG = "manifest.json", "log.jsonl"


class Manifest:
    """What a folder was begun with.

    Args:
        folder: The folder of the run.
        told: What the file holds.

    Attributes:
        shards: The parts of the input.
    """

    def __init__(self, folder: Path, told: dict[str, Any]) -> None:
        self.folder, self.told = folder, told
        self.shards = [Shard.of(record) for record in told["shards"]]

    @property
    def texts(self) -> str:
        """What the texts of the input are: `"web"` or `"human"`."""
        return str(self.told["texts"])

    def settle(self, captioning: Captioning | None, scoring: Scoring | None, *, again: bool) -> None:
        """Write down how this run captions and scores, before anything is made so.

        Raises:
            UsageError: An earlier run did it otherwise, and `again` does not say that this is meant.
        """
        told: dict[str, Any] = {}
        if captioning is not None:
            about = captioning.captioner.told() | {"seed": captioning.settings.seed}
            told["caption"] = about | {
                "sampling": json.loads(sampling_of(captioning)),
                "digest": captioning.digest(),
            }
        if scoring is not None:
            about = {name: which and which.told() for name, which in scoring.__dict__.items()}
            told["score"] = about | {"digest": scoring.digest()}
        for stage, about in told.items():
            before = self.told.get(stage)
            if before is not None and before["digest"] != about["digest"] and not again:
                other = [name for name in about if about[name] != before.get(name) and name != "digest"]
                raise UsageError(
                    f"{self.folder} holds what the stage {stage} made with another {', '.join(other)}: name another "
                    "folder, or say --again to replace it."
                )
        if any(self.told.get(stage) != about for stage, about in told.items()):
            self.told |= told
            self._write()

    def tell_rules(self, rules: Rules) -> None:
        """Write down how was selected."""
        if self.told.get("select") != asdict(rules):
            self.told["select"] = asdict(rules)
            self._write()

    def log(self, outcome: Outcome) -> None:
        """Append what became of a shard to `log.jsonl`; a full disk must not hide it behind an error of its own."""
        try:
            with (self.folder / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(outcome._asdict()) + "\n")
        except OSError:
            pass

    def logged(self) -> Iterator[dict[str, Any]]:
        """What became of shards, in this run and earlier ones; a line that a kill cut off is left out."""
        try:
            lines = (self.folder / LOG).read_text(encoding="utf-8").splitlines()
        except OSError:
            return
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                continue

    def _write(self) -> None:
        with atomic_path(self.folder / NAME) as part:
            part.write_text(json.dumps(self.told, indent=1) + "\n", encoding="utf-8")


def open_manifest(
    folder: Path, source: str | Path | None, *, split: str | None, size: int, texts: str
) -> Manifest:
    """Go on with what is in a folder, or begin.

    Half-written files of a run that was killed are removed: the folder's lock is held, so nobody is writing them.

    Raises:
        UsageError: The folder was begun with another input, or it is empty and no input is named.
        ZooError: The input holds nothing.
    """
    for part in (*folder.glob(".*.part"), *folder.glob("*/.*.part"), *folder.glob("images/*/.*.part")):
        part.unlink(missing_ok=True)
    path = folder / NAME
    given = None if source is None else _absolute(source)
    if path.exists():
        told = json.loads(path.read_text(encoding="utf-8"))
        if told.get("version") != VERSION:
            raise UsageError(f"{path} was written by another version of mmzoo capfilt: name another folder.")
        if given is None:
            return Manifest(folder, told)
        asked = {"input": given, "split": split, "texts": texts, "shard_size": size}
        for name, value in asked.items():
            if told[name] != value:
                raise UsageError(
                    f"{folder} was begun with {name.replace('_', ' ')} {told[name]!r}, not {value!r}: name another "
                    "folder."
                )
        return Manifest(folder, told)
    if source is None:
        raise UsageError(f"{folder} holds no run to go on with: mmzoo capfilt IN OUT begins one.")
    shards = plan(source, folder, split=split, size=size)
    told = {
        "version": VERSION, "input": given, "split": split, "texts": texts, "shard_size": size,
        "shards": [shard._asdict() for shard in shards],
    }  # fmt: skip
    manifest = Manifest(folder, told)
    manifest._write()
    return manifest


def _absolute(source: str | Path) -> str:
    """An input by a name that is the same from every folder, patterns included."""
    return os.path.abspath(source)
