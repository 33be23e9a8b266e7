"""What the published sets of medical images have in common.

None of them is downloaded: licences, passwords or sizes stand in the way. Where files are missing the error says where
to get them and how the folder must look. ``docs/medical-data.md`` has origin, licence and page of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from anomalib.data.utils import LabelName, Split

from anomalib_msacl.data.files import list_folder
from anomalib_msacl.errors import InputError
from anomalib_msacl.medical.datamodule import MedicalDataModule
from anomalib_msacl.medical.kinds import RASTER_EXTENSIONS, is_image
from anomalib_msacl.medical.table import File
from anomalib_msacl.paths import at_home


class PublishedData(MedicalDataModule):
    """What the published sets have in common.

    Args:
        root: Folder of the data set.
        seed: Seed of the choice of images, and of the validation split.
        **kwargs: All other arguments of :class:`anomalib_msacl.medical.MedicalDataModule`.
    """

    title: ClassVar[str]
    origin: ClassVar[str]
    layout: ClassVar[str]

    def __init__(self, root: str | Path, seed: int | None = 0, **kwargs: Any) -> None:
        super().__init__(seed=seed, **kwargs)
        self.root = at_home(root)

    @property
    def folder(self) -> Path:
        """The folder that all files lie below."""
        return self.root

    def missing(self, what: str) -> InputError:
        """Return an error that says where to get the data set and how its folder must look."""
        return InputError(
            f"{self.title}: {what} below '{self.root}': get it from {self.origin}, and set root to a folder with "
            f"{self.layout}"
        )

    def images(self, *places: str) -> list[Path]:
        """Return the images in folders below the root, sorted.

        Args:
            *places: Patterns of folders.

        Raises:
            InputError: If there are none, or a folder cannot be listed.
        """
        folders = sorted(path for place in places for path in self.root.glob(place) if path.is_dir())
        found = [
            path for folder in folders for path in list_folder(folder) if is_image(path, folder, RASTER_EXTENSIONS)
        ]
        if not found:
            raise self.missing(f"no images in {' or '.join(places)}")
        return found

    def shuffled(self, paths: Sequence[Path]) -> list[Path]:
        """Return paths in an order that the seed decides."""
        generator = torch.Generator().manual_seed(self.seed or 0)
        return [paths[index] for index in torch.randperm(len(paths), generator=generator).tolist()]

    def normal_files(self, paths: Sequence[Path], train: int, test: int) -> list[File]:
        """Choose normal training and test images.

        Raises:
            InputError: If there are fewer than asked for.
        """
        if len(paths) < train + test:
            raise InputError(
                f"{self.title}: {len(paths)} normal images are fewer than {train} for training and {test} for the "
                "test: set train_normal and test_normal to fewer, or complete the data set"
            )
        order = self.shuffled(paths)
        parts = ((order[:train], Split.TRAIN), (order[train : train + test], Split.TEST))
        return [File(path, LabelName.NORMAL, split) for part, split in parts for path in part]
