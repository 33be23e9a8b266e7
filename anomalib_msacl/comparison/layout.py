"""Where a folder keeps its normal and abnormal images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from anomalib.data import AnomalibDataModule
from torchvision.datasets.folder import IMG_EXTENSIONS

from anomalib_msacl.compat import isolated_random
from anomalib_msacl.data import CheckedFolder
from anomalib_msacl.data.depth import deep_files
from anomalib_msacl.errors import InputError
from anomalib_msacl.medical import MedicalFolder
from anomalib_msacl.medical.kinds import is_image, training_folder

_NORMAL = ("good", "normal")


@dataclass(frozen=True)
class Layout:
    """The folders of a set, relative to its root.

    Attributes:
        root: The set.
        normal: Normal training images.
        test_normal: Normal test images; None without any.
        abnormal: Abnormal test images.
        masks: Masks, one folder for each of ``abnormal``; empty where one of them has none.
        unmasked: Folders of abnormal images without masks, where others have some.
    """

    root: Path
    normal: str
    test_normal: str | None
    abnormal: Sequence[str]
    masks: Sequence[str]
    unmasked: Sequence[str] = ()

    def datamodule(self, seed: int) -> AnomalibDataModule:
        """Return the set without validation images; DICOM, NIfTI and 16 bits are read too.

        Args:
            seed: Of the split that gives the test normal images where it has none.
        """
        if self._only_for_anomalib:
            return CheckedFolder(**self._arguments(seed))
        return self._medical(seed)

    def _medical(self, seed: int) -> MedicalFolder:
        """Return the set as ``MedicalFolder`` reads it; only the first one looks into the files."""
        data = MedicalFolder(**self._arguments(seed), duplicates="list")
        data.shared_findings = self._findings
        return data

    @cached_property
    def _findings(self) -> list[Any]:
        """What was found in the files."""
        return []

    def _arguments(self, seed: int) -> dict[str, Any]:
        """Return what both datamodules take."""
        return {
            "name": self.root.resolve().name or "data",
            "root": self.root,
            "normal_dir": self.normal,
            "normal_test_dir": self.test_normal,
            "abnormal_dir": list(self.abnormal) or None,
            "mask_dir": list(self.masks) or None,
            "val_split_mode": "none",
            "seed": seed,
        }

    @cached_property
    def _only_for_anomalib(self) -> bool:
        """Whether ``MedicalFolder`` refuses the set, but anomalib's reader takes it, as a training by it does.

        Such are sets with grey images among coloured ones, for example. Both read the same from 8 bits.
        """
        try:
            with isolated_random():  # the detectors draw the same numbers, whenever this is asked
                self._medical(0).setup()
        except InputError:
            folders = [self.normal, *self.abnormal, *self.masks, *filter(None, [self.test_normal])]
            files = [path for folder in folders for path in _images(self.root / folder)]
            named = all(path.name.lower().endswith(IMG_EXTENSIONS) for path in files)
            return named and not deep_files(map(str, files))
        return False


def find_layout(root: str | Path) -> Layout:
    """Find the folders of a set.

    ``train/good`` and ``test/good`` hold normal images (``normal`` serves too). Every other folder of ``test`` is one
    of abnormal images, and ``ground_truth`` has their masks under the same name; masks are used if no folder lacks
    them. A plain folder of images is all normal and has no test images.

    Args:
        root: The set.

    Raises:
        InputError: If it is no folder, or has normal images and others, and none of them for training.
    """
    root = Path(root)
    normal = training_folder(root).relative_to(root).as_posix()
    if normal == ".":
        _check_plain(root)
    places = sorted(path.name for path in _folders(root / "test"))
    abnormal = [name for name in places if name not in _NORMAL and _has_images(root / "test" / name)]
    good = next((f"test/{name}" for name in _NORMAL if name in places), None)
    masks = [f"ground_truth/{name}" for name in abnormal]
    without = [f"test/{name}" for name, mask in zip(abnormal, masks, strict=True) if not (root / mask).is_dir()]
    some = len(without) < len(masks)
    folders = [f"test/{name}" for name in abnormal]
    return Layout(root, normal, good, folders, [] if without else masks, without if some else [])


def _check_plain(root: Path) -> None:
    """Raise :class:`InputError` where a set without ``train`` has a folder of normal images beside others."""
    names = sorted(path.name for path in _folders(root) if _has_images(path))
    normal, others = ([name for name in names if (name in _NORMAL) is wanted] for wanted in (True, False))
    if normal and others:
        raise InputError(
            f"{root} has {normal[0]} beside {', '.join(others)}, and no folder train, so which images are for training "
            "is not known: put normal ones into train/good and test/good, and abnormal ones into test/lesion."
        )


def _folders(place: Path) -> list[Path]:
    """Return the folders in a place; none where it is missing."""
    return [path for path in place.iterdir() if path.is_dir()] if place.is_dir() else []


def _has_images(folder: Path) -> bool:
    """Whether a folder holds an image, however deep."""
    return next(_images(folder), None) is not None


def _images(folder: Path) -> Iterator[Path]:
    """Yield the images of a folder, however deep."""
    return (path for path in folder.rglob("*") if path.is_file() and is_image(path, folder))
