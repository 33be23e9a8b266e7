"""Where a folder keeps its normal and abnormal images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
        masks: Masks, one folder for each of ``abnormal``; empty without any.
    """

    root: Path
    normal: str
    test_normal: str | None
    abnormal: Sequence[str]
    masks: Sequence[str]

    def datamodule(self, seed: int) -> MedicalFolder:
        """Return the set without validation images; DICOM, NIfTI and 16 bits are read too.

        Args:
            seed: Of the split that gives the test normal images where it has none.
        """
        return MedicalFolder(
            name=self.root.resolve().name or "data",
            root=self.root,
            normal_dir=self.normal,
            normal_test_dir=self.test_normal,
            abnormal_dir=list(self.abnormal) or None,
            mask_dir=list(self.masks) or None,
            duplicates="list",
            val_split_mode="none",
            seed=seed,
        )


def find_layout(root: str | Path) -> Layout:
    """Find the folders of a set.

    ``train/good`` and ``test/good`` hold normal images (``normal`` serves too). Every other folder of ``test`` is one
    of abnormal images, and ``ground_truth`` has their masks under the same name. A plain folder of images is all
    normal and has no test images.

    Args:
        root: The set.

    Raises:
        InputError: If it is no folder.
    """
    root = Path(root)
    normal = training_folder(root).relative_to(root).as_posix()
    places = sorted(path.name for path in _folders(root / "test"))
    abnormal = [name for name in places if name not in _NORMAL and _has_images(root / "test" / name)]
    good = next((f"test/{name}" for name in _NORMAL if name in places), None)
    masks = [f"ground_truth/{name}" for name in abnormal]
    known = bool(masks) and all((root / mask).is_dir() for mask in masks)
    return Layout(root, normal, good, [f"test/{name}" for name in abnormal], masks if known else [])


def _folders(place: Path) -> list[Path]:
    """Return the folders in a place; none where it is missing."""
    return [path for path in place.iterdir() if path.is_dir()] if place.is_dir() else []


def _has_images(folder: Path) -> bool:
    """Whether a folder holds an image, however deep."""
    return any(path.is_file() and is_image(path, folder) for path in folder.rglob("*"))
