"""One progress bar over a whole pre-training: its stage, the steps made and to make, and the time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


class StepsBar(ProgressBar):
    """A bar of optimiser steps in place of Lightning's, which counts batches and epochs."""

    def __init__(self) -> None:
        super().__init__()
        self._shown = True
        self._bar: Any = None

    def disable(self) -> None:
        """Show nothing: only the first of several processes does."""
        self._shown = False

    def enable(self) -> None:
        """Show the bar."""
        self._shown = True

    def stage(self, name: str, trainer: Trainer) -> None:
        """Say what is done now.

        Args:
            name: Of the stage.
            trainer: Makes the steps.
        """
        if not trainer.is_global_zero:
            self.disable()
        if self._shown and self._bar is None:
            self._bar = tqdm(total=trainer.max_steps, unit="step", dynamic_ncols=True)
        if self._bar is not None:
            self._bar.set_description(f"MSACL: {name}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the steps that a run which goes on has made before; the time left follows from the others."""
        del pl_module
        self.stage("training", trainer)
        if self._bar is not None:
            self._bar.initial = self._bar.n = trainer.global_step
            self._bar.unpause()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step, if one was made."""
        del pl_module, outputs, batch, batch_idx
        if self._bar is not None:
            self._bar.update(trainer.global_step - self._bar.n)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def show_stage(trainer: Trainer, name: str) -> None:
    """Tell a trainer's bar, if it is one of steps, what is done now."""
    bar = trainer.progress_bar_callback
    if isinstance(bar, StepsBar):
        bar.stage(name, trainer)


@contextmanager
def whole_bar(trainer: Trainer) -> Iterator[None]:
    """End a trainer's bar, if it is one of steps, when all is done."""
    try:
        yield
    finally:
        bar = trainer.progress_bar_callback
        if isinstance(bar, StepsBar):
            bar.close()
