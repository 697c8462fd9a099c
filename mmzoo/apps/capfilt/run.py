"""`mmzoo capfilt`: caption, score, select (Li et al. 2022, BLIP, section 3.3), at any size, and resumable."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mmzoo.apps.capfilt.local_engine import run_local
from mmzoo.apps.capfilt.manifest import open_manifest
from mmzoo.apps.capfilt.models import Models
from mmzoo.apps.capfilt.outputs import WRITES, write_outputs
from mmzoo.apps.capfilt.plan import Shard
from mmzoo.apps.capfilt.records import State, need_pyarrow, read_state, record_file
from mmzoo.apps.capfilt.rules import Rules
from mmzoo.apps.capfilt.select import select
from mmzoo.apps.capfilt.settings import Job
from mmzoo.apps.capfilt.summary import Summary, summarise
from mmzoo.apps.capfilt.work import Outcome, up_to_date
from mmzoo.apps.opening import ModelLike, Progress
from mmzoo.apps.report.capfilt import write_report
from mmzoo.errors import UsageError, ZooError, nearest
from mmzoo.files import locked
from mmzoo.generation import GenerationConfig

__all__ = ["ENGINES", "STAGES", "CapFilt", "capfilt"]

STAGES = ("caption", "score", "select")
ENGINES = ("local", "ray")
TOP_P = 0.9
"""Share of the probability that words are drawn from unless told otherwise: BLIP's own."""
MOST = 8
"""Processes without a GPU unless told otherwise: each holds the models."""
THRESHOLD = 0.5
"""Least ITM probability unless other rules are given: BLIP's own (salesforce/BLIP issue 46)."""


class CapFilt(NamedTuple):
    """The outcome of `capfilt`.

    Attributes:
        out: The folder of the run.
        shards: How many there are.
        done: Worked on in this run; the others were done before.
        failed: Shards without records, and why. The same call tries them again.
        summary: What the records hold; None where nothing was selected.
    """

    out: Path
    shards: int
    done: int
    failed: list[tuple[str, str]]
    summary: Summary | None


