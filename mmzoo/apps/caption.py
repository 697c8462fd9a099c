"""`mmzoo caption`: write what is in pictures."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mmzoo.apps.lines import GrowingLines, growing_lines, lines_path
from mmzoo.apps.opening import ModelLike, Opened, Progress, open_model, require
from mmzoo.apps.pictures import Files, Loaded, find_pictures, none_readable, read_some
from mmzoo.apps.report.caption import gallery_of
from mmzoo.apps.report.gallery import page_path, write
from mmzoo.apps.writing import BEAMS, Text, own_prompt, prompt_ids, write_texts
from mmzoo.data.reader import Broken
from mmzoo.errors import UsageError, ZooError
from mmzoo.generation import GenerationConfig

__all__ = ["Captioned", "Captions", "caption", "read_list"]

TOP_P = 0.9
"""Share of the probability that words are drawn from unless told otherwise: BLIP's own in CapFilt."""


class Captioned(NamedTuple):
    """The captions of one picture; as a line of JSON, what a folder of pictures with captions holds.

    Attributes:
        image: Its path as given.
        captions: Best first, without the prompt.
        scores: Of each caption, see `Text`.
        finished: Of each, False where it was cut at the most tokens.
        by: A digest of the weights, the prompt and all settings.
    """

    image: str
    captions: tuple[str, ...]
    scores: tuple[float, ...]
    finished: tuple[bool, ...]
    by: str


class Captions(NamedTuple):
    """The outcome of `caption`.

    Attributes:
        model: The model's name.
        weights: Where its weights come from; `"random"` for a zoo name without `pretrained`.
        weights_sha256: Hash of the weights, as in the model card.
        prompt: What captions begin with.
        settings: How they were written.
        captions: One entry per readable picture, in their order, those of an earlier run among them.
        resumed: So many were there already.
        tokens: Tokens written in this run, end tokens included.
        seconds: What reading the pictures and writing took in this run, without opening the model.
        broken: Pictures that could not be read, and why.
        command: The command that does the same.
        out: The file with the captions, if one was asked for.
        html: Where the gallery goes, if one was asked for.
    """

    model: str
    weights: str
    weights_sha256: str
    prompt: str
    settings: GenerationConfig
    captions: list[Captioned]
    resumed: int
    tokens: int
    seconds: float
    broken: list[Broken]
    command: str
    out: Path | None
    html: Path | None


