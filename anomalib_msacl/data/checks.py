"""Checks of the images that a datamodule is about to hand to a training run."""

import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from anomalib.data import AnomalibDataModule
from anomalib.data.utils import LabelName
from lightning.pytorch import Trainer
from PIL import Image, UnidentifiedImageError

from anomalib_msacl.data.raster import sample_bits, warn_of_lost_bits
from anomalib_msacl.errors import InputError, name_some

_MAX_THREADS = 8


@dataclass(frozen=True)
class _Inspection:
    """What one look at an image file gave.

    Attributes:
        sha256: Hex digest of the file's bytes, empty where the file cannot be read.
        side: Length of the shorter side in pixels, 0 where the image cannot be decoded.
        problem: Why the image cannot be decoded, empty where it can.
        bits: Bits of a sample.
    """

    sha256: str = ""
    side: int = 0
    problem: str = ""
    bits: int = 8


def check_datamodule(
    datamodule: AnomalibDataModule,
    minimum_train_images: int = 4,
    minimum_side: int = 24,  # smaller ones hold lesions of a pixel, however far they are enlarged
) -> dict[str, str]:
    """Check every image of a datamodule that has been set up.

    Each distinct file of the training, validation and test sets is read and fully decoded once; what a datamodule of
    medical files has found out about them is taken over. Subsets that do not exist, and sample tables without labels,
    are passed over. A warning names files of more than 8 bits that anomalib itself would read.

    Args:
        datamodule: The datamodule, after ``setup()``.
        minimum_train_images: Smallest number of training images accepted, at least 1.
        minimum_side: Smallest length of an image's shorter side accepted, in pixels.

    Returns:
        The training images: path of the image to the SHA-256 hex digest of the file's bytes, and of how they are
        read where a reader of this package does it.

    Raises:
        InputError: On the first of these that holds, naming the files: there are no or too few training images; a
            training image is labelled abnormal; a file cannot be decoded; an image is too small; a training image
            is, byte for byte, also an abnormal image of the validation or test set.
    """
    train = image_paths(datamodule, "train_data")
    _check_train_count(datamodule.name, len(train), minimum_train_images)
    _check_train_labels(image_paths(datamodule, "train_data", only_abnormal=True))

    subsets = ("train_data", "val_data", "test_data")
    known = {path: seen for subset in subsets for path, seen in _seen(datamodule, subset).items()}
    paths = (path for subset in subsets for path in image_paths(datamodule, subset) if path not in known)
    found = known | _inspect_all(paths)
    _check_decoding(found)
    warn_of_lost_bits([path for path, result in found.items() if result.bits > 8])
    _check_sides(found, minimum_side)
    evaluated = [path for subset in subsets[1:] for path in image_paths(datamodule, subset, only_abnormal=True)]
    _check_no_abnormal_copies(found, train, evaluated)
    return {path: found[path].sha256 for path in train}


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


def image_paths(datamodule: AnomalibDataModule, subset: str, only_abnormal: bool = False) -> list[str]:
    """List the distinct image paths of a subset, none where the subset or the asked-for label is missing."""
    samples = getattr(getattr(datamodule, subset, None), "samples", None)
    if samples is not None and len(samples) and "image_path" not in samples:
        raise InputError(
            f"the datamodule '{datamodule.name}' names no image files in {subset}: use one that reads files"
        )
    if samples is None or "image_path" not in samples:
        return []
    if only_abnormal:
        if "label_index" not in samples:
            return []
        # isin, unlike ==, takes a missing label for "not abnormal"
        samples = samples[samples["label_index"].isin([int(LabelName.ABNORMAL)])]
    return list(dict.fromkeys(str(path) for path in samples["image_path"]))


def _seen(datamodule: AnomalibDataModule, subset: str) -> dict[str, _Inspection]:
    """Return what the sample table of a subset says of its files; those of anomalib's own datasets say nothing."""
    samples = getattr(getattr(datamodule, subset, None), "samples", None)
    if samples is None or not {"sha256", "side"} <= set(samples):
        return {}
    rows = samples.dropna(subset=["sha256", "side"])
    return {
        str(path): _Inspection(digest, int(side))
        for path, digest, side in zip(rows["image_path"], rows["sha256"], rows["side"], strict=True)
    }


def _inspect_all(paths: Iterable[str]) -> dict[str, _Inspection]:
    """Inspect each distinct file once; PIL releases the interpreter lock while it decodes."""
    distinct = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        return dict(zip(distinct, pool.map(_inspect, distinct), strict=True))


def _inspect(path: str) -> _Inspection:
    """Read and fully decode one image file."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        return _Inspection(problem=error.strerror or type(error).__name__)
    digest = hashlib.sha256(content).hexdigest()
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            return _Inspection(digest, min(image.size), bits=sample_bits(image, content))
    except UnidentifiedImageError:
        return _Inspection(digest, problem="not an image")
    except Exception as error:  # PIL's decoders raise nearly any kind on corrupt bytes
        return _Inspection(digest, problem=str(error) or type(error).__name__)


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


def _check_decoding(found: dict[str, _Inspection]) -> None:
    """Raise :class:`InputError` where files cannot be decoded."""
    broken = [f"{path} ({result.problem})" for path, result in found.items() if result.problem]
    if broken:
        raise InputError(f"cannot decode {name_some(broken)}: replace or remove such files")


def _check_sides(found: dict[str, _Inspection], minimum: int) -> None:
    """Raise :class:`InputError` where an image's shorter side is below ``minimum`` pixels."""
    small = [f"{path} ({result.side} pixels)" for path, result in found.items() if result.side < minimum]
    if small:
        raise InputError(
            f"the shorter side of an image must have at least {minimum} pixels, which does not hold for "
            f"{name_some(small)}: remove them or give larger ones",
        )


def _check_no_abnormal_copies(found: dict[str, _Inspection], train: Sequence[str], abnormal: Sequence[str]) -> None:
    """Raise :class:`InputError` where a training file equals an abnormal validation or test file."""
    original = {found[path].sha256: path for path in abnormal}
    copies = [f"{path} (same as {original[found[path].sha256]})" for path in train if found[path].sha256 in original]
    if copies:
        raise InputError(
            f"the training set holds abnormal images of the validation or test set: remove {name_some(copies)} from "
            "the training folder",
        )
