"""Checks of the images that a datamodule is about to hand to a training run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import LabelName
from anomalib.data.utils.synthetic import SyntheticAnomalyDataset
from lightning.pytorch import Trainer

from anomalib_msacl.data.depth import warn_of_lost_bits
from anomalib_msacl.data.inspection import Inspection, check_usable, inspect_each
from anomalib_msacl.data.looks import look_at_images
from anomalib_msacl.data.masks import check_masks, inspect_mask
from anomalib_msacl.data.samples import inspected_files
from anomalib_msacl.errors import InputError, name_some
from anomalib_msacl.lesions import LesionMixture

logger = logging.getLogger(__name__)

_SUBSETS = ("train_data", "val_data", "test_data")
_MAX_THREADS = 8
_SAME_SHAPE = 0.02


def check_datamodule(
    datamodule: AnomalibDataModule,
    minimum_train_images: int = 4,
    minimum_side: int = 24,  # smaller ones hold lesions of a pixel, however far they are enlarged
    seen: Path | None = None,
) -> dict[str, str]:
    """Check every image, and every mask of an abnormal image, of a datamodule that has been set up.

    Each distinct file of the training, validation and test sets is read and fully decoded once; what a datamodule of
    medical files has found out about them is taken over. Subsets that do not exist, and sample tables without labels
    or masks, are passed over. Warnings name files of more than 8 bits or of several images, of which anomalib itself
    would lose a part, images of one value throughout, and test images that are training images, byte for byte.

    Args:
        datamodule: The datamodule, after ``setup()``.
        minimum_train_images: Smallest number of training images accepted, at least 1.
        minimum_side: Smallest length of an image's shorter side accepted, in pixels.
        seen: A file that keeps what was found in the images, by path, size and times, so that a later call reads only
            those that are new or have changed; None keeps nothing.

    Returns:
        The training images: path of the image to the SHA-256 hex digest of the file's bytes, and of how they are
        read where a reader of this package does it.

    Raises:
        InputError: On the first of these that holds, naming the files: the size of a batch, or the number of workers,
            is none; the training augmentations put lesions into the images, which would then not be normal; there are
            no or too few training images; a
            training image is labelled abnormal; a file cannot be decoded; an image is too small; all training images
            are of one value throughout; a mask of an abnormal image is broken, empty, of another shape, or has no
            background; a training image is, byte for byte, also an abnormal image of the validation or test set.
    """
    _check_loading(datamodule)
    _check_augmentations(datamodule)
    train = image_paths(datamodule, "train_data")
    _check_train_count(datamodule.name, len(train), minimum_train_images)
    _check_train_labels(image_paths(datamodule, "train_data", only_abnormal=True))

    known = _known(datamodule)
    paths = [path for subset in _SUBSETS for path in image_paths(datamodule, subset) if path not in known]
    looked_at = look_at_images(paths, _MAX_THREADS, seen)
    found = known | looked_at
    check_usable({path: result.problem for path, result in found.items()})
    warn_of_lost_bits([path for path, result in found.items() if result.bits > 8])
    _warn_of_lost_images([path for path, result in found.items() if result.images > 1])
    _check_sides(found, minimum_side)
    _check_blank(found, train)
    _check_masks(datamodule, looked_at)
    _check_copies(datamodule, found, train)
    return {path: found[path].sha256 for path in train}


def _check_loading(datamodule: AnomalibDataModule) -> None:
    """Refuse numbers that no loader of images takes."""
    for name, lowest in (("train_batch_size", 1), ("eval_batch_size", 1), ("num_workers", 0)):
        value = getattr(datamodule, name, lowest)
        if not isinstance(value, int) or value < lowest:
            raise InputError(f"{name} of the datamodule {datamodule.name} is {value!r}: set it to {lowest} or more")


def _check_augmentations(datamodule: AnomalibDataModule) -> None:
    """Refuse augmentations with lesions: pre-training draws its own, and takes the images for normal."""
    found = next((part for part in _parts(datamodule.train_augmentations) if isinstance(part, LesionMixture)), None)
    if found is not None:
        raise InputError(
            f"train_augmentations of the datamodule {datamodule.name} has {type(found).__name__}, but the pre-training "
            "takes training images for normal and puts lesions into them itself; leave one of the two out."
        )


def _parts(transform: Any) -> Iterator[Any]:
    """Yield the steps of a transform, however deep they are nested."""
    yield transform
    for part in getattr(transform, "transforms", ()):
        yield from _parts(part)


def check_validation(datamodule: AnomalibDataModule, trainer: Trainer) -> None:
    """Check that there is a validation set, without which anomalib fails when it fits.

    Args:
        datamodule: The datamodule, after ``setup()``.
        trainer: The trainer that will fit; it may do without validation.

    Raises:
        InputError: If there is none, and the trainer validates.
    """
    if trainer.limit_val_batches != 0 and not hasattr(datamodule, "val_data"):
        raise InputError(
            f"the datamodule {datamodule.name} has no validation images, which anomalib asks for; set its "
            "val_split_mode to from_train, from_test or synthetic, or trainer.limit_val_batches to 0."
        )


def warn_of_shared_images(datamodule: AnomalibDataModule, model: str, purpose: str) -> None:
    """Warn where validation and test share images.

    Args:
        datamodule: The datamodule, after ``setup()``.
        model: Its name, for the message.
        purpose: What the validation images are used for.
    """
    if not set(image_paths(datamodule, "val_data")).isdisjoint(image_paths(datamodule, "test_data")):
        logger.warning(
            "%s: validation and test share images, and %s; set val_split_mode to from_train.", model, purpose
        )


def image_paths(datamodule: AnomalibDataModule, subset: str, only_abnormal: bool = False) -> list[str]:
    """List the distinct image paths of a subset, none where the subset or the asked-for label is missing.

    Raises:
        InputError: If the subset has images but does not name their files.
    """
    samples = _samples(datamodule, subset)
    if samples is None:
        return []
    samples = _abnormal(samples) if only_abnormal else samples
    return list(dict.fromkeys(str(path) for path in samples["image_path"]))


def _samples(datamodule: AnomalibDataModule, subset: str) -> pd.DataFrame | None:
    """Return the sample table of a subset, None where there is none or it is empty."""
    samples: pd.DataFrame | None = getattr(getattr(datamodule, subset, None), "samples", None)
    if samples is None or not len(samples):
        return None
    if "image_path" not in samples:
        raise InputError(
            f"the datamodule '{datamodule.name}' names no image files in {subset}: use one that reads files"
        )
    return samples


def _abnormal(samples: pd.DataFrame) -> pd.DataFrame:
    """Return the rows labelled abnormal, none where there are no labels."""
    if "label_index" not in samples:
        return samples.iloc[:0]
    # isin, unlike ==, takes a missing label for "not abnormal"
    return samples[samples["label_index"].isin([int(LabelName.ABNORMAL)])]


def _known(datamodule: AnomalibDataModule) -> dict[str, Inspection]:
    """Return what the sample tables say of their files; those of anomalib's own datasets say nothing."""
    tables = [samples for subset in _SUBSETS if (samples := _samples(datamodule, subset)) is not None]
    return {
        path: Inspection(digest, (side, side))
        for samples in tables
        for path, (digest, side) in inspected_files(samples).items()
    }


