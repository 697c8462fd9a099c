"""What every family's training shares: building, freezing, optimizing, averaging, resuming."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer

from mmzoo.adapt import freeze, parts_of
from mmzoo.errors import UsageError, ZooError
from mmzoo.lit.ema import Ema
from mmzoo.lit.heldout import Collector, Split, splits_of
from mmzoo.lit.optim import Schedule, build_optimizer, build_schedule, clip_gradients, part_factors
from mmzoo.paths import find_weights
from mmzoo.seeds import mix
from mmzoo.start import start_parts
from mmzoo.zoo import FAMILIES, MODELS, create_model, create_processor, family_of, get_config

if TYPE_CHECKING:
    from mmzoo.processing.processor import Processor

__all__ = ["LitBase", "Recipe", "build_model"]

T = TypeVar("T")

_OWN_STREAM = (
    1  # one number more than the global generator's seed has, so that the two draw different numbers
)


@dataclass(frozen=True)
class Recipe:
    """How to train, whatever the family.

    Attributes:
        warmup_steps: Optimizer steps over which the rate rises to its full value.
        warmup_share: The same as a share of all steps of the run (ViLT's fine-tuning: 0.1), in place of `warmup_steps`.
        warmup_floor: Share of the full rate at the first step; 0 rises from nothing.
        schedule: How the rate comes down after: along half a cosine, a straight line, or by the same factor at every
            step (`exponential`, which needs a `floor`).
        floor: Share of the full rate that is left at the end.
        layer_decay: Factor on the rate per layer from a tower's top to its input; 1 for none.
        lr_factors: Factor on the rate of single parts, named as in `freeze`: `{head: 10}`.
        ema_decay: Keep an average of the weights with this decay, evaluate it and export it; None for none.
        freeze: Parts of the model that stay as they are, by the names of `mmzoo.adapt.freeze`: `vision`, `text.embed`,
            `text.blocks.0-5`.
        checkpointing: Recompute activations in the backward pass instead of keeping them (less memory, 1/3 slower).
        compile_towers: Compile the towers' blocks; worth it on GPUs only.
    """

    warmup_steps: int = 0
    warmup_share: float = 0.0
    warmup_floor: float = 0.0
    schedule: Schedule = "cosine"
    floor: float = 0.0
    layer_decay: float = 1.0
    lr_factors: dict[str, float] = field(default_factory=dict)
    ema_decay: float | None = None
    freeze: tuple[str, ...] = ()
    checkpointing: bool = False
    compile_towers: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_share <= 1:
            raise UsageError(f"warmup_share is {self.warmup_share}; it is a share of the run, from 0 to 1.")
        if self.warmup_share and self.warmup_steps:
            raise UsageError("warmup_steps and warmup_share both say how long the warm-up is: give one.")
        if self.schedule == "exponential" and not 0 < self.floor <= 1:
            raise UsageError(
                f"an exponential schedule never comes down to {self.floor}: set floor to a share above 0."
            )


def build_model(family: str, model: Any, pretrained: str | None) -> Any:
    """Build a model of one family by its name or from its config.

    Raises:
        UsageError: No such model, or one of another family.
    """
    known = [name for name, entry in MODELS.items() if entry.family == family]
    if not isinstance(model, str):
        if family_of(model) != family:
            raise UsageError(
                f"expected a {' or '.join(FAMILIES[family].models)}, found a {type(model).__name__}."
            )
        if pretrained is not None and not find_weights(pretrained).exists():
            raise UsageError(
                f"pretrained: {pretrained!r} is no file or folder, and a tag belongs to a model's name: give the name "
                "instead of a config, or a path."
            )
        like = next((name for name in known if type(get_config(name)) is type(model)), known[0])
        return create_model(like, config=model, pretrained=pretrained)
    if model in MODELS and model not in known:
        raise UsageError(f"{model} is a {MODELS[model].family} model; here {', '.join(known)} fit.")
    return create_model(model, pretrained=pretrained)


class LitBase(LightningModule):
    """Trains `model`; a family adds `training_step`, and `heldout` and `judge` for evaluation.

    Randomness of the forward pass (dropout, stochastic depth, patch dropout) is seeded anew for every step from
    the run's seed, the epoch, the batch and the rank. So it depends neither on validation nor on the loader's
    workers, and a run resumed in the middle of an epoch goes on as if it had never stopped. The same holds for
    `generator`, from which losses draw (words to mask, negatives); in evaluation it is seeded from the batch alone, so
    that every look at a split sees the same draws.

    Args:
        model: A model of the zoo.
        optimizer: Makes the optimizer from parameter groups.
        recipe: Everything else about training.
        pretrained: Whether the weights came from a file.
        start: Files that parts of the model start from, see `mmzoo.start.start_parts`. Frozen weights that came from a
            file are left out of checkpoints.
    """

    monitor = "val/score"  # what `best.ckpt` is best at; larger is better

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerCallable,
        recipe: Recipe,
        *,
        pretrained: bool = False,
        start: dict[str, str] | None = None,
    ):
        super().__init__()
        if pretrained and "model" in (start or {}):
            raise UsageError(
                "pretrained and start.model both say where the model's weights come from: give one."
            )
        filled = start_parts(model, start or {})
        self.model = model
        self.recipe = recipe
        self.chance: dict[str, float] = {}  # what guessing gives, by metric
        self._make_optimizer = optimizer
        self._frozen = _in_recipe("freeze", lambda: _freeze(model, recipe.freeze))
        _in_recipe(
            "lr_factors", lambda: part_factors(model, recipe.lr_factors)
        )  # a wrong name is said at once
        frozen = (name for name, p in model.named_parameters() if not p.requires_grad)
        self._left_out = frozenset(f"model.{name}" for name in frozen if pretrained or name in filled)
        if recipe.checkpointing:
            towers = [m for m in model.modules() if hasattr(m, "set_checkpointing")]
            if not towers:
                raise UsageError(f"{type(model).__name__} has no tower that can recompute activations.")
            for tower in towers:
                tower.set_checkpointing(True)  # type: ignore[operator]
        self.ema = Ema(model, recipe.ema_decay) if recipe.ema_decay is not None else None
        self._seed = torch.initial_seed() % 2**32
        self._generator: torch.Generator | None = None
        self._collectors: list[tuple[Split, Collector]] = []

    @cached_property
    def processor(self) -> Processor:
        """The model's preprocessing; data modules take it from here."""
        return create_processor(self.model)

    # -- modes --------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> LitBase:
        """Switch to training or evaluation; frozen modules stay in evaluation."""
        super().train(mode)
        for module in self._frozen:
            if isinstance(module, nn.Module):
                module.eval()
        return self

    def on_fit_start(self) -> None:
        """Switch to training: models of the zoo come in eval mode, and Lightning leaves modes as they are."""
        self.train()
        if self.ema is not None:
            self.ema.follow()
        if self.recipe.compile_towers:
            for module in self.model.modules():
                for block in getattr(module, "blocks", ()):
                    block.compile()  # in place, so names in the state dict stay; one graph serves all blocks

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed this step."""
        numbers = (self._seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(mix(*numbers))
        self.generator.manual_seed(mix(*numbers, _OWN_STREAM))

    @property
    def generator(self) -> torch.Generator:
        """What a loss draws from in this step, on the module's device."""
        if self._generator is None or self._generator.device != self.device:
            self._generator = torch.Generator(self.device)
        return self._generator

    # -- optimizing ---------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """The optimizer over parameter groups, and the rate of every optimizer step."""
        total = self.trainer.estimated_stepping_batches
        if total < 0 or math.isinf(total):
            raise ZooError(
                "the length of the run is unknown, because the data is a stream or max_epochs is -1: "
                "set trainer.max_steps, which the learning rate's schedule needs."
            )
        recipe = self.recipe
        optimizer = build_optimizer(
            self.model, self._make_optimizer, layer_decay=recipe.layer_decay, lr_factors=recipe.lr_factors
        )
        schedule = build_schedule(
            optimizer,
            warmup=recipe.warmup_steps or int(recipe.warmup_share * total),
            total=int(total),
            floor=recipe.floor,
            shape=recipe.schedule,
            warmup_floor=recipe.warmup_floor,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip under every precision, and log the norm; see `clip_gradients` for why Lightning's own is not used."""
        if gradient_clip_val:
            scaler = getattr(self.trainer.precision_plugin, "scaler", None)
            norm = clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm or "norm", scaler)
            if norm is not None:
                self.log("train/grad_norm", norm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then what must follow each step: the family's clamp, and the average."""
        super().optimizer_step(*args, **kwargs)
        self.after_step()
        if self.ema is not None:
            self.ema.update()

    def after_step(self) -> None:
        """What a family does to its parameters after each optimizer step."""

    def next_command(self, export: Path) -> str:
        """A command that uses what a run exported, to print when it ends."""
        return f"mmzoo show {export}"

    def log_step(self, loss: Tensor, **metrics: Tensor | float) -> Tensor:
        """Log a training step under `train/`, and stop the run if the loss is not a number.

        Returns:
            The loss.

        Raises:
            ZooError: The loss is infinite or not a number.
        """
        # on a GPU the check waits for the device, so it is done where the log waits anyway
        if self.device.type == "cpu" or self.global_step % max(1, self.trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            self.require_finite(loss)
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in (metrics | {"lr": rate}).items()})
        return loss

    def require_finite(self, loss: Tensor) -> None:
        """Raise a `ZooError` that says what to do if the loss is infinite or not a number."""
        if not bool(torch.isfinite(loss.detach()).all()):
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            raise ZooError(
                f"the loss is {float(loss.detach())} at step {self.global_step + 1} (learning rate {rate:.3g}): "
                "training stops here and the last checkpoint stays as it is. Lower the rate, lengthen the "
                "warm-up or set --trainer.gradient_clip_val 1, then go on from it with --ckpt_path last."
            )

    # -- evaluation ---------------------------------------------------------------------------------------------

    def heldout(self, split: Split) -> Collector:
        """What collects a split's numbers; a family says."""
        raise NotImplementedError

    def judge(self, batch: Any, collector: Any) -> None:
        """Compute a batch of a split in evaluation, and add it to what `heldout` gave for the split; a family says."""
        raise NotImplementedError

    def on_validation_epoch_start(self) -> None:
        """Lend the average to the model. The epoch hooks are used, so that checkpoints see the weights themselves."""
        if self.ema is not None:
            self.ema.lend()
        self._collectors = [(split, self.heldout(split)) for split in splits_of(self.trainer)]

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Judge a batch of a split."""
        self.generator.manual_seed(mix(dataloader_idx, batch_idx, self.global_rank, _OWN_STREAM))
        self.judge(batch, self._collectors[dataloader_idx][1])

    def on_validation_epoch_end(self) -> None:
        """Log each split's numbers with chance beside them, and the first split's score; take the average back."""
        scores = []
        for split, collector in self._collectors:
            numbers = collector.numbers()
            for name, (value, chance) in numbers.items():
                self.log_heldout(f"{split.name}/{name}", value, chance)
            scores.append(sum(numbers[name][0] for name in collector.score) / len(collector.score))
        if scores:
            self.log(self.monitor, scores[0], sync_dist=True)
        self._collectors = []
        if self.ema is not None:
            self.ema.take_back()

    def on_test_epoch_start(self) -> None:
        """As before validation."""
        self.on_validation_epoch_start()

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """As after validation."""
        self.on_validation_epoch_end()

    def log_heldout(self, name: str, value: float, chance: float) -> None:
        """Log a held-out number with what guessing would give beside it.

        Args:
            name: `"<split>/<metric>"`.
            value: The number.
            chance: What a model that learnt nothing would get.
        """
        self.chance[name] = chance
        # every rank computes the same numbers from gathered embeddings, so their mean is the number
        self.log_dict({name: value, f"{name}.chance": chance}, sync_dist=True)

    # -- checkpoints --------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the average and the seed; leave out frozen weights that come from a file anyway, and say which."""
        checkpoint["mmzoo"] = {
            "seed": self._seed,
            "ema": self.ema.state_dict() if self.ema else None,
            "left_out": sorted(name.removeprefix("model.") for name in self._left_out),
        }
        for name in self._left_out:
            checkpoint["state_dict"].pop(name, None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Undo `on_save_checkpoint`.

        Raises:
            ZooError: The checkpoint was written with or without an average, other than this run's.
        """
        state = checkpoint.get("mmzoo", {})
        self._seed = state.get("seed", self._seed)
        own = self.state_dict()
        checkpoint["state_dict"] |= {name: own[name] for name in self._left_out}
        if self.ema is None and state.get("ema"):
            raise ZooError(
                "the checkpoint holds an average of weights, which this run would drop: set recipe.ema_decay as "
                "its run did, or start a new run."
            )
        if self.ema is not None:
            if not state.get("ema"):
                raise ZooError(
                    "the checkpoint holds no average of weights, because its run had no recipe.ema_decay: leave it "
                    "out here too, or start a new run."
                )
            self.ema.load_state_dict(state["ema"])


def _in_recipe(name: str, work: Callable[[], T]) -> T:
    """Do what an entry of the recipe says; what is wrong with it is told with its name."""
    try:
        return work()
    except UsageError as error:
        raise UsageError(f"recipe.{name}: {error}") from None


def _freeze(model: nn.Module, names: tuple[str, ...]) -> list[nn.Module | nn.Parameter]:
    """Freeze parts of the model, and give them."""
    freeze(model, names)
    return parts_of(model, names)
