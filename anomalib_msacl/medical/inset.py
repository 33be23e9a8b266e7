"""The box in endoscopic images that shows where the instrument lies: a shortcut for a detector."""

from __future__ import annotations

import numpy as np

from anomalib_msacl.medical.image import Array

_CORNER = 0.5  # of either side: the box lies in the lower left corner
_MARGIN = 0.06  # by which green or blue must exceed red; tissue is red
_SMALLEST, _FILLED = 0.01, 0.5  # part of the image that a box covers at least, and part of it that has its colour
_NEIGHBOURS = np.ones((3, 3), dtype=np.bool_)  # diagonal ones too


def without_inset(pixels: Array) -> Array:
    """Black out the green or blue box in the lower left corner, if there is one.

    Args:
        pixels: Values in [0, 1], shape ``(3, H, W)``.

    Returns:
        The same with the box at 0; a copy where there is one.
    """
    from scipy import ndimage  # noqa: PLC0415  # slow to import

    height, width = pixels.shape[-2:]
    top, right = int(height * (1 - _CORNER)), int(width * _CORNER)
    corner = pixels[:, top:, :right]
    cold = corner[1:].max(axis=0) > corner[0] + _MARGIN
    regions, number = ndimage.label(cold, _NEIGHBOURS)
    if number == 0:
        return pixels
    areas = np.bincount(regions.ravel())[1:]
    largest = int(areas.argmax())
    rows, columns = ndimage.find_objects(regions)[largest]
    area, box = int(areas[largest]), (rows.stop - rows.start) * (columns.stop - columns.start)
    if area < _SMALLEST * height * width or area < _FILLED * box:
        return pixels
    hidden = pixels.copy()
    hidden[:, top:, :right][:, rows, columns] = 0
    return hidden
