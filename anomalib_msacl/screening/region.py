"""Which part of an image a network sees, and so where its anomaly map belongs.

A map covers what the last step before the network leaves of the image. The steps are read as a bundle keeps them, so
that exports made earlier, and machines without torch, are served as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from anomalib_msacl.errors import InputError

_STEP = re.compile(r"(\w+)\((.*)\)", re.DOTALL)
_SIZE = re.compile(r"\bsize=[\[(](\d+)(?:, (\d+))?,?[\])]")
_CROP = re.compile(r"\bcrop=\[(\d+), (\d+)\]")  # of our own AntialiasedResize
_LONGEST = re.compile(r"\bmax_size=\d")
# Steps that change values and move no pixel, by torchvision's names. Any other step may move some.
_STILL = {
    *("Normalize", "Grayscale", "RandomGrayscale", "RGB", "ColorJitter", "GaussianBlur", "GaussianNoise", "Identity"),
    *("ToDtype", "ToImage", "ToTensor", "ToPureTensor", "PILToTensor", "ConvertImageDtype"),
    *("RandomAdjustSharpness", "RandomAutocontrast", "RandomEqualize", "RandomInvert", "RandomPosterize"),
    *("RandomSolarize", "RandomPhotometricDistort", "RandomChannelPermutation"),
}


class Region(NamedTuple):
    """A rectangle, in parts of an image's height and width from its upper left corner.

    It reaches beyond the image, below 0 or above 1, where that is padded. Fractions are exact, so that no pixel at an
    edge is lost by rounding.
    """

    top: Fraction
    left: Fraction
    bottom: Fraction
    right: Fraction


WHOLE = Region(Fraction(0), Fraction(0), Fraction(1), Fraction(1))


def unfollowed(transform: Sequence[str]) -> str:
    """Return the first step whose effect on places is not known, in one line; empty where there is none.

    Args:
        transform: The steps, see :attr:`anomalib_msacl.screening.bundle.Bundle.transform`.
    """
    return next((" ".join(step.split()) for step in transform if _mover(step) is None), "")


def check_followed(transform: Sequence[str]) -> None:
    """Raise :class:`InputError` where it cannot be told which part of an image the network sees.

    Args:
        transform: The steps, as above.
    """
    if step := unfollowed(transform):
        raise InputError(
            f"heat maps might be misplaced, because the model's pre-processor has the step {step}, whose effect on "
            "places is not known: screen with --maps none, which gives the scores"
        )


def seen_region(transform: Sequence[str], height: int, width: int) -> Region:
    """Return the part of an image that the network sees.

    Args:
        transform: The steps, as above.
        height: Pixels from the top of the image to its bottom.
        width: Pixels from its left to its right.

    Raises:
        InputError: As :func:`check_followed`.

    Example:
        >>> [str(side) for side in seen_region(["Resize(size=[256])", "CenterCrop(size=(128, 128))"], 300, 600)]
        ['1/4', '3/8', '3/4', '5/8']
    """
    check_followed(transform)
    axes = _Axis(height), _Axis(width)
    for step in transform:
        if move := _mover(step):
            move(axes)
    (top, bottom), (left, right) = (
        (axis.start / side, (axis.start + axis.length * axis.pixel) / side)
        for axis, side in zip(axes, (height, width), strict=True)
    )
    return Region(top, left, bottom, right)


@dataclass
class _Axis:
    """One side of an image on its way through the steps.

    Attributes:
        length: Pixels that it has now.
        start: Where the first of them begins, in pixels of the original.
        pixel: Size of one of them, in the same unit.
    """

    length: int
    start: Fraction = Fraction(0)
    pixel: Fraction = Fraction(1)

    def stretch(self, new: int) -> None:
        """Let it have another number of pixels."""
        self.pixel *= Fraction(self.length, new)
        self.length = new

    def cut(self, first: int, new: int) -> None:
        """Let it begin at another pixel, a negative one where it is padded, and have so many of them."""
        self.start += first * self.pixel
        self.length = new


_Axes = tuple[_Axis, _Axis]


def _mover(step: str) -> Callable[[_Axes], None] | None:
    """Return what a step does to the sides of an image; None where that is not known."""
    found = _STEP.fullmatch(step)
    name, settings = found.groups() if found else ("", "")
    if name in _STILL:
        return lambda _: None
    if name == "SquarePad":  # anomalib's
        return _pad_to_square
    given = _SIZE.search(settings)
    if given is None:
        return None
    size = [int(side) for side in given.groups() if side]
    if name in {"Resize", "AntialiasedResize"} and not _LONGEST.search(settings):
        cropped = _CROP.search(settings)
        crop = [int(side) for side in cropped.groups()] if cropped else None
        return lambda axes: _resize(axes, size, crop)
    if name in {"CenterCrop", "ExportableCenterCrop"} and len(size) == 2:  # the second is anomalib's
        return lambda axes: _crop(axes, size)
    return None


def _resize(axes: _Axes, size: Sequence[int], crop: Sequence[int] | None) -> None:
    """Resize as torchvision does, to height and width or to a shorter side with the shape of the image, and crop it."""
    shorter = min(axis.length for axis in axes)
    sides = size if len(size) == 2 else [size[0] * axis.length // shorter for axis in axes]
    for axis, new in zip(axes, sides, strict=True):
        axis.stretch(new)
    if crop:
        _crop(axes, crop)


def _crop(axes: _Axes, size: Sequence[int]) -> None:
    """Crop as torchvision does, which pads what is too small."""
    for axis, new in zip(axes, size, strict=True):
        missing = new - axis.length
        axis.cut(-(missing // 2) if missing > 0 else round(-missing / 2), new)


def _pad_to_square(axes: _Axes) -> None:
    """Pad the shorter side as anomalib does."""
    longer = max(axis.length for axis in axes)
    for axis in axes:
        axis.cut(-((longer - axis.length) // 2), longer)
