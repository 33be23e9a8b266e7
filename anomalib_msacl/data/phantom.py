"""Small rendered phantom images with exactly known lesions, for trying things out without any data.

The pictures only look like photographs of the eye's fundus, brain slices and chest radiographs. They carry no
medical meaning.

Coordinates run from -1 (left, top) to 1 (right, bottom) of the square picture, pixel values from 0 to 1.
"""

import hashlib
import json
import math
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from anomalib.data import Folder
from anomalib.data.utils import ValSplitMode
from numpy.random import Generator
from PIL import Image
from torchvision.transforms.v2 import Transform

from anomalib_msacl.errors import InputError

Floats = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

# Raise this by one with every change that alters a rendered pixel: it is part of the cache key.
FORMAT_VERSION = 1
# Folder of each subset, and the code that keeps its random numbers apart from those of the others.
SUBSETS = {"train/good": 0, "test/good": 1, "test/lesion": 2}
MASK_FOLDER = "ground_truth/lesion"
_MINIMUM_SIDE = 64
# Share of a lesion's full strength at which its soft edge ends.
_FAINTEST = 0.12


class Phantom(Folder):
    """Phantom images, rendered within seconds into a cache folder and read from there.

    The same settings give the same files, and image k of a subset does not depend on how many images are asked for.
    Training images are normal; the test images have 1 to 3 lesions each in their second half, with exact masks.

    Args:
        kind: What the pictures look like: ``fundus``, ``brain`` or ``chest``.
        root: Cache folder; each set of settings gets a folder of its own there.
        image_size: Side of the square images in pixels, at least 64.
        train_images: Number of training images, at least 1.
        test_images: Number of test images, at least 4; half of them, rounded down, have lesions.
        seed: Seed of the rendering and of the validation split, 0 or above.
        train_batch_size: Images in a training batch.
        eval_batch_size: Images in a validation or test batch.
        num_workers: Number of data loading processes, 0 for none.
        train_augmentations: Augmentations of the training images.
        val_augmentations: Augmentations of the validation images.
        test_augmentations: Augmentations of the test images.
        augmentations: Augmentations where none are given for a subset.
        val_split_mode: Where the validation images come from.
        val_split_ratio: Share of the images that goes to the validation set, between 0 and 1.

    Raises:
        InputError: When a setting is outside of its range, or, from ``prepare_data()``, when ``root`` cannot be
            written to.

    Example:
        >>> Phantom(kind="brain", root="cache").name
        'phantom_brain'
    """

    def __init__(
        self,
        kind: str = "fundus",
        root: str | Path = "./datasets/phantom",
        *,
        image_size: int = 128,
        train_images: int = 100,
        test_images: int = 120,
        seed: int = 0,
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 0,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        val_split_mode: ValSplitMode | str = ValSplitMode.FROM_TEST,
        val_split_ratio: float = 0.5,
    ) -> None:
        """Keep the settings; the class describes them."""
        self.settings = _Settings(kind, image_size, train_images, test_images, seed)
        super().__init__(
            name=f"phantom_{kind}",
            root=Path(root) / f"{kind}-{self.settings.key}",
            normal_dir="train/good",
            normal_test_dir="test/good",
            abnormal_dir="test/lesion",
            mask_dir=MASK_FOLDER,
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_augmentations=train_augmentations,
            val_augmentations=val_augmentations,
            test_augmentations=test_augmentations,
            augmentations=augmentations,
            val_split_mode=val_split_mode,
            val_split_ratio=val_split_ratio,
            seed=seed,
        )

    def prepare_data(self) -> None:
        """Render the images, unless a run with the same settings has done so.

        Raises:
            InputError: When the images cannot be written.
        """
        target = Path(str(self.root))
        if target.is_dir():
            return
        try:
            _render_set(self.settings, target)
        except OSError as error:
            raise InputError(
                f"cannot write phantom images to '{target}' ({error.strerror}): set root to a folder that can be "
                "written to",
            ) from error

    def _setup(self, _stage: str | None = None) -> None:
        """Read the images, rendering them first where ``prepare_data`` was not called."""
        self.prepare_data()
        super()._setup(_stage)


