"""PNG, TIFF, JPEG, JPEG 2000 and NIfTI files."""

from __future__ import annotations

import contextlib
import gzip
import io
import logging
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from anomalib_msacl.data.picture import Array, Picture, Slices, UnreadableError, medical_library
from anomalib_msacl.errors import name_some

logger = logging.getLogger(__name__)

_PNG_DEPTH_AT = 24  # byte of the file that says how many bits a sample has
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262
_RGB = 3


def sample_bits(image: Image.Image, content: bytes) -> int:
    """Return how many bits the samples of a picture have; Pillow's mode alone does not tell 16-bit colour from 8.

    Args:
        image: The picture, opened by Pillow.
        content: Its file.
    """
    if image.format == "PNG":
        return content[_PNG_DEPTH_AT]
    if image.format == "TIFF":
        bits = image.tag_v2.get(_TIFF_BITS, 1)  # type: ignore[attr-defined]
        return int(max(bits) if isinstance(bits, tuple) else bits)
    if image.format == "JPEG2000":
        return int(imagecodecs.jpeg2k_decode(content).dtype.itemsize) * 8
    return 32 if image.mode in {"I", "F"} else 16 if image.mode.startswith("I;16") else 8


def deep_files(paths: Iterable[str]) -> list[str]:
    """Return those of some files that have more than 8 bits; files that Pillow cannot open are left out."""
    found = []
    for path in paths:
        content = Path(path).read_bytes()
        with contextlib.suppress(OSError), Image.open(io.BytesIO(content)) as image:
            found += [path] if sample_bits(image, content) > 8 else []
    return found


def warn_of_lost_bits(paths: Sequence[str]) -> None:
    """Warn of files of more than 8 bits that anomalib itself reads.

    Args:
        paths: The files; nothing is said where there are none.
    """
    if paths:
        logger.warning(
            "%d images have more than 8 bits, of which anomalib's reader keeps 8 (grey values above 255 all become "
            "white): %s; read them by the datamodule anomalib_msacl.data.MedicalFolder.",
            *(len(paths), name_some(paths)),
        )


def read_raster(path: Path) -> Picture:
    """Read a picture of 8 or more bits, grey or colour; a colour file whose channels are equal is grey.

    Args:
        path: The file.

    Returns:
        The picture. With 8 bits it is what anomalib reads.

    Raises:
        UnreadableError: If the file is no picture, or holds several.
    """
    content = path.read_bytes()
    with _opened(content) as image:
        image.load()
        if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
            raise UnreadableError("holds several pages: save each of them as a file of its own")
        if sample_bits(image, content) <= 8:
            return _picture(np.asarray(image.convert("RGB")), 255, inverse=False)
        pixels = _read_deep(image, content)
        inverse = getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == 0
        return _picture(pixels, _highest(pixels), inverse=inverse)


def nifti_slices(path: Path, slices: Slices) -> list[int]:
    """Return the indices of the chosen slices of a volume that are not of one value throughout.

    Raises:
        UnreadableError: If the file is no volume of three axes, or holds NaN or infinite values.
        InputError: If nibabel is not installed.
    """
    volume = _volume(path, path.stat().st_mtime_ns)
    if not np.isfinite(volume).all():
        raise UnreadableError("holds NaN or infinite values")
    chosen = slices.of(volume.shape[slices.axis])
    if not chosen:
        raise UnreadableError(f"has {volume.shape[slices.axis]} slices on axis {slices.axis}, none of which is chosen")
    return [index for index in chosen if np.ptp(volume.take(index, slices.axis)) > 0]


def read_nifti(path: Path, index: int, slices: Slices) -> Picture:
    """Read a slice of a volume, upright where the file's orientation is right.

    Args:
        path: The file.
        index: Index of the slice.
        slices: Its axis.

    Returns:
        A grey picture.

    Raises:
        UnreadableError: As :func:`nifti_slices`.
        InputError: If nibabel is not installed.
    """
    volume = _volume(path, path.stat().st_mtime_ns)
    return Picture(np.ascontiguousarray(np.rot90(volume.take(index, slices.axis))), "nifti")


@lru_cache(maxsize=4)  # slices of a volume are mostly read one after the other
def _volume(path: Path, modified: int) -> Array:
    """Return a volume in RAS orientation; ``modified`` keeps a changed file from being taken for the old one."""
    del modified
    nibabel = medical_library("nibabel", path)
    try:
        image = nibabel.load(path)
    except (nibabel.filebasedimages.ImageFileError, gzip.BadGzipFile) as error:
        raise UnreadableError("is no NIfTI file") from error
    if len(image.shape) != 3:
        raise UnreadableError(f"has {len(image.shape)} axes instead of 3: save each volume as a file of its own")
    volume: Array = np.asarray(nibabel.as_closest_canonical(image).dataobj, dtype=np.float32)
    return volume


def _opened(content: bytes) -> Image.Image:
    """Open a picture without decoding it."""
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError as error:
        raise UnreadableError("is not an image") from error


def _read_deep(image: Image.Image, content: bytes) -> Array:
    """Return the samples of a picture of more than 8 bits, channels last."""
    decoders: dict[str | None, Any] = {
        "PNG": imagecodecs.png_decode,
        "JPEG2000": imagecodecs.jpeg2k_decode,
        "TIFF": lambda data: tifffile.imread(io.BytesIO(data)),
    }
    pixels: Array = decoders[image.format](content) if image.format in decoders else np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[0] in {3, 4} and pixels.shape[-1] > 4:  # planes of a TIFF, one after the other
        pixels = np.moveaxis(pixels, 0, -1)
    return pixels


def _highest(pixels: Array) -> float | None:
    """Return the highest value that an unsigned type holds, None for other types."""
    return float(np.iinfo(pixels.dtype).max) if np.issubdtype(pixels.dtype, np.unsignedinteger) else None


def _picture(pixels: Array, highest: float | None, *, inverse: bool) -> Picture:
    """Return a picture of samples; transparency is dropped."""
    limits = None if highest is None else (0.0, highest)
    if pixels.ndim == 3 and pixels.shape[-1] < _RGB:
        pixels = pixels[..., 0]
    if pixels.ndim == 3 and (pixels[..., :1] == pixels[..., :_RGB]).all():
        pixels = pixels[..., 0]
    if pixels.ndim == 2:
        return Picture(pixels.astype(np.float32), "picture", limits, inverse=inverse)
    if highest is None:
        raise UnreadableError("holds colours as signed or floating point numbers: save it with 8 or 16 bits")
    return Picture((pixels[..., :_RGB] / np.float32(highest)).astype(np.float32), "picture", limits)
