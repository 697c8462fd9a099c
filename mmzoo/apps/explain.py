"""`mmzoo explain`: where in a picture a model looks for each word, as heat maps over the picture."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from mmzoo.apps.opening import ModelLike, finite, open_model, require
from mmzoo.apps.pictures import Files, read_batches
from mmzoo.data.reader import Broken
from mmzoo.errors import UsageError, ZooError
from mmzoo.files import atomic_path
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
        text: The text.
        cut: Whether the text was longer than the model reads.
        match: Probability that picture and text match, 0 to 1.
        layer: The layer that was looked at.
        grid: Rows and columns of the maps.
        words: The words in their order.
        file: The picture with the mean of all words' maps.
    """

    model: str
    weights: str
    picture: str
    text: str
    cut: bool
    match: float
    layer: int
    grid: tuple[int, int]
    words: tuple[WordMap, ...]
    file: Path


def explain(
    model: ModelLike,
    picture: str | Path,
    text: str,
    *,
    out: str | Path = Path("runs/explain"),
    layer: int | None = None,
    pretrained: str | Path | None = None,
    device: str | torch.device | None = None,
) -> Explained:
    """Write one picture per word, and one for all words, that show what speaks for "they match".

    Args:
        model: A model that `Explains`; see `open_model`.
        picture: A picture file.
        text: What is said of it.
        out: Folder of the pictures; files of the same names are replaced.
        layer: The layer to look at; None leaves it to the model.
        pretrained: Weights for a model given by name.
        device: Where to run.

    Returns:
        What was found, with the files.

    Raises:
        UsageError: The text has no word, or the model no such layer.
        ZooError: The model cannot explain, the picture cannot be read, or the folder cannot be written.
    """
    opened = open_model(model, pretrained=pretrained, device=device)
    require(opened, "explains matches", "show where it looks")
    require(opened, "scores pairs", "say whether a picture and a text match")
    tokenizer = opened.processor.tokenizer
    words = words_of(tokenizer, text)
    if not words:
        raise UsageError(f"there is no word in {text!r}: say what may be in the picture.")
    broken: list[Broken] = []
    image = next(read_batches(Files([Path(picture)]), 1, broken)).images[0]
    pixels = opened.processor.images([image]).to(opened.device)
    ids, keep = (x.to(opened.device) for x in opened.processor.texts([text]))
    layer = opened.model.explain_layer if layer is None else layer
    maps = finite(opened.model.explain(pixels, ids, keep, layer), opened)[0].float().cpu()
    with torch.no_grad():
        match = finite(opened.model.match(pixels, ids, keep), opened).double().softmax(1)[0, 1]
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
    found = [
        WordMap(word, float(heat.sum()) / total, _peak(heat), file)
        for (word, _), heat, file in zip(words, of_words, files)
    ]
    grid = (maps.shape[1], maps.shape[2])
    return Explained(
        opened.name, opened.weights, str(picture), text, tokenizer.cuts(text), float(match), layer, grid,
        tuple(found), whole,
    )  # fmt: skip


def words_of(tokenizer: Tokenizer, text: str) -> list[tuple[str, list[int]]]:
    """The words of a text with the places of their pieces among its tokens; begin and end tokens are no words.

    Args:
        tokenizer: A WordPiece tokenizer.
        text: Any text.
    """
    frame = {tokenizer.bos_id, tokenizer.eos_id}
    words: list[tuple[str, list[int]]] = []
    for place, piece in enumerate(tokenizer.tokens(text)):
        if tokenizer.token_id(piece) in frame:
            continue
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
