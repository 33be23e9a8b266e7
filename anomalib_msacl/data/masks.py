"""Masks of lesions: whether they fit their images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anomalib_msacl.data.files import UnreadableError, read_bytes
from anomalib_msacl.data.inspection import check_usable, listed, opened, plain_words
from anomalib_msacl.errors import InputError, name_some

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskFinding:
    """What one look at a mask file gave; everything above 0 is lesion.

    Attributes:
        size: Height and width in pixels.
        problem: Why the mask cannot be used, in words that follow the file's name; empty where it can.
        empty: Whether there is no lesion.
        full: Whether all of the image is lesion.
        constant: Whether there is one value throughout.
    """

    size: tuple[int, int] = (0, 0)
    problem: str = ""
    empty: bool = False
    full: bool = False
    constant: bool = False


def inspect_mask(path: str) -> MaskFinding:
    """Decode a mask as anomalib reads it."""
    try:
        with plain_words(), opened(read_bytes(path)) as image:
            values = np.asarray(image.convert("L"))
    except UnreadableError as error:
        return MaskFinding(problem=str(error))
    lowest, highest = int(values.min()), int(values.max())
    return MaskFinding((image.height, image.width), "", highest == 0, lowest > 0, lowest == highest)


def check_masks(masks: Sequence[tuple[str, MaskFinding, tuple[int, int]]]) -> None:
    """Check the masks of abnormal images; a warning names those that cover their image.

    Args:
        masks: Path of each mask, what was found in it, and height and width of its image.

    Raises:
        InputError: If masks are broken, empty, of another size than their image, or have no background.
    """
    check_usable({path: mask.problem for path, mask, _ in masks}, "masks")
    empty = [path for path, mask, _ in masks if mask.empty]
    if empty:
        raise InputError(
            f"{len(empty)} masks of abnormal images are empty, {listed(empty)}: draw the lesion, or move the image "
            "to the normal ones"
        )
    other = [f"{path} ({_words(mask.size)}, image {_words(size)})" for path, mask, size in masks if mask.size != size]
    if other:
        raise InputError(f"{len(other)} masks are of another size than their image: resize {listed(other)}")
    full = [path for path, mask, _ in masks if mask.full]
    bright = [path for path, mask, _ in masks if mask.full and not mask.constant]
    if bright:
        raise InputError(
            f"{len(bright)} masks are above 0 everywhere, {listed(bright)}: everything above 0 is lesion, so set their "
            "background to 0"
        )
    if full:
        logger.warning("%d masks call all of their image a lesion: %s", len(full), name_some(full))


def _words(size: tuple[int, int]) -> str:
    """Return width and height in words."""
    return f"{size[1]} x {size[0]}"