def caption(
    model: ModelLike,
    images: Sequence[str | Path] = (),
    *,
    prompt: str | None = None,
    num_captions: int = 1,
    beams: int | None = None,
    sample: bool = False,
    top_p: float | None = None,
    top_k: int = 0,
    temperature: float = 1.0,
    seed: int = 0,
    max_new_tokens: int = 20,
    min_new_tokens: int = 1,
    repetition_penalty: float = 1.0,
    length_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
    pretrained: str | Path | None = None,
    batch_size: int = 16,
    device: str | torch.device | None = None,
    out: str | Path | None = None,
    html: str | Path | None = None,
    progress: Progress | None = None,
    announce: Callable[[Captioned], None] | None = None,
) -> Captions:
    """Describe pictures in words.

    A drawn caption depends on the seed and on the picture's bytes, not on its name or on the pictures beside it.

    Args:
        model: A name of the zoo, a folder written by `mmzoo.save`, or a pair of model and processor.
        images: Picture files, folders of them, shell patterns.
        prompt: What captions begin with; None takes the model's own ("a picture of " for BLIP), "" nothing.
        num_captions: Captions of each picture.
        beams: Width of the search; None takes 3, or as many as there are captions.
        sample: Draw words instead of searching for the likeliest caption.
        top_p: Draw among the fewest words that hold this share of the probability; None takes 0.9.
        top_k: Draw among the k likeliest words only; 0 means all.
        temperature: Divides the logits before drawing.
        seed: Of the drawing.
        max_new_tokens: Most tokens of a caption, the prompt not counted.
        min_new_tokens: The end token may not be among the first so many.
        repetition_penalty: Above 1 makes what was said already less likely (NoCaps: 1.1).
        length_penalty: Exponent of the length that divides a caption's log-probability.
        no_repeat_ngram: No sequence of so many tokens twice in a caption; 0 allows all.
        pretrained: Weights for a model given by name.
        batch_size: Pictures at a time.
        device: Where to compute; a CUDA device if there is one.
        out: A .jsonl file that grows by one line per picture. If it is there, what it holds is not written again.
            Pictures beside it or below go by their place from there, so that `captions.jsonl` in the folder of the
            pictures makes that a data set.
        html: Where to write a gallery, a file or a folder.
        progress: Called with the number of pictures done and of all.
        announce: Called with the captions of each picture as soon as they are there (and in `out`).

    Returns:
        Captions of every readable picture.

    Raises:
        UsageError: No picture is named, or settings that contradict each other or do not fit the model.
        ZooError: The model writes no captions, or no picture could be read.
    """
    page = None if html is None else page_path(html)
    lines = None if out is None else lines_path(out)
    settings = _settings(
        num_captions, beams, sample, top_p, top_k, temperature, seed, max_new_tokens, min_new_tokens,
        repetition_penalty, length_penalty, no_repeat_ngram,
    )  # fmt: skip
    if not images:
        raise UsageError(
            "name pictures to describe: files, folders, shell patterns, or - for a list on stdin."
        )
    paths = find_pictures(images)
    opened = open_model(model, pretrained=pretrained, device=device)
    require(opened, "writes captions", "write captions")
    begun = prompt_ids(opened, prompt)
    weights = opened.digest()
    by = _digest(weights, begun, settings)
    found: dict[str, Captioned] = {}
    broken: list[Broken] = []
    tokens = 0
    with nullcontext() if lines is None else growing_lines(lines, by) as growing:
        found.update(_there(growing, paths))
        resumed, start = len(found), time.perf_counter()
        todo = Files([path for path in paths if str(path) not in found])
        if progress is not None:
            progress(resumed, len(paths))
        for batch in read_some(todo, range(len(todo)), batch_size, broken):
            written = _write(opened, batch, begun, settings)
            for shown, texts in zip(batch.samples, written, strict=True):
                tokens += sum(len(text.ids) + text.finished for text in texts)
                said = found[shown.key] = _captioned(shown.key, texts, by)
                if growing is not None:
                    growing.add(said._asdict() | {"image": _name(shown.key, growing.path)})
                if announce is not None:
                    announce(said)
            if progress is not None:
                progress(resumed + batch.places[-1] + 1, len(paths))
        seconds = time.perf_counter() - start
    if not found:
        raise ZooError(none_readable("pictures", broken))
    result = Captions(
        model=opened.name,
        weights=opened.weights,
        weights_sha256=weights,
        prompt=own_prompt(opened) if prompt is None else prompt,
        settings=settings,
        captions=[found[str(path)] for path in paths if str(path) in found],
        resumed=resumed,
        tokens=tokens,
        seconds=seconds,
        broken=broken,
        command=_command(opened.name, images, pretrained, prompt, settings, out, html),
        out=lines,
        html=page,
    )
    if page is not None:
        write(gallery_of(result), page)
    return result


def read_list(images: Sequence[str]) -> list[str]:
    """Put the lines of standard input in the place of `-`; other words stay.

    Raises:
        UsageError: There are none.
    """
    found: list[str] = []
    for image in images:
        if image != "-":
            found.append(image)
            continue
        lines = [line for line in sys.stdin.read().splitlines() if line.strip()]
        if not lines:
            raise UsageError("- reads a list of pictures, one a line, and standard input is empty.")
        found += lines
    return found


def _write(
    opened: Opened, batch: Loaded, prompt: Sequence[int], settings: GenerationConfig
) -> list[tuple[Text, ...]]:
    """The captions of each picture of a batch."""
    pixels = opened.processor.images(batch.images).to(opened.device)
    decoder = opened.model.caption_decoder(pixels)
    keys = [_key(sample.image) for sample in batch.samples]
    return write_texts(opened, decoder, prompt, settings, keys)


def _key(image: Any) -> int:
    """What a picture's captions are drawn by: its bytes, wherever it lies."""
    return int.from_bytes(hashlib.blake2b(image, digest_size=8).digest(), "big")


