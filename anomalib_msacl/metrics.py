"""Figures that medicine reports, with bootstrap confidence intervals, as an ``Evaluator`` of anomalib."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from anomalib.data import ImageBatch
from anomalib.metrics import AUPRO, AnomalibMetric, Evaluator
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_accuracy,
    binary_auroc,
    binary_recall,
    binary_sensitivity_at_specificity,
    binary_specificity,
    binary_stat_scores,
)

from anomalib_msacl.data.splits import patients_of
from anomalib_msacl.errors import InputError

logger = logging.getLogger(__name__)

_SPECIFICITY = 0.95
_CURVE = 100  # points of the curve behind the interval of AUPRO
_LIMIT = 0.3  # false positive rate up to which AUPRO is taken, as in anomalib


@dataclass(frozen=True)
class Evidence:
    """What is known of N test images.

    Attributes:
        score: Anomaly scores, any scale, shape ``(N,)``.
        label: 1 for abnormal images, else 0, shape ``(N,)``.
        called: 1 where the threshold calls an image abnormal, shape ``(N,)``; None without a threshold.
        pixels: True positive, false positive, true negative, false negative pixels and the sum of the first and the
            last, shape ``(N, 5)``; None without masks or a threshold.
        overlap: Sum over the lesions of an image of the part that is found, at each of K thresholds, shape ``(N, K)``;
            None without masks.
        regions: Number of lesions, shape ``(N,)``; None without masks.
        false: Normal pixels that are called abnormal, at each of the thresholds, shape ``(N, K)``; None without masks.
        normal: Number of normal pixels, shape ``(N,)``; None without masks.
    """

    score: Tensor
    label: Tensor
    called: Tensor | None = None
    pixels: Tensor | None = None
    overlap: Tensor | None = None
    regions: Tensor | None = None
    false: Tensor | None = None
    normal: Tensor | None = None

    def select(self, rows: Tensor) -> Evidence:
        """Return the evidence of some images; rows may repeat."""
        values = ((item.name, getattr(self, item.name)) for item in fields(self))
        chosen: dict[str, Any] = {name: None if value is None else value[rows] for name, value in values}
        return Evidence(**chosen)


def image_figures(evidence: Evidence) -> dict[str, float]:
    """Return the figures that need no masks, each in [0, 1]; NaN where a class is missing.

    Args:
        evidence: Of the images.
    """
    score, label = ranks(evidence.score), evidence.label.long()
    ill, well = bool(label.any()), not bool(label.all())
    found: dict[str, Tensor | float] = dict.fromkeys(("image_AUROC", "image_SensitivityAt95Specificity"), float("nan"))
    if ill and well:
        found["image_AUROC"] = binary_auroc(score, label, validate_args=False)
        at = binary_sensitivity_at_specificity(score, label, _SPECIFICITY, validate_args=False)
        found["image_SensitivityAt95Specificity"] = at[0]
    if evidence.called is not None:
        called, nan = evidence.called.long(), float("nan")
        found["image_Sensitivity"] = binary_recall(called, label, validate_args=False) if ill else nan
        found["image_Specificity"] = binary_specificity(called, label, validate_args=False) if well else nan
        found["image_Accuracy"] = binary_accuracy(called, label, validate_args=False)
    return {name: float(value) for name, value in found.items()}


def pixel_figures(evidence: Evidence) -> dict[str, float]:
    """Return the figures that need masks, each in [0, 1]; NaN where there is no lesion.

    Args:
        evidence: Of the images.
    """
    nan = float("nan")
    found = {}
    if evidence.pixels is not None:  # all pixels of all images together, as torchmetrics counts them
        true, extra, _, missed, lesion = evidence.pixels.double().sum(dim=0).tolist()
        found["pixel_IoU"] = true / (true + extra + missed) if lesion else nan
        found["pixel_Dice"] = 2 * true / (2 * true + extra + missed) if lesion else nan
    if evidence.overlap is not None and evidence.regions is not None:
        found["pixel_AUPRO"] = _area(evidence) if evidence.regions.sum() else nan
    return found


def intervals(
    evidence: Evidence,
    figures: Callable[[Evidence], dict[str, float]],
    groups: Sequence[Any],
    resamples: int,
    seed: int,
    confidence: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Return percentile bootstrap intervals of figures: whole groups are drawn with replacement.

    Args:
        evidence: Of N images.
        figures: What to compute of a resample.
        groups: Group, for example the patient, of each image.
        resamples: Number of resamples, at least 1.
        seed: Seed of the draws.
        confidence: Part of the resamples that lies within.

    Returns:
        Lower and upper bound by the figure's name; resamples in which a figure is not defined are left out.
    """
    members: dict[Any, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    rows = [torch.tensor(indices) for indices in members.values()]
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, list[float]] = {}
    for _ in range(resamples):
        chosen = torch.randint(len(rows), (len(rows),), generator=generator).tolist()
        for name, value in figures(evidence.select(torch.cat([rows[index] for index in chosen]))).items():
            drawn.setdefault(name, []).append(value)
    tail = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    bounds = {name: torch.tensor(values, dtype=torch.float64).nanquantile(tail) for name, values in drawn.items()}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}


