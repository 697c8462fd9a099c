"""What is done to a shard: its pictures are captioned and their texts scored, each picture looked at once per model."""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image

from mmzoo.apps.capfilt.items import Fault, Item, read_shard
from mmzoo.apps.capfilt.likeness import normal_text, perceptual_hash
from mmzoo.apps.capfilt.plan import Shard
from mmzoo.apps.capfilt.records import Record, State, read_records, read_state, record_file, write_records
from mmzoo.apps.capfilt.score import Seen, clip_cosines, look, match_probabilities, text_cosines
from mmzoo.apps.capfilt.settings import Job, sampling_of
from mmzoo.apps.opening import Opened
from mmzoo.apps.writing import write_texts
from mmzoo.errors import ZooError
from mmzoo.models.capabilities import EmbedsPairs
from mmzoo.processing.image import BadImage, decode_image

__all__ = ["NAMED", "Outcome", "Worker", "up_to_date"]

NAMED = 1000
"""Faults of a shard that are named in its file; all are counted."""


class Outcome(NamedTuple):
    """What became of a shard.

    Attributes:
        number: Which.
        images: Pictures read.
        written: Captions written.
        scored: Texts scored.
        seconds: What it took.
        failed: Why there is nothing, or None.
    """

    number: int
    images: int = 0
    written: int = 0
    scored: int = 0
    seconds: float = 0.0
    failed: str | None = None


def up_to_date(job: Job, state: State | None) -> bool:
    """Whether a shard's file is what the job would make of it."""
    if state is None:
        return False
    captioned = job.captioning is None or state.caption == job.captioning.digest()
    return captioned and (job.scoring is None or state.score == job.scoring.digest())


