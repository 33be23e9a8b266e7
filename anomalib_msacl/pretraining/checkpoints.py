"""Checkpoints of a pre-training under way, so that it can be killed at any moment and goes on later."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from anomalib_msacl import distributed
from anomalib_msacl.backbone.folder import sync
from anomalib_msacl.backbone.tensors import read_pickle
from anomalib_msacl.errors import first_line

logger = logging.getLogger(__name__)

STATE = "msacl_pretraining"  # entry of a checkpoint


class Checkpoints:
    """One file that is replaced from time to time, and is whole at every moment.

    Args:
        path: The file. The folder above it is there.
        minutes: Time between two checkpoints; 0 writes one after every step.

    Attributes:
        state: Returns what a checkpoint keeps beside what Lightning does.
        resumed: Whether the run goes on from the file.
    """

    def __init__(self, path: Path, minutes: float = 5.0) -> None:
        self.path, self.minutes = path, minutes
        self.state: Callable[[], dict[str, Any]] = dict
        self.resumed = False
        self._last = time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """Return the last checkpoint, the same on all processes; None where there is none that can be read."""
        found = self._read() if self.path.is_file() else None
        steps = distributed.gather_objects(found and found["global_step"])
        self.resumed = found is not None and len(set(steps)) == 1
        if not self.resumed or found is None:
            return None
        logger.info("MSACL: going on after step %d, from %s.", found["global_step"], self.path)
        return found

    def after_step(self, trainer: Trainer) -> None:
        """Write a checkpoint if it is time to; all processes call it after every step."""
        if not distributed.on_main(self._is_due):
            return
        handle, name = -1, self.path.name
        if distributed.is_main():
            try:
                handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".saving-{self.path.stem}-")
            except OSError as error:
                self._warn(error)
        name = distributed.on_main(lambda: name if handle >= 0 else "")
        if name:
            self._write(trainer, Path(name))
        if handle >= 0:
            os.close(handle)
        self._last = time.monotonic()

    def remove(self) -> None:
        """Remove the file: the weights are saved."""
        self.path.unlink(missing_ok=True)

    def _is_due(self) -> bool:
        return time.monotonic() - self._last >= 60 * self.minutes

    def _write(self, trainer: Trainer, temporary: Path) -> None:
        """Write to another file, then replace the last one; a failure is told and does not end the training."""
        try:
            trainer.save_checkpoint(temporary, weights_only=False)  # else Lightning says so each time
        except (OSError, RuntimeError) as error:  # torch raises the latter where a disk is full
            self._warn(error)
            temporary.unlink(missing_ok=True)
            trainer.strategy.barrier()  # where the others wait: only the first process writes, and so fails
            return
        if not distributed.is_main():
            return
        try:
            sync(temporary)
            temporary.replace(self.path)
            sync(self.path.parent)
        except OSError as error:
            self._warn(error)
            temporary.unlink(missing_ok=True)

    def _warn(self, error: Exception) -> None:
        logger.warning(
            "MSACL: no checkpoint could be written to %s (%s); the training goes on without.",
            *(self.path, first_line(error)),
        )

    def _read(self) -> dict[str, Any] | None:
        try:
            found = read_pickle(self.path)
        except Exception as error:  # a file that is cut off or damaged makes torch raise a dozen unrelated types
            logger.warning(
                "MSACL: the checkpoint %s cannot be read (%s); the pre-training begins anew.",
                *(self.path, first_line(error)),
            )
            return None
        whole = isinstance(found.get("global_step"), int) and isinstance(found.get("state_dict"), dict)
        if not whole or not isinstance(found.get(STATE), dict):
            logger.warning("MSACL: %s is no checkpoint of a pre-training; it begins anew.", self.path)
            return None
        return found


def tell_stopped(stopped: SystemExit, step: int, checkpoints: Checkpoints | None) -> None:
    """Say what is left of a training that a signal has stopped, and let the program end with a status that is not 0.

    Args:
        stopped: On its way out.
        step: Steps that were made.
        checkpoints: Of the training; None if it had none.
    """
    stopped.code = stopped.code or 128 + signal.SIGTERM
    left = checkpoints is not None and checkpoints.path.is_file()
    logger.warning(
        "MSACL: stopped after step %d; %s",
        step,
        f"the same command goes on from {checkpoints.path}." if left and checkpoints else "there is no checkpoint.",
    )
