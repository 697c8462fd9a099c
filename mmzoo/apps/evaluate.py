"""`mmzoo evaluate`: a model's numbers on a data set by the protocol of the papers, with all that decides them."""

from __future__ import annotations

import platform
import shlex
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mmzoo import __version__
from mmzoo.apps.evaluation.captioning import open_captioning, run_captioning, score_results
from mmzoo.apps.evaluation.labelled import (
    open_labelled_pairs,
    open_relations,
    open_vqa,
    run_entailment,
    run_pairs,
    run_vqa,
)
from mmzoo.apps.evaluation.request import Measure, Outcome, Request
from mmzoo.apps.evaluation.retrieval import open_retrieval, run_retrieval
from mmzoo.apps.evaluation.zeroshot import open_classes, run_zeroshot
from mmzoo.apps.opening import ModelLike, Opened, Progress, open_model, require
from mmzoo.data.reader import Broken
from mmzoo.errors import UsageError, nearest
from mmzoo.models.capabilities import capabilities_of

__all__ = ["TASKS", "Evaluated", "Task", "WeightsFile", "evaluate"]


class Task(NamedTuple):
    """One entry of `TASKS`.

    Attributes:
        summary: What is measured, in a few words.
        needs: Names of capabilities, one of which a model must have.
        what: What it is then asked to do, to complete "... cannot ...".
        options: Names of the options of `evaluate` that have a meaning here, beyond those that every task takes.
        open: Opens the data and refuses what cannot be evaluated, before a model is loaded.
        run: Does it.
        score: Scores a file of predictions without a model; None where that cannot be done.
    """

    summary: str
    needs: tuple[str, ...]
    what: str
    options: frozenset[str]
    open: Callable[[Request], Any]
    run: Callable[[Request, Opened, Any], Outcome]
    score: Callable[[Request], Outcome] | None = None


TASKS: dict[str, Task] = {
    "retrieval": Task(
        "recall and ranks of pictures by captions and captions by pictures",
        ("embeds pairs", "scores pairs"),
        "find pictures by texts",
        frozenset({"rerank", "score", "limit"}),
        open_retrieval,
        run_retrieval,
    ),
    "zeroshot": Task(
        "accuracy of naming pictures by their classes",
        ("embeds pairs",),
        "compare pictures with words",
        frozenset({"by", "labels", "templates"}),
        open_classes,
        run_zeroshot,
    ),
    "captioning": Task(
        "BLEU, ROUGE-L and CIDEr-D of captions, as the COCO kit counts them",
        ("writes captions",),
        "write captions",
        frozenset(
            {"images", "limit", "predictions", "prompt", "beams", "max_new_tokens", "min_new_tokens", "extra"}
        ),
        open_captioning,
        run_captioning,
        score_results,
    ),
    "vqa": Task(
        "official accuracy of answers to questions",
        ("answers questions",),
        "answer questions",
        frozenset({"images", "limit", "answers", "predictions"}),
        open_vqa,
        run_vqa,
    ),
    "nlvr2": Task(
        "accuracy and consistency of verdicts about pairs of pictures",
        ("compares images",),
        "compare two images",
        frozenset({"images", "limit"}),
        open_labelled_pairs,
        run_pairs,
    ),
    "ve": Task(
        "accuracy of what pictures say of sentences (SNLI-VE)",
        ("judges entailment",),
        "judge entailment",
        frozenset({"images", "limit"}),
        open_relations,
        run_entailment,
    ),
}
"""What can be evaluated. The options of a new task are fields of `Request` and arguments of `evaluate`."""


class WeightsFile(NamedTuple):
    """A file with weights.

    Attributes:
        path: Where it is.
        sha256: Hash of its bytes.
    """

    path: str
    sha256: str


