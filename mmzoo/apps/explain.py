"""`mmzoo explain`: where in a picture a model looks for each word that it reads or writes, as heat maps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from mmzoo.apps.opening import ModelLike, Opened, finite, open_model, require
from mmzoo.apps.pictures import Files, read_batches
from mmzoo.apps.writing import BEAMS, prompt_ids, write_texts
from mmzoo.data.reader import Broken
from mmzoo.errors import UsageError, ZooError
from mmzoo.files import atomic_path
from mmzoo.generation import GenerationConfig
from mmzoo.processing.text import Tokenizer
from mmzoo.spec import ImageSpec

__all__ = ["Explained", "WordMap", "explain", "heat_picture", "words_of"]

SIDE = 768
"""Longest side in pixels of a written picture; small ones are enlarged, so that a map can be seen."""
_RAMP = ((24, 16, 64), (120, 28, 109), (229, 92, 48), (252, 255, 164))  # dark violet to light yellow


class WordMap(NamedTuple):
    """Where one word is looked for.

    Attributes:
        word: The word, its pieces joined.
        share: Its part of the heat of all words, 0 to 1; 0 for all words if nothing speaks for a match.
        peak: Centre of its hottest patch as shares of the picture's width and height, from the top left; None if its
            map is empty.
        file: The picture with the map.
    """

    word: str
    share: float
    peak: tuple[float, float] | None
    file: Path


class Explained(NamedTuple):
    """What `explain` found.

    Attributes:
        model: The model's name.
        weights: Where its weights come from.
        picture: The picture's path.
        text: The text that was given, or the caption that the model wrote.
        written: Whether the model wrote it.
        cut: Whether a given text was longer than the model reads, or a caption than it writes.
        match: Probability that picture and text match, 0 to 1; None for a caption.
        layer: The layer that was looked at.
        grid: Rows and columns of the maps.
        words: The words in their order.
        file: The picture with the mean of all words' maps.
    """

    model: str
    weights: str
    picture: str
    text: str
    written: bool
    cut: bool
    match: float | None
    layer: int
    grid: tuple[int, int]
    words: tuple[WordMap, ...]
    file: Path


def explain(
    model: ModelLike,
    picture: str | Path,
    text: str | None = None,
    *,
    out: str | Path = Path("runs/explain"),
    layer: int | None = None,
    pretrained: str | Path | None = None,
    device: str | torch.device | None = None,
) -> Explained:
    """Write one picture per word, and one for all words, that show what speaks for it.

    Of a given text that is what speaks for "they match" by way of each word. Without one the model writes a caption,
    and it is what spoke for each word when it was written.

    Args:
        model: A model that `Explains`, or for captions one that `ExplainsCaptions`; see `open_model`.
        picture: A picture file.
        text: What is said of it; None lets the model say it.
        out: Folder of the pictures; files of the same names are replaced.
        layer: The layer to look at; None leaves it to the model.
        pretrained: Weights for a model given by name.
        device: Where to run.

    Returns:
        What was found, with the files.

    Raises:
        UsageError: The text has no word, the model no such layer, or there is no text and the model writes none.
        ZooError: The model cannot explain, the picture cannot be read, or the folder cannot be written.
    """
    opened = open_model(model, pretrained=pretrained, device=device)
    if text is None:
        try:
            require(opened, "explains captions", "write a caption to be explained")
        except ZooError as error:
            raise UsageError(f"{error} With this one, give a TEXT.") from None
    else:
        require(opened, "explains matches", "show where it looks")
        require(opened, "scores pairs", "say whether a picture and a text match")
        if not words_of(opened.processor.tokenizer, text):
            raise UsageError(f"there is no word in {text!r}: say what may be in the picture.")
    broken: list[Broken] = []
    image = next(read_batches(Files([Path(picture)]), 1, broken)).images[0]
    pixels = opened.processor.images([image]).to(opened.device)
    found = _of_caption(opened, pixels, layer) if text is None else _of_text(opened, pixels, text, layer)
    words, maps = found.words, found.maps
    of_words = torch.stack([maps[pieces].mean(0) for _, pieces in words])
    seen = _seen_part(image, opened.processor.image_spec)
    folder, total = Path(out), float(of_words.sum()) or 1.0
    digits = len(str(len(words)))
    files = [folder / f"{i:0{digits}}-{_file_name(word)}.png" for i, (word, _) in enumerate(words, 1)]
    whole = folder / f"{0:0{digits}}-all-words.png"
    try:
        for file, heat in zip([whole, *files], [of_words.mean(0), *of_words]):
            with atomic_path(file) as path:
                heat_picture(seen, heat).save(path, "png")
    except OSError as error:
        raise ZooError(f"{folder} cannot be written: {error.strerror or error}.") from None
    told = [
        WordMap(word, float(heat.sum()) / total, _peak(heat), file)
        for (word, _), heat, file in zip(words, of_words, files)
    ]
    grid = (maps.shape[1], maps.shape[2])
    return Explained(
        opened.name, opened.weights, str(picture), found.text, text is None, found.cut, found.match, found.layer, grid,
        tuple(told), whole,
    )  # fmt: skip


class _Maps(NamedTuple):
    """A text, its words with the places of their tokens, and the maps (L, h, w) of all its tokens."""

    text: str
    words: list[tuple[str, list[int]]]
    maps: Tensor
    layer: int
    cut: bool
    match: float | None


def _of_text(opened: Opened, pixels: Tensor, text: str, layer: int | None) -> _Maps:
    """The maps of a given text."""
    tokenizer = opened.processor.tokenizer
    ids, keep = (x.to(opened.device) for x in opened.processor.texts([text]))
    layer = opened.model.explain_layer if layer is None else layer
    maps = finite(opened.model.explain(pixels, ids, keep, layer), opened)[0].float().cpu()
    with torch.no_grad():
        match = finite(opened.model.match(pixels, ids, keep), opened).double().softmax(1)[0, 1]
    return _Maps(text, words_of(tokenizer, text), maps, layer, tokenizer.cuts(text), float(match))


def _of_caption(opened: Opened, pixels: Tensor, layer: int | None) -> _Maps:
    """Write a caption as `mmzoo caption` does, and make the maps of its words; the prompt's have none.

    Raises:
        ZooError: The model has nothing to say.
    """
    tokenizer, prompt = opened.processor.tokenizer, prompt_ids(opened, None)
    layer = opened.model.caption_layer if layer is None else layer
    settings = GenerationConfig(beams=BEAMS, min_new_tokens=1)
    [[said]] = write_texts(opened, opened.model.caption_decoder(pixels), prompt, settings)
    entries = tokenizer.vocabulary()
    words = _joined([(place, entries[token]) for place, token in enumerate(said.ids, 1 + len(prompt))])
    if not words:
        raise ZooError(
            f"{opened.name} writes an empty caption of this picture, so there is nothing to explain."
        )
    ids = torch.tensor([[tokenizer.bos_id, *prompt, *said.ids]], device=opened.device)
    keep = torch.ones_like(ids, dtype=torch.bool)
    maps = finite(opened.model.explain_caption(pixels, ids, keep, layer), opened)[0].float().cpu()
    return _Maps(said.text, words, maps, layer, not said.finished, None)


def words_of(tokenizer: Tokenizer, text: str) -> list[tuple[str, list[int]]]:
    """The words of a text with the places of their pieces among its tokens; begin and end tokens are no words.

    Args:
        tokenizer: A WordPiece tokenizer.
        text: Any text.
    """
    frame = {tokenizer.bos_id, tokenizer.eos_id}
    pieces = enumerate(tokenizer.tokens(text))
    return _joined([(place, piece) for place, piece in pieces if tokenizer.token_id(piece) not in frame])


def _joined(pieces: Sequence[tuple[int, str]]) -> list[tuple[str, list[int]]]:
    """Words out of WordPiece's pieces, each with its place."""
    words: list[tuple[str, list[int]]] = []
    for place, piece in pieces:
        if piece.startswith("##") and words:
            word, places = words[-1]
            words[-1] = (word + piece[2:], [*places, place])
        else:
            words.append((piece, [place]))
    return words


