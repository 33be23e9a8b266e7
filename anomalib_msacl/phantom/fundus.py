"""A phantom that looks like a photograph of the eye's fundus."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from anomalib_msacl.phantom.scene import Anatomy, Floats, Scene, bell, grid, smooth_step, stamp, texture


def draw_fundus(rng: Generator, size: int) -> Scene:
    """Draw a round orange field with a bright disc, a dark spot and a tree of vessels."""
    x, y = grid(size)
    radius = rng.uniform(0.88, 0.96)
    from_centre = np.hypot(x - rng.normal(0.0, 0.02), y - rng.normal(0.0, 0.02))
    side = rng.choice([-1.0, 1.0])
    disc_x, disc_y = side * rng.uniform(0.38, 0.58), rng.uniform(-0.15, 0.15)
    disc_radius = rng.uniform(0.12, 0.17)

    pixels = _fundus_ground(rng, x, y, from_centre / radius)
    spot = np.hypot(x - disc_x + side * rng.uniform(0.62, 0.72), y - disc_y - rng.uniform(-0.08, 0.08))
    pixels *= 1.0 - rng.uniform(0.25, 0.45) * bell(spot / rng.uniform(0.1, 0.15))[..., None]
    from_disc = np.hypot(x - disc_x, (y - disc_y) * rng.uniform(0.85, 1.0)) / disc_radius
    pixels = _add_disc(rng, pixels, from_disc)
    vessels = stamp(_vessel_tree(rng, disc_x, disc_y, side), size)
    pixels *= 1.0 - rng.uniform(0.7, 1.0) * vessels[..., None] * np.array([0.35, 0.6, 0.5])

    pixels *= smooth_step((radius - from_centre) / 0.05)[..., None]
    return Scene(pixels, (from_centre < 0.88 * radius) & (from_disc > 1.5))


def _fundus_ground(rng: Generator, x: Floats, y: Floats, relative_radius: Floats) -> Floats:
    """Make the orange-red ground with its uneven light and slow texture, of shape (S, S, 3)."""
    size = len(x)
    colour = np.array([rng.uniform(0.66, 0.8), rng.uniform(0.28, 0.38), rng.uniform(0.1, 0.17)])
    slant = rng.normal(0.0, 0.08) * x + rng.normal(0.0, 0.08) * y
    light = rng.uniform(0.9, 1.1) * (1.0 - rng.uniform(0.25, 0.45) * relative_radius**2) + slant
    slow = 0.06 * texture(rng, size, 0.12) + 0.025 * texture(rng, size, 0.02)
    stripes = 0.04 * texture(rng, size, 0.04)[..., None] * np.array([0.4, 1.0, 1.0])
    return np.asarray(colour * (light * (1.0 + slow))[..., None] * (1.0 + stripes))


def _add_disc(rng: Generator, pixels: Floats, from_disc: Floats) -> Floats:
    """Blend the bright disc with its paler cup; ``from_disc`` is 1 on the disc's rim."""
    disc = smooth_step((1.1 - from_disc) / 0.3)[..., None]
    cup = smooth_step((rng.uniform(0.5, 0.65) - from_disc) / 0.3)[..., None]
    colour = np.array([0.93, 0.68, 0.38]) * rng.uniform(0.92, 1.05)
    return np.asarray(pixels * (1.0 - disc) + disc * (colour + cup * np.array([0.05, 0.17, 0.2])))


def _vessel_tree(rng: Generator, x: float, y: float, side: float) -> Floats:
    """Grow vessels from the disc: two that arch over the dark spot and two towards the near edge.

    Args:
        rng: Random numbers.
        x: Where the tree starts.
        y: Where the tree starts.
        side: 1 where the disc is on the right, -1 where it is on the left.

    Returns:
        Points for :func:`stamp`.
    """
    branches: list[Floats] = []
    for vertical in (-1.0, 1.0):
        arch = np.array([x, y, rng.uniform(1.5, 1.9), vertical * rng.uniform(1.3, 1.65), 0.026])
        _grow_branch(rng, branches, arch, vertical * rng.uniform(0.8, 1.15), 3)
        near = np.array([x, y, rng.uniform(0.5, 0.8), vertical * rng.uniform(0.5, 1.2), 0.018])
        _grow_branch(rng, branches, near, vertical * rng.uniform(-0.5, 0.5), 2)
    points = np.concatenate(branches)
    # grown for a disc on the right, whose vessels arch to the left
    points[:, 0] = x + side * (points[:, 0] - x)
    return points


def _grow_branch(rng: Generator, branches: list[Floats], start: Floats, turn: float, depth: int) -> None:
    """Walk along a winding, tapering branch and let side branches grow from it.

    Args:
        rng: Random numbers.
        branches: Takes the points of this branch and of its side branches.
        start: x, y, length, heading in radians and width of the branch.
        turn: Mean change of heading, in radians for each unit of length.
        depth: How many orders of branches to draw, this one included.
    """
    x, y, length, heading, width = start
    steps = max(3, int(length / 0.012))
    headings = heading + np.cumsum(rng.normal(turn * 0.012, 0.06, steps))
    xs, ys = x + 0.012 * np.cumsum(np.cos(headings)), y + 0.012 * np.cumsum(np.sin(headings))
    widths = np.linspace(width, 0.45 * width, steps)
    branches.append(np.stack([xs, ys, widths], axis=1))
    if depth == 1:
        return
    for at in rng.uniform(0.12, 0.9, 4 if depth > 2 else 3):
        step, side = int(at * steps), rng.choice([-1.0, 1.0])
        bend = headings[step] + side * rng.uniform(0.45, 0.95)
        child = np.array([xs[step], ys[step], length * rng.uniform(0.25, 0.5), bend, widths[step] * 0.7])
        _grow_branch(rng, branches, child, -side * rng.uniform(0.0, 1.5), depth - 1)


FUNDUS = Anatomy(draw_fundus, 0.014, (0.26, 0.34, 0.24), (-0.3, -0.17, -0.07), (-0.34, -0.24, -0.1))