class MedicalEvaluator(Evaluator):
    """AUROC, sensitivity, specificity, accuracy, IoU, Dice and AUPRO of the test set, with confidence intervals.

    Sensitivity, specificity, accuracy, IoU and Dice are those at the threshold that the validation set chose;
    ``SensitivityAt95Specificity`` is at the threshold that just gives this specificity on the test set itself. Each
    figure is logged with ``_low`` and ``_high``, the bounds of its 95 % bootstrap interval over patients, or over
    images where the datamodule knows no patients.

    Args:
        resamples: Resamples of the bootstrap; 0 leaves the intervals out.
        seed: Seed of the bootstrap.
        val_metrics: As in anomalib; for example a metric that a checkpoint is chosen by.
        test_metrics: As in anomalib, beside the figures above.
        compute_on_cpu: As in anomalib.

    Raises:
        InputError: If ``resamples`` is below 0; when the test begins, if it runs on more than one device.
    """

    def __init__(
        self,
        resamples: int = 1000,
        seed: int = 0,
        val_metrics: AnomalibMetric | Sequence[AnomalibMetric] | None = None,
        test_metrics: AnomalibMetric | Sequence[AnomalibMetric] | None = None,
        compute_on_cpu: bool = True,
    ) -> None:
        super().__init__(val_metrics, test_metrics, compute_on_cpu)
        if resamples < 0:
            raise InputError(f"MedicalEvaluator: resamples is {resamples}: set it to 0 or above")
        self.resamples = resamples
        self.seed = seed
        self._batches: list[dict[str, Tensor]] = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the images of an earlier test."""
        del pl_module
        if trainer.world_size > 1:
            raise InputError("MedicalEvaluator needs all test images in one process: set trainer.devices to 1")
        self._batches = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what the figures need of a batch; the post-processor has been at it."""
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        names = {"pred_score": "score", "gt_label": "label", "pred_label": "called"}
        names |= {"anomaly_map": "map", "gt_mask": "mask", "pred_mask": "found"}
        values = {new: getattr(batch, old, None) for old, new in names.items()}
        self._batches.append(
            {name: value.detach().as_subclass(Tensor).cpu() for name, value in values.items() if value is not None}
        )

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute and log all figures."""
        super().on_test_epoch_end(trainer, pl_module)
        common = set.intersection(*(set(batch) for batch in self._batches)) if self._batches else set()
        if not {"score", "label"} <= common:
            logger.warning("MedicalEvaluator: the test images have no scores or no labels, so there are no figures.")
            return
        maps = {name: torch.cat([batch[name] for batch in self._batches]) for name in sorted(common)}
        self._batches = []
        evidence = gather(maps)
        found = image_figures(evidence) | pixel_figures(evidence)
        if "pixel_AUPRO" in found:
            found["pixel_AUPRO"] = _aupro(maps["map"], maps["mask"])
        bounds: dict[str, tuple[float, float]] = {}
        if self.resamples:
            groups = self._groups(trainer, len(evidence.label))
            image = Evidence(evidence.score, evidence.label, evidence.called)  # without the bulk of the curves
            bounds = intervals(image, image_figures, groups, self.resamples, self.seed)
            bounds |= intervals(evidence, pixel_figures, groups, self.resamples, self.seed)
        for name, value in found.items():
            if value == value:  # noqa: PLR0124  # not NaN: there is something to tell
                self._tell(name, value)
                for end, bound in zip(("low", "high"), bounds.get(name, ()), strict=False):
                    self._tell(f"{name}_{end}", bound)

    def _tell(self, name: str, value: float) -> None:
        """Log a figure."""
        cast("Any", self).log(name, value)  # given by Lightning while a hook runs

    @staticmethod
    def _groups(trainer: Trainer, number: int) -> list[Any]:
        """Return the patient of each test image, or its index where the datamodule does not know."""
        samples = getattr(getattr(getattr(trainer, "datamodule", None), "test_data", None), "samples", None)
        if samples is None or "patient" not in samples or len(samples) != number:
            return list(range(number))
        return patients_of(samples).tolist()


def gather(maps: dict[str, Tensor]) -> Evidence:
    """Return the evidence of images.

    Args:
        maps: ``score``, ``label`` and, where there are any, ``called``, each of shape ``(N,)``; ``map``, ``mask`` and
            ``found``, each of shape ``(N, H, W)`` or ``(N, 1, H, W)``.
    """
    called = maps["called"].long().flatten() if "called" in maps else None
    evidence = Evidence(maps["score"].flatten().float(), maps["label"].long().flatten(), called)
    if "mask" not in maps or not maps["mask"].any():
        return evidence
    mask = _plane(maps["mask"]) > 0
    values: dict[str, Tensor | None] = {item.name: getattr(evidence, item.name) for item in fields(evidence)}
    if "found" in maps:
        found = _plane(maps["found"]).long().flatten(1)
        values["pixels"] = binary_stat_scores(found, mask.long().flatten(1), multidim_average="samplewise")
    if "map" in maps:
        values |= _curves(_plane(maps["map"]).float(), mask)
    return Evidence(**cast("dict[str, Tensor]", values))


def ranks(score: Tensor) -> Tensor:
    """Return scores as ranks in [0, 1], equal ones alike: torchmetrics squashes others by a sigmoid."""
    values, index = cast("tuple[Tensor, Tensor]", torch.unique(score, return_inverse=True))
    return index.float() / max(1, len(values) - 1)


def _plane(maps: Tensor) -> Tensor:
    """Return maps of shape ``(N, H, W)``."""
    return maps[:, 0] if maps.ndim == 4 else maps


def _aupro(maps: Tensor, masks: Tensor) -> float:
    """Return anomalib's AUPRO of maps and masks."""
    metric = AUPRO(fields=["anomaly_map", "gt_mask"], fpr_limit=_LIMIT)
    metric.update(ImageBatch(image=torch.zeros(len(maps), 3, 1, 1), anomaly_map=_plane(maps), gt_mask=_plane(masks)))
    return float(metric.compute())


