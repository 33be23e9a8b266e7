"""The scores of ``test`` and ``predict`` as a table; anomalib itself writes pictures only."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch import Callback, LightningModule, Trainer

from anomalib_msacl.compat import decided
from anomalib_msacl.errors import InputError
from anomalib_msacl.paths import with_home

logger = logging.getLogger(__name__)

COLUMNS = ("file", "frame", "score", "label", "truth")
_NAMES = {True: "abnormal", False: "normal"}


class ScoresCsv(Callback):
    """Writes a row for each image that is tested or predicted: file, frame, score, label, truth.

    ``file`` is the file that was read. ``frame`` counts the slices of a volume or the frames of a file from 0, and is
    empty where the datamodule does not tell. ``score`` is anomalib's: in [0, 1] with the threshold at .5 where there
    were validation images, else raw. ``label`` and ``truth`` are normal or abnormal; ``label`` is empty for models
    without a threshold, ``truth`` for images without a label.

    Args:
        file: The file to write, replaced if it is there; ``scores.csv`` in the folder of the results if None. Every
            process of several writes one of its own, ``scores-1.csv`` and so on.

    Raises:
        InputError: When the run begins, if the file cannot be written.
    """

    def __init__(self, file: str | Path | None = None) -> None:
        self.file = with_home(file)
        self._open: TextIO | None = None
        self._last: tuple[Any, LightningModule] | None = None
        self._written = 0

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the table."""
        del pl_module
        self._begin(trainer)

    def on_test_batch_start(self, *_: Any) -> None:
        """Write the rows of the batch before this one."""
        self._write()

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Remember a batch; the post-processor, a callback too, may come to it after this one."""
        del trainer
        self._last = outputs, pl_module

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the table."""
        del trainer, pl_module
        self._write()
        if self._open is not None:
            logger.info("Scores of %d images are in %s", self._written, self._open.name)
            self._open.close()
            self._open = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the table where the run ends early."""
        del exception
        self.on_test_end(trainer, pl_module)

    on_predict_start = on_test_start
    on_predict_batch_start = on_test_batch_start  # type: ignore[assignment]  # it takes what it gets
    on_predict_batch_end = on_test_batch_end  # type: ignore[assignment]
    on_predict_end = on_test_end

    def _write(self) -> None:
        """Write the rows of the batch that is remembered."""
        if self._last is None or self._open is None:
            return
        found = list(rows(decided(*self._last)))
        csv.writer(self._open).writerows(found)
        self._open.flush()  # a run that is stopped keeps what it has
        self._written += len(found)
        self._last = None

    def _begin(self, trainer: Trainer) -> None:
        """Open the file and write its first line."""
        path = Path(self.file) if self.file is not None else Path(trainer.default_root_dir) / "scores.csv"
        if trainer.global_rank:
            path = path.with_stem(f"{path.stem}-{trainer.global_rank}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open = path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        except OSError as error:
            raise InputError(f"ScoresCsv cannot write {path} ({error.strerror}): set file to another path") from error
        self._written = 0
        csv.writer(self._open).writerow(COLUMNS)


def rows(batch: Any) -> Iterator[tuple[str, int | str, float | str, str, str]]:
    """Yield the rows of a batch.

    Args:
        batch: An ``ImageBatch`` of N images after the model and the post-processor.
    """
    number = len(batch.image)
    frames = getattr(batch, "frames", None) or [""] * number
    paths = batch.image_path or [""] * number
    for index in range(number):
        score = "" if batch.pred_score is None else batch.pred_score[index].item()
        said = ("" if each is None else _NAMES[bool(each[index])] for each in (batch.pred_label, batch.gt_label))
        yield (str(paths[index]), frames[index], score, *said)
