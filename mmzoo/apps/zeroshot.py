"""`mmzoo zeroshot`: name what is in pictures by labels given as words, and measure how well that works."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mmzoo.apps.labels import keys_and_names, match_classes, read_labels, read_templates, words
from mmzoo.apps.opening import ModelLike, Opened, Progress, finite, open_model, require
from mmzoo.apps.pictures import Files, Loaded, find_pictures, read_batches
from mmzoo.apps.report.gallery import ClassRow, Guess, Number, Pair, page_path, write
from mmzoo.apps.report.zeroshot import gallery_of
from mmzoo.data.open import open_source
from mmzoo.data.reader import Broken
from mmzoo.data.sample import Source
from mmzoo.errors import UsageError
from mmzoo.metrics.classification import Classification, Report
from mmzoo.metrics.retrieval import recall
from mmzoo.metrics.zeroshot import build_classifier, encode_texts
from mmzoo.ops.pairs import pad_ids
from mmzoo.processing.templates import imagenet_names

__all__ = ["Prediction", "ZeroShot", "zeroshot"]


class Prediction(NamedTuple):
    """What the model makes of one picture.

    Attributes:
        key: The picture's path or key.
        place: Its index among the pictures.
        guesses: Labels with the model's share for each (softmax over all labels, 0 to 1), best first.
        truth: The true label, where it is known.
        truth_score: The share of the true label.
    """

    key: str
    place: int
    guesses: tuple[Guess, ...]
    truth: str | None = None
    truth_score: float | None = None


class ZeroShot(NamedTuple):
    """The outcome of `zeroshot`.

    Attributes:
        model: Name of the model.
        weights: Where its weights come from; `"random"` for a zoo name without `pretrained`.
        weights_sha256: Hash of the weights, as in the model card.
        source: Name of the data set, or `"pictures"`.
        labels: All labels.
        templates: The sentences that each label was put into.
        numbers: Accuracy and, for data with texts, retrieval; chance beside each. Empty where no truth is known.
        classes: Per-class table of a data set with classes.
        confused: Pairs of classes that were mixed up, most pictures first.
        predictions: One entry per readable picture, in order.
        broken: Pictures that could not be read, and why.
        command: The command that does the same.
        html: Where the gallery goes, if one was asked for.
    """

    model: str
    weights: str
    weights_sha256: str
    source: str
    labels: list[str]
    templates: tuple[str, ...]
    numbers: list[Number]
    classes: list[ClassRow]
    confused: list[Pair]
    predictions: list[Prediction]
    broken: list[Broken]
    command: str
    html: Path | None


def zeroshot(
    model: ModelLike,
    images: Sequence[str | Path] = (),
    *,
    labels: str | Path | Sequence[str] | None = None,
    data: str | Path | None = None,
    split: str | None = None,
    by: str | None = None,
    templates: str | Path | Sequence[str] = "auto",
    top_k: int = 5,
    pretrained: str | Path | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    html: str | Path | None = None,
    progress: Progress | None = None,
    announce: Callable[[ZeroShot], None] | None = None,
) -> ZeroShot:
    """Classify pictures by labels that the model was never trained on as classes.

    Every label is put into every template, the embeddings are averaged (CLIP, section 3.1.4), and a picture gets
    the label whose vector is nearest.

    Args:
        model: A name of the zoo, a folder written by `mmzoo.save`, or a pair of model and processor.
        images: Picture files, folders of them, shell patterns.
        labels: A list, `"cat,dog"`, a file with one label per line, or `"imagenet"` for CLIP's names of ImageNet's
            classes, whose folders are WordNet ids. A data set's classes by default.
        data: A data set instead of `images`; anything that `open_source` takes. With classes: accuracy, per-class
            table, confusions. With texts: retrieval both ways, each picture against the first text of each.
        split: Its split.
        by: What its classes are, where it knows several answers.
        templates: Sentences with `{}` for the label: a name of `mmzoo.processing.templates.TEMPLATES`, a sentence,
            a file or a list; `"auto"` is described at `mmzoo.apps.labels.read_templates`.
        top_k: So many labels per picture.
        pretrained: Weights for a model given by name.
        batch_size: Pictures per forward pass.
        device: Where to compute; a CUDA device if there is one.
        html: Where to write a gallery, a file or a folder; worst mistakes first.
        progress: Called with the number of pictures done and of all.
        announce: Called with the outcome before the gallery is written, so that a full disk costs the page and
            not the numbers.

    Returns:
        Predictions for every readable picture, and numbers where the truth is known.

    Raises:
        UsageError: Contradicting or missing arguments, or labels that do not fit the data.
        ZooError: The model cannot do it, or no picture could be read.
    """
    page = None if html is None else page_path(html)
    source, names, label_of = _task(images, labels, data, split, by)
    opened = open_model(model, pretrained=pretrained, device=device)
    require(opened, "embeds pairs", "compare pictures with words")
    sentences = read_templates(templates, opened.processor.text_spec)
    predictions: list[Prediction] = []
    broken: list[Broken] = []
    pairs = _Pairs(opened)
    # the best five of five labels are always right
    metric = Classification(names, ks=[k for k in (1, 5) if k < len(names)])
    with torch.inference_mode():
        spoken = [words(name) for name in names]
        classifier = build_classifier(opened.model, opened.processor, spoken, sentences, device=opened.device)
        for batch in read_batches(source, batch_size, broken):
            image = opened.model.encode_image(opened.processor.images(batch.images).to(opened.device))
            cosines = finite(opened.model.similarity(image, classifier), opened)  # (B, C)
            logits = opened.model.logit_scale.exp() * cosines
            predictions += _predict(batch, logits.float(), label_of, metric, top_k)
            pairs.add(batch, image)
            if progress is not None:
                progress(batch.places[-1] + 1, len(source))
        retrieval = pairs.numbers(len(source.classes or ()))
    report = metric.compute()
    result = ZeroShot(
        model=opened.name,
        weights=opened.weights,
        weights_sha256=opened.digest(),
        source=source.name,
        labels=names,
        templates=sentences,
        numbers=[*(_accuracy(report, len(names)) if report.samples else ()), *retrieval],
        classes=_class_table(report) if report.samples else [],
        confused=_confused(report),
        predictions=predictions,
        broken=broken,
        command=_command(opened.name, images, pretrained, labels, data, split, by, templates, html),
        html=page,
    )
    if announce is not None:
        announce(result)
    if result.html is not None:
        write(gallery_of(result, source), result.html)
    return result


def _task(
    images: Sequence[str | Path],
    labels: str | Path | Sequence[str] | None,
    data: str | Path | None,
    split: str | None,
    by: str | None,
) -> tuple[Source, list[str], list[int] | None]:
    """The pictures, the labels, and for each class of the pictures the index of its label (None: no classes)."""
    imagenet = labels == "imagenet"
    given = None if labels is None or imagenet else read_labels(labels)
    if imagenet and data is None:
        given = list(imagenet_names())
    if data is None:
        if not images:
            raise UsageError("name pictures to look at, or a data set with --data.")
        if split is not None or by is not None:
            raise UsageError("--split and --by belong to --data.")
        if given is None:
            raise UsageError(
                "pictures need --labels: words between commas, or a file with one label per line."
            )
        return Files(find_pictures(images)), keys_and_names(given)[1], None
    if images:
        raise UsageError("give pictures or --data, not both.")
    source = open_source(data, split=split, by=by)
    classes = source.classes
    if classes is None:
        if given is None:
            raise UsageError(f"{source.name} has no classes; name some with --labels.")
        return source, keys_and_names(given)[1], None
    if imagenet:
        # the names stand in the order of the WordNet ids, which is the order of the folders
        if len(classes) != 1000:
            raise UsageError(
                f"--labels imagenet names ImageNet's 1,000 classes, and {source.name} has {len(classes)}."
            )
        return source, list(imagenet_names()), list(range(1000))
    if given is not None:
        names, label_of = match_classes(given, classes, source.name)
        return source, names, label_of
    if len(classes) < 2:
        raise UsageError(
            f"{source.name} has one class only ({', '.join(classes)}), so every answer would be right; name others "
            "with --labels."
        )
    return source, list(classes), list(range(len(classes)))


def _predict(
    batch: Loaded, logits: Tensor, label_of: Sequence[int] | None, metric: Classification, count: int
) -> list[Prediction]:
    """Keep the best `count` labels of each row of `logits` (B, C) and the share of the true one; count them."""
    names = metric.names
    shares = logits.softmax(1)
    top = logits.topk(min(max(count, *metric.ks), len(names))).indices
    indices = top[:, :count].tolist()
    values = shares.gather(1, top[:, :count]).tolist()
    found, rows, truths = [], [], []
    for row, (sample, place) in enumerate(zip(batch.samples, batch.places, strict=True)):
        guesses = tuple(Guess(names[i], value) for i, value in zip(indices[row], values[row], strict=True))
        if label_of is None or sample.label is None or sample.label < 0:
            found.append(Prediction(sample.key, place, guesses))
            continue
        truth = label_of[sample.label]
        rows.append(row)
        truths.append(truth)
        found.append(Prediction(sample.key, place, guesses, names[truth], float(shares[row, truth])))
    metric.update_topk(top[rows], torch.tensor(truths, dtype=torch.int64))
    return found


def _accuracy(report: Report, labels: int) -> list[Number]:
    counts = [row.samples for row in report.classes if row.samples]
    uneven = len(set(counts)) > 1
    often = max(report.classes, key=lambda row: row.samples).name
    note = f"always {often!r}: {100 * report.majority:.1f} %" if uneven else ""
    numbers = [
        Number(f"top-{k} accuracy", value, k / labels, note if k == 1 else "")
        for k, value in report.top.items()
    ]
    if uneven:
        numbers.append(Number("mean recall of classes", report.mean_per_class, 1 / labels))
    return numbers


def _class_table(report: Report) -> list[ClassRow]:
    called = report.confusion.sum(0).tolist()
    right = report.confusion.diag().tolist()
    return [
        ClassRow(
            row.name,
            row.samples,
            row.accuracy if row.samples else None,
            right[i] / called[i] if called[i] else None,
            row.confused_with or "",
        )
        for i, row in enumerate(report.classes)
    ]


def _confused(report: Report) -> list[Pair]:
    pairs = [
        Pair(
            report.classes[truth].name,
            report.classes[guess].name,
            count,
            count / report.classes[truth].samples,
        )
        for truth, guess in report.confusion.nonzero().tolist()
        if truth != guess and (count := int(report.confusion[truth, guess]))
    ]
    return sorted(pairs, key=lambda pair: (-pair.pictures, -pair.share))


class _Pairs:
    """Embeddings of pictures and of the first text of each, for retrieval both ways."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.images: list[Tensor] = []
        self.texts: list[str] = []
        self.text_ids: list[int] = []
        self.image_ids: list[tuple[int, ...]] = []

    def add(self, batch: Loaded, image: Tensor) -> None:
        """Take the embeddings (B, E) of a batch's pictures; those without a text are left out."""
        rows = [row for row, sample in enumerate(batch.samples) if sample.texts]
        if not rows or image.dim() != 2:
            return
        self.images.append(image[rows].float())
        for sample in (batch.samples[row] for row in rows):
            self.texts.append(sample.texts[0])
            self.text_ids.append(sample.text_ids[0])
            self.image_ids.append(sample.image_ids)

    def numbers(self, classes: int) -> list[Number]:
        """Recall at 1, 5 and 10 both ways; none where the texts only repeat so many classes."""
        if len(self.texts) < 2 or len(set(self.texts)) <= classes < len(self.texts):
            return []
        model, processor, _, _, device = self.opened
        text = encode_texts(model, processor, self.texts, device=device).float()
        image_ids = pad_ids(self.image_ids).to(device)
        text_ids = torch.tensor(self.text_ids, device=device)
        found = recall(torch.cat(self.images), text, image_ids=image_ids, text_ids=text_ids)
        return [
            Number(f"{way} R@{k}", value, side.chance[k], f"of {side.items}")
            for way, side in (("image to text", found.i2t), ("text to image", found.t2i))
            for k, value in side.recall.items()
        ]


def _command(
    model: str,
    images: Sequence[str | Path],
    pretrained: str | Path | None,
    labels: str | Path | Sequence[str] | None,
    data: str | Path | None,
    split: str | None,
    by: str | None,
    templates: str | Path | Sequence[str],
    html: str | Path | None,
) -> str:
    """The command that does the same; long lists of pictures are cut."""
    shown = labels if labels is None or isinstance(labels, (str, Path)) else ",".join(labels)
    sentences = templates if isinstance(templates, (str, Path)) else "FILE"
    options = {
        "model": model,
        "pretrained": pretrained,
        "labels": shown,
        "data": data,
        "split": split,
        "by": by,
        "templates": None if sentences == "auto" else sentences,
        "html": html,
    }
    line = ["mmzoo", "zeroshot"]
    for name, value in options.items():
        if value is not None:
            line += [f"--{name}", str(value)]
    more = [] if len(images) <= 5 else ["..."]
    return shlex.join([*line, *map(str, images[:5]), *more])
