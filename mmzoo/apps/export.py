"""`mmzoo export`: a model's encoders as torch.export programs and ONNX files, each checked against the model."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmzoo.apps.opening import ModelLike, Opened, open_model
from mmzoo.errors import UsageError, ZooError
from mmzoo.models.capabilities import GivesFeatures, capabilities_of
from mmzoo.weights.io import write_json
from mmzoo.weights.write import staged

__all__ = ["FORMATS", "TOLERANCE", "Exported", "ExportedFile", "export"]

FORMATS = ("torch", "onnx")
TOLERANCE = 1e-4  # largest difference to the model's own numbers, relative to the largest of them


class ExportedFile(NamedTuple):
    """One file.

    Attributes:
        file: Where it is.
        format: `"torch"` (`torch.export.load` reads it) or `"onnx"`.
        part: `"image"`, `"text"` or `"classifier"`.
        inputs: Names of its inputs with their shapes; words are sizes that may change.
        output: Name of its output.
        error: Largest difference to the model itself over several batch sizes and lengths, relative.
    """

    file: Path
    format: str
    part: str
    inputs: dict[str, tuple[str | int, ...]]
    output: str
    error: float


class Exported(NamedTuple):
    """What was exported.

    Attributes:
        model: The model's name or folder.
        weights: Where its weights came from.
        files: The programs.
        folder: Holds them, `processor.json` (how inputs are made) and `export.json` (this).
    """

    model: str
    weights: str
    files: tuple[ExportedFile, ...]
    folder: Path


class _Part(NamedTuple):
    """One encoder: a module of tensors alone, inputs to trace it with, and inputs to check it with."""

    name: str
    module: nn.Module
    output: str
    names: tuple[str, ...]
    sizes: tuple[dict[int, str], ...]
    example: tuple[Tensor, ...]
    checks: tuple[tuple[Tensor, ...], ...]
    longest: int | None = None


class _Call(nn.Module):
    """A method of a model as the `forward` of a module."""

    def __init__(self, model: nn.Module, method: str):
        super().__init__()
        self.model, self.method = model, method


class _Images(_Call):
    def forward(self, images: Tensor) -> Any:
        return getattr(self.model, self.method)(images)


class _Texts(_Call):
    def forward(self, ids: Tensor, keep: Tensor) -> Any:
        return getattr(self.model, self.method)(ids, keep)


def export(
    model: ModelLike,
    out: str | Path,
    *,
    pretrained: str | Path | None = None,
    formats: Sequence[str] = FORMATS,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Export a model's encoders with free batch sizes and text lengths, on the CPU, in float32.

    A model that embeds pairs gives `image` (images to unit vectors) and `text` (ids and keep to unit vectors), one that
    classifies `classifier` (images to logits). Each program is run on batches and lengths that it was not traced with
    and compared with the model before anything is written.

    Args:
        model: A name of the zoo, a folder written by `mmzoo.save`, or a pair of model and processor.
        out: Folder to write, new or with an earlier export.
        pretrained: Weights for a name of the zoo.
        formats: Some of `FORMATS`.
        tolerance: Largest difference allowed.

    Raises:
        UsageError: No such model or format.
        ZooError: The model has no encoder to export, the extra `export` is missing, or a program gives other numbers.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise UsageError(
            f"no format {', '.join(map(repr, unknown)) or 'given'}; choose from {', '.join(FORMATS)}."
        )
    opened = open_model(model, pretrained=pretrained, device="cpu")
    opened.model.float()
    parts = _parts(opened)
    if "onnx" in formats:
        _require_onnx()
    out = Path(out)
    files = []
    with staged(out) as stage, torch.no_grad():
        for part in parts:
            _drop_idle(part)
            program = _program(part)
            for name in formats:
                file = stage / f"{part.name}.{'pt2' if name == 'torch' else 'onnx'}"
                error = (_save_torch if name == "torch" else _save_onnx)(part, program, file)
                if not error <= tolerance:
                    raise ZooError(
                        f"{opened.name}: the exported {part.name} encoder ({name}) differs from the model by "
                        f"{error:.1e}, more than {tolerance:.0e}; nothing was written."
                    )
                inputs = {
                    word: tuple(free.get(i, size) for i, size in enumerate(tensor.shape))
                    for word, free, tensor in zip(part.names, part.sizes, part.example, strict=True)
                }
                files.append(ExportedFile(out / file.name, name, part.name, inputs, part.output, error))
        write_json(stage / "processor.json", opened.processor.to_dict())
        told = [f._replace(file=f.file.name)._asdict() for f in files]  # type: ignore[arg-type]
        write_json(stage / "export.json", {"model": opened.name, "weights": opened.weights, "files": told})
    return Exported(opened.name, opened.weights, tuple(files), out)


def _parts(opened: Opened) -> list[_Part]:
    """The encoders that a model has."""
    model: Any = opened.model
    able = capabilities_of(model)
    draw = torch.Generator().manual_seed(0)

    def images(count: int) -> tuple[Tensor, ...]:
        size = model.config.image.size
        return (torch.randn(count, 3, size, size, generator=draw),)

    parts = []
    batch = {0: "batch"}
    checked = tuple(images(count) for count in (1, 4))
    if "embeds pairs" in able:
        embedding = _Images(model, "encode_image")
        parts.append(_Part("image", embedding, "image_embedding", ("images",), (batch,), images(3), checked))
        fixed = model.config.text_input.pad_to_context
        free = batch if fixed else batch | {1: "length"}
        parts.append(
            _Part(
                "text",
                _Texts(model, "encode_text"),
                "text_embedding",
                ("ids", "keep"),
                (free, free),
                opened.processor.texts(["a cat", "two red apples on a table", "x"]),
                tuple(
                    opened.processor.texts(texts)
                    for texts in (
                        ["a"],
                        ["a drawing of a dog", "b"],
                        ["word " * 200, "a", "red apples", "two"],
                    )
                ),
                None if fixed else model.config.text_input.context,
            )
        )
    elif isinstance(opened.model, GivesFeatures):
        name, output = ("classifier", "logits") if "classifies" in able else ("image", "features")
        parts.append(
            _Part(name, _Images(model, "forward"), output, ("images",), (batch,), images(3), checked)
        )
    if not parts:
        can = " and ".join(able) or "does nothing of the kind"
        raise ZooError(
            f"{opened.name} has no encoder to export: it neither embeds pairs nor gives features of images (it {can})."
        )
    return parts


def _drop_idle(part: _Part) -> None:
    """Let the other tower go, whose weights a program would carry along."""
    module: Any = part.module
    used: set[str] = set()

    def seen(name: str) -> Any:
        return lambda *_: used.add(name)

    hooks = [child.register_forward_hook(seen(name)) for name, child in module.model.named_children()]
    module(*part.example)
    for hook in hooks:
        hook.remove()
    own = copy.copy(module.model)  # shares its tensors
    own._modules = {name: child for name, child in module.model._modules.items() if name in used}
    module.model = own


def _program(part: _Part) -> Any:
    """The encoder as a torch.export program with free sizes."""
    dims: dict[str, Any] = {"batch": torch.export.Dim("batch", min=1)}
    if part.longest is not None:
        dims["length"] = torch.export.Dim("length", min=2, max=part.longest)
    shapes = tuple({axis: dims[word] for axis, word in free.items()} for free in part.sizes)
    with _quiet():
        return torch.export.export(part.module, tuple(part.example), dynamic_shapes=shapes)


def _error(part: _Part, run: Any) -> float:
    """How far a program is from the model, over all checks."""
    worst = 0.0
    for inputs in part.checks:
        expected, found = part.module(*inputs), run(*inputs)
        if found.shape != expected.shape or not found.isfinite().all():
            return float("inf")
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12)))
    return worst


def _save_torch(part: _Part, program: Any, file: Path) -> float:
    with _quiet():
        torch.export.save(program, file)
        return _error(part, torch.export.load(file).module())


def _require_onnx() -> None:
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        raise ZooError("ONNX needs the extra 'export': pip install 'mmzoo[export]'.") from None


def _save_onnx(part: _Part, program: Any, file: Path) -> float:
    import onnxruntime

    with _quiet():
        exported = torch.onnx.export(
            program, input_names=list(part.names), output_names=[part.output], dynamo=True, verbose=False
        )
        assert exported is not None
        exported.save(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        feeds = {name: tensor.numpy() for name, tensor in zip(part.names, inputs, strict=True)}
        return torch.from_numpy(session.run([part.output], feeds)[0])

    return _error(part, run)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters talk at length about themselves, on stdout too."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
