"""Cutting an image into patches and embedding each one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmzoo.errors import ZooError

__all__ = ["PatchEmbed", "drop_patches"]


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
