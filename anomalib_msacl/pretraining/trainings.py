"""Several trainings from the same weights, one after the other, whose weights are averaged.

One short training ends wherever its few batches have led it. The average of several was expected to be steadier: pooled
features gain by it, patch detectors do not (docs/experiments.md). Such averages work because all begin at the same
weights: Wortsman et al., "Model soups", arXiv 2203.05482.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from anomalib_msacl.backbone.tensors import StateDict, copy_of

SHORTEST = 30  # steps: a training of fewer would be over before it has learnt anything


def number_of_trainings(wanted: int, total: float) -> int:
    """Return how many trainings the steps of a run are divided into.

    Args:
        wanted: By the recipe.
        total: Steps of the run; infinite if unknown.

    >>> number_of_trainings(3, 120), number_of_trainings(3, 40), number_of_trainings(3, math.inf)
    (3, 1, 1)
    """
    return max(1, min(wanted, int(total // SHORTEST))) if math.isfinite(total) else 1


def bounds(step: int, total: float, number: int) -> tuple[int, float]:
    """Return the first step of the training that a step belongs to, and the first step behind it.

    Args:
        step: From 0.
        total: Steps of the run; infinite if unknown.
        number: Of trainings, as :func:`number_of_trainings` says.

    >>> [bounds(step, 100, 3) for step in (0, 32, 33, 66, 99)]
    [(0, 33), (0, 33), (33, 66), (66, 100), (66, 100)]
    """
    if number == 1:
        return 0, total
    edges = [int(total) * part // number for part in range(number + 1)]
    part = max(part for part in range(number) if edges[part] <= step)
    return edges[part], edges[part + 1]


class Trainings:
    """What the trainings of a run leave, and where each begins.

    Args:
        wanted: Number of trainings by the recipe; fewer are made where they would be very short.
    """

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self._steps = 0  # of all trainings that are over
        self._sum: StateDict = {}  # of their weights, each times its steps
        self._heads: StateDict = {}  # before the first step

    def begin(self, step: int, total: float, backbone: nn.Module, heads: nn.Module, start: StateDict) -> bool:
        """Begin a training if the one before is over: with the weights of before the first step.

        Args:
            step: Steps of the run so far.
            total: Steps of the run; infinite if unknown.
            backbone: Set back to ``start``.
            heads: Set back to what they were at step 0.
            start: Weights of the backbone before the first step, on the CPU.

        Returns:
            Whether weights were set back, so that an optimiser must forget what it knows of them.
        """
        if step == 0:
            self._steps, self._sum = 0, {}  # of an earlier fit of the same model
        number = number_of_trainings(self.wanted, total)
        if number == 1:
            return False
        if step == 0:
            self._heads = copy_of(heads)
        first, _ = bounds(step, total, number)
        if first == self._steps:
            return False
        self._sum = self._with(copy_of(backbone), first - self._steps)
        self._steps = first
        backbone.load_state_dict(start)
        heads.load_state_dict(self._heads)
        return True

    def mean(self, present: StateDict, step: int) -> StateDict:
        """Return the mean of the weights of all trainings, each counted by its steps.

        Args:
            present: Weights of the one under way.
            step: Steps of the run so far.
        """
        if not self._steps:
            return present
        total = self._with(present, step - self._steps)
        return {name: value / step if value.is_floating_point() else value for name, value in total.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return plain data and tensors, so that a run which is stopped can go on."""
        return {"steps": self._steps, "sum": self._sum, "heads": self._heads}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._steps, self._sum, self._heads = state["steps"], state["sum"], state["heads"]

    def _with(self, weights: StateDict, steps: int) -> StateDict:
        """Return the sum with the weights of one more training; numbers that are counts are those of the last."""
        return {
            name: self._sum.get(name, 0) + steps * value if value.is_floating_point() else value
            for name, value in weights.items()
        }