def capfilt(
    source: str | Path | None,
    out: str | Path,
    *,
    stages: Sequence[str] = STAGES,
    model: ModelLike | None = None,
    captioner: ModelLike | None = None,
    filter: ModelLike | None = None,
    clip: ModelLike | None = None,
    pretrained: str | None = None,
    captioner_pretrained: str | None = None,
    filter_pretrained: str | None = None,
    clip_pretrained: str | None = None,
    split: str | None = None,
    texts: str = "web",
    num_captions: int = 1,
    beams: int | None = None,
    top_p: float | None = None,
    top_k: int = 0,
    temperature: float = 1.0,
    repetition_penalty: float = 1.0,
    max_new_tokens: int = 20,
    min_new_tokens: int = 1,
    prompt: str | None = None,
    seed: int = 0,
    threshold: float | None = None,
    percentile: float | None = None,
    best: int = 0,
    by: str | None = None,
    min_words: int = 1,
    max_words: int = 0,
    max_chars: int = 1000,
    dedup: str = "exact",
    distance: int = 3,
    write: Sequence[str] = ("jsonl",),
    engine: str = "local",
    workers: int | None = None,
    shard_size: int = 1000,
    batch_size: int = 16,
    device: str | None = None,
    again: bool = False,
    html: bool = True,
    progress: Progress | None = None,
) -> CapFilt:
    """Caption pictures, judge what is said of them, and keep what fits.

    `out/records/` gets a Parquet file for each shard of the input, with a row for each candidate: those that came with
    the pictures and those that were written. Rejected ones stay, with their scores: `stages=("select",)` decides anew
    without a model. A run that was stopped goes on by the same call. Records are the same bytes however many workers
    there are, on either engine, and whatever was killed; another batch size or device may move the last digits.

    Args:
        source: What to read, see `plan`; None goes on with what `out` was begun with.
        out: The folder of the run.
        stages: Some of `STAGES`.
        model: Captioner and filter in one.
        captioner: What writes captions; None takes `model`.
        filter: What gives ITM probability and ITC cosine; None takes `model`.
        clip: What gives the CLIP cosine; None leaves it out.
        pretrained: Weights for `model` where it is a name of the zoo.
        captioner_pretrained: The same for `captioner`.
        filter_pretrained: The same for `filter`.
        clip_pretrained: The same for `clip`.
        split: A split of the source.
        texts: What its texts are: `"web"`, to be judged, or `"human"`, kept unless empty or there twice.
        num_captions: Captions written of each picture (BLIP: 1; BLIP-2: 10).
        beams: Search by so many beams instead of drawing words.
        top_p: Draw among the fewest words that hold this share of the probability; None takes 0.9.
        top_k: Draw among the k likeliest words only; 0 means all.
        temperature: Divides the logits before drawing.
        repetition_penalty: Above 1 makes what was said already less likely.
        max_new_tokens: Most tokens of a caption behind its prompt.
        min_new_tokens: The end token may not be among the first so many.
        prompt: What captions begin with; None takes the captioner's own.
        seed: With a picture's key it decides what is drawn.
        threshold: Least ITM probability; None takes 0.5 where there are such scores and no other rule is given.
        percentile: Least standing of a candidate among all by the score `by`, from 0 to 100.
        best: Keep so many candidates of a picture, the best by the score `by`; 0 means any number.
        by: `"itm"`, `"itc"` or `"clip"`; None takes clip where a CLIP judged, else itm.
        min_words: Fewest words of a kept text.
        max_words: Most words; 0 means any number.
        max_chars: Most characters; 0 means any number.
        dedup: `"none"`, `"exact"` or `"near"`.
        distance: For near duplicates, bits of 64 in which two pictures' hashes may differ.
        write: What to write beside the records: some of `"jsonl"` (`out/captions.jsonl`) and `"tar"` (`out/tar/`).
        engine: `"local"`: processes of this machine; `"ray"`: actors of a Ray cluster (extra `ray`).
        workers: Processes or actors; None takes the GPUs, or else the cores, at most 8.
        shard_size: Pictures worked on and written as one; a tar file is one whatever it holds.
        batch_size: Pictures at a time.
        device: Where to compute; a CUDA device if there is one.
        again: Caption and score anew what was done in another way.
        html: Write `report.html` beside `report.json`.
        progress: Called with the number of shards done and of all.

    Raises:
        UsageError: Settings that contradict each other, the models, or what `out` was begun with.
        ZooError: There is nothing to read, a model cannot do what is asked of it, or no shard could be worked on.
    """
    need_pyarrow()
    _check(stages, write, engine, texts, workers, shard_size, batch_size)
    folder = Path(out)
    if source is not None and folder.resolve() in (Path(source).resolve(), Path(source).resolve().parent):
        raise UsageError(f"{out} is where the input lies, which would be written over: name another folder.")
    captioning, scoring = None, None
    if {"caption", "score"} & set(stages):
        first = (captioner, captioner_pretrained) if captioner is not None else (model, pretrained)
        second = (filter, filter_pretrained) if filter is not None else (model, pretrained)
        opened = Models(device)
        if "caption" in stages:
            settings = _settings(
                num_captions, beams, top_p, top_k, temperature, repetition_penalty, max_new_tokens, min_new_tokens,
                seed,
            )  # fmt: skip
            captioning = opened.captioning(first, prompt, settings)
        if "score" in stages:
            scoring = opened.scoring(second, (clip, clip_pretrained))
        del opened  # the workers hold models of their own
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "manifest.json"):
        manifest = open_manifest(folder, source, split=split, size=shard_size, texts=texts)
        manifest.settle(captioning, scoring, again=again)
        job = Job(folder.resolve(), captioning, scoring, manifest.texts, batch_size, device)
        failed: list[tuple[str, str]] = []
        done = 0
        for outcome in _work(job, manifest.shards, engine, workers, progress):
            manifest.log(outcome)
            if outcome.failed is not None:
                failed.append((f"shard {outcome.number}", outcome.failed))
            done += 1
        if "select" not in stages:
            return CapFilt(folder, len(manifest.shards), done, failed, None)
        there = _states(folder, manifest.shards)
        if not there:
            why = f"; the first, {failed[0][0]}: {failed[0][1]}" if failed else ": run the stage score first"
            raise ZooError(f"{folder} has no records to select from{why}.")
        rules = _rules(
            manifest.told.get("score", {}), threshold, percentile, best, by, min_words, max_words, max_chars, dedup,
            distance,
        )  # fmt: skip
        manifest.tell_rules(rules)
        shards = [shard for shard in manifest.shards if shard.number in there]
        chosen = select(folder, [shard.number for shard in shards], rules)
        write_outputs(folder, shards, write)
        summary = summarise(manifest, rules, chosen, there, failed)
        write_report(folder, summary, chosen, shards, html=html)
    return CapFilt(folder, len(manifest.shards), done, failed, summary)


