"""Figures that medicine reports, with bootstrap confidence intervals: a metric, and an ``Evaluator`` that logs it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from typing import Any, cast

import torch
from anomalib.data import ImageBatch
from anomalib.metrics import AUPRO, AnomalibMetric, Evaluator
from lightning.pytorch import LightningModule, Trainer
from sklearn.metrics import auc, roc_curve
from torch import Tensor
from torch.utils.data import SequentialSampler
from torch.utils.data.distributed import DistributedSampler
from torchmetrics import Metric
from torchmetrics.functional.classification import (
    binary_accuracy,
    binary_recall,
    binary_specificity,
)
from torchmetrics.utilities.data import dim_zero_cat

from anomalib_msacl.compat import decided
from anomalib_msacl.data.splits import patients_of
from anomalib_msacl.errors import InputError, name_some

logger = logging.getLogger(__name__)

_SPECIFICITY = 0.95
_CURVE = 100  # points of the curve behind the interval of AUPRO
_ENDS = ("low", "high")
FIGURES = (
    *(f"image_{name}" for name in ("AUROC", "SensitivityAt95Specificity", "Sensitivity", "Specificity", "Accuracy")),
    *(f"pixel_{name}" for name in ("IoU", "Dice", "AUPRO")),
)
# What the metric keeps of a batch, by the name of its state; all but the first two may be missing.
_STATES = {"score": "pred_score", "label": "gt_label", "called": "pred_label"}
_STATES |= {"map": "anomaly_map", "mask": "gt_mask", "found": "pred_mask"}
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
    label = evidence.label.long()
    ill, well = bool(label.any()), not bool(label.all())
    found: dict[str, Tensor | float] = dict.fromkeys(("image_AUROC", "image_SensitivityAt95Specificity"), float("nan"))
    if ill and well and not evidence.score.isnan().any():
        # scikit-learn takes scores of any scale; torchmetrics squashes those outside [0, 1] by a sigmoid.
        truth, score = label.numpy(), evidence.score.nan_to_num().numpy()
        false, true, _ = roc_curve(truth, score, drop_intermediate=False)
        found["image_AUROC"] = float(auc(false, true))  # what roc_auc_score would take from a curve of its own
        found["image_SensitivityAt95Specificity"] = float(true[1 - false >= _SPECIFICITY].max())
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
    rows = torch.tensor([row for indices in members.values() for row in indices])
    sizes = torch.tensor([len(indices) for indices in members.values()])
    starts, generator = sizes.cumsum(0) - sizes, torch.Generator().manual_seed(seed)
    drawn: dict[str, list[float]] = {}
    for _ in range(resamples):
        chosen = torch.randint(len(sizes), (len(sizes),), generator=generator)
        number = sizes[chosen]
        first = (starts[chosen] + number - number.cumsum(0)).repeat_interleave(number)
        for name, value in figures(evidence.select(rows[first + torch.arange(len(first))])).items():
            drawn.setdefault(name, []).append(value)
    tail = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    bounds = {name: torch.tensor(values, dtype=torch.float64).nanquantile(tail) for name, values in drawn.items()}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}


class MedicalMetrics(AnomalibMetric, Metric):
    """AUROC, sensitivity, specificity, accuracy, IoU, Dice and AUPRO, with confidence intervals.

    Sensitivity, specificity, accuracy, IoU and Dice are those at the threshold that the validation set chose;
    ``SensitivityAt95Specificity`` is at the threshold that just gives this specificity on the images themselves. Each
    figure comes with ``_low`` and ``_high``, the bounds of its 95 % bootstrap interval over patients, or over images
    where no patients are known. Figures that are not defined, for want of a class, of masks or of a threshold, are
    left out.

    One metric gives them all, because they share the anomaly maps, the bulk of its state. anomalib's ``Evaluator`` logs
    a single number a metric, so it is :class:`MedicalEvaluator` that logs these.

    Args:
        resamples: Resamples of the bootstrap; 0 leaves the intervals out.
        seed: Seed of the bootstrap.
        prefix: Put before the metric's own name, as in anomalib; the figures have names of their own.
        **kwargs: As in torchmetrics, for example ``compute_on_cpu``.

    Raises:
        InputError: If ``resamples`` is below 0.

    Example:
        >>> metric = MedicalMetrics(resamples=0)
        >>> image, label = torch.zeros(4, 3, 8, 8), torch.tensor([0, 0, 1, 1])
        >>> metric.update(ImageBatch(image=image, gt_label=label, pred_score=torch.tensor([7.0, 30.0, 20.0, 40.0])))
        >>> float(metric.compute()["image_AUROC"])
        0.75
    """

    default_fields = ("pred_score", "gt_label")
    full_state_update = False
    is_differentiable = False

    def __init__(self, resamples: int = 1000, seed: int = 0, prefix: str = "", **kwargs: Any) -> None:
        super().__init__(prefix=prefix, strict=False, **kwargs)
        if resamples < 0:
            raise InputError(f"MedicalMetrics: resamples is {resamples}: set it to 0 or above")
        self.resamples = resamples
        self.seed = seed
        for name in (*_STATES, "group"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, batch: ImageBatch, groups: Sequence[Any] | None = None) -> None:  # type: ignore[override]
        """Keep what the figures need of a batch; a batch without scores or labels is passed over.

        Args:
            batch: Of N images that the post-processor has been at.
            groups: Group, for example the patient, of each image. None takes the images' paths, and where there are
                none, every image is a group of its own.
        """
        if batch.pred_score is None or batch.gt_label is None:
            return
        values = {name: getattr(batch, field) for name, field in _STATES.items()}
        number = len(batch.pred_score)
        groups = batch.image_path if groups is None else groups
        # Names cannot be gathered from several devices; digests of them can. Zero stands for no name.
        digests = [0] * number if groups is None else [_digest(group) for group in groups]
        values["group"] = torch.tensor(digests, device=batch.pred_score.device)
        for name, value in values.items():
            if value is not None:
                plain = value.detach().as_subclass(Tensor)
                getattr(self, name).append(plain.byte() if plain.dtype == torch.bool else plain)

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]  # more than one number
        """Return the figures, each in [0, 1], and their bounds, by name; nothing without scores and labels."""
        states = {name: getattr(self, name) for name in (*_STATES, "group")}
        maps = {name: dim_zero_cat(state).cpu() for name, state in states.items() if len(state)}
        if not maps:
            logger.warning("MedicalMetrics: the images have no scores or no labels, so there are no figures.")
            return {}
        device = states["score"][0].device
        digests = maps.pop("group").tolist()
        number = len(digests)
        evidence = gather({name: value for name, value in maps.items() if len(value) == number})
        found = image_figures(evidence) | pixel_figures(evidence)
        if "pixel_AUPRO" in found:
            found["pixel_AUPRO"] = _aupro(maps["map"], maps["mask"])
        found = {name: value for name, value in found.items() if not math.isnan(value)}
        if self.resamples:
            groups = [digest or -index for index, digest in enumerate(digests, 1)]
            image = Evidence(evidence.score, evidence.label, evidence.called)  # without the bulk of the curves
            bounds = intervals(image, image_figures, groups, self.resamples, self.seed)
            bounds |= intervals(evidence, pixel_figures, groups, self.resamples, self.seed)
            ends = [(name, end, bound) for name in found for end, bound in zip(_ENDS, bounds[name], strict=True)]
            found |= {f"{name}_{end}": bound for name, end, bound in ends}
        return {name: torch.tensor(value, device=device) for name, value in found.items()}


class MedicalEvaluator(Evaluator):
    """anomalib's ``Evaluator`` with :class:`MedicalMetrics` of the test set, by patient where the datamodule knows any.

    Args:
        resamples: Resamples of the bootstrap; 0 leaves the intervals out.
        seed: Seed of the bootstrap.
        val_metrics: As in anomalib; for example a metric that a checkpoint is chosen by.
        test_metrics: As in anomalib, beside the figures above, under names of their own.
        compute_on_cpu: As in anomalib.

    Raises:
        InputError: If ``resamples`` is below 0, or one of ``test_metrics`` has the name of a figure.
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
        twice = [name for name in (str(cast("Any", metric).name) for metric in self.test_metrics) if name in FIGURES]
        if twice:  # Lightning refuses to log a name twice, when the test ends
            raise InputError(
                f"MedicalEvaluator: test_metrics has {name_some(twice)}, which the evaluator gives itself: leave the "
                "metric out, or give it another prefix"
            )
        # Not among the test metrics: `Evaluator` hands those to Lightning, which refuses what is not one number.
        self.medical = MedicalMetrics(resamples, seed)
        self._patients: list[list[str]] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep the state where anomalib keeps that of its metrics."""
        super().setup(trainer, pl_module, stage)
        self.medical.compute_on_cpu = self.compute_on_cpu and trainer.num_devices == 1

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the images of an earlier test."""
        del pl_module
        self.medical.reset()
        self._patients = patients_by_batch(trainer)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Update all metrics; the post-processor has been at the batch."""
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self.medical.update(decided(batch, pl_module), self._patients[batch_idx] if self._patients else None)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute and log all figures."""
        super().on_test_epoch_end(trainer, pl_module)
        figures = self.medical.compute()  # of the images of all devices
        cast("Any", self).log_dict(figures, sync_dist=True)  # given by Lightning while a hook runs
        self.medical.reset()


