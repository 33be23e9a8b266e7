"""A phantom that looks like an axial brain slice."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from anomalib_msacl.phantom.scene import Anatomy, Floats, Scene, bell, grid, smooth_step, texture, turned


def draw_brain(rng: Generator, size: int) -> Scene:
    """Draw a grey slice: bright skin, dark skull, folded rim, white core and two ventricles."""
    x, y = turned(*grid(size), rng.normal(0.0, 0.08))
    x, y = x - rng.normal(0.0, 0.015), y - rng.normal(0.0, 0.02)
    angle = np.arctan2(y, x)
    outline = 1.0 + rng.normal(0.0, 0.015) * np.sin(angle) + rng.normal(0.0, 0.005) * np.cos(4.0 * angle)
    radius = np.hypot(x / rng.uniform(0.64, 0.72), y / rng.uniform(0.78, 0.86)) / outline

    ventricles = _ventricles(rng, x, y)
    brain = _brain_tissue(rng, x, y, radius) * (1.0 - rng.uniform(0.75, 0.85) * ventricles)
    inside = smooth_step((1.0 - radius) / 0.04)
    skin = bell((radius - rng.uniform(1.13, 1.15)) / rng.uniform(0.025, 0.035))
    skull = 0.12 * bell((radius - 1.06) / 0.03)
    grey = inside * brain + (1.0 - inside) * (0.03 + rng.uniform(0.5, 0.7) * skin + skull)
    bias = 1.0 + rng.normal(0.0, 0.07) * x + rng.normal(0.0, 0.07) * y + 0.04 * texture(rng, size, 0.25)
    return Scene((grey * bias)[..., None], (radius < 0.9) & (ventricles < 0.3))


def _brain_tissue(rng: Generator, x: Floats, y: Floats, radius: Floats) -> Floats:
    """Make the values inside the skull, of shape (S, S); ``radius`` is 1 on the brain's rim."""
    size = len(x)
    folds, fine = (_near_symmetric(rng, size, scale) for scale in (0.022, 0.014))
    grey, white = rng.uniform(0.38, 0.46), rng.uniform(0.6, 0.72)
    # a grey rim, and grey ribbons with dark furrows in them along the zero lines of the texture
    outer = smooth_step((radius - 0.5) / 0.35)
    core = smooth_step((rng.uniform(0.88, 0.93) - radius + 0.03 * fine) / 0.1) * (
        1.0 - 0.85 * outer * bell(folds / 0.55)
    )
    values = grey + (white - grey) * core + 0.012 * fine
    values *= 1.0 - rng.uniform(0.4, 0.6) * outer * bell(folds / 0.16)
    gap = bell(x / 0.014) * smooth_step((np.abs(y) - 0.3) / 0.1)
    return np.asarray(values * (1.0 - 0.65 * gap))


def _near_symmetric(rng: Generator, size: int, scale: float) -> Floats:
    """Make a texture whose left and right halves are mostly alike."""
    even = texture(rng, size, scale)
    mixed = even + even[:, ::-1] + 0.9 * texture(rng, size, scale)
    return np.asarray(mixed / mixed.std())


def _ventricles(rng: Generator, x: Floats, y: Floats) -> Floats:
    """Draw two crescents beside the middle, 1 inside and 0 outside, of shape (S, S)."""
    width, height, gap = rng.uniform(0.055, 0.095), rng.uniform(0.22, 0.32), rng.uniform(0.08, 0.11)
    bend, lift = rng.uniform(0.1, 0.8), rng.uniform(-0.08, 0.06)
    both = np.zeros_like(x)
    for side in (-1.0, 1.0):
        own_width, own_height = width * rng.uniform(0.88, 1.12), height * rng.uniform(0.94, 1.06)
        across = side * x - gap - bend * (y - lift) ** 2
        both = np.maximum(both, smooth_step((1.1 - np.hypot(across / own_width, (y - lift) / own_height)) / 0.25))
    return both


BRAIN = Anatomy(draw_brain, 0.022, (0.36,), (-0.36,), (0.42,))
