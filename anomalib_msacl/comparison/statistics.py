"""Differences between two ways to do the same thing, with intervals over seeds and over images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student_t

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
) -> tuple[float, float]:
    """Return the interval over images of a mean difference of AUROC, by a paired bootstrap.

    Normal and abnormal images are drawn with replacement, each among themselves. A draw serves all seeds and both
    sides, so that what images have in common does not widen the interval.

    Args:
        labels: 1 for abnormal images, else 0, shape ``(N,)``; both occur.
        first: Scores of the N images, one array for each seed.
        second: Scores of the same images, one array for each seed.
        resamples: Number of draws.
        seed: Of the draws.
        confidence: Part of the draws that lies within.

    Returns:
        Bounds of the difference ``first - second``.
    """
    truth = np.asarray(labels)
    draws = _draws([int((truth == label).sum()) for label in (0, 1)], resamples, seed)
    means = [np.mean([resampled_areas(truth, scores, draws) for scores in side], axis=0) for side in (first, second)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(means[0] - means[1], [tail, 1 - tail])
    return float(low), float(high)


def resampled_areas(labels: ArrayLike, scores: ArrayLike, draws: Sequence[NDArray[np.int64]]) -> Floats:
    """Return the AUROC of resamples, each the mean over its pairs of an abnormal and a normal image.

    Args:
        labels: 1 for abnormal images, else 0, shape ``(N,)``.
        scores: Of any scale, shape ``(N,)``.
        draws: How often each normal and each abnormal image is drawn, shapes ``(R, N_0)`` and ``(R, N_1)``.

    Returns:
        Shape ``(R,)``.
    """
    truth, values = np.asarray(labels), np.asarray(scores, float)
    normal, abnormal = values[truth == 0], values[truth == 1]
    won = np.sign(abnormal[:, None] - normal) / 2 + 0.5  # 1 where the abnormal image scores higher, .5 for a tie
    pairs = draws[0].shape[1] * draws[1].shape[1]
    areas: Floats = ((draws[1] @ won) * draws[0]).sum(axis=1) / pairs
    return areas


def _draws(sizes: Sequence[int], resamples: int, seed: int) -> list[NDArray[np.int64]]:
    """Return how often each image of two classes is drawn, shape ``(R, size)`` for each of the classes."""
    random = np.random.default_rng(seed)
    found: list[list[NDArray[np.int64]]] = [[], []]
    for _ in range(resamples):
        for drawn, size in zip(found, sizes, strict=True):
            drawn.append(np.bincount(random.choice(size, size), minlength=size))
    return [np.stack(drawn) for drawn in found]