def _check(
    stages: Sequence[str],
    write: Sequence[str],
    engine: str,
    texts: str,
    workers: int | None,
    shard_size: int,
    batch_size: int,
) -> None:
    """Refuse words that mean nothing, before anything is opened."""
    for name, words, known in (
        ("stages", stages, STAGES), ("write", write, WRITES), ("engine", [engine], ENGINES),
        ("texts", [texts], ("web", "human")),
    ):  # fmt: skip
        for word in words:
            if word not in known:
                raise UsageError(f"{name}: no {word!r}.{nearest(word, known)} Choose of {', '.join(known)}.")
    if not stages:
        raise UsageError(f"stages: nothing to do; choose of {', '.join(STAGES)}.")
    for name, value in (("workers", workers), ("shard_size", shard_size), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise UsageError(f"{name}={value} is too few: at least 1.")


def _settings(
    num_captions: int,
    beams: int | None,
    top_p: float | None,
    top_k: int,
    temperature: float,
    repetition_penalty: float,
    max_new_tokens: int,
    min_new_tokens: int,
    seed: int,
) -> GenerationConfig:
    """How to write: words are drawn unless beams are asked for."""
    if num_captions < 1:
        raise UsageError(
            f"num_captions={num_captions} is too few: at least 1; leave the stage caption out for none."
        )
    shared = GenerationConfig(max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens, seed=seed)
    if beams is None:
        return replace(
            shared, sample=True, top_p=TOP_P if top_p is None else top_p, top_k=top_k, temperature=temperature,
            repetition_penalty=repetition_penalty, per_context=num_captions,
        )  # fmt: skip
    if top_p is not None or top_k or temperature != 1:
        raise UsageError(
            "--top-p, --top-k and --temperature say how words are drawn, and --beams draws none."
        )
    return replace(shared, beams=beams, repetition_penalty=repetition_penalty, per_context=num_captions)


def _work(
    job: Job, shards: Sequence[Shard], engine: str, workers: int | None, progress: Progress | None
) -> Iterator[Outcome]:
    """Caption and score the shards that are not done yet."""
    if job.captioning is None and job.scoring is None:
        return
    todo = [shard for shard in shards if not up_to_date(job, read_state(record_file(job.out, shard.number)))]
    done = len(shards) - len(todo)
    if progress is not None:
        progress(done, len(shards))
    if not todo:
        return
    count = min(workers or _processors(job), len(todo))
    if engine == "ray":
        from mmzoo.apps.capfilt.ray_engine import run_ray

        outcomes = run_ray(job, todo, count)
    else:
        outcomes = run_local(job, todo, count)
    for outcome in outcomes:
        done += 1
        if progress is not None:
            progress(done, len(shards))
        yield outcome


def _processors(job: Job) -> int:
    import torch

    if job.device is None and torch.cuda.is_available():
        return torch.cuda.device_count()
    return 1 if job.device not in (None, "cpu") else min(os.cpu_count() or 1, MOST)


def _states(folder: Path, shards: Sequence[Shard]) -> dict[int, State]:
    """What the shards that have records say of themselves."""
    found = {shard.number: read_state(record_file(folder, shard.number)) for shard in shards}
    return {number: state for number, state in found.items() if state is not None}


def _rules(
    scores: Mapping[str, object],
    threshold: float | None,
    percentile: float | None,
    best: int,
    by: str | None,
    min_words: int,
    max_words: int,
    max_chars: int,
    dedup: str,
    distance: int,
) -> Rules:
    """The rules, with what they are unless told otherwise."""
    clip, judge = (scores.get(name) is not None for name in ("clip", "filter"))
    if threshold is None and percentile is None and not best and judge:
        threshold = THRESHOLD
    return Rules(
        threshold,
        percentile,
        best,
        by or ("clip" if clip else "itm"),
        min_words,
        max_words,
        max_chars,
        dedup,
        distance,
    )
