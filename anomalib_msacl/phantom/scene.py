"""Drawing tools of the phantoms.

Coordinates run from -1 (left, top) to 1 (right, bottom) of the square image, pixel values from 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.random import Generator

Floats = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]


@dataclass
class Scene:
    """An image without sensor noise.

    Attributes:
        pixels: Values from 0 to 1, of shape (S, S, C) with 3 colours or 1 grey channel.
        tissue: Where lesions may lie, of shape (S, S).
    """

    pixels: Floats
    tissue: Booleans


@dataclass(frozen=True)
class Anatomy:
    """How a kind of phantom is drawn.

    Attributes:
        draw: Draws the image without lesions and noise, from random numbers and the side in pixels.
        noise: Standard deviation of the sensor noise.
        bright: What a bright lesion of full contrast adds, for each channel.
        dark: What a dark lesion of full contrast adds, for each channel.
        blood: What bleeding of full contrast adds, for each channel.
    """

    draw: Callable[[Generator, int], Scene]
    noise: float
    bright: tuple[float, ...]
    dark: tuple[float, ...]
    blood: tuple[float, ...]


def grid(size: int) -> tuple[Floats, Floats]:
    """Give the x and y coordinate of each pixel's centre, each of shape (S, S)."""
    axis = (np.arange(size) + 0.5) * (2.0 / size) - 1.0
    x, y = np.meshgrid(axis, axis)
    return x, y


def to_pixels(coordinates: Floats, size: int) -> Floats:
    """Turn coordinates from -1 to 1 into fractional pixel indices."""
    return (coordinates + 1.0) * (size / 2.0) - 0.5


def smooth_step(values: Floats) -> Floats:
    """Rise smoothly from 0 at 0 to 1 at 1."""
    clipped = np.clip(values, 0.0, 1.0)
    return np.asarray(clipped * clipped * (3.0 - 2.0 * clipped))


def bell(values: npt.NDArray[np.floating[Any]]) -> Floats:
    """Give a Gaussian bell of standard deviation 1 and height 1."""
    return np.asarray(np.exp(-0.5 * values * values), dtype=np.float64)


def turned(x: Floats, y: Floats, angle: float) -> tuple[Floats, Floats]:
    """Turn coordinates by an angle in radians."""
    return x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)


def texture(rng: Generator, size: int, scale: float) -> Floats:
    """Make smooth noise of mean 0 and standard deviation 1.

    Args:
        rng: Random numbers.
        size: Side in pixels.
        scale: Standard deviation of the smoothing, as a share of the side.

    Returns:
        The noise, of shape (S, S).
    """
    factor = 2.0 * math.pi * scale * size
    rows, columns = bell(np.fft.fftfreq(size) * factor), bell(np.fft.rfftfreq(size) * factor)
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) * rows[:, None] * columns
    field = np.fft.irfft2(spectrum, s=(size, size))
    return np.asarray((field - field.mean()) / field.std())


def stamp(points: Floats, size: int) -> Floats:
    """Draw Gaussian dots, the higher value winning where dots overlap.

    Args:
        points: x, y and standard deviation of each dot, in coordinates, of shape (N, 3).
        size: Side in pixels.

    Returns:
        Values from 0 to 1, of shape (S, S).
    """
    points = points[np.abs(points[:, :2]).max(axis=1) < 1.0]
    sigma = np.maximum(points[:, 2] * (size / 2.0), 0.45)[:, None]
    reach = math.ceil(3.0 * sigma.max(initial=0.0))
    centres = to_pixels(points[:, :2], size)
    # (N, 2, K) pixel indices around each dot, on a canvas with a margin so that none has to be cut
    window = np.rint(centres).astype(np.intp)[:, :, None] + np.arange(-reach, reach + 1)
    columns, rows = np.moveaxis(bell((window - centres[:, :, None]) / sigma[:, None]), 1, 0)
    canvas = np.zeros((size + 2 * reach + 1, size + 2 * reach + 1))
    places = (window[:, 1, :, None] + reach, window[:, 0, None, :] + reach)
    np.maximum.at(canvas, places, rows[:, :, None] * columns[:, None, :])
    return canvas[reach : reach + size, reach : reach + size]