def _captioned(key: str, texts: Sequence[Text], by: str) -> Captioned:
    return Captioned(
        key,
        tuple(text.text for text in texts),
        tuple(text.score for text in texts),
        tuple(text.finished for text in texts),
        by,
    )


def _there(growing: GrowingLines | None, paths: Sequence[Path]) -> dict[str, Captioned]:
    """The captions of these pictures that a file holds already."""
    if growing is None:
        return {}
    wanted = {_name(str(path), growing.path): str(path) for path in paths}
    found: dict[str, Captioned] = {}
    for record in growing.there:
        if record["image"] in wanted:
            try:
                told = Captioned(**record)
            except TypeError:
                raise UsageError(
                    f"{growing.path} holds lines that mmzoo caption did not write: name another file."
                ) from None
            key = wanted[told.image]
            found[key] = Captioned(
                key, tuple(told.captions), tuple(told.scores), tuple(told.finished), told.by
            )
    return found


def _name(key: str, file: Path) -> str:
    """What a picture is called in a file of captions: its place from there if it lies below, else as given."""
    root, path = file.parent.absolute(), Path(key).absolute()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else key


def _digest(weights: str, prompt: Sequence[int], settings: GenerationConfig) -> str:
    """What tells captions apart that were made in different ways."""
    told = json.dumps([weights, list(prompt), asdict(settings)], sort_keys=True)
    return hashlib.blake2b(told.encode(), digest_size=6).hexdigest()


def _settings(
    num_captions: int,
    beams: int | None,
    sample: bool,
    top_p: float | None,
    top_k: int,
    temperature: float,
    seed: int,
    max_new_tokens: int,
    min_new_tokens: int,
    repetition_penalty: float,
    length_penalty: float,
    no_repeat_ngram: int,
) -> GenerationConfig:
    """How to write, refusing what `GenerationConfig` would only refuse in words of its own."""
    if sample and beams is not None:
        raise UsageError("--sample draws words and --beams searches for the likeliest text: leave one out.")
    if not sample and (top_p is not None or top_k or temperature != 1):
        raise UsageError("--top-p, --top-k and --temperature say how words are drawn: add --sample.")
    if num_captions < 1:
        raise UsageError(f"--num-captions {num_captions} is too few: at least 1.")
    if beams is not None and num_captions > beams >= 1:
        raise UsageError(
            f"--num-captions {num_captions} is more than {beams} beams can give: widen --beams, or --sample."
        )
    width = max(BEAMS, num_captions) if beams is None else beams
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        beams=1 if sample else width,
        sample=sample,
        top_p=(TOP_P if top_p is None else top_p) if sample else 1.0,
        top_k=top_k,
        temperature=temperature,
        seed=seed if sample else 0,  # nothing else depends on it
        repetition_penalty=repetition_penalty,
        length_penalty=length_penalty,
        no_repeat_ngram=no_repeat_ngram,
        per_context=num_captions,
    )


def _command(
    model: str,
    images: Sequence[str | Path],
    pretrained: str | Path | None,
    prompt: str | None,
    settings: GenerationConfig,
    out: str | Path | None,
    html: str | Path | None,
) -> str:
    """The command that does the same; long lists of pictures are cut."""
    line = ["mmzoo", "caption", "--model", model]
    c, plain = settings, GenerationConfig(min_new_tokens=1)
    options: dict[str, Any] = {"pretrained": pretrained, "prompt": prompt}
    if c.sample:
        line.append("--sample")
        options |= {"top-p": c.top_p, "seed": c.seed}
    else:
        options["beams"] = c.beams
    names = (
        "top_k",
        "temperature",
        "max_new_tokens",
        "min_new_tokens",
        "repetition_penalty",
        "length_penalty",
    )
    for name in (*names, "no_repeat_ngram"):
        if getattr(c, name) != getattr(plain, name):
            options[name.replace("_", "-")] = getattr(c, name)
    options |= {"num-captions": c.per_context if c.per_context > 1 else None, "out": out, "html": html}
    for option, value in options.items():
        if value is not None:
            line += [f"--{option}", str(value)]
    more = [] if len(images) <= 5 else ["..."]
    return shlex.join([*line, *map(str, images[:5]), *more])
