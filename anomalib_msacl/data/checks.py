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
from PIL import Image, UnidentifiedImageError

from anomalib_msacl.errors import InputError

_NAMED_FILES = 5
_MAX_THREADS = 8


@dataclass(frozen=True)
class _Inspection:
    """What one look at an image file gave.

    Attributes:
        sha256: Hex digest of the file's bytes, empty where the file cannot be read.
        side: Length of the shorter side in pixels, 0 where the image cannot be decoded.
        problem: Why the image cannot be decoded, empty where it can.
    """

    sha256: str = ""
    side: int = 0
    problem: str = ""


def check_datamodule(
    datamodule: AnomalibDataModule,
    minimum_train_images: int = 4,
    minimum_side: int = 24,  # smaller ones hold lesions of a pixel, however far they are enlarged
) -> dict[str, str]:
    """Check every image of a datamodule that has been set up.

    Each distinct file of the training, validation and test sets is read and fully decoded once. Subsets that do
    not exist, and sample tables without labels, are passed over.

    Args:
        datamodule: The datamodule, after ``setup()``.
        minimum_train_images: Smallest number of training images accepted, at least 1.
        minimum_side: Smallest length of an image's shorter side accepted, in pixels.

    Returns:
        The training images: path of the image to the SHA-256 hex digest of the file's bytes.

    Raises:
        InputError: On the first of these that holds, naming the files: there are no or too few training images; a
            training image is labelled abnormal; a file cannot be decoded; an image is too small; a training image
            is, byte for byte, also an abnormal image of the validation or test set.
    """
    train = _image_paths(datamodule, "train_data")
    _check_train_count(datamodule.name, len(train), minimum_train_images)
    _check_train_labels(_image_paths(datamodule, "train_data", only_abnormal=True))

    subsets = ("train_data", "val_data", "test_data")
    found = _inspect_all(path for subset in subsets for path in _image_paths(datamodule, subset))
    _check_decoding(found)
    _check_sides(found, minimum_side)
    evaluated = [path for subset in subsets[1:] for path in _image_paths(datamodule, subset, only_abnormal=True)]
    _check_no_abnormal_copies(found, train, evaluated)
    return {path: found[path].sha256 for path in train}


def _image_paths(datamodule: AnomalibDataModule, subset: str, only_abnormal: bool = False) -> list[str]:
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
            return _Inspection(digest, min(image.size))
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
            f"{_name_some(abnormal)} to the folder of abnormal images",
        )


def _check_decoding(found: dict[str, _Inspection]) -> None:
    """Raise :class:`InputError` where files cannot be decoded."""
    broken = [f"{path} ({result.problem})" for path, result in found.items() if result.problem]
    if broken:
        raise InputError(f"cannot decode {_name_some(broken)}: replace or remove such files")


def _check_sides(found: dict[str, _Inspection], minimum: int) -> None:
    """Raise :class:`InputError` where an image's shorter side is below ``minimum`` pixels."""
    small = [f"{path} ({result.side} pixels)" for path, result in found.items() if result.side < minimum]
    if small:
        raise InputError(
            f"the shorter side of an image must have at least {minimum} pixels, which does not hold for "
            f"{_name_some(small)}: remove them or give larger ones",
        )


def _check_no_abnormal_copies(found: dict[str, _Inspection], train: Sequence[str], abnormal: Sequence[str]) -> None:
    """Raise :class:`InputError` where a training file equals an abnormal validation or test file."""
    original = {found[path].sha256: path for path in abnormal}
    copies = [f"{path} (same as {original[found[path].sha256]})" for path in train if found[path].sha256 in original]
    if copies:
        raise InputError(
            f"the training set holds abnormal images of the validation or test set: remove {_name_some(copies)} from "
            "the training folder",
        )


def _name_some(names: Sequence[str]) -> str:
    """Join names for a sentence, the first few in full.

    >>> _name_some(["a", "b"])
    'a, b'
    >>> _name_some(list("abcdefg"))
    'a, b, c, d, e and 2 more'
    """
    listed = ", ".join(names[:_NAMED_FILES])
    hidden = len(names) - _NAMED_FILES
    return f"{listed} and {hidden} more" if hidden > 0 else listed
