"""What a pre-training tells the loggers of the run that it belongs to: curves, the choice, a picture of its images."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger, Logger
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import max_pool2d
from torchvision.utils import make_grid

from anomalib_msacl import distributed
from anomalib_msacl.pretraining.questions import Score
from anomalib_msacl.pretraining.synthesis import SyntheticBatch

PREFIX = "msacl/"

_ROWS = 4  # images in a picture
_EDGE = 3  # pixels around a lesion, as the side of a window
_COLOUR = (1.0, 0.85, 0.0)

Picture = NDArray[np.uint8]


class Curves(CSVLogger):
    """Writes the curves of a pre-training to ``metrics.csv``; a run that goes on keeps those of its steps before.

    Lightning deletes the file where it is there.

    Args:
        root: The file lies in ``logs`` below it.
        run: Name of the folder there.
    """

    def __init__(self, root: Path, run: str) -> None:
        super().__init__(root, name="logs", version=run)
        self._former = _rows(Path(self.log_dir) / "metrics.csv")

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Log numbers, the first time after those of the steps before this one."""
        former, self._former = self._former, []
        for before, row in former:
            if step is not None and before < step:
                super().log_metrics(row, before)
        super().log_metrics(metrics, step)


def _rows(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return the steps and numbers of a file of curves; none where it cannot be read."""
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(opened)]
        return [(int(row.pop("step")), row) for row in rows]
    except (OSError, ValueError, KeyError, csv.Error):
        return []


class UnderPrefix(Logger):
    """A logger of another run that gets the curves of a pre-training under ``msacl/``.

    Args:
        logger: Of any kind that Lightning knows; it is not closed here.
    """

    def __init__(self, logger: Logger) -> None:
        super().__init__()
        self.logger = logger

    @property
    def name(self) -> str | None:
        """Name of the experiment."""
        return self.logger.name

    @property
    def version(self) -> int | str | None:
        """Version of the experiment."""
        return self.logger.version

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log numbers under the prefix; the epochs are those of the pre-training, which nobody asks for."""
        self.logger.log_metrics({PREFIX + name: value for name, value in metrics.items() if name != "epoch"}, step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Log nothing: the settings of a run are those of its own model."""

    def save(self) -> None:
        """Let the logger write what it has."""
        self.logger.save()


def show_lesions(loggers: Iterable[Logger], batch: SyntheticBatch, step: int) -> None:
    """Send a picture of some images of a batch, with the outlines of their lesions, to all loggers that take one.

    Args:
        loggers: Those of a trainer.
        batch: One row of the picture is one image in all of its classes.
        step: Steps made so far.
    """
    targets = list(loggers) if distributed.is_main() else []
    if targets:
        picture = picture_of(batch)
        for logger in targets:
            _send_picture(logger, f"{PREFIX}lesions", picture, step)


def picture_of(batch: SyntheticBatch, images: int = _ROWS) -> Picture:
    """Return a picture of the first images of a batch: a row is an image, from the normal one to that of most lesions.

    Args:
        batch: Images of all classes, shape ``(N, 3, H, W)``.
        images: Rows at most.

    Returns:
        Shape ``(height, width, 3)``.
    """
    first = [index for owner in torch.unique(batch.owners).tolist()[:images] for index in _of_owner(batch, owner)]
    shown = batch.images[first].detach().float().cpu().clamp(0, 1)
    masks = (batch.masks[first] > 0).float().cpu()
    edges = (max_pool2d(masks, _EDGE, 1, _EDGE // 2) > masks).expand(-1, 3, -1, -1)
    shown = torch.where(edges, torch.tensor(_COLOUR)[:, None, None], shown)
    columns = int(batch.classes.max()) + 1
    grid: Tensor = make_grid(shown, nrow=columns, padding=2, pad_value=1.0)
    picture: Picture = (grid * 255).round().byte().permute(1, 2, 0).numpy()
    return picture


def _of_owner(batch: SyntheticBatch, owner: int) -> list[int]:
    """Return one image of each class that was made from an original image."""
    rows = (batch.owners == owner).nonzero().flatten().tolist()
    by_class = {int(batch.classes[row]): row for row in reversed(rows)}
    return [by_class[label] for label in sorted(by_class)]


def tell_choice(
    loggers: Iterable[Logger], candidates: Mapping[str, Score], kept: str | None, verdict: str, step: int
) -> None:
    """Send the scores of all candidates, of the one that is kept, and the verdict to all loggers.

    Args:
        loggers: Those of the run that the pre-training belongs to.
        candidates: Score by name.
        kept: Name of the one that is kept; None where nothing was compared.
        verdict: One sentence.
        step: Steps that were made.
    """
    named = {**candidates, **({"kept": candidates[kept]} if kept else {})}
    metrics = {
        f"{PREFIX}choice/{name}/{kind}": getattr(score, kind)
        for name, score in named.items()
        for kind in ("image_auroc", "pixel_auroc")
    }
    for logger in loggers if distributed.is_main() else ():
        if metrics:
            logger.log_metrics(metrics, step)
        _send_text(logger, f"{PREFIX}verdict", verdict, step)


def _send_picture(logger: Logger, name: str, picture: Picture, step: int) -> None:
    """Send a picture to a logger by the method that its kind has; some have none."""
    logger = logger.logger if isinstance(logger, UnderPrefix) else logger
    target: Any = logger
    if isinstance(logger, CSVLogger):
        path = Path(logger.log_dir) / f"{name.removeprefix(PREFIX)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(path, picture)
    elif hasattr(logger, "log_image"):  # Weights & Biases
        target.log_image(name, [picture], step=step)
    elif hasattr(target.experiment, "add_image"):  # TensorBoard
        target.experiment.add_image(name, picture, step, dataformats="HWC")
    elif hasattr(target.experiment, "log_image"):  # MLflow
        target.experiment.log_image(target.run_id, picture, f"{name}.png")


def _send_text(logger: Logger, name: str, text: str, step: int) -> None:
    """Send a sentence to a logger by the method that its kind has; some have none."""
    target: Any = logger
    if isinstance(logger, CSVLogger):
        return
    if hasattr(logger, "log_text"):  # Weights & Biases
        target.log_text(name, columns=["text"], data=[[text]], step=step)
    elif hasattr(target.experiment, "add_text"):  # TensorBoard
        target.experiment.add_text(name, text, step)
    elif hasattr(target.experiment, "log_text"):  # MLflow
        target.experiment.log_text(target.run_id, text, f"{name}.txt")


def _save(path: Path, picture: Picture) -> None:
    from PIL import Image  # noqa: PLC0415

    Image.fromarray(picture).save(path)