def heat_picture(image: Image.Image, heat: Tensor, side: int = SIDE) -> Image.Image:
    """Lay a map over a picture: the picture in dim grey where it is cold, bright colours where it is hot.

    Args:
        image: RGB.
        heat: (h, w) not negative, stretched over the picture. Its hottest patch gets the last colour, however hot it
            is; a map of zeros leaves the grey picture.
        side: Longest side of the result.
    """
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    grey = image.resize(size, Image.Resampling.BICUBIC).convert("L").convert("RGB")
    peak = float(heat.max())
    if peak <= 0:
        return grey
    levels = (heat / peak * 255).round().to(torch.uint8)
    warmth = Image.fromarray(levels.numpy()).resize(size, Image.Resampling.BICUBIC)
    colours = Image.merge("RGB", [warmth.point(_channel(c)) for c in range(3)])
    return Image.composite(colours, grey, warmth.point([round(64 + 0.55 * i) for i in range(256)]))


def _channel(channel: int) -> list[int]:
    """The ramp of one colour channel over 256 levels."""
    stops = torch.tensor([colour[channel] for colour in _RAMP], dtype=torch.float64)
    at = torch.linspace(0, len(_RAMP) - 1, 256, dtype=torch.float64)
    low = at.long().clamp(max=len(_RAMP) - 2)
    levels: list[int] = (stops[low] + (stops[low + 1] - stops[low]) * (at - low)).round().int().tolist()
    return levels


def _seen_part(image: Image.Image, spec: ImageSpec | None) -> Image.Image:
    """What the model sees of a picture: all of it, or the centre of it."""
    if spec is None or spec.fit != "crop":
        return image
    side = min(image.size) * spec.crop_pct
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.crop((round(left), round(top), round(left + side), round(top + side)))


def _peak(heat: Tensor) -> tuple[float, float] | None:
    if float(heat.max()) <= 0:
        return None
    row, column = divmod(int(heat.argmax()), heat.shape[1])
    return (column + 0.5) / heat.shape[1], (row + 0.5) / heat.shape[0]


def _file_name(word: str) -> str:
    return re.sub(r"\W+", "_", word)[:40] or "_"
