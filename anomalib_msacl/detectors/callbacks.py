"""Callbacks that the detectors of this package bring along, so that a run is left as it was found."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from anomalib_msacl.compat import isolated_random
from anomalib_msacl.errors import show_in_one_line


class TellErrors(Callback):
    """Let a command line end in one sentence instead of a traceback where the input or the disk is at fault."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lightning asks callbacks alone, not the model, and tears nothing down."""
        del trainer
        pl_module.teardown("fit")  # leaves trainer and datamodule as they were
        show_in_one_line(exception)


class LeaveRandomNumbers(Callback):
    """Leave the global random numbers as a fit has found them: the detectors seed them with their own seed."""

    def __init__(self) -> None:
        self._isolated = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep the states, before the model is set up."""
        del trainer, pl_module
        if stage == "fit":
            self._isolated.enter_context(isolated_random())

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore them after a fit; after a test there is nothing to restore."""
        del trainer, pl_module, stage
        self._isolated.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore them where Lightning tears nothing down."""
        del trainer, pl_module, exception
        self._isolated.close()


class WithCallbacks:
    """A base class that adds them to a model of anomalib; it stands before ``AnomalibModule``."""

    def configure_callbacks(self) -> list[Any]:
        """Return the callbacks of the model, and those of this module."""
        others: list[Any] = super().configure_callbacks()  # type: ignore[misc]  # of AnomalibModule
        return [*others, LeaveRandomNumbers(), TellErrors()]
