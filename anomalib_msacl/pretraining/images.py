"""Normal images for the pre-training: from any loader, in [0, 1], as often as they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from anomalib_msacl.errors import InputError

_BEYOND = 0.2  # what resizing may add to [0, 1]


class NormalImages:
    """The normal images of a loader, batch by batch; every walk through them begins anew.

    Args:
        loader: Yields batches of anomalib, tensors, or tuples that begin with a tensor; shape ``(B, 3, H, W)``, values
            in [0, 1]. Images that a batch labels abnormal are left out.
        prepare: Brings images to the size that the network takes; None leaves them.
    """

    def __init__(self, loader: Iterable[Any], prepare: Callable[[Tensor], Tensor] | None = None) -> None:
        self.loader = loader
        self._prepare = prepare

    @classmethod
    def of(cls, images: NormalImages | Tensor | Iterable[Any], batch_size: int) -> NormalImages:
        """Return normal images of whatever holds some.

        Args:
            images: Themselves, a tensor of shape ``(N, 3, H, W)``, or a loader.
            batch_size: Images in a batch, for a tensor, which is shuffled for every walk.
        """
        if isinstance(images, NormalImages):
            return images
        if isinstance(images, Tensor):
            size = min(batch_size, len(images))
            return cls(DataLoader(cast("Any", images), batch_size=size, shuffle=True, drop_last=True))
        return cls(images)

    def of_batch(self, batch: Any) -> Tensor:
        """Return the normal images of a batch of the loader, shape ``(N, 3, H, W)``."""
        images = normal_of(batch)
        return self._prepare(images) if self._prepare else images

    def batches(self, number: int, device: torch.device) -> Iterator[Tensor]:
        """Yield batches on a device, so many images at most.

        Raises:
            InputError: If values lie far outside of [0, 1].
        """
        for batch in undisturbed(self.loader):
            images = self.of_batch(batch).to(device)[:number]
            check_range(images)
            yield images
            number -= len(images)
            if number <= 0:
                break

    def collect(self, number: int) -> Tensor | None:
        """Return up to ``number`` images on the CPU, shape ``(N, 3, H, W)``; None if there are none."""
        found = [batch for batch in self.batches(number, torch.device("cpu")) if len(batch)]
        return torch.cat(found) if found else None


def normal_of(batch: Any) -> Tensor:
    """Return the images of a batch that are not labelled abnormal, as a plain tensor ``(N, 3, H, W)``."""
    if isinstance(batch, list | tuple) and not hasattr(batch, "image"):
        batch = batch[0]
    if isinstance(batch, Tensor):
        return batch.as_subclass(Tensor)
    images = cast("Tensor", batch.image).as_subclass(Tensor)
    return images if batch.gt_label is None else images[batch.gt_label == 0]


def undisturbed(loader: Any) -> Any:
    """Return a loader whose iteration does not disturb one under way: persistent workers serve one at a time."""
    if not getattr(loader, "persistent_workers", False) or loader.batch_sampler is None:
        return loader or ()
    return DataLoader(
        loader.dataset,
        batch_sampler=loader.batch_sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )


def check_range(images: Tensor) -> None:
    """Refuse images that were normalised before they came here, or hold values that are not finite.

    Raises:
        InputError: If values lie far outside of [0, 1].
    """
    low, high = (float(limit) for limit in images.float().aminmax()) if images.numel() else (0.0, 1.0)
    if not -_BEYOND <= low <= high <= 1 + _BEYOND:
        raise InputError(
            f"MSACL: the training images have values from {low:.3g} to {high:.3g}, but lesions are made on [0, 1]; "
            "take Normalize, and what else leaves [0, 1], out of the augmentations and transforms. The pre_processor "
            "of a detector may have a Normalize of torchvision.transforms.v2."
        )
