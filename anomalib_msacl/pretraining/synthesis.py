"""The augmentation distributions ``A_0 ... A_{|A|-1}``: weak views of normal images with 0, 1, 2 ... lesions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from anomalib_msacl.pretraining.views import WeakView
from anomalib_msacl.recipe import Recipe


class SyntheticBatch(NamedTuple):
    """Images of all classes.

    Attributes:
        images: Values in [0, 1], shape ``(B, 3, H, W)``.
        masks: Lesion masks, shape ``(B, 1, H, W)``.
        classes: Number of lesions ``n`` of each image, shape ``(B,)``.
        owners: Which of the original images each was made from, shape ``(B,)``.
    """

    images: Tensor
    masks: Tensor
    classes: Tensor
    owners: Tensor


class Synthesis:
    """Makes the images of all classes.

    Args:
        recipe: Its classes, views and lesions are used.

    Raises:
        InputError: If a family of lesions does not exist, or a setting is out of range.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.classes = recipe.classes
        self.view = WeakView(recipe.view)
        self.lesions = recipe.lesions.mixture()

    def __call__(self, images: Tensor, views: int = 1) -> SyntheticBatch:
        """Return every view of every image once with 0, 1, 2 ... lesions.

        Args:
            images: Normal images in [0, 1], shape ``(B, 3, H, W)``.
            views: Weak views of each.

        Returns:
            ``B * views * classes`` images; those of one view stand side by side.
        """
        owners = torch.arange(len(images), device=images.device).repeat(views)
        weak = self.view(images.repeat(views, 1, 1, 1))
        counts = torch.arange(self.classes, device=images.device).expand(len(weak), self.classes)
        output = self.lesions.synthesize(weak, counts)
        return SyntheticBatch(output.image, output.mask, output.count, owners.repeat_interleave(self.classes))

    def with_lesions(self, images: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Return copies of images with 1, 2 ... lesions in turn, the same for the same seed.

        Args:
            images: Values in [0, 1], shape ``(B, 3, H, W)``.
            seed: Seed of the lesions.

        Returns:
            Images of the same shape, and masks of shape ``(B, 1, H, W)``.
        """
        counts = torch.arange(len(images)) % (self.classes - 1) + 1
        output = self.lesions.synthesize(images, counts, torch.Generator().manual_seed(seed))
        return output.image, output.mask
