"""Slices of NIfTI volumes, through nibabel."""

from __future__ import annotations

import gzip
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from anomalib_msacl.data.files import UnreadableError, oddity
from anomalib_msacl.data.inspection import check_finite
from anomalib_msacl.medical.image import Array, RawImage
from anomalib_msacl.medical.library import medical_library
from anomalib_msacl.medical.slices import Slices

_LARGEST = 2**30  # voxels: 4 GiB as float32
_GZIP = 1100  # gzip packs about 1030 bytes into one at best


def nifti_slices(path: Path, slices: Slices) -> list[int]:
    """Return the indices of the chosen slices of a volume that are not of one value throughout.

    Raises:
        UnreadableError: If the file is no volume of three axes, or holds NaN or infinite values.
        InputError: If nibabel is not installed.
    """
    volume = _volume(path, path.stat().st_mtime_ns)
    check_finite(volume)
    chosen = slices.of(volume.shape[slices.axis])
    if not chosen:
        raise UnreadableError(f"has {volume.shape[slices.axis]} slices on axis {slices.axis}, none of which is chosen")
    return [index for index in chosen if np.ptp(volume.take(index, slices.axis)) > 0]


def read_nifti(path: Path, index: int, slices: Slices) -> RawImage:
    """Read a slice of a volume, upright where the file's orientation is right.

    Args:
        path: The file.
        index: Index of the slice.
        slices: Its axis.

    Returns:
        A grey image.

    Raises:
        UnreadableError: As :func:`nifti_slices`.
        InputError: If nibabel is not installed.
    """
    volume = _volume(path, path.stat().st_mtime_ns)
    return RawImage(np.ascontiguousarray(np.rot90(volume.take(index, slices.axis))), "nifti")


def nifti_shape(path: Path) -> tuple[int, ...]:
    """Return how many voxels a volume has along each axis, as its header names them.

    Raises:
        UnreadableError: If the file is no volume of three axes, or too short for them.
        InputError: If nibabel is not installed.
    """
    return tuple(int(length) for length in _opened(path).shape)


@lru_cache(maxsize=4)  # slices of a volume are mostly read one after the other
def _volume(path: Path, modified: int) -> Array:
    """Return a volume in RAS orientation; ``modified`` keeps a changed file from being taken for the old one."""
    del modified
    image = _opened(path)
    volume: Array = np.asarray(medical_library("nibabel", path).as_closest_canonical(image).dataobj, dtype=np.float32)
    return volume


def _opened(path: Path) -> Any:
    """Open a volume and check its header; its voxels are not read yet."""
    nibabel = medical_library("nibabel", path)
    if odd := oddity(path):
        raise UnreadableError(f"is {odd}")
    try:
        image = nibabel.load(path)
    except (nibabel.filebasedimages.ImageFileError, gzip.BadGzipFile) as error:
        raise UnreadableError("is no NIfTI file") from error
    if len(image.shape) != 3:
        raise UnreadableError(f"has {len(image.shape)} axes instead of 3: save each volume as a file of its own")
    _check_size(path, image)
    return image


def _check_size(path: Path, image: Any) -> None:
    """Raise :class:`UnreadableError` where the header asks for more than the file can hold, or memory should."""
    shape = " x ".join(str(length) for length in image.shape)
    voxels = math.prod(int(length) for length in image.shape)
    expected = voxels * int(image.get_data_dtype().itemsize)
    length = path.stat().st_size * (_GZIP if path.name.lower().endswith(".gz") else 1)
    if min(image.shape) < 1 or expected > length:
        raise UnreadableError(f"is shorter than its header says, which asks for {shape} voxels")
    if voxels > _LARGEST:
        raise UnreadableError(f"has {shape} voxels, more than the {_LARGEST} that are read: crop or resample it")
