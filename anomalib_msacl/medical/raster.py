"""PNG, TIFF, JPEG, JPEG 2000 and other files that Pillow opens, with all their bits."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from anomalib_msacl.data.depth import sample_bits
from anomalib_msacl.data.files import UnreadableError, read_bytes
from anomalib_msacl.data.inspection import images_in, opened
from anomalib_msacl.data.netpbm import is_deep_netpbm, read_deep_netpbm
from anomalib_msacl.medical.image import Array, RawImage

_TIFF_PHOTOMETRIC = 262
_RGB = 3


def read_raster(path: Path) -> RawImage:
    """Read an image of 8 or more bits, grey or colour; a colour file whose channels are equal is grey.

    Args:
        path: The file.

    Returns:
        The image. With 8 bits it is what anomalib reads.

    Raises:
        UnreadableError: If the file is no image, or holds several.
    """
    content = read_bytes(path)
    with opened(content) as image:
        if is_deep_netpbm(content):
            return _raw_image(*read_deep_netpbm(content), inverse=False)
        image.load()
        number = images_in(image)
        if number > 1:
            what = "pages" if image.format == "TIFF" else "frames"
            raise UnreadableError(f"holds several {what} ({number}): save each of them as a file of its own")
        if sample_bits(image, content) <= 8:
            return _raw_image(np.asarray(image.convert("RGB")), 255, inverse=False)
        pixels = _read_deep(image, content)
        inverse = getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == 0
        return _raw_image(pixels, _highest(pixels), inverse=inverse)


def _read_deep(image: Image.Image, content: bytes) -> Array:
    """Return the samples of an image of more than 8 bits, channels last."""
    decode = _decoder(image.format)
    pixels: Array = decode(content) if decode else np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[0] in {3, 4} and pixels.shape[-1] > 4:  # planes of a TIFF, one after the other
        pixels = np.moveaxis(pixels, 0, -1)
    return pixels


def _decoder(file_format: str | None) -> Callable[[bytes], Array] | None:
    """Return what decodes all bits of a format, None where Pillow does; the libraries are slow to import."""
    if file_format == "TIFF":
        import tifffile  # noqa: PLC0415

        return lambda content: np.asarray(tifffile.imread(io.BytesIO(content)))
    if file_format in {"PNG", "JPEG2000"}:
        import imagecodecs  # noqa: PLC0415

        decode = imagecodecs.png_decode if file_format == "PNG" else imagecodecs.jpeg2k_decode
        return lambda content: np.asarray(decode(content))
    return None


def _highest(pixels: Array) -> float | None:
    """Return the highest value that an unsigned type holds, None for other types."""
    return float(np.iinfo(pixels.dtype).max) if np.issubdtype(pixels.dtype, np.unsignedinteger) else None


def _raw_image(pixels: Array, highest: float | None, *, inverse: bool) -> RawImage:
    """Return an image of samples; transparency is dropped."""
    limits = None if highest is None else (0.0, highest)
    if pixels.ndim == 3 and pixels.shape[-1] < _RGB:
        pixels = pixels[..., 0]
    if pixels.ndim == 3 and (pixels[..., :1] == pixels[..., :_RGB]).all():
        pixels = pixels[..., 0]
    if pixels.ndim == 2:
        return RawImage(pixels.astype(np.float32), "raster", limits, inverse=inverse)
    if highest is None:
        raise UnreadableError("holds colours as signed or floating point numbers: save it with 8 or 16 bits")
    return RawImage((pixels[..., :_RGB] / np.float32(highest)).astype(np.float32), "raster", limits)
