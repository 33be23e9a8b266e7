"""One image as it was read from a file, before any rule has turned its intensities into [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Kind = Literal["raster", "dicom", "nifti"]


@dataclass(frozen=True)
class RawImage:
    """Pixels of a file, and what the file says about them.

    Attributes:
        values: Grey: shape ``(H, W)``, in the unit of the file (Hounsfield units, stored values). Colour: shape
            ``(H, W, 3)``, in [0, 1].
        kind: Kind of file.
        range: Lowest and highest value that the file's type can hold, in the unit of ``values``; None where that says
            nothing, as for floating point numbers.
        show: Computes ``shown``; None where a file does not say what is displayed.
        window: Names the window or table that ``shown`` follows; empty where the DICOM file has none.
        inverse: Low values are bright (MONOCHROME1, MinIsWhite).
        padding: True where there is no image, shape ``(H, W)``; None if the file names no such value.
        unusable: The window that the DICOM file names though it means nothing, in words; empty where there is none.
    """

    values: Array
    kind: Kind
    range: tuple[float, float] | None = None
    show: Callable[[], Array] | None = field(default=None, repr=False)
    window: str = ""
    inverse: bool = False
    padding: Array | None = None
    unusable: str = ""

    @cached_property
    def shown(self) -> Array | None:
        """What the DICOM file asks to be displayed, in [0, 1], shape ``(H, W)``; None for other files.

        Raises:
            UnreadableError: If its window or table cannot be applied.
        """
        return self.show() if self.show else None

    @property
    def colour(self) -> bool:
        """Whether there are three channels."""
        return self.values.ndim == 3

    @property
    def levels(self) -> Array:
        """Grey values, inverted where low ones are bright, so that images of both sorts compare."""
        if not self.inverse:
            return self.values
        low, high = self.range or (float(self.values.min()), float(self.values.max()))
        inverted: Array = np.float32(low + high) - self.values
        return inverted
