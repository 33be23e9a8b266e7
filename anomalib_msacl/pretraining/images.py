"""Normal images for the pre-training: from any loader, in [0, 1], as often as they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from anomalib_msacl import distributed
from anomalib_msacl.errors import InputError
from anomalib_msacl.pretraining.loading import SharedLoader, with_batches

_RANK = 4  # of a batch of images
_BEYOND = 0.2  # what resizing may add to [0, 1]


class NormalImages:
    """The normal images of a loader, batch by batch; every walk through them begins anew.

    Args:
        loader: Yields batches of anomalib, tensors, or tuples that begin with a tensor; shape ``(B, 3, H, W)``, values
            in [0, 1]. Images that a batch labels abnormal are left out.
        prepare: Brings images to the size that the network takes; None leaves them.

    Attributes:
        size: Height and width of the images of the last batch, as the network takes them; None before the first.
    """

    def __init__(self, loader: Iterable[Any], prepare: Callable[[Tensor], Tensor] | None = None) -> None:
        self.loader = loader
        self.size: tuple[int, ...] | None = None
        self._prepare = prepare

    @property
    def whole(self) -> Iterable[Any]:
        """The loader of the images of all processes."""
        return self.loader.whole if isinstance(self.loader, SharedLoader) else self.loader

    def shared(self) -> Iterable[Any]:
        """Return a loader of the images of this process, whose state a checkpoint can keep."""
        loader: Any = self.loader
        divisible = isinstance(loader, DataLoader) and loader.batch_sampler is not None
        return SharedLoader(loader) if divisible or distributed.world_size() > 1 else loader

    @classmethod
    def of(cls, images: NormalImages | Tensor | Iterable[Any], batch_size: int) -> NormalImages:
        """Return normal images of whatever holds some.

        Args:
            images: Themselves, a tensor of shape ``(N, 3, H, W)``, or a loader or a list of batches.
            batch_size: Images in a batch, for a tensor, which is shuffled for every walk.

        Raises:
            InputError: If it holds none.
        """
        if isinstance(images, NormalImages):
            return images
        if isinstance(images, Tensor):
            if images.ndim != _RANK or not len(images):
                raise InputError(
                    f"images are a tensor of shape {tuple(images.shape)}, but must have the shape (N, 3, H, W) with at "
                    "least one image."
                )
            size = min(batch_size, len(images))
            return cls(DataLoader(cast("Any", images), batch_size=size, shuffle=True, drop_last=True))
        if not isinstance(images, Iterable):
            raise InputError(
                f"images are {images!r}, but must be a tensor of shape (N, 3, H, W), or a loader or list of such."
            )
        if isinstance(images, Iterator) or _holds_nothing(images):
            kind = f"a {type(images).__name__}, which ends" if isinstance(images, Iterator) else "a loader of nothing"
            raise InputError(f"images are {kind}, but must be a loader or a list: they are walked through many times.")
        if isinstance(images, list | tuple):  # Lightning would take the batches for several loaders
            return cls(DataLoader(cast("Any", images), batch_size=None, collate_fn=_as_it_is))
        return cls(images)

    def of_batch(self, batch: Any) -> Tensor:
        """Return the normal images of a batch of the loader, shape ``(N, 3, H, W)``."""
        images = normal_of(batch)
        images = self._prepare(images) if self._prepare else images
        self.size = tuple(images.shape[-2:])
        return images

    def batches(self, number: int, device: torch.device) -> Iterator[Tensor]:
        """Yield batches on a device, so many images at most; with several processes each yields images of its own.

        Raises:
            InputError: If values lie far outside of [0, 1].
        """
        loader = undisturbed(self.whole)
        yield from self._first(SharedLoader(loader) if distributed.world_size() > 1 else loader, number, device)

    def collect(self, number: int) -> Tensor | None:
        """Return up to ``number`` images of all processes on the CPU, ``(N, 3, H, W)``; None if there are none."""
        found = list(self._first(undisturbed(self.whole), number, torch.device("cpu")))
        sizes = sorted({f"{each.shape[-2]} x {each.shape[-1]}" for each in found})
        if len(sizes) > 1:
            raise InputError(f"MSACL: the images have {' and '.join(sizes[:2])} pixels; bring them to one size.")
        return torch.cat(found) if found else None

    def _first(self, loader: Iterable[Any], number: int, device: torch.device) -> Iterator[Tensor]:
        """Yield the first images of a loader, batch by batch; of a shared one the share of this process in them."""
        processes = distributed.world_size() if isinstance(loader, SharedLoader) else 1
        for batch in loader:
            size = min(number, loader.size) if isinstance(loader, SharedLoader) else number
            own = len(range(distributed.rank() if processes > 1 else 0, size, processes))
            images = self.of_batch(batch).to(device)[:own]
            check_range(images)
            if len(images):
                yield images
            number -= loader.size if isinstance(loader, SharedLoader) else len(images)
            if number <= 0:
                break


def _as_it_is(batch: Any) -> Any:
    """Return a batch of a list; a function of its own, because workers cannot be sent a lambda."""
    return batch


def _holds_nothing(loader: Any) -> bool:
    """Whether a loader says that it has no batch; one of a stream does not know."""
    try:
        return len(loader) == 0
    except TypeError:
        return False


def normal_of(batch: Any) -> Tensor:
    """Return the images of a batch that are not labelled abnormal, as a plain tensor ``(N, 3, H, W)``.

    Raises:
        InputError: If the batch holds no images.
    """
    if isinstance(batch, list | tuple) and batch and not hasattr(batch, "image"):
        batch = batch[0]
    if isinstance(batch, Tensor):
        return batch.as_subclass(Tensor)
    if not isinstance(getattr(batch, "image", None), Tensor):
        raise InputError(
            f"a loader yields batches of {type(batch).__name__}, but the pre-training needs tensors of shape "
            "(N, 3, H, W), or batches of anomalib."
        )
    images = cast("Tensor", batch.image).as_subclass(Tensor)
    return images if batch.gt_label is None else images[batch.gt_label == 0]


def undisturbed(loader: Any) -> Any:
    """Return a loader whose iteration does not disturb one under way: persistent workers serve one at a time."""
    if not getattr(loader, "persistent_workers", False) or loader.batch_sampler is None:
        return loader or ()
    return with_batches(loader, loader.batch_sampler, persistent=False)


def check_range(images: Tensor) -> None:
    """Refuse images that were normalised before they came here, or hold values that are not finite.

    Raises:
        InputError: If values lie far outside of [0, 1], or cannot be fractions.
    """
    if images.ndim != _RANK or images.shape[1] not in {1, 3}:
        raise InputError(f"MSACL: batches of training images are of shape {tuple(images.shape)}, not (N, 3, H, W).")
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise InputError(f"MSACL: the training images are of {kind}, but must be float32 in [0, 1]; convert them.")
    low, high = (float(limit) for limit in images.float().aminmax()) if images.numel() else (0.0, 1.0)
    if not -_BEYOND <= low <= high <= 1 + _BEYOND:
        raise InputError(
            f"MSACL: the training images have values from {low:.3g} to {high:.3g}, but lesions are made on [0, 1]; "
            "take Normalize, and what else leaves [0, 1], out of the augmentations and transforms. The pre_processor "
            "of a detector may have a Normalize of torchvision.transforms.v2."
        )