def _curves(maps: Tensor, mask: Tensor) -> dict[str, Tensor | None]:
    """Return, for each image, how much of its lesions and how many of its normal pixels lie above thresholds.

    The thresholds are spread over the false positive rates that AUPRO looks at, and somewhat beyond, because the rate
    of a resample differs.
    """
    metric = AUPRO(fields=["anomaly_map", "gt_mask"])
    metric.target = [mask]
    regions = _plane(metric.perform_cca()).long().flatten(1)
    outside = maps.flatten(1)[regions == 0]
    highest = outside.topk(max(1, int(min(1.0, 2 * _LIMIT) * len(outside)))).values
    spread = torch.linspace(0, 1, _CURVE, dtype=torch.float64) ** 2  # dense where the curve is steep
    thresholds = highest[(spread * (len(highest) - 1)).long()].flip(0)
    overlap, false, sizes = torch.zeros(len(maps), _CURVE), torch.zeros(len(maps), _CURVE), []
    for index, labels in enumerate(regions):
        reached = torch.searchsorted(thresholds, maps[index].flatten(), right=True)  # thresholds that a pixel reaches
        cells = labels * (_CURVE + 1) + reached
        table = torch.bincount(cells, minlength=int(labels.max() + 1) * (_CURVE + 1)).reshape(-1, _CURVE + 1)
        above = table.flip(1).cumsum(1).flip(1)[:, 1:].flip(1)  # pixels that reach a threshold, from the highest
        size = table.sum(dim=1)
        sizes.append(size)
        false[index] = above[0]
        overlap[index] = (above[1:] / size[1:, None].clamp_min(1)).sum(dim=0)
    number = torch.tensor([int((size[1:] > 0).sum()) for size in sizes])
    return {"overlap": overlap, "regions": number, "false": false, "normal": torch.stack([size[0] for size in sizes])}


def _area(evidence: Evidence) -> float:
    """Return the area under the per-region overlap up to the limit of the false positive rate, divided by the limit."""
    overlap, false = cast("Tensor", evidence.overlap), cast("Tensor", evidence.false)
    rate = false.sum(dim=0) / cast("Tensor", evidence.normal).sum()
    found = overlap.sum(dim=0) / cast("Tensor", evidence.regions).sum()
    rate, found = torch.cat([rate.new_zeros(1), rate]), torch.cat([found.new_zeros(1), found])
    inside = rate <= _LIMIT
    end = int(inside.sum())
    if end < len(rate):  # the last stretch, cut off at the limit
        part = (_LIMIT - rate[end - 1]) / (rate[end] - rate[end - 1])
        edge = found[end - 1] + part * (found[end] - found[end - 1])
        rate, found = torch.cat([rate[:end], rate.new_tensor([_LIMIT])]), torch.cat([found[:end], edge[None]])
    return float(torch.trapezoid(found, rate) / _LIMIT)
