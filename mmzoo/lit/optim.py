"""Parameter groups, the optimizer over them, and the learning rate of every step."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mmzoo import dist
from mmzoo.adapt import parts_of
from mmzoo.errors import UsageError, ZooError

__all__ = [
    "NO_DECAY",
    "Schedule",
    "average_gradients",
    "build_optimizer",
    "build_schedule",
    "clip_gradients",
    "layer_factors",
    "needs_decay",
    "parameter_groups",
    "part_factors",
]

Schedule = Literal["cosine", "linear", "exponential"]

NO_DECAY = frozenset(
    {"cls", "positions", "pos", "registers", "query", "modality", "mask_token", "logit_scale", "logit_bias"}
    | {"cls_token", "pos_embed", "reg_token", "dist_token"}  # timm's guests call them so
)
"""Names (one component of a parameter's dotted name) that are never decayed, whatever their shape."""

_BLOCK = re.compile(r"^(?P<tower>.*?)blocks\.(?:layers\.)?(?P<index>\d+)\.")
# What a tower does to its input before the first block. Everything else outside the blocks comes after the last.
_INPUT = ("patch", "embed", "token", "types", "cls", "pos", "registers", "pre_norm", "modality", "query")


def needs_decay(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: matrices and kernels do, vectors (biases, norms, scales) and tokens do not."""
    return parameter.ndim >= 2 and not NO_DECAY.intersection(name.split("."))


def _layer_of(name: str, depths: dict[str, int], inputs: Mapping[str, str]) -> tuple[int, int]:
    """The layer of a parameter and the number of layers above it, in its own tower.

    0 is the tower's input, 1 to depth are its blocks, depth + 1 is what follows: final norm, projection, head.
    """
    fed = next((tower for part, tower in inputs.items() if f"{name}.".startswith(f"{part}.")), None)
    if fed is not None:
        return 0, depths[f"{fed}."] + 1
    found = _BLOCK.match(name)
    if found:
        layer = int(found["index"]) + 1
        return layer, depths[found["tower"]] + 1 - layer
    tower = max((t for t in depths if name.startswith(t)), key=len, default=None)
    if tower is None:
        return 0, 0
    first = name[len(tower) :].split(".")[0]
    layer = 0 if first.startswith(_INPUT) else depths[tower] + 1
    return layer, depths[tower] + 1 - layer


def layer_factors(
    names: Iterable[str], decay: float, inputs: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Map each parameter name to the factor that layer decay puts on its learning rate.

    Each tower counts for itself: the last norm and what follows get 1, the last block `decay`, the one below
    `decay**2`, and patches, embeddings, positions and tokens `decay**(depth + 1)` (BEiT, Bao et al. 2022).

    Args:
        names: Dotted names of all parameters; a tower is whatever comes before `blocks.N`.
        decay: Factor per layer in (0, 1]; 1 changes nothing.
        inputs: Parts outside a tower that make its input, each with the tower: `{"text_embed": "vision"}`.
    """
    names, inputs = list(names), inputs or {}
    depths: dict[str, int] = {}
    for name in names:
        if found := _BLOCK.match(name):
            depths[found["tower"]] = max(depths.get(found["tower"], 0), int(found["index"]) + 1)
    return {name: decay ** _layer_of(name, depths, inputs)[1] for name in names}


def part_factors(model: nn.Module, factors: Mapping[str, float]) -> dict[str, float]:
    """Map parameter names to the factor of the part that they belong to; of several the innermost counts.

    Args:
        model: What the parts are looked for in.
        factors: By the names of `mmzoo.adapt.parts_of`: `{"head": 10.0, "text.blocks.0-5": 0.1}`.

    Returns:
        The names in one of these parts; the others stay as they are.

    Raises:
        UsageError: No such part, or a factor that is not above 0.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    found: dict[str, float] = {}
    for part in sorted(factors, key=lambda part: part.count(".")):
        if not factors[part] > 0:
            raise UsageError(
                f"the factor of {part} is {factors[part]}; it must be above 0 (freeze keeps it still)."
            )
        for member in parts_of(model, [part]):
            own = [member] if isinstance(member, nn.Parameter) else member.parameters()
            found |= {names[parameter]: factors[part] for parameter in own}
    return found


def parameter_groups(
    model: nn.Module, *, layer_decay: float = 1.0, lr_factors: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Split the trainable parameters by weight decay, by layer and by part.

    Args:
        model: Its frozen parameters (`requires_grad=False`) are left out. Its attribute `input_parts`, where it has
            one, is what `layer_factors` calls inputs.
        layer_decay: See `layer_factors`.
        lr_factors: See `part_factors`; they multiply with layer decay.

    Returns:
        Groups for any torch optimizer. Beside `params` each has `name` (for logs), `names` (of its parameters)
        and `lr_scale`, the factor that `build_optimizer` folds into the group's rate. Groups without decay
        carry `weight_decay=0.0`; the others take the optimizer's own.

    Raises:
        ZooError: Nothing is trainable.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if layer_decay != 1.0 and not any(_BLOCK.match(name) for name in trainable):
        raise ZooError("layer_decay has no effect here: no trainable part has blocks.N. Set it to 1.")
    if layer_decay != 1.0 and any(".stages." in name or ".layers_" in name for name in trainable):
        raise ZooError("layer_decay counts the blocks of one stack and this tower has stages: set it to 1.")
    if not trainable:
        raise ZooError("every parameter is frozen, so there is nothing to train: shorten `freeze`.")
    names = [name for name, _ in model.named_parameters()]
    scales = layer_factors(names, layer_decay, getattr(model, "input_parts", None))
    for name, factor in part_factors(model, lr_factors or {}).items():
        scales[name] *= factor
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in trainable.items():
        scale, decays = scales[name], needs_decay(name, parameter)
        label = f"x{scale:.4g}/{'decay' if decays else 'no_decay'}"
        group = groups.setdefault(
            (scale, decays), {"params": [], "names": [], "name": label, "lr_scale": scale}
        )
        group["params"].append(parameter)
        group["names"].append(name)
        if not decays:
            group["weight_decay"] = 0.0
    return [groups[key] for key in sorted(groups, reverse=True)]


def _with_fused(optimizer: Optimizer, groups: list[dict[str, Any]]) -> Optimizer:
    """The same optimizer with its fused kernel, if it has one and nobody chose otherwise.

    torch leaves `fused` off on the CPU and loops over the parameters there; what that costs a training step is what
    `tools/bench_train_step.py` measures with its two peers.
    """
    accepts = inspect.signature(type(optimizer)).parameters
    chosen = any(optimizer.defaults.get(key) is not None for key in ("fused", "foreach"))
    chosen = chosen or any(optimizer.defaults.get(key) for key in ("differentiable", "capturable"))
    if chosen or "fused" not in accepts:
        return optimizer
    settings = {key: value for key, value in optimizer.defaults.items() if key in accepts}
    return type(optimizer)(groups, **(settings | {"fused": True}))


def build_optimizer(
    model: nn.Module,
    factory: Callable[[list[dict[str, Any]]], Optimizer],
    *,
    layer_decay: float = 1.0,
    lr_factors: Mapping[str, float] | None = None,
) -> Optimizer:
    """Create the optimizer over `parameter_groups`, with layer decay and factors folded into each group's rate.

    The rate is folded here and not by a scheduler, so it holds during warm-up, shows up in every log of the
    groups' rates, and cannot be undone by a scheduler that knows nothing of it.

    Args:
        model: What to train.
        factory: Takes the groups and returns the optimizer; its rate is that of the top layers.
        layer_decay: See `layer_factors`.
        lr_factors: See `part_factors`.
    """
    groups = parameter_groups(model, layer_decay=layer_decay, lr_factors=lr_factors)
    optimizer = factory([dict(group) for group in groups])
    optimizer = _with_fused(optimizer, groups)
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * group["lr_scale"]
    return optimizer


def build_schedule(
    optimizer: Optimizer,
    *,
    warmup: int,
    total: int,
    floor: float = 0.0,
    shape: Schedule = "cosine",
    warmup_floor: float = 0.0,
) -> LambdaLR:
    """Scale every group's rate: a straight line up over `warmup` steps, then down to `floor`.

    Args:
        optimizer: Its groups keep their ratios to each other.
        warmup: Steps until the full rate; the first step already moves.
        total: Optimizer steps of the whole run, warm-up included.
        floor: Share of the full rate at the end.
        shape: The way down: half a cosine; a straight line (transformers' polynomial of power 1, ViLT); or by the same
            factor at every step (BLIP), for which `floor` must be above 0.
        warmup_floor: Share of the full rate at the first step (ALBEF: 0.1); 0 starts one of `warmup + 1` equal steps
            above nothing.
    """
    start = warmup_floor or 1 / (warmup + 1)

    def factor(step: int) -> float:
        if step < warmup:
            return start + (1 - start) * step / warmup
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        if shape == "exponential":
            return float(floor**progress)
        left = 1 - progress if shape == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return floor + (1 - floor) * left

    return LambdaLR(optimizer, factor)


def clip_gradients(
    optimizer: Optimizer, limit: float, by: str, scaler: torch.amp.GradScaler | None
) -> Tensor | None:
    """Clip what the optimizer is about to apply, whatever its kernel and the precision.

    lightning 2.6.6 refuses to clip for a fused optimizer under mixed precision, since such an optimizer undoes
    the loss scale inside its step. But without a scaler (bf16) there is nothing to undo, and with one (fp16) the
    gradients can be unscaled first: the scaler then knows that the step must not do it again.

    Args:
        optimizer: Its gradients are changed in place.
        limit: Largest norm over all parameters, or largest magnitude.
        by: `"norm"` or `"value"`.
        scaler: The loss scaler of fp16 training, if any.

    Returns:
        The norm before clipping, or None when clipping by value.
    """
    if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        scaler.unscale_(optimizer)  # Lightning has already done it for every other optimizer
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if by == "value":
        nn.utils.clip_grad_value_(parameters, limit)
        return None
    return nn.utils.clip_grad_norm_(parameters, limit)


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Average gradients over processes, for steps whose backward passes DDP cannot follow."""
    for parameter in parameters:
        if dist.world() > 1 and parameter.grad is not None:
            dist.sum_over_ranks(parameter.grad).div_(dist.world())