def patients_by_batch(trainer: Trainer) -> list[list[str]] | None:
    """Return the patients of the test images that this process will see, batch by batch.

    Batches do not carry patients, so the loader is asked which rows of the sample table it will read.

    Args:
        trainer: That is about to test.

    Returns:
        None where the datamodule knows no patients, or where the order is drawn anew each time.
    """
    samples = getattr(getattr(getattr(trainer, "datamodule", None), "test_data", None), "samples", None)
    loader: Any = trainer.test_dataloaders
    if samples is None or "patient" not in samples or not hasattr(loader, "batch_sampler"):
        return None
    sampler = loader.sampler
    ordered = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, DistributedSampler) and not sampler.shuffle
    )
    if not ordered or len(loader.dataset) != len(samples):
        return None
    patients = patients_of(samples).tolist()
    return [[patients[row] for row in rows] for rows in loader.batch_sampler]


def _digest(group: Any) -> int:
    """Return a number that stands for a name, the same in every process, and not 0."""
    return int.from_bytes(blake2b(str(group).encode(), digest_size=7).digest(), "big") + 1


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
        values["pixels"] = _pixels(_plane(maps["found"]).bool().flatten(1), mask.flatten(1))
    if "map" in maps:
        values |= _curves(_plane(maps["map"]).float(), mask)
    return Evidence(**cast("dict[str, Tensor]", values))


