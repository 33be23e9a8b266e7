"""What a bootstrap of test images draws: whole files, normal and abnormal ones apart."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Rows = NDArray[np.int64]


def strata(labels: ArrayLike, groups: Sequence[Hashable] | None = None) -> tuple[list[Rows], list[Rows]]:
    """Return the rows of each group: of those that are normal throughout, and of those with an abnormal image.

    Args:
        labels: 1 for abnormal images, else 0, shape ``(N,)``.
        groups: What each image belongs to, such as the file that it is a slice of, because slices of one file are no
            independent images; None for an image a group.

    Example:
        >>> [[rows.tolist() for rows in part] for part in strata([0, 0, 0, 1], ["a", "b", "c", "c"])]
        [[[0], [1]], [[2, 3]]]
    """
    truth = np.asarray(labels)
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(range(len(truth)) if groups is None else groups):
        members.setdefault(group, []).append(row)
    found: tuple[list[Rows], list[Rows]] = ([], [])
    for rows in members.values():
        found[int(truth[rows].any())].append(np.asarray(rows))
    return found


def draw(parts: Sequence[Sequence[Rows]], random: np.random.Generator) -> Rows:
    """Return the rows of as many groups of each stratum as it has, drawn with replacement.

    Args:
        parts: What :func:`strata` returns.
        random: Draws.
    """
    drawn = [part[index] for part in parts if part for index in random.choice(len(part), len(part))]
    return np.concatenate(drawn)