class Evaluated(NamedTuple):
    """The outcome of `evaluate`.

    Attributes:
        task: What was evaluated.
        model: Name of the model, or of the file that was scored without one.
        weights: Where its weights come from; `"random"` for a zoo name without `pretrained`, `"none"` without a model.
        weights_sha256: Hash of the weights themselves, as in the model card.
        weights_file: The file that they were read from; None where there is no such file, or several.
        versions: Of mmzoo, torch and python.
        seed: Of whatever a model draws; those of the zoo draw nothing in evaluation unless told to.
        data: What it was evaluated on: path, split, limit, and how much of what there was.
        protocol: What else decides the numbers.
        numbers: Name to value and chance. Of retrieval `i2t` means that pictures look for captions.
        notes: Sentences that a reader of the numbers must know.
        broken: Samples that could not be used, and why.
        predictions: The file that the answers were written to.
        seconds: How long it took, the loading of the model aside.
        command: The command that does the same.
    """

    task: str
    model: str
    weights: str
    weights_sha256: str
    weights_file: WeightsFile | None
    versions: dict[str, str]
    seed: int
    data: dict[str, str | int | None]
    protocol: dict[str, Any]
    numbers: dict[str, Measure]
    notes: list[str]
    broken: list[Broken]
    predictions: Path | None
    seconds: float
    command: str