class Worker:
    """Holds the models of a job; called with a shard it writes its records. One lives in each process.

    Args:
        job: What to do.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        opened: dict[Any, Opened] = {}

        def open_once(which: Any) -> Opened | None:
            if which is None:
                return None
            same = (which.name, which.weights)
            if same not in opened:
                opened[same] = which.open(job.device)
            return opened[same]

        self._captioner = open_once(job.captioning and job.captioning.captioner)
        self._filter = open_once(job.scoring and job.scoring.filter)
        self._clip = open_once(job.scoring and job.scoring.clip)
        self._embeds = self._filter is not None and isinstance(self._filter.model, EmbedsPairs)

    def __call__(self, shard: Shard) -> Outcome:
        """Caption and score a shard, unless that is done. What the disk or the shard's file refuses is an outcome."""
        begun = time.perf_counter()
        try:
            with torch.inference_mode():
                outcome = self._run(shard)
        except (OSError, ZooError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            return Outcome(shard.number, failed=reason, seconds=time.perf_counter() - begun)
        return outcome._replace(seconds=time.perf_counter() - begun)

    def _run(self, shard: Shard) -> Outcome:
        job, path = self.job, record_file(self.job.out, shard.number)
        before = read_state(path)
        if up_to_date(job, before):
            return Outcome(shard.number)
        write = job.captioning is not None and (before is None or before.caption != job.captioning.digest())
        there: dict[int, list[Record]] | None = None
        if before is not None and not write:
            there = defaultdict(list)
            for record in read_records(path):
                there[record.sample].append(record._replace(kept=None, reason=None))
        faults: list[Fault] = []
        counts: Counter[str] = Counter()
        records: list[Record] = []
        images = written = scored = 0
        for items, pictures in self._batches(shard, faults, counts):
            images += len(items)
            seen: Seen | None = None
            if there is not None:
                rows = [there.get(item.sample, []) for item in items]
            else:
                rows = [self._web(*pair) for pair in zip(items, pictures, strict=True)]
            if write:
                rows, seen = self._caption(items, pictures, rows)
                written += sum(row.source == "synthetic" for some in rows for row in some)
            else:  # pictures without texts have held a place for captions
                rows = [
                    [row for row in some if row.text or item.texts]
                    for item, some in zip(items, rows, strict=True)
                ]
            if job.scoring is not None:
                rows = self._score(pictures, rows, seen)
                scored += sum(map(len, rows))
            records += [row for some in rows for row in some]
        state = State(
            caption=(
                job.captioning.digest() if write and job.captioning else before.caption if before else None
            ),
            score=None if job.scoring is None else job.scoring.digest(),
            images=images,
            faults=tuple((fault.kind, fault.key, fault.reason) for fault in faults),
            fault_counts=tuple(sorted(counts.items())),
        )
        write_records(path, records, state)
        return Outcome(shard.number, images, written, scored)

    def _batches(
        self, shard: Shard, faults: list[Fault], counts: Counter[str]
    ) -> Iterator[tuple[list[Item], list[Image.Image]]]:
        """Samples whose pictures can be decoded, some at a time; the same ones together however often it is run."""
        items: list[Item] = []
        pictures: list[Image.Image] = []
        for found in read_shard(shard):
            fault = found if isinstance(found, Fault) else None
            if isinstance(found, Item):
                try:
                    picture = decode_image(found.image)
                except BadImage as error:
                    fault = Fault("picture", found.key, str(error).removeprefix("the image ").rstrip("."))
                else:
                    items.append(found)
                    pictures.append(picture)
            if fault is not None:
                counts[fault.kind] += 1
                if len(faults) < NAMED:
                    faults.append(fault)
            if len(items) == self.job.batch_size:
                yield items, pictures
                items, pictures = [], []
        if items:
            yield items, pictures

    def _web(self, item: Item, picture: Image.Image) -> list[Record]:
        """The candidates that come with a picture; where there are none, one that holds its place for captions."""
        data = (
            item.image if isinstance(item.image, bytes) else picture.tobytes() + repr(picture.size).encode()
        )
        digest = hashlib.sha256(data)
        base = Record(
            item.key, item.sample, digest.hexdigest(), perceptual_hash(picture, digest.digest()), picture.width,
            picture.height, item.url, "", self.job.source,
        )  # fmt: skip
        return [base._replace(text=text) for text in item.texts] or [base]

    def _caption(
        self, items: Sequence[Item], pictures: Sequence[Image.Image], rows: list[list[Record]]
    ) -> tuple[list[list[Record]], Seen]:
        """Append captions to the candidates of each picture."""
        how, opened = self.job.captioning, self._captioner
        assert how is not None and opened is not None  # noqa: PT018
        seen = look(opened, pictures, embed=opened is self._filter and self._embeds)
        keys = [
            int.from_bytes(hashlib.blake2b(item.key.encode(), digest_size=8).digest(), "big")
            for item in items
        ]
        decoder = opened.model.caption_decoder(seen.shared)
        texts = write_texts(opened, decoder, how.prompt, how.settings, keys)
        told: dict[str, Any] = {
            "source": "synthetic", "model": how.captioner.name, "weights": how.captioner.weights,
            "seed": how.settings.seed, "sampling": sampling_of(how),
        }  # fmt: skip
        captioned = []
        for item, some, drawn in zip(items, rows, texts, strict=True):
            new = [
                some[0]._replace(text=text.text, log_prob=text.score, finished=text.finished, **told)
                for text in drawn
            ]
            captioned.append([*(some if item.texts else ()), *new])
        return captioned, seen

    def _score(
        self, pictures: Sequence[Image.Image], rows: list[list[Record]], seen: Seen | None
    ) -> list[list[Record]]:
        """Fill in the scores of all texts that say anything."""
        how = self.job.scoring
        assert how is not None
        places = [(i, row) for i, some in enumerate(rows) for row in some]
        said = [place for place, (_, row) in enumerate(places) if normal_text(row.text)]
        index = torch.tensor([places[place][0] for place in said], dtype=torch.int64)
        texts = [places[place][1].text for place in said]
        scores: dict[str, list[float]] = {}
        told: dict[str, Any] = {}
        if how.filter is not None and self._filter is not None:
            told |= {"filter": how.filter.name, "filter_weights": how.filter.weights}
            if texts:
                if seen is None or self._filter is not self._captioner:
                    seen = look(self._filter, pictures, embed=self._embeds)
                scores["itm_prob"] = match_probabilities(self._filter, seen, texts, index)
                if self._embeds:
                    scores["itc_cos"] = text_cosines(self._filter, seen, texts, index)
        if how.clip is not None and self._clip is not None:
            told |= {"clip": how.clip.name, "clip_weights": how.clip.weights}
            if texts:
                scores["clip_cos"] = clip_cosines(self._clip, pictures, texts, index)
        blank: dict[str, Any] = {
            "itm_prob": None,
            "itc_cos": None,
            "clip_cos": None,
            "filter": None,
            "filter_weights": None,
        }
        blank |= {"clip": None, "clip_weights": None}
        filled = [row._replace(**blank | told) for _, row in places]
        for name, values in scores.items():
            for place, value in zip(said, values, strict=True):
                score: dict[str, Any] = {name: value}
                filled[place] = filled[place]._replace(**score)
        rest = iter(filled)
        return [[next(rest) for _ in some] for some in rows]
