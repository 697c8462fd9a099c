"""Tasks whose samples have an answer each: questions, pairs of pictures, entailment."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmzoo import dist
from mmzoo.apps.evaluation.request import Measure, Outcome, Request, limited, shared_source, together
from mmzoo.apps.opening import Opened, finite
from mmzoo.data.answers import AnswerList, read_answers
from mmzoo.data.batch import CaptionBatch, PairBatch, QuestionBatch
from mmzoo.data.collate import Collate, Tokens
from mmzoo.data.loader import BatchOrder
from mmzoo.data.open_tasks import open_entailment, open_pairs, open_questions
from mmzoo.data.reader import BatchReader, Broken, Normalise, Prepare, Whole, nothing_usable
from mmzoo.data.sample import AnySource, EntailSource, PairSource, QuestionSource
from mmzoo.data.tasks import ClosedAnswers, EntailCollate, PairCollate, QuestionCollate
from mmzoo.errors import UsageError, ZooError
from mmzoo.files import atomic_path
from mmzoo.metrics.classification import Classification
from mmzoo.metrics.vqa import PairVerdicts, VQAAccuracy, constant_accuracy
from mmzoo.models.capabilities import AnswersFromList

__all__ = [
    "open_labelled_pairs",
    "open_relations",
    "open_vqa",
    "run_entailment",
    "run_pairs",
    "run_vqa",
]


def open_vqa(request: Request) -> QuestionSource:
    """Open questions.

    Raises:
        UsageError: `predictions` names a folder.
        ZooError: No question has a published answer, and no predictions are wanted.
    """
    source: QuestionSource = limited(
        open_questions(request.data, images=request.images, split=request.split), request.limit
    )
    if request.predictions is not None and Path(request.predictions).is_dir():
        raise UsageError(
            f"--predictions {request.predictions} is a folder; give a file such as answers.json."
        )
    if request.predictions is None and not any(source.told(i).answers for i in range(len(source))):
        raise ZooError(
            f"{source.name}: no answers are published for its {len(source):,} questions, so nothing can be counted; "
            "--predictions OUT.json writes the model's for the evaluation server."
        )
    return source


def run_vqa(request: Request, opened: Opened, source: QuestionSource) -> Outcome:
    """Answer questions, and count by the official accuracy in all and by type of answer.

    Args:
        request: What is asked.
        opened: A model that `AnswersQuestions`.
        source: Questions about pictures.

    Raises:
        UsageError: There is no list of answers, or not the model's.
        ZooError: The list does not fit the model's outputs.
    """
    closed = isinstance(opened.model, AnswersFromList)
    words = _answer_list(request, opened, source, closed)
    answer = _choosing(opened, words) if closed else _ranking(opened, words)
    accuracy = VQAAccuracy()
    kinds: list[str] = []
    said: list[tuple[str, ...]] = []
    given: list[dict[str, Any]] = []
    collate = QuestionCollate(Tokens(opened.processor), ClosedAnswers(AnswerList(words), "votes"))
    broken: list[Broken] = []

    def work() -> None:
        for batch in _batches(request, opened, source, collate, broken):
            found = answer(batch)
            accuracy.update(found, batch.said, batch.kinds)
            kinds.extend(batch.kinds)
            said.extend(batch.said)
            numbers = batch.question_ids.tolist()
            given.extend({"question_id": n, "answer": a} for n, a in zip(numbers, found, strict=True))

    together(work)
    broken = _all_broken(source, broken)
    report = accuracy.compute()
    numbers: dict[str, Measure] = {}
    if report.questions:
        numbers["accuracy"] = Measure(report.accuracy, constant_accuracy(said))
        for kind, value in report.by_kind.items():
            if kind:
                own = [theirs for its, theirs in zip(kinds, said, strict=True) if its == kind]
                numbers[f"accuracy_{kind}"] = Measure(value, constant_accuracy(own))
    notes = _left_out(source, broken, "questions")
    if report.unpublished:
        notes.append(f"questions without published answers, not counted: {report.unpublished:,}.")
    out = None if request.predictions is None else Path(request.predictions)
    if out is not None:
        everyone = [row for part in dist.gather_objects(given) for row in part]
        together(lambda: _write(sorted(everyone, key=lambda row: row["question_id"]), out))
    return Outcome(
        numbers,
        {"source": source.name, "questions": report.questions, "broken": len(broken)},
        {
            "accuracy": "VQA evaluation kit: min(annotators who agree / 3, 1), each annotator left out in turn",
            "answers": len(words),
            "chosen": "by the classifier" if closed else "by likelihood",
        },
        notes,
        broken,
        out,
    )


def _write(rows: list[dict[str, Any]], out: Path) -> None:
    """Write answers as the evaluation server takes them, once for all processes."""
    if dist.rank() == 0:
        with atomic_path(out) as part:
            part.write_text(json.dumps(rows, ensure_ascii=False) + "\n", encoding="utf-8")


def _answer_list(request: Request, opened: Opened, source: QuestionSource, closed: bool) -> tuple[str, ...]:
    """The answers to choose from: those given, the model's own, or all that the data knows."""
    own: tuple[str, ...] | None = opened.processor.answers
    if request.answers is not None:
        given = read_answers(request.answers).texts
        if closed and own is not None and own != given:
            raise UsageError(
                f"{request.answers} lists {len(given):,} answers, and the outputs of {opened.name} stand for "
                f"{len(own):,} that are not the same in the same order: leave out --answers."
            )
        return given
    known = own or source.classes
    if known is None:
        raise UsageError(
            f"{opened.name} chooses from a list of answers, and neither it nor {source.name} has one: give --answers "
            "FILE (a JSON list, or one answer a line)."
        )
    return tuple(known)


