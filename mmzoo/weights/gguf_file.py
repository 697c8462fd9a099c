"""The weights inside a GGUF file, turned back into float32. The adapter of the extra package gguf, for tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmzoo.errors import ZooError

__all__ = ["GgufSource"]


class GgufSource:
    """Tensors of a memory-mapped GGUF file; whatever is quantised is turned back into float32, one at a time.

    Args:
        path: The file.

    Attributes:
        side: What the file says of the model beside its tensors: `{"gguf": {"llama.attention.head_count": 9, ...}}`.

    Raises:
        ZooError: No package gguf, or the file is damaged.
    """

    def __init__(self, path: Path):
        try:
            from gguf import GGUFReader
        except ImportError:
            raise ZooError(f"reading {path} needs the package gguf: pip install 'mmzoo[weights]'.") from None
        try:
            reader = GGUFReader(path)
        except (ValueError, OSError, KeyError, IndexError, OverflowError) as error:
            raise ZooError(f"{path} cannot be read as GGUF ({error}): it may be truncated.") from None
        self._tensors: dict[str, Any] = {tensor.name: tensor for tensor in reader.tensors}
        # lists are vocabularies, which are the tokenizer's business and slow to unpack
        fields = {name: field for name, field in reader.fields.items() if len(field.data) == 1}
        self.side = {"gguf": {name: field.contents() for name, field in fields.items()}}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every name with its shape, in torch's order of axes."""
        return {name: tuple(int(n) for n in reversed(t.shape)) for name, t in self._tensors.items()}

    def tensor(self, name: str) -> Tensor:
        """One tensor, float32."""
        from gguf import dequantize

        found = self._tensors[name]
        return torch.from_numpy(np.array(dequantize(found.data, found.tensor_type), dtype=np.float32))
