"""What a fitted detector says of test images, kept small."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from anomalib.data import AnomalibDataModule
from anomalib.engine import Engine
from anomalib.models.components import AnomalibModule
from lightning.pytorch import Callback, LightningModule, Trainer
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from anomalib_msacl.compat import decided, undecided, with_callback
from anomalib_msacl.data.samples import names_patients, patients_of
from anomalib_msacl.metrics import Evidence

_SIDE = 128  # pixels of the maps that are kept: enough to look at, and small enough to keep them all
_BITS = 15  # 16 bits hold values up to 2 ** 16; the largest of a batch comes to lie between 2 ** 14 and 2 ** 15
_FARTHEST = 120  # powers of two that float32 can be multiplied by


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
        patients: Whose image each is; empty where the datamodule names nobody.
        shift: The maps are multiplied by this power of two, since 16 bits hold no values of all scales.
        pixel_auroc: AUROC of the pixels of the maps; None until :meth:`without_maps` takes it, and without lesions in
            masks.
    """

    paths: Sequence[str]
    score: Tensor
    label: Tensor | None
    called: Tensor | None
    maps: Tensor | None
    masks: Tensor | None
    threshold: float | None
    frames: Sequence[int] = ()
    patients: Sequence[str] = ()
    shift: int = 0
    pixel_auroc: float | None = None

    @property
    def groups(self) -> list[Hashable]:
        """The patient of each image, for intervals, or its file; an image without either stands for itself."""
        return list(self.patients) or [path or row for row, path in enumerate(self.paths)]

    def shifted(self, shift: int) -> Outcome:
        """Return the same with maps that are multiplied by another power of two."""
        maps = None if self.maps is None else self.maps * 2.0 ** (shift - self.shift)
        return replace(self, maps=maps, shift=shift)

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

    def without_maps(self) -> Outcome:
        """Return the outcome with the AUROC of its pixels in place of maps and masks, the bulk of it."""
        known = self.maps is not None and self.masks is not None and bool(self.masks.any())
        return replace(self, maps=None, masks=None, pixel_auroc=_pixel_auroc(self) if known else None)


class _Parts(Callback):
    """Keeps what an outcome needs of each batch that is predicted, and lets the batch go with its images."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self._last: tuple[Any, LightningModule] | None = None

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Remember a batch; the post-processor, a callback too, may come to it after this one."""
        del trainer
        self._last = outputs, pl_module

    def on_predict_batch_start(self, *_: Any) -> None:
        """Make the batch before this one small."""
        if self._last is not None:
            self.outcomes.append(outcome_of(decided(*self._last)))
            self._last = None

    on_predict_end = on_predict_batch_start  # type: ignore[assignment]  # it takes what it gets


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
    parts = _Parts()
    with with_callback(engine, parts):
        engine.predict(model=model, datamodule=datamodule, ckpt_path=checkpoint, return_predictions=False)
    if not parts.outcomes:
        return None
    known = model.post_processor and "pred_label" not in undecided(model)
    threshold = getattr(model.post_processor, "normalized_image_threshold", None) if known else None
    found = joined(parts.outcomes, None if threshold is None else float(threshold))
    return replace(found, patients=_patients(datamodule, found.paths))


def outcome_of(batch: Any) -> Outcome:
    """Return the outcome that a batch of predictions makes.

    Args:
        batch: Of anomalib, with scores.
    """

    def small(field: str, prepare: Callable[[Tensor], Tensor]) -> Tensor | None:
        found = getattr(batch, field)
        return None if found is None else prepare(found.detach().as_subclass(Tensor).cpu())

    maps = small("anomaly_map", lambda found: _small(found, "bilinear"))
    shift = 0 if maps is None else _shift(maps)
    return Outcome(
        [str(path) for path in (batch.image_path or [""] * len(batch.pred_score))],
        small("pred_score", lambda found: found.flatten().float()),  # type: ignore[arg-type]
        small("gt_label", lambda found: found.flatten().long()),
        small("pred_label", lambda found: found.flatten().long()),
        None if maps is None else (maps * 2.0**shift).half(),
        small("gt_mask", lambda found: _small(found, "area") > 0),
        None,
        list(getattr(batch, "frames", ())),
        shift=shift,
    )


def joined(parts: Sequence[Outcome], threshold: float | None = None) -> Outcome:
    """Return one outcome of several; what one of them lacks, it lacks too.

    Args:
        parts: At least one.
        threshold: Score above which an image is called abnormal; maps with one keep their values.
    """
    shift = min(part.shift for part in parts) if threshold is None else 0
    parts = [part.shifted(shift) for part in parts]

    def all_of(field: str) -> Tensor | None:
        found = [getattr(part, field) for part in parts]
        return None if any(each is None for each in found) else torch.cat(found)

    return Outcome(
        paths=[path for part in parts for path in part.paths],
        score=all_of("score"),  # type: ignore[arg-type]
        label=all_of("label"),
        called=all_of("called"),
        maps=all_of("maps"),
        masks=all_of("masks"),
        threshold=threshold,
        frames=[frame for part in parts for frame in part.frames],
        shift=shift,
    )


def _patients(datamodule: AnomalibDataModule, paths: Sequence[str]) -> Sequence[str]:
    """Return the patients of the test images that were scored; none where the datamodule names none."""
    samples = datamodule.test_data.samples
    if not names_patients(samples) or [str(path) for path in samples["image_path"]] != list(paths):
        return ()
    return patients_of(samples).tolist()


def _pixel_auroc(outcome: Outcome) -> float:
    """Return the AUROC of pixels; of each value that float16 has, its number counts, for sorting all takes long."""
    maps = np.asarray(outcome.maps, np.float16).ravel()
    bits, inside = maps.view(np.uint16), np.asarray(outcome.masks).ravel()
    counts = np.concatenate([np.bincount(bits[inside == lesion], minlength=2**16) for lesion in (False, True)])
    values = np.tile(np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32), 2)
    seen = counts > 0
    return float(roc_auc_score(np.repeat([0, 1], 2**16)[seen], values[seen], sample_weight=counts[seen]))


def _shift(maps: Tensor) -> int:
    """Return the power of two by which maps are multiplied before they are kept in 16 bits."""
    highest = float(maps.abs().nan_to_num(0, 0).amax())
    return max(-_FARTHEST, min(_FARTHEST, _BITS - math.frexp(highest)[1])) if highest else _FARTHEST


def _small(maps: Tensor, mode: str) -> Tensor:
    """Return maps of shape ``(N, h, w)``, none of whose sides is above the limit."""
    maps = maps.float().reshape(len(maps), 1, *maps.shape[-2:])
    scale = _SIDE / max(maps.shape[-2:])
    if scale < 1:
        size = [max(1, round(side * scale)) for side in maps.shape[-2:]]
        maps = F.interpolate(maps, size, mode=mode)
    return maps[:, 0]