def _choosing(opened: Opened, words: Sequence[str]) -> Callable[[QuestionBatch], list[str]]:
    """Answers of a model whose outputs stand for the list."""

    def answer(batch: QuestionBatch) -> list[str]:
        logits = finite(opened.model.answer_logits(*_on(opened, batch.images, batch.ids, batch.keep)), opened)
        if logits.shape[1] != len(words):
            raise ZooError(
                f"{opened.name} has {logits.shape[1]:,} outputs and the list {len(words):,} answers: give --answers "
                "with the list that it was trained on."
            )
        return [words[i] for i in logits.argmax(1).tolist()]

    return answer


def _ranking(opened: Opened, words: Sequence[str]) -> Callable[[QuestionBatch], list[str]]:
    """Answers of a model that ranks any."""
    listed = _on(opened, *opened.processor.framed(words))

    def answer(batch: QuestionBatch) -> list[str]:
        scores = opened.model.rank_answers(*_on(opened, batch.images, batch.ids, batch.keep), listed)
        best = scores.max(1)
        finite(best.values, opened)  # answers that were ruled out have -inf
        return [words[i] for i in best.indices.tolist()]

    return answer


def open_labelled_pairs(request: Request) -> PairSource:
    """Open sentences about pairs of pictures.

    Raises:
        ZooError: No label is published.
    """
    source: PairSource = limited(
        open_pairs(request.data, images=request.images, split=request.split), request.limit
    )
    if not any(source.told(i).label is not None for i in range(len(source))):
        raise ZooError(
            f"{source.name}: no labels are published for its {len(source):,} pairs, so nothing can be counted."
        )
    return source


def run_pairs(request: Request, opened: Opened, source: PairSource) -> Outcome:
    """Judge sentences about pairs of pictures: accuracy, and consistency where sentences have several pairs.

    Args:
        request: What is asked.
        opened: A model that `ComparesImages`.
        source: Sentences and pairs.
    """
    verdicts, broken = PairVerdicts(), list[Broken]()

    def work() -> None:
        batch: PairBatch
        for batch in _batches(request, opened, source, PairCollate(Tokens(opened.processor)), broken):
            inputs = _on(opened, batch.first, batch.second, batch.ids, batch.keep)
            logits = finite(opened.model.compare(*inputs), opened)
            verdicts.update(logits.argmax(1), *_on(opened, batch.labels, batch.groups))

    together(work)
    broken = _all_broken(source, broken)
    report = verdicts.compute()
    numbers = {"accuracy": Measure(report.accuracy, report.majority)}
    if report.sentences < report.pairs:
        numbers["consistency"] = Measure(report.consistency, report.guessed_consistency)
    notes = _left_out(source, broken, "pairs")
    if report.unpublished:
        notes.append(f"pairs without a published label, not counted: {report.unpublished:,}.")
    data: dict[str, str | int] = {
        "source": source.name,
        "pairs": report.pairs,
        "sentences": report.sentences,
        "broken": len(broken),
    }
    return Outcome(numbers, data, {"verdict": "the greater of two logits"}, notes, broken)


