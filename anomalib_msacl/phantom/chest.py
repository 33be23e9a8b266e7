"""A phantom that looks like a chest radiograph."""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator

from anomalib_msacl.phantom.scene import Anatomy, Floats, Scene, grid, smooth_step, texture, turned


def draw_chest(rng: Generator, size: int) -> Scene:
    """Draw a grey radiograph: two dark lung fields, ribs, spine and the heart's shadow."""
    x, y = turned(*grid(size), rng.normal(0.0, 0.03))
    x, y = x * rng.uniform(0.95, 1.06), y * rng.uniform(0.95, 1.06) - rng.normal(0.0, 0.03)
    lungs = _lungs(rng, x, y)
    grey = rng.uniform(0.62, 0.72) - rng.uniform(0.38, 0.46) * lungs
    grey = grey + 0.035 * texture(rng, size, 0.15) + 0.02 * lungs * texture(rng, size, 0.015)
    grey += rng.uniform(0.07, 0.12) * _ribs(rng, x, y)
    heart_x, heart_y = rng.uniform(0.08, 0.14), rng.uniform(0.2, 0.3)
    heart = np.hypot(
        (x - heart_x - 0.25 * (y - heart_y)) / rng.uniform(0.27, 0.33), (y - heart_y) / rng.uniform(0.36, 0.44)
    )
    shadow = rng.uniform(0.8, 0.95) * smooth_step((1.15 - heart) / 0.4)
    grey = grey * (1.0 - shadow) + shadow * np.maximum(grey, rng.uniform(0.6, 0.7))
    bones = 1.0 + 0.25 * np.cos(y * rng.uniform(26.0, 32.0))
    grey += 0.1 * smooth_step((0.11 - np.abs(x)) / 0.05) * bones
    body = smooth_step((rng.uniform(0.93, 0.98) - np.abs(x) + 0.12 * np.minimum(y, 0.0)) / 0.06)
    return Scene((grey * (0.05 + 0.95 * body))[..., None], (lungs > 0.7) & (heart > 1.2))


def _lungs(rng: Generator, x: Floats, y: Floats) -> Floats:
    """Draw the two lung fields, narrow at the top, 1 inside and 0 outside, of shape (S, S)."""
    both = np.zeros_like(x)
    for side in (-1.0, 1.0):
        across = (side * x - 0.42 - 0.16 * y) / rng.uniform(0.31, 0.35)
        along = (y - 0.02) / rng.uniform(0.76, 0.84)
        across = across / (1.0 - 0.35 * smooth_step((-y - 0.1) / 0.7))
        oval = (np.abs(across) ** 2.4 + np.abs(along) ** 2.6) ** (1.0 / 2.5)
        floor = smooth_step((rng.uniform(0.44, 0.54) + 1.3 * np.maximum(side * x - 0.36, 0.0) ** 2 - y) / 0.07)
        both = np.maximum(both, smooth_step((1.06 - oval) / 0.14) * floor)
    return both


def _ribs(rng: Generator, x: Floats, y: Floats) -> Floats:
    """Draw curved bright bands that fall towards the outside, of shape (S, S)."""
    distance = np.abs(x)
    fall, count, phase = rng.uniform(0.45, 0.6), rng.uniform(4.2, 5.0), rng.uniform(0.0, 2.0 * math.pi)
    wave = np.cos(2.0 * math.pi * count * (y - fall * (distance - 0.3) ** 2 * 2.0 + 0.15 * distance) / 1.6 + phase)
    reach = smooth_step((distance - 0.08) / 0.08) * smooth_step((0.85 - distance) / 0.1) * smooth_step((0.75 - y) / 0.2)
    return smooth_step((wave - 0.2) / 0.7) * reach


CHEST = Anatomy(draw_chest, 0.016, (0.36,), (-0.2,), (0.36,))
