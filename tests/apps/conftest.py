"""Pictures, a stranger's names and a model that can be reckoned by hand."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from mmzoo.spec import ImageSpec, TextSpec

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Words(NamedTuple):
    ids: Tensor
    keep: Tensor


class ColourProcessor:
    """Mean colours for pictures; for texts one token per word: 1 to 3 for a colour, 4 for any other."""

    image_spec = ImageSpec(8)

    def __init__(self, pad_to_context: bool = False) -> None:
        self.text_spec = TextSpec("tiny", 12, 5, pad_to_context=pad_to_context)

    def images(self, images: list[Image.Image]) -> Tensor:
        means = [torch.tensor(image.resize((1, 1)).getpixel((0, 0))) for image in images]
        return torch.stack(means).float().div(255).reshape(-1, 3, 1, 1)

    def texts(self, texts: list[str]) -> Words:
        colours = list(COLOURS)
        rows = [[colours.index(w) + 1 if w in colours else 4 for w in text.split()] for text in texts]
        length = self.text_spec.context if self.text_spec.pad_to_context else max(map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        return Words(ids, torch.arange(length) < torch.tensor([[len(row)] for row in rows]))


class ColourModel(nn.Module):
    """Embeds a picture as its mean colour, a text as the colour that it names: an `EmbedsPairs` without training."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(3.0))
        self.widths: list[tuple[int, int]] = []  # shapes of the texts that were encoded

    def encode_image(self, images: Tensor) -> Tensor:
        return F.normalize(images.flatten(1), dim=-1)

    def encode_text(self, ids: Tensor, keep: Tensor) -> Tensor:
        self.widths.append(tuple(ids.shape))
        counts = F.one_hot(ids, 5).masked_fill(~keep[..., None], 0).sum(1)[:, 1:4].float()
        # words that name no colour turn a text a little to grey, so that templates matter
        return F.normalize(counts + 0.1 * (ids == 4).sum(1, keepdim=True), dim=-1)

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        return image @ text.T


@pytest.fixture
def colours() -> tuple[ColourModel, ColourProcessor]:
    """A model and processor that tell red, green and blue."""
    return ColourModel(), ColourProcessor()


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> bytes:
    """A PNG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Class folders: three red, two green, one blue picture, and one green one in the folder of the reds."""
    for name, count in (("red", 3), ("green", 2), ("blue", 1)):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for i in range(count):
            red, green, blue = COLOURS[name]
            (folder / f"{i}.png").write_bytes(picture((red, green, min(255, blue + 10 * i))))
    (tmp_path / "photos" / "red" / "odd.png").write_bytes(picture((60, 200, 0)))
    return tmp_path / "photos"
