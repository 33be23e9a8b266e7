"""Ranks with a promise (split conformal prediction), and a test of whether scores have shifted.

A detector that was fitted on other images gives scores to n held-out normal images. A new normal image is as likely to
come first, second, ... or last among these n + 1 (they are exchangeable), so that it exceeds the k-th smallest score
with a probability of at most 1 - k / (n + 1): Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World;
Angelopoulos and Bates, arXiv 2107.07511.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy.stats import binom, ks_2samp

from anomalib_msacl.errors import InputError

_FINEST = 1_000_000  # largest denominator of a rate


def conformal_rank(n: int, alpha: float, confidence: float | None = None) -> int:
    """Return which of n ascending scores of normal images is the threshold; images above it are called abnormal.

    Without ``confidence`` the rank is ``ceil((n + 1)(1 - alpha))``: over many draws of the n images the mean rate of
    false positives is at most ``alpha``, and that of a single draw may be above. With it the rank is the smallest k
    with ``P(Binomial(n, 1 - alpha) < k) >= confidence``: in that part of the draws the rate is at most ``alpha``.
    Both hold for exchangeable scores of any distribution; ties only make false positives fewer.

    Args:
        n: Number of scores, one for each image, or for each patient.
        alpha: Largest rate of false positives, between 0 and 1, both excluded.
        confidence: Part of the draws in which that rate holds, between 0 and 1, both excluded; None for the mean.

    Returns:
        A rank from 1 to n.

    Raises:
        InputError: If a rate is out of range, or n is too small for any threshold to keep the promise.

    Example:
        >>> conformal_rank(19, 0.05), conformal_rank(40, 0.05), conformal_rank(100, 0.05, confidence=0.95)
        (19, 39, 99)
    """
    needed = images_needed(alpha, confidence)
    if n < needed:
        sure = "" if confidence is None else f" with a confidence of {confidence:g}"
        raise InputError(
            f"{n} scores of normal images or patients cannot give a threshold of at most {alpha:.4g} false "
            f"positives{sure}: {needed} are needed, so hold out more of them, or ask for less"
        )
    if confidence is None:
        return math.ceil((n + 1) * (1 - _exact(alpha)))
    return int(binom.ppf(confidence, n, 1 - float(_exact(alpha)))) + 1


def images_needed(alpha: float, confidence: float | None = None) -> int:
    """Return the smallest number of normal images, or patients, that can give a threshold with a promise.

    Args:
        alpha: Largest rate of false positives, between 0 and 1, both excluded.
        confidence: As in :func:`conformal_rank`.

    Raises:
        InputError: If a rate is out of range.

    Example:
        >>> images_needed(0.05), images_needed(0.05, confidence=0.95)
        (19, 59)
    """
    for name, value in (("alpha", alpha), ("confidence", confidence)):
        if value is not None and not 0 < value < 1:
            raise InputError(f"{name} is {value}: set it between 0 and 1, both excluded")
    rate = _exact(alpha)
    if not 0 < rate < 1:
        raise InputError(f"alpha is {alpha}: set it to {1 / _FINEST} or above, and no closer to 1")
    if confidence is None:
        return math.ceil((1 - rate) / rate)
    return max(1, math.ceil(math.log(1 - confidence) / math.log(1 - rate) - 1e-9))


def _exact(rate: float) -> Fraction:
    """Return the decimal number that is meant: 1 - 0.9 is a little below a tenth, and a rank must not see that."""
    return Fraction(rate).limit_denominator(_FINEST)


@dataclass(frozen=True)
class Shift:
    """How far incoming scores of normal images are from those that a threshold comes from.

    Attributes:
        statistic: Largest distance of the two distribution functions, in [0, 1] (Kolmogorov and Smirnov).
        p_value: Probability of such a distance or a larger one where nothing has changed.
        higher: Whether the incoming scores are mostly above, so that there are more false positives than promised.
        calibration: Number of scores that the threshold comes from.
        incoming: Number of incoming scores.
    """

    statistic: float
    p_value: float
    higher: bool
    calibration: int
    incoming: int


def shift(calibration: Sequence[float], incoming: Sequence[float]) -> Shift:
    """Compare incoming scores of normal images with those that a threshold comes from.

    The two-sample test of Kolmogorov and Smirnov, which sees any difference of the distributions.

    Args:
        calibration: Raw scores of held-out normal images, any scale.
        incoming: Raw scores of other normal images, on the same scale.

    Returns:
        The distance, how likely it is where nothing has changed, and its direction.

    Raises:
        InputError: If one of the two is empty, or holds a score that is no number.

    Example:
        >>> shift([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]).higher
        True
    """
    first, second = (np.asarray(scores, dtype=np.float64) for scores in (calibration, incoming))
    if not len(first) or not len(second) or np.isnan(first).any() or np.isnan(second).any():
        raise InputError(
            f"scores cannot be compared, {len(first)} with {len(second)}: give at least one number on either side, "
            "and no NaN"
        )
    found = ks_2samp(first, second)
    # The sign is 1 where the distribution function of the calibration lies above, that is, its scores below.
    return Shift(float(found.statistic), float(found.pvalue), bool(found.statistic_sign > 0), len(first), len(second))
