"""A receiver operating characteristic with its interval over images."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import auc, roc_auc_score, roc_curve

from anomalib_msacl.comparison.resampling import draw, strata

Floats = NDArray[np.float64]
_POINTS = 101


@dataclass(frozen=True)
class RocBand:
    """A curve with pointwise bounds, on 101 false positive rates.

    Attributes:
        false: False positive rates, from 0 to 1.
        true: True positive rates.
        low: Lower bounds of the true positive rates.
        high: Upper bounds of the true positive rates.
        area: Area under the curve of all images.
        bounds: Interval of the area.
    """

    false: Floats
    true: Floats
    low: Floats
    high: Floats
    area: float
    bounds: tuple[float, float]


def roc_band(
    scores: ArrayLike,
    labels: ArrayLike,
    resamples: int = 500,
    seed: int = 0,
    confidence: float = 0.95,
    groups: Sequence[Hashable] | None = None,
) -> RocBand:
    """Return the curve and its percentile bootstrap over images, normal and abnormal ones drawn apart.

    Slices of a file are drawn with their file.

    Args:
        scores: Anomaly scores of any scale, shape ``(N,)``.
        labels: 1 for abnormal images, else 0, shape ``(N,)``; both occur.
        resamples: Number of draws.
        seed: Of the draws.
        confidence: Part of the draws that lies within.
        groups: What each image belongs to, such as its file; None for an image a group.

    Example:
        >>> band = roc_band([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], resamples=20)
        >>> band.area
        0.75
    """
    scores, truth = np.asarray(scores, float), np.asarray(labels)
    parts, random = strata(truth, groups), np.random.default_rng(seed)
    grid = np.linspace(0, 1, _POINTS)
    curves, areas = [], []
    for _ in range(resamples):
        rows = draw(parts, random)
        if truth[rows].all():  # normal images may all be slices of abnormal files
            continue
        curve, area = _curve(scores[rows], truth[rows], grid)
        curves.append(curve)
        areas.append(area)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(curves, tails, axis=0)
    bounds = np.quantile(areas, tails)
    area = float(roc_auc_score(truth, scores))
    return RocBand(grid, _curve(scores, truth, grid)[0], low, high, area, (float(bounds[0]), float(bounds[1])))


def _curve(scores: Floats, truth: NDArray[np.int64], grid: Floats) -> tuple[Floats, float]:
    """Return the true positive rates on a grid of false positive rates, and the area."""
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    # Of several points with one false positive rate, the highest counts at that rate.
    last = np.append(np.flatnonzero(np.diff(false)), len(false) - 1)
    return np.interp(grid, false[last], true[last]), float(auc(false, true))
