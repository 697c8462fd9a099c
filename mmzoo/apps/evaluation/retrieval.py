"""Retrieval both ways over all captions of each picture, in two stages or pair by pair.

Nothing of the size of all pictures is held but their embeddings: candidates are matched picture by picture, and a
picture is read and encoded again for it, which costs a few percent of matching a hundred texts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from mmzoo import dist, zoo
from mmzoo.apps.evaluation.request import (
    Measure,
    Outcome,
    Request,
    gathered,
    limited,
    share,
    shared_source,
    together,
)
from mmzoo.apps.opening import Opened, finite, require
from mmzoo.apps.pictures import none_readable, read_some
from mmzoo.apps.rerank import TextSide, match_logits, shared_pictures
from mmzoo.apps.searched import cut_texts
from mmzoo.data.open import open_source
from mmzoo.data.reader import Broken
from mmzoo.data.sample import Source
from mmzoo.errors import UsageError, ZooError
from mmzoo.metrics.rerank import Candidates, choose, reranked_standings
from mmzoo.metrics.retrieval import Standing, chance_rank, recalls, scored_standings, standings
from mmzoo.metrics.zeroshot import encode_texts
from mmzoo.models.capabilities import EmbedsPairs, ScoresPairs
from mmzoo.ops.pairs import pad_ids
from mmzoo.processing.image import BadImage, decode_image

__all__ = ["SCORES", "open_retrieval", "run_retrieval"]

SCORES = ("itm", "itm+itc")
"""What candidates are ordered by: the logit of a match (ALBEF), or that and the cosine (BLIP, BLIP-2)."""
SUMS = frozenset({"blip", "blip2"})
"""Families whose published numbers order candidates by the sum."""
ROWS = 2**16
"""Pairs whose cosines are computed at once."""


class _Gallery(NamedTuple):
    """The pictures that can be read, their captions, and which belongs to which.

    Attributes:
        keys: Of B pictures.
        places: Their indices in the source.
        texts: T captions, picture by picture.
        image_ids: (B, m) int64.
        text_ids: (T,) int64.
        image: (B, E) embeddings; None where the model makes none.
        broken: Pictures that cannot be read, whose captions are left out too.
        blank: Captions without words, which are left out.
    """

    keys: list[str]
    places: list[int]
    texts: list[str]
    image_ids: Tensor
    text_ids: Tensor
    image: Tensor | None
    broken: list[Broken]
    blank: int


class _Row(NamedTuple):
    """A picture of the gallery, without its pixels."""

    key: str
    place: int
    texts: list[str]
    text_ids: list[int]
    image_ids: tuple[int, ...]
    blank: int


def open_retrieval(request: Request) -> Source:
    """Open pictures with captions.

    Raises:
        ZooError: There are none.
    """
    return limited(open_source(request.data, split=request.split), request.limit)


def run_retrieval(request: Request, opened: Opened, source: Source) -> Outcome:
    """Measure recall and ranks both ways.

    Args:
        request: What is asked.
        opened: A model that `EmbedsPairs` or `ScoresPairs`.
        source: Pictures with captions.

    Raises:
        UsageError: Re-ranking where there is no first stage, or a score without re-ranking.
        ZooError: No picture can be read, there are no captions, or the model cannot re-rank.
    """
    embeds = isinstance(opened.model, EmbedsPairs)
    rerank, score = request.rerank or 0, _score(request, opened, embeds)
    if rerank < 0:
        raise UsageError(f"--rerank {rerank}: it is a number of candidates, at least 1.")
    if rerank:
        require(opened, "scores pairs", "re-rank", "embeds pairs")
    gallery = _read(request, opened, source, embeds)
    notes = _notes(gallery, source, opened)
    protocol: dict[str, Any] = {"captions": "all of each picture", "ties": "against"}
    if not embeds:
        numbers, more = _every_pair(request, opened, source, gallery)
    else:
        numbers, more = _two_stages(request, opened, source, gallery, rerank, score)
        if rerank:
            notes += [
                f"--rerank {rerank}: there are {size} {side} only, so all of them are candidates."
                for side, size in more["candidates"].items()
                if size < rerank
            ]
        elif isinstance(opened.model, ScoresPairs):
            notes.append("The published numbers of models that score pairs are re-ranked: see --rerank.")
    data: dict[str, str | int] = {
        "source": source.name,
        "images": len(gallery.keys),
        "texts": len(gallery.texts),
        "broken": len(gallery.broken),
    }
    return Outcome(numbers, data, protocol | more, notes, gallery.broken)


def _two_stages(
    request: Request, opened: Opened, source: Source, gallery: _Gallery, rerank: int, score: str
) -> tuple[dict[str, Measure], dict[str, Any]]:
    """Numbers by cosine, and where candidates are re-ranked those too; what else decides them."""
    image, text = gallery.image, _embed_texts(request, opened, gallery.texts)
    assert image is not None
    image_ids, text_ids = gallery.image_ids.to(opened.device), gallery.text_ids.to(opened.device)
    first = standings(image, text, image_ids=image_ids, text_ids=text_ids)
    numbers = _numbers("", first)
    if not rerank:
        return numbers, {"ranking": "cosine"}
    chosen = choose(image, text, rerank)
    scores = _match_candidates(request, opened, source, gallery, chosen)
    if score == "itm+itc":
        scores = scores + _cosines(image, text, chosen).to(scores)
    numbers |= _numbers("reranked_", reranked_standings(chosen, scores, image_ids, text_ids, first))
    return numbers, {
        "ranking": "cosine, then the first candidates by match",
        "rerank": rerank,
        "candidates": {"texts": chosen.texts.shape[1], "images": chosen.images.shape[1]},
        "score": score,
        "pairs": len(chosen.image),
    }


def _every_pair(
    request: Request, opened: Opened, source: Source, gallery: _Gallery
) -> tuple[dict[str, Measure], dict[str, Any]]:
    """Numbers by the match of every pair; what else decides them."""
    device, mine = opened.device, share(len(gallery.keys))
    scores = _match_all(request, opened, source, gallery).to(device)
    own = gallery.image_ids[mine.start : mine.stop].to(device)
    stand = scored_standings(scores, image_ids=own, text_ids=gallery.text_ids.to(device))
    pairs = len(gallery.keys) * len(gallery.texts)
    return _numbers("", stand), {"ranking": "match of every pair", "score": "itm", "pairs": pairs}


def _score(request: Request, opened: Opened, embeds: bool) -> str:
    """What pairs are ordered by."""
    if request.score is not None and request.score not in SCORES:
        raise UsageError(f"--score {request.score}: it is one of {', '.join(SCORES)}.")
    if not embeds:
        if request.rerank or request.score == "itm+itc":
            raise UsageError(
                f"{opened.name} embeds nothing, so no candidates can be chosen by cosine and every pair is matched: "
                "leave out --rerank and --score."
            )
        return "itm"
    if request.score is not None and not request.rerank:
        raise UsageError("--score says what re-ranking goes by: give --rerank too.")
    return request.score or ("itm+itc" if _family(opened) in SUMS else "itm")


def _family(opened: Opened) -> str | None:
    try:
        return zoo.family_of(opened.model)
    except ZooError:  # somebody's own model
        return None


def _read(request: Request, opened: Opened, source: Source, embeds: bool) -> _Gallery:
    """Read all pictures once, embed them if the model does, and collect their captions."""
    shared_source(source)
    broken: list[Broken] = []
    rows: list[_Row] = []
    vectors: list[Tensor] = []
    mine = share(len(source))

    def work() -> None:
        for batch in read_some(source, mine, request.batch_size, broken):
            if embeds:
                pixels = opened.processor.images(batch.images).to(opened.device)
                found = finite(opened.model.encode_image(pixels), opened)
                if found.dim() != 2:
                    raise ZooError(
                        f"{opened.name} embeds a picture as several vectors, which is not evaluated yet."
                    )
                vectors.append(found.to(_precision(opened)))
            for sample, place in zip(batch.samples, batch.places, strict=True):
                worded = [j for j, text in enumerate(sample.texts) if text.strip()]
                texts, numbers = [sample.texts[j] for j in worded], [sample.text_ids[j] for j in worded]
                blank = len(sample.texts) - len(texts)
                rows.append(_Row(sample.key, place, texts, numbers, sample.image_ids, blank))
            if request.progress is not None:
                request.progress(batch.places[-1] + 1 - mine.start, len(mine))

    together(work)
    everyone = [row for part in dist.gather_objects(rows) for row in part]
    lost = [item for part in dist.gather_objects(broken) for item in part]
    if not everyone:
        raise ZooError(none_readable(source.name, lost))
    texts = [text for row in everyone for text in row.texts]
    if not texts:
        raise ZooError(
            f"{source.name} has no captions, so there is nothing to find pictures by; retrieval reads a folder with "
            "captions.jsonl, a Karpathy file, or shards."
        )
    return _Gallery(
        keys=[row.key for row in everyone],
        places=[row.place for row in everyone],
        texts=texts,
        image_ids=pad_ids([row.image_ids for row in everyone]),
        text_ids=torch.tensor([number for row in everyone for number in row.text_ids]),
        image=gathered(vectors, opened.device) if embeds else None,
        broken=lost,
        blank=sum(row.blank for row in everyone),
    )


def _embed_texts(request: Request, opened: Opened, texts: Sequence[str]) -> Tensor:
    """Embeddings (T, E) of all captions, each made by one process."""
    mine = share(len(texts))

    def work() -> list[Tensor]:
        if not mine:
            return []
        own = texts[mine.start : mine.stop]
        found = encode_texts(
            opened.model, opened.processor, own, batch_size=request.batch_size, device=opened.device
        )
        return [finite(found, opened).to(_precision(opened))]

    return gathered(together(work), opened.device)


def _match_candidates(
    request: Request, opened: Opened, source: Source, gallery: _Gallery, chosen: Candidates
) -> Tensor:
    """The logit of a match (P,) of each candidate, on the device of the candidates."""
    # pairs are in the order of their images: a run of images is a run of pairs, and runs of about as many pairs take
    # about as long, however often a picture is a candidate
    counts = chosen.image.bincount(minlength=len(gallery.keys)).cumsum(0)
    ends = [0, *(int(counts[i]) for i in _cuts(counts)), len(chosen.image)]
    first, last = ends[dist.rank()], ends[dist.rank() + 1]
    request.talk(f"matching {len(chosen.image):,} pairs of {len(gallery.keys):,} pictures.")

    def work() -> Tensor:
        return match_logits(
            opened,
            chosen.image[first:last],
            chosen.text[first:last],
            lambda which: _again(source, gallery, which),
            gallery.keys,
            gallery.texts,
            batch_size=request.batch_size,
            broken=[],
            progress=request.progress,
        )[:, 1]

    return dist.gather_no_grad(together(work).to(chosen.image.device))


def _cuts(counts: Tensor) -> list[int]:
    """After which pictures the pairs are cut to make parts for all processes; `counts` are cumulative."""
    total, world = int(counts[-1]), dist.world()
    return [
        int(torch.searchsorted(counts, total * part // world).clamp(max=len(counts) - 1))
        for part in range(1, world)
    ]


def _match_all(request: Request, opened: Opened, source: Source, gallery: _Gallery) -> Tensor:
    """The logit of a match (n, T) of each of this process's pictures with every caption, on the CPU."""
    mine, count = share(len(gallery.keys)), len(gallery.texts)
    pairs, started = len(gallery.keys) * count, time.perf_counter()

    def work() -> Tensor:
        texts = TextSide(opened, gallery.texts)
        order = texts.lengths.argsort()  # so that little of a pass is padding
        scores = torch.empty(len(mine), count, dtype=_precision(opened))
        for row, which in enumerate(mine):
            shared = shared_pictures(opened, [_again(source, gallery, which)])
            for some in order.split(request.batch_size):
                first = torch.zeros(len(some), dtype=torch.int64, device=opened.device)
                scores[row, some] = finite(texts.match(shared, some, first), opened)[:, 1].to(scores)
            if row == 0:
                hours = (time.perf_counter() - started) * len(mine) / 3600
                request.talk(
                    f"{opened.name} embeds nothing, so each of {pairs:,} pairs ({len(gallery.keys):,} pictures, "
                    f"{count:,} captions) takes a pass of the whole model: about {_duration(hours)} at the first "
                    "picture's pace; --limit N takes the first N pictures only."
                )
            if request.progress is not None:
                request.progress((row + 1) * count, len(mine) * count)
        return scores

    return together(work)


