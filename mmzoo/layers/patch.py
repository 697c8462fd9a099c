"""Cutting an image into patches and embedding each one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmzoo.errors import ZooError

__all__ = ["PatchEmbed", "drop_patches", "real_grids", "sample_patches"]


class PatchEmbed(nn.Module):
    """Patches as one strided convolution whose kernel equals its stride.

    Args:
        patch: Side of a patch in pixels.
        width: Size of a token.
        bias: CLIP has none, the others have one.
        channels: Colour channels.
    """

    def __init__(self, patch: int, width: int, *, bias: bool, channels: int = 3):
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, width, patch, patch, bias=bias)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed `images` (B, C, height, width) whose sides are multiples of the patch.

        Returns:
            Tokens (B, N, width) in row-major order, and the grid (rows, columns).

        Raises:
            ZooError: The images are not 4-D, have other channels, or do not divide into patches.
        """
        if images.dim() != 4 or images.shape[1] != self.proj.in_channels:
            raise ZooError(
                f"images must be (B, {self.proj.in_channels}, height, width), found {tuple(images.shape)}: "
                "use the processor that belongs to the model."
            )
        rows, columns = images.shape[2] // self.patch, images.shape[3] // self.patch
        if (rows * self.patch, columns * self.patch) != tuple(images.shape[2:]) or rows * columns == 0:
            raise ZooError(
                f"images of {tuple(images.shape[2:])} pixels do not divide into patches of {self.patch}."
            )
        return self.proj(images).flatten(2).transpose(1, 2), (rows, columns)


def drop_patches(x: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """Keep a random subset of patch tokens per sample (FLIP, Li et al. 2023), in their order.

    Args:
        x: Patch tokens (B, N, D), without class token or registers.
        rate: Share to drop, in [0, 1); at least one patch stays.

    Returns:
        The kept tokens (B, K, D) and their positions (B, K) int64. Positions are drawn on the tensor's device.
    """
    B, N, D = x.shape
    count = max(1, round(N * (1 - rate)))
    index = torch.rand(B, N, device=x.device).argsort(1)[:, :count].sort(1).values
    return x.gather(1, index.unsqueeze(-1).expand(B, count, D)), index


def real_grids(images: Tensor, patch: int) -> list[tuple[int, int]]:
    """How many rows and columns of patches each picture of a zero-padded batch really has (waits for the device).

    Args:
        images: (B, C, height, width), pictures in the upper left corner, exactly 0 in all channels beyond them; a real
            pixel is never that (see `mmzoo.processing.image.normalize_batch`). One pixel of each patch is looked at.
        patch: Side of a patch in pixels.

    Raises:
        ZooError: A picture is zero all over.
    """
    real = (images[:, :, ::patch, ::patch] != 0).any(1)
    ends = []
    for seen in (real.any(2), real.any(1)):
        ends.append((seen * torch.arange(1, seen.shape[1] + 1, device=images.device)).amax(1))
    grids = [(rows, columns) for rows, columns in torch.stack(ends, 1).tolist()]
    if (0, 0) in grids:
        raise ZooError(
            f"picture {grids.index((0, 0))} of the batch is zero all over, which marks padding: normalise pictures "
            "with the processor that belongs to the model, or say their sizes."
        )
    return grids


def sample_patches(keep: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Choose at random which patches of each picture stay, if it has more than `most`.

    Args:
        keep: (B, N) bool, True = real patch.
        most: Patches that may stay.

    Returns:
        Positions (B, K) int64 in ascending order, real ones as far as there are, K at most `most`; and which of them
        are real, (B, K) bool. Positions are drawn on the tensor's device.
    """
    count = min(most, keep.shape[1])
    chance = torch.rand(keep.shape, device=keep.device).masked_fill(~keep, -1.0)
    index = chance.topk(count, dim=1).indices.sort(1).values
    return index, keep.gather(1, index)
