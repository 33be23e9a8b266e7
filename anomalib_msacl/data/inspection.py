"""One look at each file of a data set, by which broken files are found before anything is trained."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from anomalib_msacl.data.depth import sample_bits
from anomalib_msacl.data.files import UnreadableError, read_bytes
from anomalib_msacl.errors import InputError, name_some

logger = logging.getLogger(__name__)
Found = TypeVar("Found")

_MESSAGE = 200  # characters
_PREVIEWS = {"MPO"}  # JPEG files of cameras, whose further images are previews


@dataclass(frozen=True)
class Inspection:
    """What one look at an image file gave.

    Attributes:
        sha256: Hex digest of the file's bytes, empty where the file cannot be read.
        size: Height and width in pixels, 0 where the image cannot be decoded.
        problem: Why the image cannot be used, in words that follow the file's name; empty where it can.
        bits: Bits of a sample.
        images: Number of images in the file, of which anomalib reads the first.
        constant: Whether the image is of one value throughout.
    """

    sha256: str = ""
    size: tuple[int, int] = (0, 0)
    problem: str = ""
    bits: int = 8
    images: int = 1
    constant: bool = False

    @property
    def side(self) -> int:
        """Length of the shorter side in pixels."""
        return min(self.size)


def inspect_image(path: str) -> Inspection:
    """Read and fully decode one image file, as Pillow and so anomalib reads it."""
    digest = ""
    try:
        with plain_words():
            content = read_bytes(path)
            digest = hashlib.sha256(content).hexdigest()
            with opened(content) as image:
                image.load()
                if image.mode == "F":
                    check_finite(np.asarray(image))
                return Inspection(
                    digest,
                    (image.height, image.width),
                    bits=sample_bits(image, content),
                    images=images_in(image),
                    constant=_is_constant(image.convert("RGB")),
                )
    except UnreadableError as error:
        return Inspection(digest, problem=str(error))


def _is_constant(image: Image.Image) -> bool:
    """Whether an RGB image is of one value throughout; a few pixels tell of nearly all that are not."""
    right, bottom = image.width - 1, image.height - 1
    few = {image.getpixel((right * x // 3, bottom * y // 3)) for x in range(4) for y in range(4)}
    extrema = image.getextrema() if len(few) == 1 else [(0, 1)]
    return all(low == high for low, high in extrema)  # type: ignore[misc]


def opened(content: bytes) -> Image.Image:
    """Open an image without decoding it.

    Raises:
        UnreadableError: If the bytes are no image.
    """
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError as error:
        raise UnreadableError("is not an image") from error


def images_in(image: Image.Image) -> int:
    """Return how many pages or frames an opened file has, previews of cameras not counted."""
    return 1 if image.format in _PREVIEWS else int(getattr(image, "n_frames", 1))


def check_finite(values: np.ndarray) -> None:
    """Raise :class:`UnreadableError` where values are NaN or infinite."""
    if not np.isfinite(values).all():
        raise UnreadableError("holds NaN or infinite values")


@contextmanager
def plain_words() -> Iterator[None]:
    """Turn whatever the libraries raise on a broken file into an :class:`UnreadableError`."""
    try:
        yield
    except (InputError, UnreadableError):
        raise
    except MemoryError as error:
        raise UnreadableError("does not fit into memory") from error
    except Exception as error:  # corrupt bytes make them raise nearly any kind
        reason = error.strerror if isinstance(error, OSError) else None
        raise UnreadableError(f"cannot be opened: {reason}" if reason else f"is broken: {brief(error)}") from error


def brief(error: Exception) -> str:
    r"""Return an exception's message in one short line, or its name where it has none.

    >>> brief(ValueError("too\n  long")), brief(EOFError())
    ('too long', 'EOFError')
    """
    message = " ".join(str(error).split())
    return (f"{message[:_MESSAGE]} ..." if len(message) > _MESSAGE else message) or type(error).__name__


def inspect_each(look: Callable[[str], Found], paths: Iterable[str], threads: int) -> dict[str, Found]:
    """Look into each distinct file once; the decoders release the interpreter lock.

    Args:
        look: What to do with a path.
        paths: The files.
        threads: Number of threads at most.

    Returns:
        The findings by path, in the order of the paths.
    """
    distinct = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(min(threads, os.cpu_count() or 1)) as pool:
        return dict(zip(distinct, pool.map(look, distinct), strict=True))


def check_usable(problems: Mapping[str, str], what: str = "images") -> None:
    """Raise :class:`InputError` where files cannot be used.

    Args:
        problems: What is wrong with each file, by its path; empty where nothing is.
        what: What the files are, for the message.
    """
    broken = [f"{path} {problem}" for path, problem in problems.items() if problem]
    if broken:
        raise InputError(f"{len(broken)} {what} cannot be used: {listed(broken, '; ')}; replace or remove them")


def listed(names: Sequence[str], separator: str = ", ") -> str:
    """Name some for a sentence; where they are too many, all of them are written to the log."""
    some = name_some(names, separator)
    if some != separator.join(names):
        logger.error("All %d of them:\n%s", len(names), "\n".join(names))
    return some