@dataclass(frozen=True)
class _Settings:
    """All that the rendered files depend on; see :class:`Phantom` for the meaning and the ranges."""

    kind: str
    image_size: int
    train_images: int
    test_images: int
    seed: int

    def __post_init__(self) -> None:
        """Raise :class:`InputError` where a setting is outside of its range."""
        if self.kind not in _ANATOMIES:
            raise InputError(f"Phantom's kind is '{self.kind}': choose one of {', '.join(_ANATOMIES)}")
        lowest = {"image_size": _MINIMUM_SIDE, "train_images": 1, "test_images": 4, "seed": 0}
        for argument, minimum in lowest.items():
            value = getattr(self, argument)
            if value < minimum:
                raise InputError(f"Phantom's {argument} is {value}: set it to {minimum} or more")

    @property
    def key(self) -> str:
        """Short name of the rendered set, different for different settings."""
        text = json.dumps([FORMAT_VERSION, *vars(self).values()])
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def counts(self) -> dict[str, int]:
        """Number of images by subset folder."""
        lesions = self.test_images // 2
        return dict(zip(SUBSETS, (self.train_images, self.test_images - lesions, lesions), strict=True))


def _render_set(settings: _Settings, target: Path) -> None:
    """Render all images beside ``target``, then move them there in one step.

    An interrupted run therefore leaves no half set, and of two processes that render at once one wins.

    Args:
        settings: What to render.
        target: Folder to make.

    Raises:
        OSError: When a file or folder cannot be written.
    """
    unfinished = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
    try:
        for subset, count in settings.counts.items():
            _write_subset(settings, unfinished, subset, count)
        try:
            unfinished.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster, with the same images
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_subset(settings: _Settings, root: Path, subset: str, count: int) -> None:
    """Write the images of one subset below ``root``, and the masks where there are lesions."""
    with_lesions = subset == "test/lesion"
    folders = [root / subset, root / MASK_FOLDER] if with_lesions else [root / subset]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pictures = render(settings.kind, settings.image_size, settings.seed, subset, index, with_lesions=with_lesions)
        for folder, picture in zip(folders, pictures, strict=False):
            Image.fromarray(picture).save(folder / f"{index:03d}.png", compress_level=1)


def render(
    kind: str,
    image_size: int,
    seed: int,
    subset: str,
    index: int,
    *,
    with_lesions: bool,
) -> tuple[Bytes, Bytes]:
    """Render one image.

    Anatomy, sensor noise and lesions have random numbers of their own, so an image with lesions equals its rendering
    without them outside of the mask.

    Args:
        kind: ``fundus``, ``brain`` or ``chest``.
        image_size: Side in pixels, at least 64.
        seed: Seed of the whole set, 0 or above.
        subset: A key of ``SUBSETS``.
        index: Number of the image in its subset, 0 or above.
        with_lesions: Whether to put lesions in.

    Returns:
        The image, 8-bit RGB of shape (S, S, 3), and the lesion mask of shape (S, S), 255 inside and 0 outside.
    """
    sequence = np.random.SeedSequence([seed, SUBSETS[subset], index])
    anatomy_rng, noise_rng, lesion_rng = (np.random.default_rng(child) for child in sequence.spawn(3))
    anatomy = _ANATOMIES[kind]
    scene = anatomy.draw(anatomy_rng, image_size)
    mask = np.zeros((image_size, image_size), dtype=np.bool_)
    if with_lesions:
        mask = _add_lesions(lesion_rng, scene, anatomy)
    noise = noise_rng.normal(0.0, anatomy.noise, scene.pixels.shape)
    pixels = np.rint(np.clip(scene.pixels + noise, 0.0, 1.0) * 255.0).astype(np.uint8)
    pixels = np.broadcast_to(pixels, (image_size, image_size, 3))
    return np.ascontiguousarray(pixels), mask.astype(np.uint8) * np.uint8(255)


# ---------------------------------------------------------------------------------------------------------------------
# Drawing tools
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class _Scene:
    """A picture without sensor noise.

    Attributes:
        pixels: Values from 0 to 1, of shape (S, S, C) with 3 colours or 1 grey channel.
        tissue: Where lesions may lie, of shape (S, S).
    """

    pixels: Floats
    tissue: Booleans


