"""What the detectors of this package add to anomalib's command line: errors in one sentence."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from anomalib_msacl.errors import show_in_one_line


class TellErrors(Callback):
    """Let a command line end in one sentence instead of a traceback where the input or the disk is at fault."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lightning asks callbacks alone, not the model, and tears nothing down."""
        del trainer
        pl_module.teardown("fit")  # leaves trainer and datamodule as they were
        show_in_one_line(exception)


class TellsErrors:
    """A part of a model of anomalib, to be named before its ``AnomalibModule``."""

    def configure_callbacks(self) -> list[Any]:
        """Return the callbacks of the model, and :class:`TellErrors`."""
        others: list[Any] = super().configure_callbacks()  # type: ignore[misc]  # of AnomalibModule
        return [*others, TellErrors()]
