"""`mmzoo retrieve`: find pictures by words, captions by pictures, and pictures by pictures."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mmzoo.apps.embeddings import Kind
from mmzoo.apps.opening import ModelLike, Opened, Progress, finite, open_model, require
from mmzoo.apps.pictures import Files, find_pictures
from mmzoo.apps.report.gallery import page_path, write
from mmzoo.apps.report.retrieve import gallery_of
from mmzoo.apps.rerank import match_pairs, probability
from mmzoo.apps.searched import (
    Captions,
    Pictures,
    Rows,
    Searched,
    captions_at,
    captions_of,
    cosines,
    cut_texts,
    pictures_at,
)
from mmzoo.data.open import open_source
from mmzoo.data.reader import Broken
from mmzoo.errors import UsageError, ZooError
from mmzoo.metrics.topk import TopK
from mmzoo.metrics.zeroshot import encode_texts

__all__ = ["TOP_K", "Collection", "Found", "Hit", "Retrieved", "retrieve"]

TOP_K = 5
"""How many are given for each query unless a number is asked for."""
CELLS, ROWS = 2**22, 8192
"""Most scores (of 8 bytes), and most vectors of a file, in memory at once."""


class Hit(NamedTuple):
    """One thing that was found.

    Attributes:
        key: The picture's path or key, or the caption.
        score: Cosine of its vector and the query's, -1 to 1.
        place: Where it stands among the readable pictures, or the different captions, that were searched; from 0.
        match: With re-ranking, the model's probability that picture and text match, 0 to 1.
    """

    key: str
    score: float
    place: int
    match: float | None = None


class Found(NamedTuple):
    """What was found for one query.

    Attributes:
        query: The text, or the picture's path.
        kind: `"text"` or `"image"`: what the query is.
        finds: `"image"` or `"text"`: what was looked for.
        place: Its index among the texts, or among the readable pictures, that were given.
        hits: Best first.
    """

    query: str
    kind: Kind
    finds: Kind
    place: int
    hits: tuple[Hit, ...]


class Collection(NamedTuple):
    """Something that was searched.

    Attributes:
        name: The folder's, file's or data set's.
        kind: `"image"` or `"text"`: what it holds.
        size: How many pictures could be read, or how many different captions there are.
    """

    name: str
    kind: Kind
    size: int


class Retrieved(NamedTuple):
    """The outcome of `retrieve`.

    Attributes:
        model: Name of the model.
        weights: Where its weights come from; `"random"` for a zoo name without `pretrained`.
        weights_sha256: Hash of the weights, as in the model card.
        searched: What was searched; two entries where texts and pictures search a data set.
        reranked: At most so many candidates of each query were re-ranked; 0 for none.
        found: One entry per query, texts first.
        cut: Number of captions that are longer than the model reads, whose end did not count.
        broken: Pictures that could not be read, and why.
        command: The command that does the same.
        html: Where the page goes, if one was asked for.
    """

    model: str
    weights: str
    weights_sha256: str
    searched: list[Collection]
    reranked: int
    found: list[Found]
    cut: int
    broken: list[Broken]
    command: str
    html: Path | None


class _Search(NamedTuple):
    """Something to search, and the queries that search it."""

    items: Searched
    texts: list[str]
    pictures: Pictures | None


def retrieve(
    model: ModelLike,
    *,
    texts: Sequence[str] = (),
    image: Sequence[str | Path] = (),
    images: Sequence[str | Path] = (),
    captions: str | Path | Sequence[str] | None = None,
    data: str | Path | None = None,
    split: str | None = None,
    top_k: int | None = None,
    rerank: int = 0,
    pretrained: str | Path | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    html: str | Path | None = None,
    progress: Progress | None = None,
    announce: Callable[[Retrieved], None] | None = None,
) -> Retrieved:
    """Search pictures or captions by cosine, every one of them, in the memory of one batch.

    Queries are `texts` and `image`; one of `images`, `captions` and `data` is searched. Equal scores keep the order of
    what was searched. To embed a large folder once, write it with `mmzoo.apps.embed.embed` and give that file as
    `images` or `captions`: it is read block by block, and refused if another model made it.

    Re-ranking reads each of the best `rerank` together with the query and orders them by the probability of a match,
    equal ones by cosine. Published numbers of retrieval mix the two scores in each paper's own way; that belongs to
    evaluation.

    Args:
        model: A name of the zoo, a folder written by `mmzoo.save`, or a pair of model and processor.
        texts: Texts to search by.
        image: Pictures to search by: files, folders of them, shell patterns.
        images: Pictures to search: files, folders, patterns; or one file written by `embed`, for the pictures in it.
        captions: Captions to search: a text file with one per line, a data set with captions (a folder with
            `captions.jsonl`, or that file), a file written by `embed`, or a list. Equal ones are searched once.
        data: A data set to search: texts find its pictures, pictures find its captions.
        split: Its split.
        top_k: How many to give for each query; 5, or all if there are fewer.
        rerank: How many of the best to read again together with the query; 0 leaves the order to the cosine.
        pretrained: Weights for a model given by name.
        batch_size: Pictures, or texts, per forward pass.
        device: Where to compute; a CUDA device if there is one. Cosines are computed on the CPU, in float64, and
            rounded to float32, so that equal vectors tie wherever they stand.
        html: Where to write a page with what was found, a file or a folder.
        progress: Called with the number of pictures or captions done and of all.
        announce: Called with the outcome before the page is written, so that a full disk costs the page alone.

    Returns:
        For each query the best, and what could not be read.

    Raises:
        UsageError: Contradicting or missing arguments, an empty text or one longer than the model reads, or more asked
            for than there is.
        ZooError: The model cannot do it, a file of embeddings is damaged or another model's, or no picture could be
            read.
    """
    page = None if html is None else page_path(html)
    words = _checked(texts)
    searches = _searches(words, image, images, captions, data, split, batch_size)
    wanted = _bounded(searches, top_k, rerank)
    opened = open_model(model, pretrained=pretrained, device=device)
    require(opened, "embeds pairs", "search")
    if rerank:
        require(opened, "scores pairs", "re-rank", "embeds pairs")
    for place in cut_texts(opened.processor, words):
        raise UsageError(
            f"texts: entry {place + 1} ({words[place][:40]!r}...) is longer than {opened.name} reads "
            f"({opened.processor.tokenizer.spec.context} tokens); shorten it."
        )
    digest = opened.digest()
    for search in searches:
        if isinstance(search.items, Rows):
            search.items.check(opened.name, digest)
    broken: list[Broken] = []
    with torch.inference_mode():
        found = [
            entry
            for search in searches
            for entry in _run(search, opened, wanted, rerank, batch_size, broken, progress)
        ]
    cut = [cut_texts(opened.processor, s.items.keys) for s in searches if isinstance(s.items, Captions)]
    result = Retrieved(
        model=opened.name,
        weights=opened.weights,
        weights_sha256=digest,
        searched=[Collection(s.items.name, s.items.kind, len(s.items.keys)) for s in searches],
        reranked=rerank,
        found=found,
        cut=sum(map(len, cut)),
        broken=list(dict.fromkeys(broken)),
        command=_command(
            opened.name, words, image, images, captions, data, split, top_k, rerank, pretrained, html
        ),
        html=page,
    )
    if announce is not None:
        announce(result)
    if result.html is not None:
        read = {s.items.kind: s.items.picture for s in searches}
        asked = next((s.pictures.picture for s in searches if s.pictures is not None), None)
        write(gallery_of(result, read.get("image"), asked), result.html)
    return result


def _checked(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise UsageError(f"texts is a list of texts, not one: [{texts[:40]!r}].")
    found = [text.strip() for text in texts]
    for place, text in enumerate(found, 1):
        if not text:
            raise UsageError(f"texts: entry {place} is empty.")
    return found


def _searches(
    texts: list[str],
    image: Sequence[str | Path],
    images: Sequence[str | Path],
    captions: str | Path | Sequence[str] | None,
    data: str | Path | None,
    split: str | None,
    batch_size: int,
) -> list[_Search]:
    """What is searched, and by what; texts come first."""
    if not texts and not image:
        raise UsageError("nothing to search by: give --texts, or pictures with --image.")
    if sum((bool(images), captions is not None, data is not None)) != 1:
        raise UsageError("give one thing to search: --images, --captions or --data.")
    if split is not None and data is None:
        raise UsageError("--split belongs to --data.")
    pictures = Pictures(Files(find_pictures(image)), batch_size) if image else None
    if data is None:
        one = pictures_at(images, batch_size) if images else captions_at(captions or (), batch_size)
        return [_Search(one, texts, pictures)]
    source = open_source(data, split=split)
    searches: list[_Search] = []
    if texts:
        searches.append(_Search(Pictures(source, batch_size), texts, None))
    if pictures is not None:
        searches.append(_Search(Captions(captions_of(source), source.name, batch_size), [], pictures))
    return searches


def _bounded(searches: Sequence[_Search], top_k: int | None, rerank: int) -> int:
    """How many to give for each query."""
    for items, texts, pictures in searches:
        what = "pictures" if items.kind == "image" else "different captions"
        if top_k is not None and not 1 <= top_k <= len(items):
            raise UsageError(
                f"--top-k {top_k}: there are {len(items)} {what} in {items.name}; ask for 1 to {len(items)}."
            )
        if rerank and (pictures if items.kind == "image" else texts):
            raise UsageError(
                "--rerank reads a picture together with a text; here both sides are of one kind."
            )
    wanted = TOP_K if top_k is None else top_k
    if rerank and rerank < wanted:
        raise UsageError(f"--rerank {rerank} is fewer than the {wanted} to be given (--top-k).")
    return wanted


def _run(
    search: _Search,
    opened: Opened,
    wanted: int,
    rerank: int,
    batch_size: int,
    broken: list[Broken],
    progress: Progress | None,
) -> list[Found]:
    """Answer the queries of one search."""
    items, texts, pictures = search
    queries: list[tuple[Kind, Tensor]] = []
    names: list[tuple[str, Kind, int]] = []
    if texts:
        text = encode_texts(
            opened.model, opened.processor, texts, batch_size=batch_size, device=opened.device
        )
        queries.append(("text", finite(text, opened).double().cpu()))
        names += [(text, "text", i) for i, text in enumerate(texts)]
    if pictures is not None:
        queries.append(("image", torch.cat(list(pictures.blocks(opened, batch_size, broken))).double()))
        names += [(key, "image", i) for i, key in enumerate(pictures.keys)]
    best = TopK(len(names), rerank or wanted)
    rows = max(1, min(ROWS, CELLS // sum(vectors[..., 0].numel() for _, vectors in queries)))
    for block in items.blocks(opened, rows, broken, progress):
        scores = [cosines(opened, kind, vectors, items, block.double()) for kind, vectors in queries]
        best.add(
            torch.cat(scores).float()
        )  # rounded, so that equal vectors tie however the sums were ordered
    ranked = [
        [Hit(items.keys[place], score, place) for place, score in zip(*lists, strict=True)]
        for lists in zip(best.places.tolist(), best.scores.tolist(), strict=True)
    ]
    if rerank:
        ranked = _rerank(search, opened, ranked, batch_size, broken, progress)
    return [
        Found(query, kind, items.kind, place, tuple(hits[:wanted]))
        for (query, kind, place), hits in zip(names, ranked, strict=True)
    ]


def _rerank(
    search: _Search,
    opened: Opened,
    ranked: list[list[Hit]],
    batch_size: int,
    broken: list[Broken],
    progress: Progress | None,
) -> list[list[Hit]]:
    """Order each query's hits by how sure the model is of a match; those whose picture is gone are left out."""
    items, texts, pictures = search
    pairs = [(query, hit.place) for query, hits in enumerate(ranked) for hit in hits]
    if items.kind == "image":
        pairs = [(place, query) for query, place in pairs]
        read, names, words = items.picture, items.keys, texts
    else:
        assert pictures is not None, "nothing to match the captions with"
        read, names, words = pictures.picture, pictures.keys, items.keys
    odds = match_pairs(
        opened, pairs, read, names, words, batch_size=batch_size, broken=broken, progress=progress
    )
    if not odds:
        hint = (
            " Pictures of embeddings are looked for by their keys, from here."
            if isinstance(items, Rows)
            else ""
        )
        raise ZooError(
            f"--rerank: none of {len(broken)} pictures could be read again; the first, {broken[0].key}: "
            f"{broken[0].reason}.{hint}"
        )
    again: list[list[Hit]] = []
    for query, hits in enumerate(ranked):
        ways = [(hit.place, query) if items.kind == "image" else (query, hit.place) for hit in hits]
        there = [(odds[way], hit) for way, hit in zip(ways, hits, strict=True) if way in odds]
        there.sort(key=lambda pair: -pair[0])  # stable: equal ones stay in the order of their cosines
        again.append([hit._replace(match=probability(margin)) for margin, hit in there])
    return again


def _command(
    model: str,
    texts: Sequence[str],
    image: Sequence[str | Path],
    images: Sequence[str | Path],
    captions: str | Path | Sequence[str] | None,
    data: str | Path | None,
    split: str | None,
    top_k: int | None,
    rerank: int,
    pretrained: str | Path | None,
    html: str | Path | None,
) -> str:
    """The command that does the same; long lists are cut."""
    single = {
        "captions": captions if captions is None or isinstance(captions, (str, Path)) else "FILE",
        "data": data,
        "split": split,
        "top-k": top_k,
        "rerank": rerank or None,
        "pretrained": pretrained,
        "html": html,
    }
    line = ["mmzoo", "retrieve", "--model", model]
    for name, values in {"texts": texts, "image": image, "images": images}.items():
        if values:
            line += [f"--{name}", *map(str, values[:5]), *(["..."] if len(values) > 5 else [])]
    for name, value in single.items():
        if value is not None:
            line += [f"--{name}", str(value)]
    return shlex.join(line)
