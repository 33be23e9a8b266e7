"""Lesions of the phantoms; their shapes are not those that training draws."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from anomalib_msacl.phantom.scene import (
    Anatomy,
    Booleans,
    Floats,
    Scene,
    bell,
    grid,
    smooth_step,
    stamp,
    texture,
    turned,
)

_FAINTEST = 0.12  # part of a lesion's full strength at which its soft edge ends


@dataclass(frozen=True)
class _Spot:
    """Where a lesion goes: its centre, its radius (0.06 to 0.24, of an image 2 wide) and the side in pixels."""

    x: float
    y: float
    radius: float
    size: int

    def distance(self, rng: Generator) -> Floats:
        """Give the distance from the centre, 1 on an irregular outline, of shape (S, S)."""
        x, y = grid(self.size)
        x, y = turned(x - self.x, y - self.y, rng.uniform(0.0, math.pi))
        angle = np.arctan2(y, x)
        outline = 1.0 + sum(
            rng.uniform(0.0, 0.3 / order) * np.cos(order * angle + rng.uniform(0.0, 6.28)) for order in (2, 3, 5)
        )
        return np.asarray(np.hypot(x, y * rng.uniform(1.0, 1.5)) / (self.radius * outline))


@dataclass(frozen=True)
class _Lesion:
    """The shape of one lesion.

    Attributes:
        strength: What to add, of shape (S, S): above 0 for bright or blood, below 0 for dark.
        extent: The lesion's mask, of shape (S, S).
    """

    strength: Floats
    extent: Booleans


def add_lesions(rng: Generator, scene: Scene, anatomy: Anatomy) -> Booleans:
    """Put 1 to 3 lesions of one or two families onto the tissue.

    Args:
        rng: Random numbers.
        scene: The image, changed in place and only inside of the returned mask.
        anatomy: The kind of image.

    Returns:
        The mask of all lesions, of shape (S, S), not empty.
    """
    families = rng.choice(list(_FAMILIES), rng.integers(1, 3), replace=False)
    mask = np.zeros_like(scene.tissue)
    for family in rng.choice(families, rng.integers(1, 4)):
        lesion = _FAMILIES[family](rng, _choose_spot(rng, scene.tissue))
        bright = anatomy.blood if family == "bleeding" else anatomy.bright
        extent = lesion.extent & scene.tissue
        strength = np.where(extent, lesion.strength, 0.0)[..., None] * (0.25 + 0.75 * rng.beta(1.2, 1.6))
        scene.pixels += np.maximum(strength, 0.0) * bright + np.maximum(-strength, 0.0) * anatomy.dark
        mask |= extent
    return mask


def _choose_spot(rng: Generator, tissue: Booleans) -> _Spot:
    """Choose a centre at the middle of a tissue pixel, and a radius of 3 to 12 % of the side, small ones more often."""
    size = len(tissue)
    row, column = divmod(int(rng.choice(np.flatnonzero(tissue))), size)
    radius = 2.0 * (0.03 + 0.09 * rng.beta(1.4, 1.8))
    return _Spot((column + 0.5) * 2.0 / size - 1.0, (row + 0.5) * 2.0 / size - 1.0, radius, size)


def _blob(rng: Generator, spot: _Spot) -> _Lesion:
    """Make a soft bright or dark patch with an uneven outline."""
    strength = smooth_step((1.0 - spot.distance(rng)) / rng.uniform(0.3, 0.9))
    return _Lesion(rng.choice([-1.0, 1.0]) * strength, strength > _FAINTEST)


def _ring(rng: Generator, spot: _Spot) -> _Lesion:
    """Make a bright rim around a darker centre."""
    distance = spot.distance(rng)
    rim = bell((distance - 0.75) / rng.uniform(0.1, 0.17))
    centre = rng.uniform(0.4, 0.8) * smooth_step((0.7 - distance) / 0.4)
    return _Lesion(rim - centre, distance < 1.0)


def _bleeding(rng: Generator, spot: _Spot) -> _Lesion:
    """Make a cluster of irregular droplets, one of them at the centre."""
    count = int(rng.integers(7, 18))
    droplets = np.column_stack([rng.normal(0.0, 0.45, (count, 2)), rng.uniform(0.07, 0.2, count)]) * spot.radius
    droplets[0] = 0.0, 0.0, 0.3 * spot.radius
    droplets[:, :2] += spot.x, spot.y
    field = stamp(droplets, spot.size) * (1.0 + 0.3 * texture(rng, spot.size, 0.012))
    strength = smooth_step((field - 0.25) / 0.3)
    return _Lesion(strength, strength > _FAINTEST)


def _streak(rng: Generator, spot: _Spot) -> _Lesion:
    """Make a thin curved line, bright or dark, that fades towards its ends."""
    along = np.linspace(-1.0, 1.0, 200)
    bend = rng.uniform(-0.5, 0.5) * along**2 + 0.05 * np.sin(along * rng.uniform(4.0, 9.0))
    dx, dy = turned(1.5 * spot.radius * along, 1.5 * spot.radius * bend, rng.uniform(0.0, 2.0 * math.pi))
    width = rng.uniform(0.012, 0.022) * (1.0 - 0.6 * along**2)
    strength = stamp(np.column_stack([spot.x + dx, spot.y + dy, width]), spot.size)
    return _Lesion(rng.choice([-1.0, 1.0]) * strength, strength > _FAINTEST)


_FAMILIES = {"blob": _blob, "ring": _ring, "bleeding": _bleeding, "streak": _streak}
