"""Rendering of phantom images, one at a time or a whole set."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from anomalib_msacl.errors import InputError
from anomalib_msacl.phantom.brain import BRAIN
from anomalib_msacl.phantom.chest import CHEST
from anomalib_msacl.phantom.fundus import FUNDUS
from anomalib_msacl.phantom.lesions import add_lesions
from anomalib_msacl.phantom.scene import Bytes

# Raise this by one with every change that alters a rendered pixel: it is part of the cache key.
FORMAT_VERSION = 1
# Folder of each subset, and the code that keeps its random numbers apart from those of the others.
SUBSETS = {"train/good": 0, "test/good": 1, "test/lesion": 2}
MASK_FOLDER = "ground_truth/lesion"
ANATOMIES = {"fundus": FUNDUS, "brain": BRAIN, "chest": CHEST}
_MINIMUM_SIDE = 64


@dataclass(frozen=True)
class Settings:
    """All that the rendered files depend on; see :class:`anomalib_msacl.phantom.Phantom` for the ranges."""

    kind: str
    image_size: int
    train_images: int
    test_images: int
    seed: int

    def __post_init__(self) -> None:
        """Raise :class:`InputError` where a setting is outside of its range."""
        if self.kind not in ANATOMIES:
            raise InputError(f"Phantom's kind is '{self.kind}': choose one of {', '.join(ANATOMIES)}")
        lowest = {"image_size": _MINIMUM_SIDE, "train_images": 1, "test_images": 4, "seed": 0}
        for argument, minimum in lowest.items():
            value = getattr(self, argument)
            if not isinstance(value, int) or value < minimum:
                raise InputError(f"Phantom's {argument} is {value!r}: set it to {minimum} or more")

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


def render_set(settings: Settings, target: Path) -> None:
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


def _write_subset(settings: Settings, root: Path, subset: str, count: int) -> None:
    """Write the images of one subset below ``root``, and the masks where there are lesions."""
    with_lesions = subset == "test/lesion"
    folders = [root / subset, root / MASK_FOLDER] if with_lesions else [root / subset]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        rendered = render(settings.kind, settings.image_size, settings.seed, subset, index, with_lesions=with_lesions)
        for folder, pixels in zip(folders, rendered, strict=False):
            Image.fromarray(pixels).save(folder / f"{index:03d}.png", compress_level=1)


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
    anatomy = ANATOMIES[kind]
    scene = anatomy.draw(anatomy_rng, image_size)
    mask = np.zeros((image_size, image_size), dtype=np.bool_)
    if with_lesions:
        mask = add_lesions(lesion_rng, scene, anatomy)
    noise = noise_rng.normal(0.0, anatomy.noise, scene.pixels.shape)
    pixels = np.rint(np.clip(scene.pixels + noise, 0.0, 1.0) * 255.0).astype(np.uint8)
    pixels = np.broadcast_to(pixels, (image_size, image_size, 3))
    return np.ascontiguousarray(pixels), mask.astype(np.uint8) * np.uint8(255)
