"""How a run captions and scores, as plain data that travels to workers and is written into the manifest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mmzoo.apps.opening import ModelLike, Opened, open_model
from mmzoo.generation import GenerationConfig

__all__ = ["Captioning", "Job", "Scoring", "Which", "digest_of", "sampling_of"]


class Which(NamedTuple):
    """A model, and what it was found to be when the run began.

    Attributes:
        model: As for `open_model`.
        pretrained: Weights for a name of the zoo.
        name: What it is called in the records.
        weights: SHA-256 of its weights.
    """

    model: ModelLike
    pretrained: str | None
    name: str
    weights: str

    def open(self, device: str | None) -> Opened:
        """The model, on a device."""
        return open_model(self.model, pretrained=self.pretrained, device=device)

    def told(self) -> dict[str, str]:
        """What tells it from other models."""
        return {"model": self.name, "weights": self.weights}


@dataclass(frozen=True)
class Captioning:
    """How captions are written.

    Attributes:
        captioner: What writes.
        prompt: Tokens that captions begin with, without the begin token.
        prompt_text: The same in words.
        settings: Search or drawing, and its seed.
    """

    captioner: Which
    prompt: tuple[int, ...]
    prompt_text: str
    settings: GenerationConfig

    def digest(self) -> str:
        """What tells captions apart that were written in different ways."""
        return digest_of(self.captioner.told(), list(self.prompt), asdict(self.settings))


@dataclass(frozen=True)
class Scoring:
    """What judges; at least one of the two.

    Attributes:
        filter: Gives the ITM probability and, if it embeds pairs, the ITC cosine.
        clip: Gives the CLIP cosine.
    """

    filter: Which | None
    clip: Which | None

    def digest(self) -> str:
        """What tells scores apart that come from different models."""
        return digest_of(*(None if which is None else which.told() for which in (self.filter, self.clip)))


@dataclass(frozen=True)
class Job:
    """All that a worker must know.

    Attributes:
        out: The folder of the run.
        captioning: How to caption; None leaves that out.
        scoring: How to score; None leaves that out.
        source: What the texts of the input are: `"web"` or `"human"`.
        batch_size: Pictures at a time.
        device: Where to compute; None takes a GPU if there is one.
    """

    out: Path
    captioning: Captioning | None
    scoring: Scoring | None
    source: str
    batch_size: int
    device: str | None


def digest_of(*told: Any) -> str:
    """A short digest of JSON-ready data."""
    return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=8).hexdigest()


def sampling_of(captioning: Captioning) -> str:
    """Every number of the search or drawing as JSON, the seed apart, which has a column of its own."""
    told = asdict(captioning.settings)
    del told["seed"]
    return json.dumps(told | {"prompt": captioning.prompt_text}, sort_keys=True, ensure_ascii=False)