@dataclass(frozen=True)
class _Anatomy:
    """How a kind of phantom is drawn.

    Attributes:
        draw: Draws the picture without lesions and noise, from random numbers and the side in pixels.
        noise: Standard deviation of the sensor noise.
        bright: What a bright lesion of full contrast adds, for each channel.
        dark: What a dark lesion of full contrast adds, for each channel.
        blood: What bleeding of full contrast adds, for each channel.
    """

    draw: Callable[[Generator, int], _Scene]
    noise: float
    bright: tuple[float, ...]
    dark: tuple[float, ...]
    blood: tuple[float, ...]


def _grid(size: int) -> tuple[Floats, Floats]:
    """Give the x and y coordinate of each pixel's centre, each of shape (S, S)."""
    axis = (np.arange(size) + 0.5) * (2.0 / size) - 1.0
    x, y = np.meshgrid(axis, axis)
    return x, y


def _to_pixels(coordinates: Floats, size: int) -> Floats:
    """Turn coordinates from -1 to 1 into fractional pixel indices."""
    return (coordinates + 1.0) * (size / 2.0) - 0.5


def _step(values: Floats) -> Floats:
    """Rise smoothly from 0 at 0 to 1 at 1."""
    clipped = np.clip(values, 0.0, 1.0)
    return np.asarray(clipped * clipped * (3.0 - 2.0 * clipped))


def _bell(values: npt.NDArray[np.floating[Any]]) -> Floats:
    """Give a Gaussian bell of standard deviation 1 and height 1."""
    return np.asarray(np.exp(-0.5 * values * values), dtype=np.float64)


def _turned(x: Floats, y: Floats, angle: float) -> tuple[Floats, Floats]:
    """Turn coordinates by an angle in radians."""
    return x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)


def _texture(rng: Generator, size: int, scale: float) -> Floats:
    """Make smooth noise of mean 0 and standard deviation 1.

    Args:
        rng: Random numbers.
        size: Side in pixels.
        scale: Standard deviation of the smoothing, as a share of the side.

    Returns:
        The noise, of shape (S, S).
    """
    factor = 2.0 * math.pi * scale * size
    rows, columns = _bell(np.fft.fftfreq(size) * factor), _bell(np.fft.rfftfreq(size) * factor)
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) * rows[:, None] * columns
    field = np.fft.irfft2(spectrum, s=(size, size))
    return np.asarray((field - field.mean()) / field.std())


def _stamp(points: Floats, size: int) -> Floats:
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
    centres = _to_pixels(points[:, :2], size)
    # (N, 2, K) pixel indices around each dot, on a canvas with a margin so that none has to be cut
    window = np.rint(centres).astype(np.intp)[:, :, None] + np.arange(-reach, reach + 1)
    columns, rows = np.moveaxis(_bell((window - centres[:, :, None]) / sigma[:, None]), 1, 0)
    canvas = np.zeros((size + 2 * reach + 1, size + 2 * reach + 1))
    places = (window[:, 1, :, None] + reach, window[:, 0, None, :] + reach)
    np.maximum.at(canvas, places, rows[:, :, None] * columns[:, None, :])
    return canvas[reach : reach + size, reach : reach + size]


# ---------------------------------------------------------------------------------------------------------------------
# Fundus
# ---------------------------------------------------------------------------------------------------------------------


def _draw_fundus(rng: Generator, size: int) -> _Scene:
    """Draw a round orange field with a bright disc, a dark spot and a tree of vessels."""
    x, y = _grid(size)
    radius = rng.uniform(0.88, 0.96)
    from_centre = np.hypot(x - rng.normal(0.0, 0.02), y - rng.normal(0.0, 0.02))
    side = rng.choice([-1.0, 1.0])
    disc_x, disc_y = side * rng.uniform(0.38, 0.58), rng.uniform(-0.15, 0.15)
    disc_radius = rng.uniform(0.12, 0.17)

    pixels = _fundus_ground(rng, x, y, from_centre / radius)
    spot = np.hypot(x - disc_x + side * rng.uniform(0.62, 0.72), y - disc_y - rng.uniform(-0.08, 0.08))
    pixels *= 1.0 - rng.uniform(0.25, 0.45) * _bell(spot / rng.uniform(0.1, 0.15))[..., None]
    from_disc = np.hypot(x - disc_x, (y - disc_y) * rng.uniform(0.85, 1.0)) / disc_radius
    pixels = _add_disc(rng, pixels, from_disc)
    vessels = _stamp(_vessel_tree(rng, disc_x, disc_y, side), size)
    pixels *= 1.0 - rng.uniform(0.7, 1.0) * vessels[..., None] * np.array([0.35, 0.6, 0.5])

    pixels *= _step((radius - from_centre) / 0.05)[..., None]
    return _Scene(pixels, (from_centre < 0.88 * radius) & (from_disc > 1.5))


