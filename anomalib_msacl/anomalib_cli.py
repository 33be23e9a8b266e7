"""anomalib's own command line, as this package runs it: models from checkpoints, scores in a file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from anomalib.cli.cli import AnomalibCLI
from anomalib.data import AnomalibDataModule
from anomalib.loggers import configure_logger
from anomalib.models.components import AnomalibModule
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

import anomalib_msacl.detectors.igd
import anomalib_msacl.detectors.msacl  # noqa: F401  # are known by their names then
from anomalib_msacl.checkpoints import check_checkpoint, read_checkpoint, restored
from anomalib_msacl.compat import one_results_folder
from anomalib_msacl.data.splits import draws_anew
from anomalib_msacl.errors import InputError
from anomalib_msacl.export import antialiased_exports
from anomalib_msacl.pretraining.messages import each_message_once
from anomalib_msacl.scores import ScoresCsv

logger = logging.getLogger(__name__)

_SPLITTING = ("train", "fit", "validate", "test")
_TRAINING = ("train", "fit")
_FROM_CHECKPOINT = ("validate", "test", "predict", "export")


def run_anomalib(arguments: list[str]) -> None:
    """Run a command of anomalib.

    Exports keep the antialiasing of the tested model. With ``--ckpt_path`` the settings of the model come from the
    checkpoint. ``predict`` writes scores too. The processes of one run have one results folder.

    Args:
        arguments: Those of ``anomalib``.

    Raises:
        InputError: If a checkpoint cannot be read or does not fit the model.
    """
    if not logging.getLogger().handlers:
        configure_logger()  # as the command anomalib does
    with antialiased_exports(), one_results_folder():
        CommandLine(arguments)


class CommandLine(AnomalibCLI):
    """``anomalib`` with models from checkpoints, and scores in a file."""

    def instantiate_classes(self) -> None:
        """Build what the command needs; the model as its checkpoint has it."""
        super().instantiate_classes()
        options = self.config_init[self.subcommand]
        each_message_once()
        data = getattr(self, "datamodule", None)
        if self.subcommand in _SPLITTING and isinstance(data, AnomalibDataModule) and draws_anew(data):
            logger.warning(
                "The split of %s has no seed, so that every command draws other test images, and those of one may have "
                "set the threshold in another: set data.init_args.seed, to 0 for example.",
                data.name,
            )
        if self.subcommand not in _FROM_CHECKPOINT and options.get("ckpt_path"):
            check_checkpoint(self.model, options["ckpt_path"])
        if self.subcommand in _FROM_CHECKPOINT and options.get("ckpt_path"):
            self.model = _of_checkpoint(self.model, Path(options["ckpt_path"]))
            if self.subcommand == "export":
                options["ckpt_path"] = None  # anomalib would load it once more, by its own rule

    def instantiate_engine(self) -> None:
        """Build the engine; that of ``predict`` writes scores, one that trains with a logger its configuration."""
        trainer: Any = self.config_init[self.subcommand]["trainer"]
        if str(trainer["strategy"]).startswith(("ddp_spawn", "ddp_fork", "ddp_notebook")):
            raise InputError(
                f"trainer.strategy {trainer['strategy']} cannot start the processes of a command line; set it to ddp."
            )
        found = trainer["callbacks"] or []
        callbacks = list(found) if isinstance(found, list | tuple) else [found]  # anomalib takes a single one, too
        if self.subcommand == "predict" and not any(isinstance(each, ScoresCsv) for each in callbacks):
            trainer["callbacks"] = [*callbacks, ScoresCsv()]
        elif self.subcommand in _TRAINING and trainer.get("logger") and not trainer.get("fast_dev_run"):
            parser: Any = self.subcommand_parsers[self.subcommand]
            config = _ConfigInResults(parser, self.config[self.subcommand], overwrite=True, save_to_log_dir=False)
            trainer["callbacks"] = [*callbacks, config]
        super().instantiate_engine()


class _ConfigInResults(SaveConfigCallback):
    """Saves ``config.yaml`` beside the checkpoint, too, where ``report`` looks: loggers keep it in their own folder."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save it; called on the first process only."""
        del pl_module, stage
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / self.config_filename
        self.parser.save(self.config, file, skip_none=False, overwrite=self.overwrite, multifile=self.multifile)


def _of_checkpoint(model: AnomalibModule, path: Path) -> AnomalibModule:
    """Return the model of a checkpoint; parts that are given beside its settings are those of another model."""
    kind = type(model)
    parts = {name: getattr(model, name) or False for name in ("pre_processor", "post_processor")}
    found = restored(kind, path, read_checkpoint(path, [kind]), "--model", **parts)
    found.evaluator, found.visualizer = model.evaluator, model.visualizer  # the checkpoint may have switched them off
    return found
