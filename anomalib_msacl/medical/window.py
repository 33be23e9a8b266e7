"""Windows of DICOM files, by their names, and what they make of values: PS3.3, C.11.2.1.2 and C.11.2.1.3."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from anomalib_msacl.medical.image import Array

ALL_OF_8_BITS = "all of 8 bits"
"""Name of what shows DICOM files of 8 bits that have no window."""

_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")

# Earlier checkpoints name all windows of a file, as in "[40, 600] / [400, 1500] LINEAR"; the first is what is shown.
_NAME = re.compile(r"\[?([^][, ]+)[^/]* / \[?([^][, ]+).* (LINEAR|LINEAR_EXACT|SIGMOID)")


@dataclass(frozen=True)
class Window:
    """Which values are black, and which are white.

    Attributes:
        centre: Value in the middle, in the unit of the values after the modality LUT.
        width: Number of values from black to white.
        function: ``LINEAR``, ``LINEAR_EXACT`` or ``SIGMOID``.
    """

    centre: float
    width: float
    function: str = "LINEAR"

    @classmethod
    def named(cls, name: str) -> Window | None:
        """Return the window of a name, None where that is the name of something else."""
        found = _NAME.fullmatch(name)
        try:
            return cls(float(found[1]), float(found[2]), found[3]) if found else None
        except ValueError:
            return None

    @property
    def usable(self) -> bool:
        """Whether the standard says what it shows."""
        if self.function not in _FUNCTIONS or not math.isfinite(self.centre) or not math.isfinite(self.width):
            return False
        return self.width >= 1 if self.function == "LINEAR" else self.width > 0

    def __str__(self) -> str:
        """Return its name: the same for the same window, however a file writes its numbers."""
        return f"{self.centre:.15g} / {self.width:.15g} {self.function}"  # a file has 16 characters for each

    def shown(self, values: Array) -> Array:
        """Return what the window makes of values, in [0, 1], float32."""
        wide = values.astype(np.float64)
        if self.function == "SIGMOID":
            shown = 1 / (1 + np.exp(-4 * (wide - self.centre) / self.width))
        else:
            shift, shrink = (0.5, 1) if self.function == "LINEAR" else (0, 0)
            middle, width = self.centre - shift, self.width - shrink
            # a LINEAR window of width 1 is a step
            shown = ((wide - middle) / width + 0.5).clip(0, 1) if width else (wide > middle).astype(np.float64)
        result: Array = shown.astype(np.float32)
        return result