def _again(source: Source, gallery: _Gallery, which: int) -> Image.Image:
    """A picture of the gallery once more.

    Raises:
        ZooError: It has gone since it was read first.
    """
    try:
        return decode_image(source[gallery.places[which]].image)
    except (OSError, BadImage) as error:
        raise ZooError(
            f"{gallery.keys[which]} could be read at first and now cannot ({str(error).rstrip('.')}): evaluate "
            "data that does not change."
        ) from None


def _precision(opened: Opened) -> torch.dtype:
    """What scores are kept in: float32, or the model's own where that is more."""
    own = next((p.dtype for p in opened.model.parameters()), torch.float32)
    return torch.promote_types(own, torch.float32)


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{60 * hours:.0f} minutes" if hours >= 1 / 60 else f"{3600 * hours:.0f} seconds"


def _cosines(image: Tensor, text: Tensor, chosen: Candidates) -> Tensor:
    """Cosines (P,) of the candidates."""
    parts = zip(chosen.image.split(ROWS), chosen.text.split(ROWS), strict=True)
    return torch.cat([(image[i] * text[j]).sum(1) for i, j in parts])


def _numbers(prefix: str, stand: tuple[Standing, Standing]) -> dict[str, Measure]:
    """Recalls and ranks under the names that training logs them by."""
    found: dict[str, Measure] = {}
    results = recalls(*stand)
    for way, direction, own in zip(results._fields, results, stand, strict=True):
        found |= {
            f"{prefix}{way}_r{k}": Measure(value, direction.chance[k])
            for k, value in direction.recall.items()
        }
        random = chance_rank(own.positives, direction.items)
        found[f"{prefix}{way}_mean_rank"] = Measure(direction.mean_rank, random, "rank")
        found[f"{prefix}{way}_median_rank"] = Measure(direction.median_rank, None, "rank")
    return found


def _notes(gallery: _Gallery, source: Source, opened: Opened) -> list[str]:
    notes = []
    if gallery.broken:
        notes.append(
            f"{len(gallery.broken)} of {len(source)} pictures cannot be read and are left out with their captions: the "
            "gallery is easier than the whole."
        )
    if gallery.blank:
        notes.append(f"captions without words, left out: {gallery.blank}.")
    if cut := len(cut_texts(opened.processor, gallery.texts)):
        notes.append(
            f"{cut} of {len(gallery.texts)} captions are longer than {opened.name} reads; the end does not count."
        )
    return notes
