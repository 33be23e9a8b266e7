"""A heat map over its image, as a picture for people: colours, a scale, and what it is said to be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from anomalib_msacl.medical.image import Array, RawImage
from anomalib_msacl.screening.region import WHOLE, Region

NOT_FOR_DIAGNOSIS = "NOT FOR DIAGNOSIS"
_STRONGEST = 0.6  # share of the colour where the map is 1
_NARROWEST = 256  # pixels, so that the lines below can be read
_SCALE = 256  # steps of the colour scale


def displayed(image: RawImage) -> Array:
    """Return an image as a viewer shows it first.

    Args:
        image: Colours, or grey values with their window; without a window the darkest value is black, the brightest
            white.

    Returns:
        Shape ``(H, W, 3)``, float32, in [0, 1].
    """
    if image.colour:
        return np.asarray(image.values, dtype=np.float32)
    grey = image.shown
    if grey is None:
        levels = image.levels
        grey = (levels - levels.min()) / (np.ptp(levels) or 1)
    return np.stack([np.asarray(grey, dtype=np.float32)] * 3, axis=-1)


def placed(heat_map: Array, size: tuple[int, int], region: Region = WHOLE) -> Array:
    """Lay a heat map on its part of an image, by bilinear interpolation.

    Args:
        heat_map: Shape ``(h, w)``.
        size: Height and width of the image.
        region: The part of the image that the map covers.

    Returns:
        Shape ``size``, float32; 0 at every pixel that does not lie in the region as a whole.
    """
    rows, top, bottom = _covered(size[0], region.top, region.bottom, heat_map.shape[0])
    columns, left, right = _covered(size[1], region.left, region.right, heat_map.shape[1])
    found = np.zeros(size, dtype=np.float32)
    if rows and columns:
        picture = Image.fromarray(heat_map.astype(np.float32))
        box = (left, top, right, bottom)
        part = picture.resize((len(columns), len(rows)), Image.Resampling.BILINEAR, box)
        found[rows.start : rows.stop, columns.start : columns.stop] = np.asarray(part)
    return found


def whole_pixels(side: int, low: Fraction, high: Fraction) -> range:
    """Return the pixels of a side of an image that lie as a whole between two parts of it."""
    return range(max(0, math.ceil(low * side)), min(side, math.floor(high * side)))


def _covered(side: int, low: Fraction, high: Fraction, cells: int) -> tuple[range, float, float]:
    """Return the pixels of a side that lie between two parts of it, and where they begin and end in a map of cells."""
    pixels = whole_pixels(side, low, high)
    ends = ((Fraction(end, side) - low) / (high - low) * cells for end in (pixels.start, pixels.stop))
    begin, end = map(float, ends)
    return pixels, begin, end


def overlay(image: Array, heat_map: Array) -> Array:
    """Blend the colours of a heat map into an image: the higher a value, the stronger and the more yellow the red.

    ``(1 - w) image + w (1, v, 0)`` with ``w = .6 v`` at a pixel of value ``v``; where the map is 0, the image stays.

    Args:
        image: Shape ``(H, W, 3)``, in [0, 1].
        heat_map: Shape ``(H, W)``, in [0, 1].

    Returns:
        Shape ``(H, W, 3)``, uint8.
    """
    value = heat_map[..., None]
    weight = _STRONGEST * value
    colour = np.concatenate([np.ones_like(value), value, np.zeros_like(value)], axis=-1)
    return np.asarray(((1 - weight) * image + weight * colour) * 255).round().clip(0, 255).astype(np.uint8)


def with_legend(picture: Array, lines: Sequence[str]) -> Array:
    """Put lines of text and the colour scale below a picture, whose pixels stay where they are.

    Args:
        picture: Shape ``(H, W, 3)``, uint8.
        lines: The text, in letters of ASCII.

    Returns:
        Shape ``(H + h, max(W, 256), 3)``, uint8; black beside a narrow picture.
    """
    height, width = picture.shape[:2]
    canvas_width = max(width, _NARROWEST)
    font = ImageFont.load_default(size=canvas_width / 28)
    step = round(canvas_width / 20)
    canvas = Image.new("RGB", (canvas_width, height + step * (len(lines) + 1) + step // 2))
    canvas.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for place, line in enumerate(lines):
        draw.text((step // 2, height + step // 4 + place * step), line, fill="white", font=font)
    top = height + step // 4 + len(lines) * step
    ramp = np.linspace(0, 1, _SCALE, dtype=np.float32)[None]
    scale = Image.fromarray(overlay(np.full((1, _SCALE, 3), 0.5, dtype=np.float32), ramp))
    canvas.paste(scale.resize((canvas_width - 4 * step, step // 2)), (2 * step, top + step // 4))
    draw.text((step, top), "0", fill="white", font=font)
    draw.text((canvas_width - round(1.5 * step), top), "1", fill="white", font=font)
    return np.asarray(canvas)