def _check_train_count(name: str, count: int, minimum: int) -> None:
    """Raise :class:`InputError` where there are no or too few training images."""
    if count == 0:
        raise InputError(
            f"the datamodule '{name}' has no training images: call its setup() and point its folder of normal images "
            "to at least one image",
        )
    if count < minimum:
        raise InputError(
            f"the datamodule '{name}' has only {count} of the {minimum} training images that are needed: add normal "
            "images to its training folder",
        )


def _check_train_labels(abnormal: Sequence[str]) -> None:
    """Raise :class:`InputError` where the training set has images that are labelled abnormal."""
    if abnormal:
        raise InputError(
            f"the training set holds images labelled abnormal, but may hold normal ones only: move "
            f"{name_some(abnormal)} to the folder of abnormal images",
        )


def _warn_of_lost_images(paths: Sequence[str]) -> None:
    """Warn of files with several pages or frames."""
    if paths:
        logger.warning(
            "%d files hold several images, of which anomalib reads the first: %s; save each image as a file of its "
            "own if the others count.",
            *(len(paths), name_some(paths)),
        )


def _check_sides(found: Mapping[str, Inspection], minimum: int) -> None:
    """Raise :class:`InputError` where an image's shorter side is below ``minimum`` pixels."""
    small = [f"{path} ({result.side} pixels)" for path, result in found.items() if result.side < minimum]
    if small:
        raise InputError(
            f"the shorter side of an image must have at least {minimum} pixels, which does not hold for "
            f"{name_some(small)}: remove them or give larger ones",
        )