def evaluate(
    task: str,
    model: ModelLike | None,
    data: str | Path,
    *,
    split: str | None = None,
    images: str | Path | None = None,
    limit: int | None = None,
    rerank: int | None = None,
    score: str | None = None,
    by: str | None = None,
    labels: str | Path | None = None,
    templates: str | None = None,
    answers: str | Path | None = None,
    predictions: str | Path | None = None,
    prompt: str | None = None,
    beams: int | None = None,
    max_new_tokens: int | None = None,
    min_new_tokens: int | None = None,
    extra: str | None = None,
    seed: int = 0,
    pretrained: str | Path | None = None,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Evaluated:
    """Measure a model on a data set by the protocol of the papers.

    Retrieval takes all captions of each picture (five, on Flickr30k and COCO); any of a picture's own counts, and a
    wrong one that scores exactly as much as the best right one goes before it. With `rerank`, the K best captions of
    each picture and the K best pictures of each caption are read again together with it, each pair once though it may
    be both; the rest stays behind them in its order. A model without embeddings (ViLT) reads every pair.

    Where `torch.distributed` is initialised, each process does its share, and all get the numbers of the whole.

    Args:
        task: A name of `TASKS`.
        model: A name of the zoo, a folder written by `mmzoo.save`, or a pair of model and processor. None scores the
            captions in `predictions` instead.
        data: Pictures with captions or classes, as `mmzoo.data.open.open_source` takes them; for `vqa`, `nlvr2` and
            `ve` published annotation files, as `mmzoo.data.open_tasks` describes them.
        split: Its split.
        images: Folder with the pictures that the annotations name; left out: beside them.
        limit: Take the first so many pictures (with all of their captions), questions, pairs or sentences only.
        rerank: Retrieval: how many candidates of each picture and caption to read again; left out: none.
        score: Retrieval: what they are then ordered by, `"itm"` (the logit of a match: ALBEF) or `"itm+itc"` (that and
            the cosine: BLIP); left out: what the family's own evaluation does.
        by: Zeroshot: what classes are, where the data knows several answers.
        labels: Zeroshot: as for `mmzoo.apps.zeroshot.zeroshot`.
        templates: Zeroshot: as for `mmzoo.apps.zeroshot.zeroshot`.
        answers: Vqa: file with the answers to choose from; left out: the model's own list, else the data's.
        predictions: Where to write what the official servers want: of vqa `[{"question_id": 1, "answer": "yes"}, ...]`,
            of captioning `[{"image_id": 1, "caption": "a cat"}, ...]`. Without a model, the file that is scored.
        prompt: Captioning: what captions begin with; left out: the model's own.
        beams: Captioning: width of the search; left out: 3.
        max_new_tokens: Captioning: most tokens of a caption, the prompt not counted; left out: 20.
        min_new_tokens: Captioning: the end token may not be among the first so many; left out: 1.
        extra: Captioning: `"meteor"`, `"spice"` or `"meteor,spice"`, which run in Java (extra `caption-java`).
        seed: See `Evaluated.seed`.
        pretrained: Weights for a model given by name.
        batch_size: Samples per forward pass.
        device: Where to compute; a CUDA device if there is one.
        progress: Called with how much is done and how much there is, stage by stage.
        say: Called with a sentence where something will take long.

    Returns:
        The numbers, with chance and with all that decides them.

    Raises:
        UsageError: No such task, or an option that has no meaning for it.
        ZooError: The model cannot do it, or the data cannot be read or is of another kind.
    """
    if task not in TASKS:
        raise UsageError(f"no task {task!r}.{nearest(task, TASKS)} There are {', '.join(TASKS)}.")
    request = Request(
        data,
        split,
        images,
        limit,
        rerank,
        score,
        by,
        labels,
        templates,
        answers,
        predictions,
        prompt,
        beams,
        max_new_tokens,
        min_new_tokens,
        extra,
        batch_size,
        progress,
        say,
    )
    chosen = TASKS[task]
    _refuse_strangers(task, request)
    if model is None:
        return _score(task, request)
    source = chosen.open(request)
    opened = open_model(model, pretrained=pretrained, device=device)
    if not set(chosen.needs) & set(capabilities_of(opened.model)):
        require(opened, chosen.needs[0], chosen.what)
    started = time.perf_counter()
    drawing = [] if opened.device.type == "cpu" else [opened.device]
    with torch.inference_mode(), torch.random.fork_rng(devices=drawing):
        torch.manual_seed(seed)
        outcome = chosen.run(request, opened, source)
    return Evaluated(
        task=task,
        model=opened.name,
        weights=opened.weights,
        weights_sha256=opened.digest(),
        weights_file=_weights_file(opened, pretrained),
        versions=_versions(),
        seed=seed,
        data={"path": str(data), "split": split, "limit": limit, **outcome.data},
        protocol=outcome.protocol,
        numbers=outcome.numbers,
        notes=outcome.notes,
        broken=outcome.broken,
        predictions=outcome.predictions,
        seconds=time.perf_counter() - started,
        command=_command(task, opened.name, pretrained, request),
    )


def _score(task: str, request: Request) -> Evaluated:
    """Score a file of predictions."""
    score = TASKS[task].score
    if score is None:
        raise UsageError(f"{task} needs --model MODEL.")
    started = time.perf_counter()
    outcome = score(request)
    return Evaluated(
        task=task,
        model=str(request.predictions),
        weights="none",
        weights_sha256="",
        weights_file=None,
        versions=_versions(),
        seed=0,
        data={"path": str(request.data), "split": request.split, "limit": request.limit, **outcome.data},
        protocol=outcome.protocol,
        numbers=outcome.numbers,
        notes=outcome.notes,
        broken=outcome.broken,
        predictions=None,
        seconds=time.perf_counter() - started,
        command=_command(task, None, None, request),
    )


def _versions() -> dict[str, str]:
    return {"mmzoo": __version__, "torch": torch.__version__, "python": platform.python_version()}


_COMMON = frozenset({"data", "split", "batch_size", "progress", "say"})


def _refuse_strangers(task: str, request: Request) -> None:
    """Refuse options that the task has no use for."""
    for field in fields(Request):
        if field.name in _COMMON | TASKS[task].options or getattr(request, field.name) is None:
            continue
        owners = [name for name, other in TASKS.items() if field.name in other.options]
        raise UsageError(
            f"--{field.name.replace('_', '-')} belongs to {', '.join(owners)}; {task} has no use for it."
        )


def _weights_file(opened: Opened, pretrained: str | Path | None) -> WeightsFile | None:
    """The one file that the weights came from, with its hash."""
    from mmzoo.weights.download import sha256_of

    path = Path(opened.weights) / "model.safetensors"
    if pretrained is not None:
        path = _pretrained_file(opened.name, pretrained)
    return WeightsFile(str(path), sha256_of(path)) if path.is_file() else None


def _pretrained_file(name: str, pretrained: str | Path) -> Path:
    from mmzoo.paths import find_weights
    from mmzoo.weights.catalog import find, tags
    from mmzoo.weights.hub import place

    path = find_weights(pretrained)
    if not path.exists() and str(pretrained) in tags(name):
        return place(find(name, str(pretrained)))
    return path / "model.safetensors" if path.is_dir() else path


def _command(task: str, model: str | None, pretrained: str | Path | None, request: Request) -> str:
    """The command that does the same."""
    line = ["mmzoo", "evaluate", task, *([] if model is None else ["--model", model])]
    if pretrained is not None:
        line += ["--pretrained", str(pretrained)]
    for field in fields(Request):
        value = getattr(request, field.name)
        if field.name not in ("batch_size", "progress", "say") and value is not None:
            line += [f"--{field.name.replace('_', '-')}", str(value)]
    return shlex.join(line)
