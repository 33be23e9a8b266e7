"""One picture as it was read from a file, before any rule has turned its intensities into [0, 1]."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from anomalib_msacl.errors import InputError

Array = NDArray[Any]
Kind = Literal["picture", "dicom", "nifti"]
_MESSAGE = 200  # characters


class UnreadableError(Exception):
    """Why a file cannot be read, in words that follow the file's name; turned into a list of all such files."""


@dataclass(frozen=True)
class Picture:
    """Pixels of a file, and what the file says about them.

    Attributes:
        values: Grey: shape ``(H, W)``, in the unit of the file (Hounsfield units, stored values). Colour: shape
            ``(H, W, 3)``, in [0, 1].
        kind: Kind of file.
        range: Lowest and highest value that the file's type can hold, in the unit of ``values``; None where that says
            nothing, as for floating point numbers.
        shown: What the DICOM file asks to be displayed, in [0, 1], shape ``(H, W)``; None for other files.
        window: Names the window or table that ``shown`` follows; empty where the DICOM file has none.
        inverse: Low values are bright (MONOCHROME1, MinIsWhite).
        padding: True where there is no image, shape ``(H, W)``; None if the file names no such value.
    """

    values: Array
    kind: Kind
    range: tuple[float, float] | None = None
    shown: Array | None = None
    window: str = ""
    inverse: bool = False
    padding: Array | None = None

    @property
    def colour(self) -> bool:
        """Whether there are three channels."""
        return self.values.ndim == 3

    @property
    def levels(self) -> Array:
        """Grey values, turned round where low ones are bright, so that pictures of both sorts compare."""
        if not self.inverse:
            return self.values
        low, high = self.range or (float(self.values.min()), float(self.values.max()))
        turned: Array = np.float32(low + high) - self.values
        return turned


@dataclass(frozen=True)
class Slices:
    """Which slices of a NIfTI volume, or frames of a multi-frame DICOM file, are images.

    Args:
        axis: Axis of a volume that is cut across, after it was turned to RAS orientation: 0 sagittal, 1 coronal,
            2 axial. Files with frames have no choice.
        start: First slice, as in Python's slices; negative counts from the end.
        stop: Slice to stop before; None is the end.
        step: Take every so manieth slice, at least 1.

    Raises:
        InputError: If axis or step do not exist.
    """

    axis: int = 2
    start: int | None = None
    stop: int | None = None
    step: int = 1

    def __post_init__(self) -> None:
        """Check the values."""
        if self.axis not in {0, 1, 2} or self.step < 1:
            raise InputError(
                f"slices has axis {self.axis} and step {self.step}: set axis to 0, 1 or 2 and step to 1 or more"
            )

    def of(self, number: int) -> list[int]:
        """Return the indices among ``number`` slices."""
        return list(range(*slice(self.start, self.stop, self.step).indices(number)))


def medical_library(name: str, path: Path) -> Any:
    """Import a library of the extra ``medical``.

    Raises:
        InputError: If it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f'reading {path} needs {name.split(".", maxsplit=1)[0]}: run pip install "anomalib-msacl[medical]"'
        ) from error


def brief(error: Exception) -> str:
    r"""Return an exception's message in one short line, or its name where it has none.

    >>> brief(ValueError("too\n  long")), brief(EOFError())
    ('too long', 'EOFError')
    """
    message = " ".join(str(error).split())
    return (f"{message[:_MESSAGE]} ..." if len(message) > _MESSAGE else message) or type(error).__name__