def _fundus_ground(rng: Generator, x: Floats, y: Floats, relative_radius: Floats) -> Floats:
    """Make the orange-red ground with its uneven light and slow texture, of shape (S, S, 3)."""
    size = len(x)
    colour = np.array([rng.uniform(0.66, 0.8), rng.uniform(0.28, 0.38), rng.uniform(0.1, 0.17)])
    slant = rng.normal(0.0, 0.08) * x + rng.normal(0.0, 0.08) * y
    light = rng.uniform(0.9, 1.1) * (1.0 - rng.uniform(0.25, 0.45) * relative_radius**2) + slant
    slow = 0.06 * _texture(rng, size, 0.12) + 0.025 * _texture(rng, size, 0.02)
    stripes = 0.04 * _texture(rng, size, 0.04)[..., None] * np.array([0.4, 1.0, 1.0])
    return np.asarray(colour * (light * (1.0 + slow))[..., None] * (1.0 + stripes))


def _add_disc(rng: Generator, pixels: Floats, from_disc: Floats) -> Floats:
    """Blend the bright disc with its paler cup; ``from_disc`` is 1 on the disc's rim."""
    disc = _step((1.1 - from_disc) / 0.3)[..., None]
    cup = _step((rng.uniform(0.5, 0.65) - from_disc) / 0.3)[..., None]
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
        Points for :func:`_stamp`.
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


# ---------------------------------------------------------------------------------------------------------------------
# Brain
# ---------------------------------------------------------------------------------------------------------------------


def _draw_brain(rng: Generator, size: int) -> _Scene:
    """Draw a grey slice: bright skin, dark skull, folded rim, white core and two ventricles."""
    x, y = _turned(*_grid(size), rng.normal(0.0, 0.08))
    x, y = x - rng.normal(0.0, 0.015), y - rng.normal(0.0, 0.02)
    angle = np.arctan2(y, x)
    outline = 1.0 + rng.normal(0.0, 0.015) * np.sin(angle) + rng.normal(0.0, 0.005) * np.cos(4.0 * angle)
    radius = np.hypot(x / rng.uniform(0.64, 0.72), y / rng.uniform(0.78, 0.86)) / outline

    ventricles = _ventricles(rng, x, y)
    brain = _brain_tissue(rng, x, y, radius) * (1.0 - rng.uniform(0.75, 0.85) * ventricles)
    inside = _step((1.0 - radius) / 0.04)
    skin = _bell((radius - rng.uniform(1.13, 1.15)) / rng.uniform(0.025, 0.035))
    skull = 0.12 * _bell((radius - 1.06) / 0.03)
    grey = inside * brain + (1.0 - inside) * (0.03 + rng.uniform(0.5, 0.7) * skin + skull)
    bias = 1.0 + rng.normal(0.0, 0.07) * x + rng.normal(0.0, 0.07) * y + 0.04 * _texture(rng, size, 0.25)
    return _Scene((grey * bias)[..., None], (radius < 0.9) & (ventricles < 0.3))


def _brain_tissue(rng: Generator, x: Floats, y: Floats, radius: Floats) -> Floats:
    """Make the values inside the skull, of shape (S, S); ``radius`` is 1 on the brain's rim."""
    size = len(x)
    folds, fine = (_near_symmetric(rng, size, scale) for scale in (0.022, 0.014))
    grey, white = rng.uniform(0.38, 0.46), rng.uniform(0.6, 0.72)
    # a grey rim, and grey ribbons with dark furrows in them along the zero lines of the texture
    outer = _step((radius - 0.5) / 0.35)
    core = _step((rng.uniform(0.88, 0.93) - radius + 0.03 * fine) / 0.1) * (1.0 - 0.85 * outer * _bell(folds / 0.55))
    values = grey + (white - grey) * core + 0.012 * fine
    values *= 1.0 - rng.uniform(0.4, 0.6) * outer * _bell(folds / 0.16)
    gap = _bell(x / 0.014) * _step((np.abs(y) - 0.3) / 0.1)
    return np.asarray(values * (1.0 - 0.65 * gap))


