"""The weights inside an ONNX file, under readable names. The adapter of the extra package onnx.

Exporters fold a linear layer's transposed weight into a constant named `onnx::MatMul_1966`, where the number means
nothing. The graph still says what it is: whatever adds the bias `x.bias` to its product is the layer `x`.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmzoo.errors import ZooError

__all__ = ["OnnxSource"]


class OnnxSource:
    """The constants of an ONNX graph, by name; nothing is run.

    A nameless weight that is multiplied before the bias `x.bias` is added becomes `x.weight`, still transposed as the
    graph holds it. Any other nameless constant is called by the node that reads it, `/a/b/Concat_6` as `a.b.Concat_6`.

    Args:
        path: The file.

    Raises:
        ZooError: No package onnx; the file is damaged, keeps its tensors elsewhere, or two constants get one name.
    """

    def __init__(self, path: Path):
        try:
            import onnx
        except ImportError:
            raise ZooError(f"reading {path} needs the package onnx: pip install 'mmzoo[weights]'.") from None
        from google.protobuf.message import DecodeError

        try:
            graph = onnx.load(str(path), load_external_data=False).graph
        except (DecodeError, OSError, ValueError) as error:
            raise ZooError(f"{path} cannot be read as ONNX ({error}): it may be truncated.") from None
        names = _readable(graph)
        self._tensors: dict[str, Any] = {}
        for constant in graph.initializer:
            name = names[constant.name]
            if constant.data_location == onnx.TensorProto.EXTERNAL:
                raise ZooError(f"{path} keeps {name} in another file, which mmzoo does not follow.")
            if name in self._tensors:
                raise ZooError(f"{path} has two tensors that would be called {name}.")
            self._tensors[name] = constant

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every name with its shape."""
        return {name: tuple(constant.dims) for name, constant in self._tensors.items()}

    def tensor(self, name: str) -> Tensor:
        """One tensor, a copy."""
        from onnx import numpy_helper

        return torch.from_numpy(numpy_helper.to_array(self._tensors[name]).copy())


def _readable(graph: Any) -> dict[str, str]:
    """A readable name for each constant of the graph."""
    readers: dict[str, list[Any]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    names = {}
    for constant in graph.initializer:
        names[constant.name] = constant.name
        if not constant.name.startswith("onnx::") or not readers[constant.name]:
            continue
        node = readers[constant.name][0]
        bias = _bias_after(node, readers) if node.op_type == "MatMul" else None
        names[constant.name] = f"{bias}.weight" if bias else node.name.strip("/").replace("/", ".")
    return names


def _bias_after(node: Any, readers: dict[str, list[Any]]) -> str | None:
    """`x` where a node's product is added to a constant `x.bias`."""
    for following in readers[node.output[0]]:
        biases = [name for name in following.input if name.endswith(".bias")]
        if following.op_type == "Add" and biases:
            return str(biases[0]).removesuffix(".bias")
    return None