def open_relations(request: Request) -> EntailSource:
    """Open sentences that pictures entail, contradict or leave open."""
    source: EntailSource = limited(
        open_entailment(request.data, images=request.images, split=request.split), request.limit
    )
    return source


def run_entailment(request: Request, opened: Opened, source: EntailSource) -> Outcome:
    """Judge what pictures say of sentences: accuracy in all and by relation.

    Args:
        request: What is asked.
        opened: A model that `JudgesEntailment`.
        source: Pictures and sentences.

    Raises:
        ZooError: The model knows other relations than the data.
    """
    names = source.classes
    assert names is not None, "entailment has named relations"
    relations: tuple[str, ...] = opened.processor.answers or names
    if set(relations) != set(names):
        raise ZooError(
            f"{opened.name} knows the relations {', '.join(relations)}, and {source.name} has {', '.join(names)}."
        )
    meant = torch.tensor([names.index(relation) for relation in relations])
    judged: list[Tensor] = []
    broken: list[Broken] = []

    def work() -> None:
        batch: CaptionBatch
        for batch in _batches(request, opened, source, EntailCollate(Tokens(opened.processor)), broken):
            logits = finite(opened.model.entail(*_on(opened, batch.images, batch.ids, batch.keep)), opened)
            if logits.shape[1] != len(names):
                raise ZooError(
                    f"{opened.name} tells {logits.shape[1]} relations apart, and {source.name} has {', '.join(names)}."
                )
            assert batch.labels is not None
            judged.append(torch.stack([batch.labels, meant[logits.argmax(1).cpu()]]))

    together(work)
    broken = _all_broken(source, broken)
    mine = torch.cat(judged, 1) if judged else torch.empty(2, 0, dtype=torch.int64)
    labels, predicted = dist.gather_no_grad(mine.T.to(opened.device)).cpu().unbind(1)
    metric = Classification(names, ks=(1,))
    known = labels >= 0
    metric.update_topk(predicted[known][:, None], labels[known])
    report = metric.compute()
    numbers = {"accuracy": Measure(report.top[1], report.majority)}
    numbers |= {f"accuracy_{row.name}": Measure(row.accuracy) for row in report.classes if row.samples}
    data: dict[str, str | int] = {"source": source.name, "sentences": report.samples, "broken": len(broken)}
    return Outcome(
        numbers,
        data,
        {"verdict": "the greatest of three logits"},
        _left_out(source, broken, "sentences"),
        broken,
    )


def _on(opened: Opened, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.to(opened.device) for x in tensors)


def _batches(
    request: Request, opened: Opened, source: AnySource, collate: Collate, broken: list[Broken]
) -> Iterator[Any]:
    """This process's batches of a source, in order, read as the held-out loop of training reads them."""
    shared_source(source)
    transform = opened.processor.transform
    prepare = Prepare(Whole(transform), Normalise(transform.spec), collate, seed=0, train=False)
    reader = BatchReader(source, prepare)
    order = BatchOrder(len(source), request.batch_size, rank=dist.rank(), world=dist.world())
    seen = 0
    for step in order.steps(0):
        read = reader[step]
        if isinstance(read, ZooError):
            raise read
        broken.extend(read.broken)
        seen += read.seen
        if read.batch is not None:
            yield read.batch
        if request.progress is not None:
            request.progress(seen, order.samples)


def _all_broken(source: AnySource, broken: list[Broken]) -> list[Broken]:
    """The broken samples of all processes.

    Raises:
        ZooError: There are no others.
    """
    everyone = [item for part in dist.gather_objects(broken) for item in part]
    if len(everyone) == len(source):
        raise ZooError(nothing_usable(source.name, len(source), everyone))
    return everyone


def _left_out(source: AnySource, broken: Sequence[Broken], what: str) -> list[str]:
    if not broken:
        return []
    return [
        f"{len(broken)} of {len(source)} {what} cannot be used and are left out, so the numbers are not those of the "
        "whole set."
    ]