def _near_symmetric(rng: Generator, size: int, scale: float) -> Floats:
    """Make a texture whose left and right halves are mostly alike."""
    even = _texture(rng, size, scale)
    mixed = even + even[:, ::-1] + 0.9 * _texture(rng, size, scale)
    return np.asarray(mixed / mixed.std())


def _ventricles(rng: Generator, x: Floats, y: Floats) -> Floats:
    """Draw two crescents beside the middle, 1 inside and 0 outside, of shape (S, S)."""
    width, height, gap = rng.uniform(0.055, 0.095), rng.uniform(0.22, 0.32), rng.uniform(0.08, 0.11)
    bend, lift = rng.uniform(0.1, 0.8), rng.uniform(-0.08, 0.06)
    both = np.zeros_like(x)
    for side in (-1.0, 1.0):
        own_width, own_height = width * rng.uniform(0.88, 1.12), height * rng.uniform(0.94, 1.06)
        across = side * x - gap - bend * (y - lift) ** 2
        both = np.maximum(both, _step((1.1 - np.hypot(across / own_width, (y - lift) / own_height)) / 0.25))
    return both


# ---------------------------------------------------------------------------------------------------------------------
# Chest
# ---------------------------------------------------------------------------------------------------------------------


def _draw_chest(rng: Generator, size: int) -> _Scene:
    """Draw a grey radiograph: two dark lung fields, ribs, spine and the heart's shadow."""
    x, y = _turned(*_grid(size), rng.normal(0.0, 0.03))
    x, y = x * rng.uniform(0.95, 1.06), y * rng.uniform(0.95, 1.06) - rng.normal(0.0, 0.03)
    lungs = _lungs(rng, x, y)
    grey = rng.uniform(0.62, 0.72) - rng.uniform(0.38, 0.46) * lungs
    grey = grey + 0.035 * _texture(rng, size, 0.15) + 0.02 * lungs * _texture(rng, size, 0.015)
    grey += rng.uniform(0.07, 0.12) * _ribs(rng, x, y)
    heart_x, heart_y = rng.uniform(0.08, 0.14), rng.uniform(0.2, 0.3)
    heart = np.hypot(
        (x - heart_x - 0.25 * (y - heart_y)) / rng.uniform(0.27, 0.33), (y - heart_y) / rng.uniform(0.36, 0.44)
    )
    shadow = rng.uniform(0.8, 0.95) * _step((1.15 - heart) / 0.4)
    grey = grey * (1.0 - shadow) + shadow * np.maximum(grey, rng.uniform(0.6, 0.7))
    bones = 1.0 + 0.25 * np.cos(y * rng.uniform(26.0, 32.0))
    grey += 0.1 * _step((0.11 - np.abs(x)) / 0.05) * bones
    body = _step((rng.uniform(0.93, 0.98) - np.abs(x) + 0.12 * np.minimum(y, 0.0)) / 0.06)
    return _Scene((grey * (0.05 + 0.95 * body))[..., None], (lungs > 0.7) & (heart > 1.2))


def _lungs(rng: Generator, x: Floats, y: Floats) -> Floats:
    """Draw the two lung fields, narrow at the top, 1 inside and 0 outside, of shape (S, S)."""
    both = np.zeros_like(x)
    for side in (-1.0, 1.0):
        across = (side * x - 0.42 - 0.16 * y) / rng.uniform(0.31, 0.35)
        along = (y - 0.02) / rng.uniform(0.76, 0.84)
        across = across / (1.0 - 0.35 * _step((-y - 0.1) / 0.7))
        oval = (np.abs(across) ** 2.4 + np.abs(along) ** 2.6) ** (1.0 / 2.5)
        floor = _step((rng.uniform(0.44, 0.54) + 1.3 * np.maximum(side * x - 0.36, 0.0) ** 2 - y) / 0.07)
        both = np.maximum(both, _step((1.06 - oval) / 0.14) * floor)
    return both


