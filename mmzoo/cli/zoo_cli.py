"""`ZooCLI`: LightningCLI with the house's rules.

What it does otherwise than LightningCLI, each guarded by a test in `tests/cli/test_trainer.py`:

- names in a checkpoint never override flags; prefixes of flags are refused; unknown names are one sentence;
- one folder per run holds config, metrics, checkpoints, export and curve; a second run moves the first aside;
- optimizers belong to the module, nothing is linked, the seed is 0 unless said;
- checkpoints are whole or absent, and `--ckpt_path last` means this run's own.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

import mmzoo.data.modules
import mmzoo.data.task_modules  # noqa: F401 - makes their classes known by their short names, as mmzoo.lit does
from mmzoo.cli.complaints import sentence
from mmzoo.cli.runs import Claim, checkpoint_of, run_name
from mmzoo.errors import UsageError, ZooError
from mmzoo.lit.base import LitBase
from mmzoo.lit.callbacks import ExportWeights, RunReport, Talk, held_out_table
from mmzoo.lit.checkpoints import Checkpoints, WholeFileIO
from mmzoo.lit.files import RunLogger, write_predictions
from mmzoo.weights.io import write_json

__all__ = ["ZooCLI", "run"]

_NOISE = ("💡", "litlogger", "litmodels", "GPU available:", "TPU available:", "HPU available:", "LOCAL_RANK")
_QUIET = (
    r".*does not have many workers.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*module\(s\) in eval mode at the start of training.*",  # frozen parts are, on purpose
    r".*is smaller than the logging interval.*",
    r".*treespec, LeafSpec.*",  # Lightning's own use of torch
)


class ZooCLI(LightningCLI):
    """Parses, builds and runs one training verb.

    Args:
        argv: The verb and its options, config names already resolved to paths.
        as_json: Print results as JSON.
    """

    def __init__(self, argv: list[str], *, as_json: bool = False):
        self.argv, self.as_json = argv, as_json
        exact = {"allow_abbrev": False, "exit_on_error": False}
        super().__init__(
            LitBase,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # models leave as safetensors folders, not inside pickles
            parser_kwargs={**exact, **{verb: dict(exact) for verb in self.subcommands()}},
            args=argv,
        )

    # -- parsing ------------------------------------------------------------------------------------------------

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options that belong to neither trainer, model nor data."""
        parser.add_argument("--name", type=str | None, default=None, help="The run's folder is runs/NAME.")
        parser.add_lightning_class_args(Checkpoints, "checkpoints")

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in ("validate", "test"):
            parser.set_defaults({"verbose": False})  # the numbers are printed here, with chance beside them
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; what is wrong becomes one sentence."""
        try:
            self.config = parser.parse_args(args)
        except argparse.ArgumentError as error:
            known = [action.dest for action in self._subcommand_parsers[args[0]]._actions]
            classes = [c.__name__ for c in (*_subclasses(LitBase), *_subclasses(LightningDataModule))]
            raise UsageError(sentence(str(error), known, sorted(set(classes)))) from error

    def _parse_ckpt_path(self) -> None:
        # Lightning 2.6.6 lets the hyperparameters stored in a checkpoint win over explicit flags here.
        pass

    # -- building -----------------------------------------------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        """Settle the run's folder."""
        options = self.config[self.subcommand]
        given = [str(self.argv[i + 1]) for i, word in enumerate(self.argv[:-1]) if word in ("-c", "--config")]
        options.name = options.name or run_name(given)
        root = options.trainer.default_root_dir
        self.folder = Path(root) if root else Path("runs") / options.name
        self.claim = Claim(self.folder)
        if self.subcommand != "fit":
            self.save_config_callback = None  # the folder's config is that of the run, not of a look at it

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with the run's folder, files and callbacks."""
        options = self._get(self.config_init, "trainer")
        self.logger = RunLogger(self.folder)
        self.report = RunReport(self.folder, self.logger)
        loggers = options.get("logger")
        if loggers in (None, True):
            loggers = []
        elif loggers is not False and not isinstance(loggers, list):
            loggers = [loggers]
        on_terminal = sys.stderr.isatty() and options.get("enable_progress_bar") is not False
        extra: list[Callback] = [Talk(steps=not on_terminal)]
        if on_terminal:
            extra.append(RichProgressBar(console_kwargs={"stderr": True}))
        if self.subcommand == "fit":
            extra += [
                _FreshFolder(self),
                self.report,
                ExportWeights(self.folder / "export", self.folder.name),
            ]
        callbacks = options.get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        plugins = options.get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if options.get("enable_checkpointing") is False:
            self.config_init[self.subcommand].checkpoints = None
        return super().instantiate_trainer(
            default_root_dir=str(self.folder),
            logger=False if loggers is False else [self.logger, *loggers],
            callbacks=[*callbacks, *extra],
            plugins=[*plugins, WholeFileIO()],
            enable_progress_bar=on_terminal,
            enable_model_summary=bool(options.get("enable_model_summary")),
            **kwargs,
        )

    # -- running ------------------------------------------------------------------------------------------------

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        kwargs["ckpt_path"] = self.checkpoint
        return kwargs

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint that this command starts from."""
        return checkpoint_of(self.folder, self._get(self.config_init, "ckpt_path"))

    @property
    def _is_trial(self) -> bool:
        return bool(getattr(self.trainer, "fast_dev_run", False))

    def before_fit(self) -> None:
        """Take the folder, and make room in it for a new run."""
        wanted, found = self._get(self.config_init, "ckpt_path"), self.checkpoint
        if _is_first() and not self._is_trial:
            self.claim.take()
        if wanted in ("last", "best"):
            _say(
                f"going on from {found}."
                if found
                else f"{self.folder} has no checkpoint yet: starting from step 0."
            )
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        everything = sum(p.numel() for p in self.model.parameters())
        _say(f"{self.folder}: {everything / 1e6:.2f} M parameters, {trained / 1e6:.2f} M of them trained.")

    def fit(self, **kwargs: Any) -> None:
        """Train; Ctrl-C ends with the way to go on."""
        try:
            self.trainer.fit(**kwargs)
        except SystemExit as end:  # what Lightning makes of Ctrl-C
            if not isinstance(end.__context__, KeyboardInterrupt):
                raise
            last = checkpoint_of(self.folder, "last")
            hint = (
                f" {last} is there: add --ckpt_path last to go on."
                if last
                else " There is no checkpoint yet."
            )
            _say(f"stopped at step {self.trainer.global_step}.{hint}")
            raise KeyboardInterrupt from None
        finally:
            self.claim.release()

    def after_fit(self) -> None:
        """Print the results."""
        if not _is_first() or self._is_trial:
            return
        content = self.report.content
        content["export"] = str(self.folder / "export")
        content["next"] = self.model.next_command(self.folder / "export")
        write_json(self.folder / "metrics.json", content)
        if self.as_json:
            print(json.dumps(content, indent=1))
            return
        print(f"{self.folder}: {content['steps']} steps in {content['seconds']:.0f} s")
        print(held_out_table(content["last"], content["chance"]))
        print(f"\nexport    {content['export']}")
        if content["curve"]:
            print(f"curve     {content['curve']}")
        print(f"metrics   {self.folder / 'metrics.json'}, {self.logger.path}")
        print(f"next      {content['next']}")

    def before_validate(self) -> None:
        """Say which weights are looked at."""
        wanted = self._get(self.config_init, "ckpt_path")
        if wanted and self.checkpoint is None:
            raise UsageError(
                f"{self.folder} has no {wanted} checkpoint: train first (mmzoo fit), or give a file."
            )
        if wanted is None:
            _say("no --ckpt_path: the numbers are those of the model as it is built.")

    before_test = before_predict = before_validate

    def after_validate(self) -> None:
        """Print and write the numbers."""
        if not _is_first():
            return
        chance = self.model.chance
        values = {n: float(v) for n, v in self.trainer.callback_metrics.items() if not n.endswith(".chance")}
        content = {
            "checkpoint": str(self.checkpoint) if self.checkpoint else None,
            "values": values,
            "chance": chance,
        }
        write_json(self.folder / f"{self.subcommand}.json", content)
        print(json.dumps(content, indent=1) if self.as_json else held_out_table(values, chance))

    after_test = after_validate

    def predict(self, **kwargs: Any) -> None:
        """Write predictions as `predictions.safetensors`, and what is no tensor as `predictions.jsonl`."""
        if self.trainer.world_size > 1:
            raise UsageError("predict writes one file from one process: add --trainer.devices 1.")
        found = self.trainer.predict(**kwargs)
        batches = [b for item in found or [] for b in (item if isinstance(item, list) else [item])]
        if not batches:
            raise ZooError("there was nothing to predict: the data is empty.")
        keys = [key for batch in batches for key in batch["keys"]]
        paths = write_predictions(self.folder, batches)
        if self.as_json:
            print(json.dumps({"predictions": [str(path) for path in paths], "samples": len(keys)}))
        else:
            print(*paths, sep="\n")


class _FreshFolder(Callback):
    """Moves an earlier run aside once the data has been opened, so that a command that cannot run moves nothing."""

    def __init__(self, cli: ZooCLI):
        self.cli = cli

    @rank_zero_only
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        cli = self.cli
        if cli.checkpoint is None and not cli._is_trial and (kept := cli.claim.make_room()):
            _say(f"the run that was in {cli.folder} is now in {kept}.")


def _subclasses(cls: type) -> list[type]:
    children: list[type] = cls.__subclasses__()
    found = [s for c in children for s in (_subclasses(c) or [c])]
    return [s for s in found if s.__module__.startswith("mmzoo.")]


def _is_first() -> bool:
    """Whether this is the first of several processes."""
    return getattr(rank_zero_only, "rank", 0) == 0


@rank_zero_only
def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _cause(error: BaseException | None) -> ZooError | None:
    while error is not None and not isinstance(error, ZooError):
        error = error.__cause__ or error.__context__
    return error


class _NoAdvertising(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not any(word in text for word in _NOISE)


def run(argv: list[str], *, as_json: bool = False) -> int:
    """Run a training verb; see `mmzoo.cli.trainer.main`."""
    quiet = _NoAdvertising()
    loggers = [
        logging.getLogger(name) for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric")
    ]
    for logger in loggers:
        logger.addFilter(quiet)
    try:
        with warnings.catch_warnings():
            for pattern in _QUIET:
                warnings.filterwarnings("ignore", pattern)
            ZooCLI(argv, as_json=as_json)
    except SystemExit as end:  # --print_config and the help of a class
        return int(end.code or 0)
    except MisconfigurationException as error:
        raise UsageError(" ".join(str(error).split())) from error
    except ValueError as error:
        cause = _cause(error)  # what a class refused; jsonargparse wraps it in its own words
        if cause is None or cause is error:
            raise
        raise cause from error
    finally:
        for logger in loggers:
            logger.removeFilter(quiet)
    return 0