def _check_blank(found: Mapping[str, Inspection], train: Sequence[str]) -> None:
    """Raise :class:`InputError` where all training images are of one value throughout, and warn of others."""
    blank = [path for path, result in found.items() if result.constant]
    if all(found[path].constant for path in train):
        raise InputError(
            f"all {len(train)} training images are of one value throughout, as black ones are, {name_some(train)}: "
            "give images that show something"
        )
    if blank:
        logger.warning("%d images are of one value throughout, as black ones are: %s", len(blank), name_some(blank))


def _check_masks(datamodule: AnomalibDataModule, found: Mapping[str, Inspection]) -> None:
    """Raise :class:`InputError` where masks do not fit the abnormal images that anomalib itself reads."""
    pairs: dict[str, str] = {}
    for subset in _SUBSETS[1:]:
        samples = _samples(datamodule, subset)
        drawn = isinstance(getattr(datamodule, subset, None), SyntheticAnomalyDataset)  # may draw empty masks
        if samples is not None and "mask_path" in samples and not drawn:
            rows = _abnormal(samples)
            pairs |= {
                str(mask): str(path)
                for path, mask in zip(rows["image_path"], rows["mask_path"], strict=True)
                if isinstance(mask, str) and mask and path in found
            }
    masks = inspect_each(inspect_mask, pairs, _MAX_THREADS)
    # anomalib brings both to one size, so that only the shape counts
    sizes = {mask: _alike(masks[mask].size, found[path].size) for mask, path in pairs.items()}
    check_masks([(mask, masks[mask], sizes[mask]) for mask in pairs])


def _alike(mask: tuple[int, int], image: tuple[int, int]) -> tuple[int, int]:
    """Return the size of a mask where its shape is that of the image, up to rounding, else the size of the image."""
    ratio = (mask[0] * image[1]) / max(1, mask[1] * image[0])
    return mask if abs(ratio - 1) <= _SAME_SHAPE else image


def _check_copies(datamodule: AnomalibDataModule, found: Mapping[str, Inspection], train: Sequence[str]) -> None:
    """Refuse training files that equal an abnormal one of the other subsets, and warn of those that equal any."""
    abnormal = [path for subset in _SUBSETS[1:] for path in image_paths(datamodule, subset, only_abnormal=True)]
    original = {found[path].sha256: path for path in abnormal}
    copies = [f"{path} (same as {original[found[path].sha256]})" for path in train if found[path].sha256 in original]
    if copies:
        raise InputError(
            f"the training set holds abnormal images of the validation or test set: remove {name_some(copies)} from "
            "the training folder",
        )
    trained = {found[path].sha256: path for path in train}
    tested = [path for path in image_paths(datamodule, "test_data") if found[path].sha256 in trained]
    if tested:
        words = [f"{path} (same as {trained[found[path].sha256]})" for path in tested]
        logger.warning(
            "%d test images are training images byte for byte, which makes the figures better than they are: %s",
            *(len(words), name_some(words)),
        )
