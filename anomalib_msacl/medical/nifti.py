"""Slices of NIfTI volumes, through nibabel."""

from __future__ import annotations

import gzip
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anomalib_msacl.data.files import UnreadableError, oddity
from anomalib_msacl.data.inspection import check_finite
from anomalib_msacl.medical.image import Array, RawImage
from anomalib_msacl.medical.library import medical_library
from anomalib_msacl.medical.remembering import cached_by_thread
from anomalib_msacl.medical.slices import Slices

_LARGEST = 2**30  # voxels: 4 GiB as float32
_GZIP = 1100  # gzip packs about 1030 bytes into one at best
_APART = 0.25  # of a voxel: headers are rounded, as to 32 bits, and the nearest voxel is still the right one


def nifti_slices(path: Path, slices: Slices) -> list[int]:
    """Return the indices of the chosen slices of a volume that are not of one value throughout.

    Raises:
        UnreadableError: If the file is no volume of three axes, or holds NaN or infinite values.
        InputError: If nibabel is not installed.
    """
    volume, axis = _volume(path, path.stat().st_mtime_ns), slices.axis
    volume.check()
    chosen = slices.of(volume.length(axis))
    if not chosen:
        raise UnreadableError(f"has {volume.length(axis)} slices on axis {axis}, none of which is chosen")
    return [index for index in chosen if np.ptp(volume.slice_of(axis, index)) > 0]


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
    return RawImage(np.ascontiguousarray(np.rot90(volume.slice_of(slices.axis, index))), "nifti")


def nifti_shape(path: Path) -> tuple[int, ...]:
    """Return how many voxels a volume has along each axis, as its header names them.

    Raises:
        UnreadableError: If the file is no volume of three axes, or too short for them.
        InputError: If nibabel is not installed.
    """
    return tuple(int(length) for length in _opened(path).shape)


def check_same_grid(mask: Path, image: Path) -> None:
    """Check by the headers that the voxels of a mask are those of its image, one for one.

    Raises:
        UnreadableError: If they are not; in words about the mask.
        InputError: If nibabel is not installed.
    """
    (shape, affine), (expected, place) = _grid(mask), _grid(image)
    if shape != expected:
        raise UnreadableError(
            f"has {_words(shape)} voxels and its image {image.name} {_words(expected)}: give the mask the voxels of "
            "its image"
        )
    corners = np.array([(*corner, 1) for corner in itertools.product(*[(0, length - 1) for length in shape])])
    gaps = np.linalg.norm((corners @ (affine - place).T)[:, :3], axis=1)
    if gaps.max() > _APART * np.linalg.norm(place[:3, :3], axis=0).min():
        raise UnreadableError(
            f"lies up to {gaps.max():.3g} mm from its image {image.name} by the affines of their headers: save the "
            "mask with the header of its image"
        )


def nifti_length(path: Path, axis: int) -> int:
    """Return how many slices a volume has along an axis after it was turned to RAS, as its header names them.

    Raises:
        UnreadableError: As :func:`nifti_shape`.
        InputError: If nibabel is not installed.
    """
    return _grid(path)[0][axis]


def _grid(path: Path) -> tuple[tuple[int, ...], Array]:
    """Return shape and affine of a volume in RAS orientation, by its header."""
    image, orientations = _opened(path), medical_library("nibabel.orientations", path)
    turn = _turn(path, image)
    shape = tuple(int(image.shape[axis]) for axis in np.argsort(turn[:, 0]))
    affine: Array = image.affine @ orientations.inv_ornt_aff(turn, image.shape)
    return shape, affine


class _Volume:
    """A volume as it is stored, whose slices are turned to RAS orientation and scaled one at a time.

    The voxels of an uncompressed file stay on disk until a slice asks for them.

    Args:
        path: The file.

    Raises:
        UnreadableError: As :func:`nifti_slices`.
    """

    def __init__(self, path: Path) -> None:
        image = _opened(path)
        self._turn = _turn(path, image)
        self._stored = image.dataobj.get_unscaled()
        self._scaling = float(image.dataobj.slope), float(image.dataobj.inter)
        self._orient = medical_library("nibabel.orientations", path).apply_orientation
        self._scale = medical_library("nibabel.volumeutils", path).apply_read_scaling

    def _axis(self, axis: int) -> int:
        """Return which stored axis is an axis in RAS orientation."""
        return int(np.flatnonzero(self._turn[:, 0] == axis)[0])

    def length(self, axis: int) -> int:
        """Return how many slices there are on an axis in RAS orientation."""
        return int(self._stored.shape[self._axis(axis)])

    def check(self) -> None:
        """Raise :class:`UnreadableError` where a voxel is NaN or infinite."""
        if self._stored.dtype.kind == "f":
            check_finite(self._stored)

    def slice_of(self, axis: int, index: int) -> Array:
        """Return a slice of shape ``(A, B)``, float32, for the two other axes in RAS orientation."""
        stored_axis = self._axis(axis)
        if self._turn[stored_axis, 1] < 0:
            index = self.length(axis) - 1 - index
        # An index, and not `take`, which would copy all of a volume in Fortran order.
        slab = np.asarray(self._stored[(slice(None),) * stored_axis + (slice(index, index + 1),)])
        turned = self._orient(self._scale(slab, *self._scaling), self._turn)
        return np.array(turned[(slice(None),) * axis + (0,)], dtype=np.float32)


@cached_by_thread(maxsize=2)  # slices of a volume, and of its mask, are mostly read one after the other
def _volume(path: Path, modified: int) -> _Volume:
    """Return a volume; ``modified`` keeps a changed file from being taken for the old one."""
    del modified
    return _Volume(path)


def _turn(path: Path, image: Any) -> Array:
    """Return what turns a volume to RAS orientation: of each stored axis the new place and the direction."""
    turn: Array = medical_library("nibabel.orientations", path).io_orientation(image.affine)
    if np.isnan(turn).any():
        raise UnreadableError("has an affine that leaves out an axis, so which way is up is not known: mend its header")
    return turn


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
    if image.get_data_dtype().kind not in "iuf":
        raise UnreadableError("holds colours or complex numbers: save one number for each voxel")
    return image


def _check_size(path: Path, image: Any) -> None:
    """Raise :class:`UnreadableError` where the header asks for more than the file can hold, or memory should."""
    shape = _words(image.shape)
    voxels = math.prod(int(length) for length in image.shape)
    expected = voxels * int(image.get_data_dtype().itemsize)
    length = path.stat().st_size * (_GZIP if path.name.lower().endswith(".gz") else 1)
    if min(image.shape) < 1 or expected > length:
        raise UnreadableError(f"is shorter than its header says, which asks for {shape} voxels")
    if voxels > _LARGEST:
        raise UnreadableError(f"has {shape} voxels, more than the {_LARGEST} that are read: crop or resample it")


def _words(shape: Sequence[int]) -> str:
    """Return the lengths of a volume's axes in words."""
    return " x ".join(str(length) for length in shape)
