"""Augmentation of whole batches: every picture gets its own random change, in a handful of tensor operations.

It works on pixels in [0, 1], that is before `mmzoo.processing.image.normalize`: fill colour, brightness and
erasing have their plain meaning there. A loader stacks uint8 pictures, augments, then normalises:

    pixels = torch.stack([train_transform(sample.image, generator) for sample in samples])
    images = normalize(augment(pixels, generator), spec)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from mmzoo.errors import UsageError

__all__ = ["BatchAugment"]

_GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601, as PIL and torchvision weigh the channels


@dataclass(frozen=True)
class BatchAugment:
    """Random geometry, colour, blur and erasing for a batch. Every default leaves the pictures as they are.

    Attributes:
        rotate: Largest rotation in degrees, either way.
        scale: Bounds of the zoom; 0.5 draws the picture at half its size. Drawn evenly on a log scale.
        translate: Largest shift as a share of the side, on each axis.
        shear: Largest shear in degrees, on each axis.
        flip: Probability of a mirror image.
        fill: Value in [0, 1] of what comes into view from outside; 1 is white.
        brightness: Largest relative change: 0.4 multiplies by 0.6..1.4.
        contrast: The same for the distance of each pixel from the picture's mean grey.
        saturation: The same for the distance of each pixel from its own grey.
        hue: Largest rotation of colours about the grey axis, in degrees.
        grey: Probability of losing all colour.
        blur: Probability of a 3 x 3 binomial blur.
        erase: Probability that a rectangle is painted over with `fill`.
        erase_area: Bounds of the rectangle's share of the picture.
    """

    rotate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    translate: float = 0.0
    shear: float = 0.0
    flip: float = 0.0
    fill: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    erase: float = 0.0
    erase_area: tuple[float, float] = (0.02, 0.2)

    def __post_init__(self) -> None:
        for name in ("flip", "fill", "grey", "blur", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"BatchAugment: {name} must lie in 0..1, not {getattr(self, name)}.")
        for name in ("rotate", "translate", "brightness", "contrast", "saturation", "hue"):
            if getattr(self, name) < 0:
                raise UsageError(f"BatchAugment: {name} must not be negative, not {getattr(self, name)}.")
        if not 0 <= self.shear < 90:
            raise UsageError(f"BatchAugment: shear must lie in 0..90 degrees, not {self.shear}.")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise UsageError(f"BatchAugment: scale must be two numbers, 0 < low <= high, not {self.scale}.")
        if not 0 < self.erase_area[0] <= self.erase_area[1] < 1:
            raise UsageError(f"BatchAugment: erase_area must be two shares below 1, not {self.erase_area}.")

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """Augment a batch.

        Args:
            images: `(B, 3, H, W)`, uint8 in 0..255 or floating point in [0, 1].
            generator: Source of all randomness: the same generator state gives the same batch.

        Returns:
            `(B, 3, H, W)` float32 in [0, 1].
        """
        pixels = images.float()
        if images.dtype == torch.uint8:
            pixels.div_(255)
        pixels = self._move(pixels, generator)
        pixels = self._recolour(pixels, generator)
        pixels = self._blur(pixels, generator)
        return self._erase(pixels, generator)

    def _move(self, pixels: Tensor, generator: Generator | None) -> Tensor:
        """One affine resampling for rotation, zoom, shift, shear and flip together."""
        still = self.scale == (1.0, 1.0) and not (self.rotate or self.translate or self.shear)
        if still and not self.flip:
            return pixels
        count, _, height, width = pixels.shape
        draw = _uniform(8, count, pixels, generator)
        mirror = 1 - 2 * (draw[0] < self.flip).float()
        if still:
            return torch.where((mirror < 0)[:, None, None, None], pixels.flip(-1), pixels)
        angle = math.radians(self.rotate) * (2 * draw[1] - 1)
        low, high = (math.log(s) for s in self.scale)
        zoom = torch.exp(-(low + (high - low) * draw[2]))
        shear_x, shear_y = (torch.tan(math.radians(self.shear) * (2 * draw[i] - 1)) for i in (3, 4))
        shift_x, shift_y = (2 * self.translate * (2 * draw[i] - 1) for i in (5, 6))
        cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
        # Output to input coordinates, in half sides. The side ratio keeps rotations of oblong pictures rigid.
        side = width / height
        x, y = (_centres(n, pixels.device) * 2 - 1 for n in (width, height))
        grid = torch.empty(count, height, width, 2, device=pixels.device)
        for axis, (along_x, along_y, shift) in enumerate(
            (
                ((cos - sin * shear_y) * mirror, (cos * shear_x - sin) / side, shift_x),
                ((sin + cos * shear_y) * mirror * side, sin * shear_x + cos, shift_y),
            )
        ):
            # As F.affine_grid, in a fraction of its time.
            torch.add(
                (along_x[:, None] * x + shift[:, None])[:, None, :],
                (along_y[:, None] * y)[:, :, None],
                out=grid[..., axis],
            )
        # Zeros come in from outside, so the fill colour becomes zero for the while.
        moved = F.grid_sample(pixels - self.fill, grid, mode="bilinear", align_corners=False)
        return moved.add_(self.fill)

    def _recolour(self, pixels: Tensor, generator: Generator | None) -> Tensor:
        """All colour changes are affine in RGB, so one 3 x 4 matrix per picture does them together."""
        if not (self.brightness or self.contrast or self.saturation or self.hue or self.grey):
            return pixels
        count, _, height, width = pixels.shape
        draw = _uniform(5, count, pixels, generator)
        bright, contrast, colour = (
            1 + amount * (2 * draw[i] - 1)
            for i, amount in enumerate((self.brightness, self.contrast, self.saturation))
        )
        colour = torch.where(draw[4] < self.grey, 0.0, colour)
        eye = torch.eye(3, device=pixels.device)
        grey = pixels.new_tensor(_GREY, dtype=torch.float32).expand(3, 3)
        matrix = _hue_rotation(math.radians(self.hue) * (2 * draw[3] - 1))
        matrix = (grey + colour[:, None, None] * (eye - grey)) @ matrix
        matrix = matrix * bright[:, None, None]
        flat = pixels.flatten(2)
        # Contrast pivots on the mean grey of the picture as the other changes leave it.
        contrast = contrast[:, None, None]
        offset = (1 - contrast) * (grey[:1] @ (matrix @ flat.mean(-1, keepdim=True)))
        matrix = matrix * contrast
        return torch.baddbmm(offset, matrix, flat).clamp_(0, 1).view(count, 3, height, width)

    def _blur(self, pixels: Tensor, generator: Generator | None) -> Tensor:
        if not self.blur:
            return pixels
        chosen = _uniform(1, pixels.shape[0], pixels, generator)[0] < self.blur
        padded = F.pad(pixels[chosen], (1, 1, 1, 1), mode="replicate")
        wide = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
        smooth = (wide[..., :-2, :] + 2 * wide[..., 1:-1, :] + wide[..., 2:, :]) / 16
        return pixels.index_put((chosen,), smooth)

    def _erase(self, pixels: Tensor, generator: Generator | None) -> Tensor:
        if not self.erase:
            return pixels
        count, _, height, width = pixels.shape
        draw = _uniform(5, count, pixels, generator)
        low, high = self.erase_area
        area = low + (high - low) * draw[1]
        stretch = torch.exp(math.log(2) * (2 * draw[2] - 1))  # sides between 1:2 and 2:1
        tall, wide = (area * stretch).sqrt().clamp(max=1), (area / stretch).sqrt().clamp(max=1)
        rows = _inside(draw[3] * (1 - tall), tall, height)
        columns = _inside(draw[4] * (1 - wide), wide, width)
        hidden = (rows[:, :, None] & columns[:, None, :]) & (draw[0] < self.erase)[:, None, None]
        return pixels.masked_fill(hidden[:, None], self.fill)


def _uniform(rows: int, count: int, like: Tensor, generator: Generator | None) -> Tensor:
    """`(rows, count)` numbers in [0, 1), drawn where the generator lives."""
    device = generator.device if generator is not None else like.device
    return torch.rand(rows, count, generator=generator, device=device).to(like.device)


def _centres(size: int, device: torch.device) -> Tensor:
    """`(size,)` pixel centres as shares of the side."""
    return (torch.arange(size, device=device) + 0.5) / size


def _inside(start: Tensor, length: Tensor, size: int) -> Tensor:
    """`(B, size)` bool: which pixel centres lie in `[start, start + length)`, both shares of the side."""
    centre = _centres(size, start.device)
    return (centre >= start[:, None]) & (centre < (start + length)[:, None])


def _hue_rotation(angle: Tensor) -> Tensor:
    """`(B, 3, 3)` rotations of RGB about the grey axis (Rodrigues' formula)."""
    eye, ones = torch.eye(3, device=angle.device), torch.full((3, 3), 1 / 3, device=angle.device)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=angle.device) / math.sqrt(3)
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    return cos * eye + (1 - cos) * ones + sin * cross
