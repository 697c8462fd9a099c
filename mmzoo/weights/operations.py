"""What may happen between a published layout's tensors and one of mmzoo's: a closed set, each with its inverse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = [
    "HWIO",
    "Absent",
    "Arange",
    "Drop",
    "Fuse",
    "FuseWithoutKeyBias",
    "HeadsBias",
    "HeadsIn",
    "HeadsOut",
    "Lead",
    "LogInverse",
    "Op",
    "RotaryPairs",
    "Same",
    "Scalar",
    "Tie",
    "Transpose",
]


class Op(Protocol):
    """An invertible step between the tensors of a layout and one tensor of mmzoo."""

    def join(self, parts: list[Tensor]) -> Tensor:
        """Join the layout's tensors into ours."""
        ...

    def split(self, whole: Tensor, parts: int) -> list[Tensor]:
        """Split our tensor into so many of the layout's."""
        ...


@dataclass(frozen=True)
class Same:
    """The same tensor under another name."""

    def join(self, parts: list[Tensor]) -> Tensor:
        """Take the one part."""
        return parts[0]

    def split(self, whole: Tensor, parts: int) -> list[Tensor]:
        """Give it back."""
        return [whole]


@dataclass(frozen=True)
class Transpose:
    """A matrix stored as (in, out) where a linear layer holds (out, in)."""

    def join(self, parts: list[Tensor]) -> Tensor:
        """(in, out) to (out, in)."""
        return parts[0].transpose(0, 1)

    def split(self, whole: Tensor, parts: int) -> list[Tensor]:
        """(out, in) to (in, out)."""
        return [whole.transpose(0, 1)]


@dataclass(frozen=True)
class Lead:
    """A tensor that lacks so many leading axes of size one: a class token stored as (D,) for our (1, 1, D)."""

    axes: int

    def join(self, parts: list[Tensor]) -> Tensor:
        """Add the axes."""
        return parts[0].reshape((1,) * self.axes + tuple(parts[0].shape))

    def split(self, whole: Tensor, parts: int) -> list[Tensor]:
        """Take them away."""
        return [whole.reshape(whole.shape[self.axes :])]


@dataclass(frozen=True)
class Fuse:
    """Tensors laid end to end along one axis: query, key and value; key and value; gate and value.

    Attributes:
        sizes: Rows of each part, or None where all parts have as many.
        each: What happens to each part before; a tuple where it differs between them.
        axis: The axis.
    """

    sizes: tuple[int, ...] | None = None
    each: Op | tuple[Op, ...] = Same()
    axis: int = 0

    def join(self, parts: list[Tensor]) -> Tensor:
        """Lay the parts end to end."""
        ops = self._ops(len(parts))
        return torch.cat([op.join([part]) for op, part in zip(ops, parts, strict=True)], self.axis)

    def split(self, whole: Tensor, parts: int) -> list[Tensor]:
        """Cut at the sizes."""
        if self.sizes is None:
            pieces = whole.chunk(parts, self.axis)
        else:
            pieces = torch.split(whole, list(self.sizes), self.axis)
        return [op.split(piece, 1)[0] for op, piece in zip(self._ops(parts), pieces, strict=True)]

    def _ops(self, parts: int) -> tuple[Op, ...]:
        return self.each if isinstance(self.each, tuple) else (self.each,) * parts


@dataclass(frozen=True)
class FuseWithoutKeyBias:
    """EVA's biases: query and value have one, the key has none.

    A key bias shifts every score of a row alike, so the softmax does not see it; ours is zero.
    """

    def join(self, parts: list[Tensor]) -> Tensor:
        """(q_bias, v_bias) to [q_bias, 0, v_bias]."""
        q, v = parts
        return torch.cat([q, torch.zeros_like(q), v])

    def split(self, whole: Tensor, parts: int) -> list[Tensor]:
        """Leave the key's part out."""
        q, _, v = whole.chunk(3)
        return [q, v]


@dataclass(frozen=True)
class HWIO:
    """A convolution kernel stored as (height, width, in, out), as flax does."""

    def join(self, parts: list[Tensor]) -> Tensor:
        """To (out, in, height, width)."""
        return parts[0].permute(3, 2, 0, 1)

    def split(self, whole: Tensor, parts: int) -> list[Tensor]:
        """To (height, width, in, out)."""
        return [whole.permute(2, 3, 1, 0)]


def _with_heads(part: Tensor, heads: int, axis: int) -> Tensor:
    """The tensor, if that axis has so many heads: flattened, (heads, dim) and (dim, heads) look alike.

    Raises:
        ValueError: It has another size.
    """
    if part.shape[axis] != heads:
        raise ValueError(f"axis {axis} of {tuple(part.shape)} should have {heads} heads")
    return part


