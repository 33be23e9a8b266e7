"""How many bits the samples of an image file have; anomalib itself keeps 8 of them."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Sequence

from PIL import Image

from anomalib_msacl.data.files import UnreadableError, read_bytes
from anomalib_msacl.data.netpbm import is_deep_netpbm
from anomalib_msacl.errors import name_some

logger = logging.getLogger(__name__)

_PNG_DEPTH_AT = 24  # byte of the file that says how many bits a sample has
_TIFF_BITS = 258


def sample_bits(image: Image.Image, content: bytes) -> int:
    """Return how many bits the samples of an image have; Pillow's mode alone does not tell 16-bit colour from 8.

    Args:
        image: The image, opened by Pillow.
        content: Its file.
    """
    if image.format == "PNG":
        return content[_PNG_DEPTH_AT]
    if image.format == "TIFF":
        bits = image.tag_v2.get(_TIFF_BITS, 1)  # type: ignore[attr-defined]
        return int(max(bits) if isinstance(bits, tuple) else bits)
    if image.format == "JPEG2000":
        import imagecodecs  # noqa: PLC0415  # only for files that need it

        return int(imagecodecs.jpeg2k_decode(content).dtype.itemsize) * 8
    if image.format == "PPM" and is_deep_netpbm(content):
        return 16
    return 32 if image.mode in {"I", "F"} else 16 if image.mode.startswith("I;16") else 8


def deep_files(paths: Iterable[str]) -> list[str]:
    """Return those of some files that have more than 8 bits; files that Pillow cannot open are left out."""
    found = []
    for path in paths:
        with contextlib.suppress(OSError, UnreadableError):
            content = read_bytes(path)
            with Image.open(io.BytesIO(content)) as image:
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
