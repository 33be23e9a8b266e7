"""What a fitted detector says of test images, kept small."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from anomalib.data import AnomalibDataModule
from anomalib.engine import Engine
from anomalib.models.components import AnomalibModule
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from anomalib_msacl.compat import decided, undecided
from anomalib_msacl.metrics import Evidence

_SIDE = 128  # pixels of the maps that are kept: enough to look at, and small enough to keep them all


@dataclass(frozen=True)
class Outcome:
    """Scores and maps of N test images.

    Attributes:
        paths: File of each image; one file can hold several.
        score: Anomaly scores, in [0, 1] where a validation set gave their range, shape ``(N,)``.
        label: 1 for abnormal images, else 0, shape ``(N,)``; None without labels.
        called: 1 where the threshold calls an image abnormal, shape ``(N,)``; None without a threshold.
        maps: Anomaly maps of at most 128 pixels a side, shape ``(N, h, w)``, float16; None for models without maps.
        masks: True masks of the same size, shape ``(N, h, w)``, bool; None without any.
        threshold: Score above which an image is called abnormal; None without one.
        frames: Index of the slice or frame in the file of each image; empty where the datamodule does not tell.
    """

    paths: Sequence[str]
    score: Tensor
    label: Tensor | None
    called: Tensor | None
    maps: Tensor | None
    masks: Tensor | None
    threshold: float | None
    frames: Sequence[int] = ()

    @property
    def files(self) -> list[Hashable]:
        """The file of each image, for intervals; an image without one stands for itself."""
        return [path or row for row, path in enumerate(self.paths)]

    @property
    def has_both(self) -> bool:
        """Whether there are normal and abnormal images."""
        return self.label is not None and bool(self.label.any()) and not bool(self.label.all())

    def evidence(self) -> Evidence:
        """Return what figures of images are computed from.

        Raises:
            ValueError: Without labels.
        """
        if self.label is None:
            raise ValueError("there are no labels")
        return Evidence(self.score, self.label, self.called)


def predict(
    engine: Engine, model: AnomalibModule, datamodule: AnomalibDataModule, checkpoint: str | None = None
) -> Outcome | None:
    """Let a detector score the test images of a datamodule.

    Args:
        engine: Runs it.
        model: The detector.
        datamodule: Brings the test images.
        checkpoint: File to load the detector from; None takes it as it is.

    Returns:
        The outcome; None where there are no test images.
    """
    batches = engine.predict(model=model, datamodule=datamodule, ckpt_path=checkpoint, return_predictions=True)
    if not batches:
        return None
    known = model.post_processor and "pred_label" not in undecided(model)
    threshold = getattr(model.post_processor, "normalized_image_threshold", None) if known else None
    decisions = [decided(batch, model) for batch in batches]
    return outcome_of(decisions, None if threshold is None else float(threshold))


def outcome_of(batches: Iterable[Any], threshold: float | None = None) -> Outcome:
    """Return the outcome that batches of predictions make.

    Args:
        batches: Of anomalib, with scores.
        threshold: Score above which an image is called abnormal.
    """
    batches = list(batches)
    paths = [str(path) for batch in batches for path in (batch.image_path or [""] * len(batch.pred_score))]
    return Outcome(
        paths,
        _joined(batches, "pred_score", lambda found: found.flatten().float()),  # type: ignore[arg-type]
        _joined(batches, "gt_label", lambda found: found.flatten().long()),
        _joined(batches, "pred_label", lambda found: found.flatten().long()),
        _joined(batches, "anomaly_map", lambda found: _small(found, "bilinear").half()),
        _joined(batches, "gt_mask", lambda found: _small(found, "area") > 0),
        threshold,
        [frame for batch in batches for frame in getattr(batch, "frames", ())],
    )


def _joined(batches: Sequence[Any], field: str, prepare: Any) -> Tensor | None:
    """Return a field of all batches; None where a batch lacks it."""
    found = [getattr(batch, field) for batch in batches]
    if not found or any(each is None for each in found):
        return None
    return torch.cat([prepare(each.detach().as_subclass(Tensor).cpu()) for each in found])


def _small(maps: Tensor, mode: str) -> Tensor:
    """Return maps of shape ``(N, h, w)``, none of whose sides is above the limit."""
    maps = maps.float().reshape(len(maps), 1, *maps.shape[-2:])
    scale = _SIDE / max(maps.shape[-2:])
    if scale < 1:
        size = [max(1, round(side * scale)) for side in maps.shape[-2:]]
        maps = F.interpolate(maps, size, mode=mode)
    return maps[:, 0]