@dataclass(frozen=True)
class HeadsIn:
    """A projection into heads stored as (in, heads, dim), as flax does."""

    heads: int

    def join(self, parts: list[Tensor]) -> Tensor:
        """To (heads * dim, in)."""
        return _with_heads(parts[0], self.heads, 1).flatten(1).transpose(0, 1)

    def split(self, whole: Tensor, parts: int) -> list[Tensor]:
        """To (in, heads, dim)."""
        return [whole.transpose(0, 1).reshape(whole.shape[1], self.heads, -1)]


@dataclass(frozen=True)
class HeadsBias:
    """A bias of heads stored as (heads, dim)."""

    heads: int

    def join(self, parts: list[Tensor]) -> Tensor:
        """To (heads * dim,)."""
        return _with_heads(parts[0], self.heads, 0).flatten()

    def split(self, whole: Tensor, parts: int) -> list[Tensor]:
        """To (heads, dim)."""
        return [whole.reshape(self.heads, -1)]


@dataclass(frozen=True)
class HeadsOut:
    """A projection out of heads stored as (heads, dim, out)."""

    heads: int

    def join(self, parts: list[Tensor]) -> Tensor:
        """To (out, heads * dim)."""
        return _with_heads(parts[0], self.heads, 0).flatten(0, 1).transpose(0, 1)

    def split(self, whole: Tensor, parts: int) -> list[Tensor]:
        """To (heads, dim, out)."""
        return [whole.transpose(0, 1).reshape(self.heads, -1, whole.shape[0])]


@dataclass(frozen=True)
class LogInverse:
    """A temperature that divides the cosines, stored as our log-scale: `log_scale = -ln(temperature)`."""

    def join(self, parts: list[Tensor]) -> Tensor:
        """Temperature to log-scale."""
        return -parts[0].log()

    def split(self, whole: Tensor, parts: int) -> list[Tensor]:
        """Log-scale to temperature."""
        return [(-whole).exp()]


@dataclass(frozen=True)
class RotaryPairs:
    """Query or key rows whose rotary pairs are neighbours (2i, 2i + 1), for our halves (i, i + dim / 2)."""

    heads: int

    def join(self, parts: list[Tensor]) -> Tensor:
        """Neighbours to halves."""
        half = parts[0].shape[0] // self.heads // 2
        rows = parts[0].reshape(self.heads, half, 2, *parts[0].shape[1:])  # (H, D/2, 2, ...)
        return rows.transpose(1, 2).flatten(0, 2)

    def split(self, whole: Tensor, parts: int) -> list[Tensor]:
        """Halves to neighbours."""
        half = whole.shape[0] // self.heads // 2
        rows = whole.reshape(self.heads, 2, half, *whole.shape[1:])  # (H, 2, D/2, ...)
        return [rows.transpose(1, 2).flatten(0, 2)]


@dataclass(frozen=True)
class Tie:
    """A second copy of a tensor that another rule already fills: it must be equal, and is written out again.

    Attributes:
        of: What happens between the copy's own tensors and ours.
    """

    of: Op = Same()

    def join(self, parts: list[Tensor]) -> Tensor:
        """Put the copy together."""
        return self.of.join(parts)

    def split(self, whole: Tensor, parts: int) -> list[Tensor]:
        """Write the copy."""
        return self.of.split(whole, parts)


@dataclass(frozen=True)
class Absent:
    """A number of ours that a layout does not keep: made when read, left out when written.

    Attributes:
        value: What it then is.
        why: What a user loses.
    """

    value: float
    why: str

    def join(self, parts: list[Tensor]) -> Tensor:
        """Make it, 0-dimensional float32."""
        return torch.tensor(self.value)

    def split(self, whole: Tensor, parts: int) -> list[Tensor]:
        """Leave it out."""
        return []


@dataclass(frozen=True)
class Drop:
    """A tensor that a model of mmzoo does not hold, and why. It is not written back."""

    why: str


@dataclass(frozen=True)
class Arange:
    """The numbers 0, 1, ... that some libraries save as a buffer: checked when read, made when written.

    Attributes:
        length: How many.
        lead: Leading axes of size one.
        optional: Whether newer files leave it out; then it is not written either.
    """

    length: int
    lead: int = 1
    optional: bool = True

    def __str__(self) -> str:
        return f"0..{self.length - 1}"

    def make(self) -> Tensor:
        """The buffer, int64."""
        return torch.arange(self.length).reshape((1,) * self.lead + (self.length,))


@dataclass(frozen=True)
class Scalar:
    """A whole number that a layout repeats as a tensor, such as OpenAI's `input_resolution`.

    It is checked when read and made when written.
    """

    value: int

    def __str__(self) -> str:
        return str(self.value)

    def make(self) -> Tensor:
        """The tensor, 0-dimensional int64."""
        return torch.tensor(self.value)
