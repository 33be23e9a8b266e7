"""Exports that see what the tested model saw: the antialiasing of ``Resize`` stays on.

anomalib switches it off in whatever it exports, while ``test`` and ``predict`` use it. torch can write an antialiased
``Resize`` to ONNX, but OpenVINO reads it as a plain one without a word. Here resizing is two matrix products, whose
weights the network computes from the size of the image: exact, of any size, and of the commonest operations only.

Example:
    >>> from anomalib.engine import Engine
    >>> from anomalib_msacl.export import antialiased_exports
    >>> with antialiased_exports():  # doctest: +SKIP
    ...     Engine().export(model, "openvino", export_root="exported", ckpt_path="model.ckpt")
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import CenterCrop, Compose, Resize, Transform

from anomalib_msacl.checkpoints import restore_tiling
from anomalib_msacl.compat import exporting_with, without_antialiasing
from anomalib_msacl.errors import InputError

# All that torchvision takes for a mode, the last of them from Pillow. Antialiasing changes no other mode.
_BILINEAR = (InterpolationMode.BILINEAR, InterpolationMode.BILINEAR.value, 2)
_BICUBIC = (InterpolationMode.BICUBIC, InterpolationMode.BICUBIC.value, 3)


@contextmanager
def antialiased_exports() -> Iterator[None]:
    """Let anomalib export with the antialiasing of the tested model, and undo it at the end of the block.

    It counts for ``Engine.export``, the methods ``to_torch``, ``to_onnx`` and ``to_openvino`` of any model, and
    anomalib's command line, called within the block. What is exported needs neither this package nor a special
    operator. Models whose pre-processor does not resize, or does so without antialiasing, are exported as always.

    Beside ``model.xml`` or ``model.onnx`` it leaves ``model.bundle.json``
    (:class:`anomalib_msacl.screening.bundle.Bundle`), which says how images are read and where the threshold comes
    from. Load checkpoints within the block too: what they know beside the model is lost otherwise.
    """
    from anomalib_msacl.screening.describe import Record, describe  # noqa: PLC0415  # brings all models along

    known: weakref.WeakKeyDictionary[Any, Record] = weakref.WeakKeyDictionary()

    def loaded(model: Any, checkpoint: dict[str, Any]) -> None:
        known[model] = Record.of_checkpoint(checkpoint)
        restore_tiling(model, checkpoint)

    def written(model: Any, file: Path) -> None:
        describe(model, known.get(model) or Record.of_trainer(model)).write(file)

    with exporting_with(exportable, loaded, written):
        yield


def exportable(transform: Transform) -> Transform:
    """Return a copy of a transform that can be exported and keeps its antialiasing.

    Args:
        transform: For example the transform of a ``PreProcessor``.

    Returns:
        The copy, in which each antialiased ``Resize`` is an :class:`AntialiasedResize`, together with a ``CenterCrop``
        behind it where it keeps the shape of the image: torch exports most networks for images of a known size only.
        The rest is as anomalib exports it.

    Raises:
        InputError: If a ``Resize`` cannot be exported as it is.
    """
    exported: Transform = without_antialiasing(_replaced(copy.deepcopy(transform)))
    return exported


def _replaced(transform: Transform) -> Transform:
    """Replace every antialiased ``Resize``, in place where it is part of a ``Compose``."""
    if isinstance(transform, Compose):
        steps: list[Transform] = []
        for step in map(_replaced, transform.transforms):
            resize = steps[-1] if steps else None
            if isinstance(resize, AntialiasedResize) and isinstance(step, CenterCrop) and resize.can_crop(step.size):
                steps[-1] = AntialiasedResize(resize.size, resize.cubic, step.size)
            else:
                steps.append(step)
        transform.transforms = steps
    elif isinstance(transform, Resize) and transform.antialias:
        if transform.max_size is not None:
            raise InputError(f"{transform} cannot be exported with antialiasing; give size alone, without max_size.")
        if transform.interpolation in {*_BILINEAR, *_BICUBIC}:
            return AntialiasedResize(transform.size, cubic=transform.interpolation in _BICUBIC)
    return transform


class AntialiasedResize(Transform):  # type: ignore[misc]  # torchvision has no types
    """Torchvision's ``Resize(size, antialias=True)`` as two matrix products, which any exporter and runtime knows.

    Args:
        size: Height and width in pixels; one number is the shorter side, and the other keeps the shape of the image.
        cubic: Bicubic interpolation, not bilinear.
        crop: Height and width of the part in the middle, the one of torchvision's ``CenterCrop``, which alone is
            computed; all of it if None.

    Raises:
        InputError: If there are more than two numbers, one is not positive, or the part is larger than the whole.

    Example:
        >>> AntialiasedResize([4, 6])(torch.rand(2, 3, 9, 8)).shape
        torch.Size([2, 3, 4, 6])
        >>> AntialiasedResize(4)(torch.rand(2, 3, 9, 8)).shape
        torch.Size([2, 3, 4, 4])
        >>> AntialiasedResize(4, crop=(3, 2))(torch.rand(2, 3, 9, 8)).shape
        torch.Size([2, 3, 3, 2])
    """

    def __init__(self, size: int | Sequence[int], cubic: bool = False, crop: Sequence[int] | None = None) -> None:
        super().__init__()
        self.cubic = cubic
        self.size = (size,) if isinstance(size, int) else tuple(size)
        if len(self.size) not in {1, 2} or min(self.size) < 1:
            raise InputError(f"size is {size}; give height and width, or the shorter side, in pixels.")
        self.crop = None if crop is None else tuple(crop)
        if self.crop is not None and not self._holds(self.crop):
            raise InputError(f"crop is {crop}, and size {size}; give a height and a width within it, in pixels.")

    def _holds(self, crop: Sequence[int]) -> bool:
        """Say whether a part lies within the resized image, whatever the shape of the image."""
        sides = self.size if len(self.size) == 2 else self.size * 2
        return len(crop) == 2 and all(1 <= part <= side for part, side in zip(crop, sides, strict=True))

    def can_crop(self, crop: Sequence[int]) -> bool:
        """Say whether a crop behind this step can be a part of it, and whether the size is known only then.

        Args:
            crop: Height and width in pixels.
        """
        return len(self.size) == 1 and self.crop is None and self._holds(crop)

    def forward(self, image: Tensor) -> Tensor:
        """Resize images.

        Args:
            image: Of shape (..., H, W), of a floating-point type.

        Returns:
            The images, of shape (..., h, w) and the same type.
        """
        sides = image.shape[-2:]
        resized = self.size if len(self.size) == 2 else self._by_shorter_side(*sides)
        down, across = (
            resize_weights(old, new, self.cubic, part).to(image)
            for old, new, part in zip(sides, resized, self.crop or (None, None), strict=True)
        )
        return down @ image @ across.T

    def _by_shorter_side(self, height: int, width: int) -> tuple[Any, Any]:
        """Return the new size; without a branch, for height and width may be symbols of an export."""
        shorter = torch.sym_min(height, width)
        return self.size[0] * height // shorter, self.size[0] * width // shorter

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        crop = f", crop={list(self.crop)}" if self.crop else ""
        return f"size={list(self.size)}, cubic={self.cubic}{crop}"


def resize_weights(old: int, new: int, cubic: bool = False, crop: int | None = None) -> Tensor:
    """Return the weights of antialiased interpolation along one side.

    A new pixel is the mean of the old ones, weighted by their distance to its centre, in old pixels or in new ones,
    whichever are larger: linearly up to a distance of 1, or by Keys' cubic convolution (1981, a = -1/2) up to 2.
    Before the division distances are whole numbers, of which none is rounded.

    Args:
        old: Pixels of the old side.
        new: Pixels of the new side.
        cubic: Cubic, not linear.
        crop: So many of the new pixels, from the middle; all of them if None.

    Returns:
        Weights of shape (new, old) or (crop, old), whose rows add up to 1.

    Example:
        >>> resize_weights(4, 2)
        tensor([[0.4286, 0.4286, 0.1429, 0.0000],
                [0.0000, 0.1429, 0.4286, 0.4286]])
    """
    there = torch.arange(new)[:, None] if crop is None else torch.arange(crop)[:, None] + _first(new - crop)
    units = ((2 * torch.arange(old) + 1) * new - (2 * there + 1) * old).abs()  # of half an old pixel over `new`
    pixel: Any = 2 * torch.sym_max(old, new)
    limited = units.clamp(max=2 * pixel).float()  # for runtimes of half precision
    x = limited.div(pixel)
    if cubic:
        near, far = ((1.5 * x - 2.5) * x) * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
        weights = torch.where(x < 1, near, far)
    else:
        weights = (1 - x).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)


def _first(cut: int) -> int:
    """Return how many of the pixels that a crop cuts off come before it: half of them, rounded as Python does."""
    half = cut // 2
    return half + (cut % 2) * (half % 2)  # `round` cannot be exported
