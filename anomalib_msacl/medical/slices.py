"""Which slices of a volume, or frames of a file, are images."""

from __future__ import annotations

from dataclasses import dataclass

from anomalib_msacl.errors import InputError


@dataclass(frozen=True)
class Slices:
    """Which slices of a NIfTI volume, or frames of a multi-frame DICOM file, are images.

    Args:
        axis: Axis of a volume that is cut across, after it was turned to RAS orientation: 0 sagittal, 1 coronal,
            2 axial. It does not matter for files with frames.
        start: First slice, as in Python's slices; negative counts from the end.
        stop: Slice to stop before; None is the end.
        step: Take every n-th slice, at least 1.

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
        """Return the indices of the chosen slices among ``number``."""
        return list(range(*slice(self.start, self.stop, self.step).indices(number)))
