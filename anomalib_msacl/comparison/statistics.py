"""Differences between two ways to do the same thing, with intervals over seeds and over images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student_t

from anomalib_msacl.comparison.resampling import draw, strata

Floats = NDArray[np.float64]


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the mean of some values and half of its interval by Student's t.

    Args:
        values: One for each seed.
        confidence: Of the interval.

    Returns:
        Mean and half width; the latter is not a number for a single value.

    Example:
        >>> mean, half = interval([0.1, 0.2, 0.3])
        >>> round(mean, 3), round(half, 3)
        (0.2, 0.248)
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    quantile = float(student_t.ppf((1 + confidence) / 2, len(values) - 1))
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation for a table, without leading zeros; the mean alone of a single value.

    >>> spread([0.7, 0.9]), spread([0.5]), spread([])
    ('.800 ± .141', '.500', '-')
    """
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.3f}".removeprefix("0")
    return f"{mean} ± {statistics.stdev(values):.3f}".replace("± 0", "± ") if len(values) > 1 else mean


def resampled_difference(
    labels: ArrayLike,
    first: Sequence[ArrayLike],
    second: Sequence[ArrayLike],
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    groups: Sequence[Hashable] | None = None,
) -> tuple[float, float]:
    """Return the interval over images of a mean difference of AUROC, by a paired bootstrap.

    Normal and abnormal images are drawn with replacement, each among themselves, and slices of a file with their file.
    A draw serves all seeds and both sides, so that what images have in common does not widen the interval.

    Args:
        labels: 1 for abnormal images, else 0, shape ``(N,)``; both occur.
        first: Scores of the N images, one array for each seed.
        second: Scores of the same images, one array for each seed.
        resamples: Number of draws.
        seed: Of the draws.
        confidence: Part of the draws that lies within.
        groups: What each image belongs to, such as its file; None for an image a group.

    Returns:
        Bounds of the difference ``first - second``; draws without normal images, which happen only where all of them
        are slices of abnormal files, are left out.
    """
    truth = np.asarray(labels)
    parts, random = strata(truth, groups), np.random.default_rng(seed)
    draws = np.stack([np.bincount(draw(parts, random), minlength=len(truth)) for _ in range(resamples)])
    means = [np.mean([_areas(truth, scores, draws) for scores in side], axis=0) for side in (first, second)]
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(means[0] - means[1], [tail, 1 - tail])
    return float(low), float(high)


def _areas(truth: NDArray[np.int64], scores: ArrayLike, draws: NDArray[np.int64]) -> Floats:
    """Return the AUROC of resamples, each the mean over its pairs of an abnormal and a normal image.

    Args:
        truth: 1 for abnormal images, else 0, shape ``(N,)``.
        scores: Of any scale, shape ``(N,)``.
        draws: How often each image is drawn, shape ``(R, N)``.

    Returns:
        Shape ``(R,)``; not a number where a class is not drawn. Time and memory grow with N, not with the pairs.
    """
    _, ranks = np.unique(np.asarray(scores, float), return_inverse=True)
    order = np.argsort(ranks, kind="stable")
    first = np.searchsorted(ranks[order], np.arange(ranks.max() + 1))  # of each run of equal scores
    areas = np.full(len(draws), np.nan)
    for index, times in enumerate(draws):
        normal, abnormal = (np.add.reduceat((times * (truth == label))[order], first) for label in (0, 1))
        pairs = normal.sum() * abnormal.sum()
        below = normal.cumsum() - normal  # an abnormal image wins against these, and half against those of its score
        if pairs:
            areas[index] = (abnormal * (below + normal / 2)).sum() / pairs
    return areas