def _pixels(found: Tensor, mask: Tensor) -> Tensor:
    """Return torchmetrics' ``binary_stat_scores`` of N images, shape ``(N, 5)``, but with a byte a pixel."""
    both, called, ill = (each.sum(dim=1) for each in (found & mask, found, mask))
    return torch.stack([both, called - both, mask.shape[1] - called - ill + both, ill - both, ill], dim=1)


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
    regions = _plane(metric.perform_cca()).int().flatten(1)
    outside = maps.flatten(1)[regions == 0].numpy()
    outside.sort()  # in place, where sorting by torch would keep the places, too
    highest = torch.from_numpy(outside).flip(0)[: max(1, int(min(1.0, 2 * _LIMIT) * len(outside)))]
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
    # The curve ends where all is called abnormal; the thresholds of all images need not reach the limit in a resample.
    rate, found = (torch.cat([each.new_zeros(1), each, each.new_ones(1)]) for each in (rate, found))
    end = int((rate <= _LIMIT).sum())
    if end < len(rate):  # the last stretch, cut off at the limit
        part = (_LIMIT - rate[end - 1]) / (rate[end] - rate[end - 1])
        edge = found[end - 1] + part * (found[end] - found[end - 1])
        rate, found = torch.cat([rate[:end], rate.new_tensor([_LIMIT])]), torch.cat([found[:end], edge[None]])
    return float(torch.trapezoid(found, rate) / _LIMIT)
