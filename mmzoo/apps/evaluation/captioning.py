"""Captions by the COCO caption kit's scores, NoCaps' domains each by itself, from a model or from a results file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmzoo import dist
from mmzoo.apps.evaluation.request import Measure, Outcome, Request, limited, share, shared_source, together
from mmzoo.apps.opening import Opened
from mmzoo.apps.pictures import none_readable, read_some
from mmzoo.apps.writing import BEAMS, own_prompt, prompt_ids, write_texts
from mmzoo.data.captioning import Described, PictureId, open_described, read_results, write_results
from mmzoo.data.reader import Broken
from mmzoo.errors import UsageError, ZooError
from mmzoo.generation import GenerationConfig
from mmzoo.metrics.caption import score_captions, tokenized
from mmzoo.metrics.caption_java import SCORES, check_java

__all__ = ["open_captioning", "run_captioning", "score_results"]

MOST, LEAST = 20, 1  # tokens of a caption unless told otherwise, as `mmzoo caption` writes
BY_DOMAIN = ("bleu4", "cider_d", "spice")  # what NoCaps' tables show, as far as it is there
PROTOCOL = "COCO caption kit: Penn Treebank words without punctuation; cider_d is what it calls CIDEr"


def open_captioning(request: Request) -> Described:
    """Open pictures with references.

    Raises:
        UsageError: `predictions` names a folder, or `extra` no score.
        ZooError: There are no references, or an extra score cannot be had here.
    """
    if request.predictions is not None and Path(request.predictions).is_dir():
        raise UsageError(
            f"--predictions {request.predictions} is a folder; give a file such as captions.json."
        )
    check_java(_extra(request))
    found = open_described(request.data, images=request.images, split=request.split)
    source = limited(found.source, request.limit)
    return _first(found, len(source))._replace(source=source)


def run_captioning(request: Request, opened: Opened, described: Described) -> Outcome:
    """Write a caption of every picture, and score them.

    Args:
        request: What is asked.
        opened: A model that `WritesCaptions`.
        described: Pictures with references.

    Raises:
        UsageError: Prompt or settings do not fit the model.
        ZooError: No picture can be read.
    """
    settings = GenerationConfig(
        beams=BEAMS if request.beams is None else request.beams,
        max_new_tokens=MOST if request.max_new_tokens is None else request.max_new_tokens,
        min_new_tokens=LEAST if request.min_new_tokens is None else request.min_new_tokens,
    )
    prompt = prompt_ids(opened, request.prompt)
    source = described.source
    assert source is not None, "the pictures were opened"
    shared_source(source)
    written: dict[PictureId, str] = {}
    broken: list[Broken] = []
    mine = share(len(source))

    def work() -> None:
        for batch in read_some(source, mine, request.batch_size, broken):
            pixels = opened.processor.images(batch.images).to(opened.device)
            texts = write_texts(opened, opened.model.caption_decoder(pixels), prompt, settings)
            for place, (text, *_) in zip(batch.places, texts, strict=True):
                written[described.ids[place]] = text.text
            if request.progress is not None:
                request.progress(batch.places[-1] + 1 - mine.start, len(mine))

    together(work)
    captions = {key: text for part in dist.gather_objects(written) for key, text in part.items()}
    lost = [item for part in dist.gather_objects(broken) for item in part]
    if not captions:
        raise ZooError(none_readable(described.name, lost))
    out = None if request.predictions is None else Path(request.predictions)
    if out is not None:
        together(lambda: write_results(captions, out) if dist.rank() == 0 else None)
    outcome = _scored(request, described, captions, lost)
    protocol = outcome.protocol | {
        "prompt": own_prompt(opened) if request.prompt is None else request.prompt,
        "beams": settings.beams,
        "min_new_tokens": settings.min_new_tokens,
        "max_new_tokens": settings.max_new_tokens,
    }
    return outcome._replace(protocol=protocol, predictions=out)


def score_results(request: Request) -> Outcome:
    """Score the captions of a results file; neither a model nor the pictures are needed.

    Args:
        request: What is asked; `predictions` is the file.

    Raises:
        UsageError: There is no file, or an option is given that says how a model writes.
        ZooError: The file or the references cannot be read, or they are about different pictures.
    """
    if request.predictions is None:
        raise UsageError("captioning needs --model MODEL, or --predictions FILE with captions to score.")
    for name in ("images", "prompt", "beams", "max_new_tokens", "min_new_tokens"):
        if getattr(request, name) is not None:
            raise UsageError(
                f"--{name} says how a model writes, and none is given: add --model, or leave it out."
            )
    check_java(_extra(request))
    described = open_described(request.data, split=request.split, pictures=False)
    captions = read_results(request.predictions)
    if request.limit is not None:
        described = _first(described, request.limit)
        captions = {key: captions[key] for key in described.ids if key in captions}
    strangers = [key for key in captions if key not in set(described.ids)]
    missing = [key for key in described.ids if key not in captions]
    for keys, which in ((missing, "have no caption in"), (strangers, "are not in the data, but in")):
        if keys:
            raise ZooError(
                f"{len(keys):,} pictures {which} {request.predictions} (the first is {keys[0]!r}); the data has "
                f"{len(described.ids):,}, such as {described.ids[0]!r}. Is it of another split?"
            )
    return _scored(request, described, captions, [])


def _extra(request: Request) -> list[str]:
    names = [] if request.extra is None else request.extra.split(",")
    for name in names:
        if name not in SCORES:
            raise UsageError(
                f"--extra {request.extra}: it takes {', '.join(SCORES)}, or both with a comma between."
            )
    return names


def _first(described: Described, count: int) -> Described:
    return described._replace(
        ids=described.ids[:count],
        references=described.references[:count],
        domains=described.domains[:count],
    )


def _scored(
    request: Request, described: Described, captions: Mapping[PictureId, str], broken: Sequence[Broken]
) -> Outcome:
    """Score what there is, in all and by domain."""
    rows = zip(described.ids, described.references, described.domains, strict=True)
    known = [(key, texts, domain) for key, texts, domain in rows if key in captions]
    useful = [row for row in known if row[1]]
    if not useful:
        raise ZooError(f"{described.name}: none of the captioned pictures has a reference.")
    numbers: dict[str, float] = {}
    domains = sorted({domain for *_, domain in useful if domain is not None})
    for domain in (None, *domains):
        chosen = {key: texts for key, texts, own in useful if domain in (None, own)}
        found = _numbers(request, {key: captions[key] for key in chosen}, chosen)
        if domain is not None:
            found = {f"{domain}_{name}": found[name] for name in BY_DOMAIN if name in found}
        numbers |= found
    notes = []
    if len(useful) < len(known):
        notes.append(f"{len(known) - len(useful):,} pictures have no references and are not scored.")
    if broken:
        notes.append(f"{len(broken)} of {len(described.ids):,} pictures cannot be read and are left out.")
    protocol: dict[str, Any] = {"scores": PROTOCOL}
    if domains:
        protocol["domains"] = "each by itself, as if the kit was given its pictures alone"
    return Outcome(
        {name: Measure(v, None, "score" if "cider" in name else "share") for name, v in numbers.items()},
        {
            "source": described.name,
            "images": len(useful),
            "references": sum(len(texts) for _, texts, _ in useful),
            "broken": len(broken),
        },
        protocol,
        notes,
        list(broken),
    )


def _numbers(
    request: Request, captions: Mapping[PictureId, str], references: Mapping[PictureId, Sequence[str]]
) -> dict[str, float]:
    found = dict(score_captions(captions, references).numbers)
    extra = _extra(request)
    words = tokenized(captions, references) if extra else None
    for name in extra:
        assert words is not None
        found[name] = SCORES[name](*words)[0]
    return found