def _ribs(rng: Generator, x: Floats, y: Floats) -> Floats:
    """Draw curved bright bands that fall towards the outside, of shape (S, S)."""
    distance = np.abs(x)
    fall, count, phase = rng.uniform(0.45, 0.6), rng.uniform(4.2, 5.0), rng.uniform(0.0, 2.0 * math.pi)
    wave = np.cos(2.0 * math.pi * count * (y - fall * (distance - 0.3) ** 2 * 2.0 + 0.15 * distance) / 1.6 + phase)
    reach = _step((distance - 0.08) / 0.08) * _step((0.85 - distance) / 0.1) * _step((0.75 - y) / 0.2)
    return _step((wave - 0.2) / 0.7) * reach


_ANATOMIES = {
    "fundus": _Anatomy(_draw_fundus, 0.014, (0.26, 0.34, 0.24), (-0.3, -0.17, -0.07), (-0.34, -0.24, -0.1)),
    "brain": _Anatomy(_draw_brain, 0.022, (0.36,), (-0.36,), (0.42,)),
    "chest": _Anatomy(_draw_chest, 0.016, (0.36,), (-0.2,), (0.36,)),
}


# ---------------------------------------------------------------------------------------------------------------------
# Lesions
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Spot:
    """Where a lesion goes: its centre, its radius (0.06 to 0.24, of a picture 2 wide) and the side in pixels."""

    x: float
    y: float
    radius: float
    size: int

    def distance(self, rng: Generator) -> Floats:
        """Give the distance from the centre, 1 on an irregular outline, of shape (S, S)."""
        x, y = _grid(self.size)
        x, y = _turned(x - self.x, y - self.y, rng.uniform(0.0, math.pi))
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


def _add_lesions(rng: Generator, scene: _Scene, anatomy: _Anatomy) -> Booleans:
    """Put 1 to 3 lesions of one or two families onto the tissue.

    Args:
        rng: Random numbers.
        scene: The picture, changed in place and only inside of the returned mask.
        anatomy: The kind of picture.

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
    strength = _step((1.0 - spot.distance(rng)) / rng.uniform(0.3, 0.9))
    return _Lesion(rng.choice([-1.0, 1.0]) * strength, strength > _FAINTEST)


def _ring(rng: Generator, spot: _Spot) -> _Lesion:
    """Make a bright rim around a darker centre."""
    distance = spot.distance(rng)
    rim = _bell((distance - 0.75) / rng.uniform(0.1, 0.17))
    centre = rng.uniform(0.4, 0.8) * _step((0.7 - distance) / 0.4)
    return _Lesion(rim - centre, distance < 1.0)


def _bleeding(rng: Generator, spot: _Spot) -> _Lesion:
    """Make a cluster of irregular droplets, one of them at the centre."""
    count = int(rng.integers(7, 18))
    droplets = np.column_stack([rng.normal(0.0, 0.45, (count, 2)), rng.uniform(0.07, 0.2, count)]) * spot.radius
    droplets[0] = 0.0, 0.0, 0.3 * spot.radius
    droplets[:, :2] += spot.x, spot.y
    field = _stamp(droplets, spot.size) * (1.0 + 0.3 * _texture(rng, spot.size, 0.012))
    strength = _step((field - 0.25) / 0.3)
    return _Lesion(strength, strength > _FAINTEST)


def _streak(rng: Generator, spot: _Spot) -> _Lesion:
    """Make a thin curved line, bright or dark, that fades towards its ends."""
    along = np.linspace(-1.0, 1.0, 200)
    bend = rng.uniform(-0.5, 0.5) * along**2 + 0.05 * np.sin(along * rng.uniform(4.0, 9.0))
    dx, dy = _turned(1.5 * spot.radius * along, 1.5 * spot.radius * bend, rng.uniform(0.0, 2.0 * math.pi))
    width = rng.uniform(0.012, 0.022) * (1.0 - 0.6 * along**2)
    strength = _stamp(np.column_stack([spot.x + dx, spot.y + dy, width]), spot.size)
    return _Lesion(rng.choice([-1.0, 1.0]) * strength, strength > _FAINTEST)


_FAMILIES = {"blob": _blob, "ring": _ring, "bleeding": _bleeding, "streak": _streak}
