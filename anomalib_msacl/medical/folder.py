"""``MedicalFolder``: anomalib's ``Folder`` for DICOM, NIfTI and images of more than 8 bits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anomalib.data import Folder
from anomalib.data.utils import LabelName, Split

from anomalib_msacl.data.files import as_list, check_root, find_images
from anomalib_msacl.errors import InputError, name_some
from anomalib_msacl.medical.datamodule import MedicalDataModule
from anomalib_msacl.medical.json_list import listed_files
from anomalib_msacl.medical.kinds import EXTENSIONS, is_image, stem_of
from anomalib_msacl.medical.table import File
from anomalib_msacl.paths import with_home

_MASK_ENDINGS = ("", "_mask", "_seg")


class MedicalFolder(MedicalDataModule, Folder):
    """Medical images of one's own in folders, or in the layout of MedIAnomaly.

    Args:
        name: Name of the data set, used for the result folders.
        root: Folder that all files lie below; the working folder if None.
        normal_dir: Folder or folders of normal training images.
        abnormal_dir: Folder or folders of abnormal test images; None if there are none.
        normal_test_dir: Folder or folders of normal test images. If None, ``test_split_ratio`` of the training images
            are held out for the test, by patient.
        mask_dir: Folder or folders of masks: one for each folder of abnormal images, or one for all. A mask has the
            place and name of its image, with any extension, or the name with ``_mask`` or ``_seg`` at its end. No two
            images may share one.
        data_json: In place of the folders: a file as MedIAnomaly publishes it, ``{"train": {"0": [names]}, "test":
            {"0": [names], "1": [names]}}``, below ``root``.
        image_dir: Folder that the names in ``data_json`` are relative to.
        extensions: Endings of the file names that are read. If None, all that can be read, and DICOM files of any name.
        **kwargs: All other arguments of :class:`anomalib_msacl.medical.MedicalDataModule` and of anomalib's
            ``Folder``.

    Raises:
        InputError: If a setting is wrong; from ``setup()`` if folders or files are.
    """

    def __init__(
        self,
        name: str,
        root: str | Path | None = None,
        normal_dir: str | Path | Sequence[str | Path] | None = None,
        abnormal_dir: str | Path | Sequence[str | Path] | None = None,
        normal_test_dir: str | Path | Sequence[str | Path] | None = None,
        mask_dir: str | Path | Sequence[str | Path] | None = None,
        data_json: str | Path | None = None,
        image_dir: str | Path = "images",
        extensions: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if (normal_dir is None) == (data_json is None):
            raise InputError("set either normal_dir, a folder of normal images, or data_json, a list of all images")
        super().__init__(
            name=name,
            root=with_home(root),
            normal_dir=with_home(normal_dir if normal_dir is not None else image_dir),
            abnormal_dir=with_home(abnormal_dir),
            normal_test_dir=with_home(normal_test_dir),
            mask_dir=with_home(mask_dir),
            extensions=tuple(extensions) if extensions else None,
            **kwargs,
        )
        self.data_json = with_home(data_json)
        self.image_dir = with_home(image_dir)

    @property
    def folder(self) -> Path:
        """The folder that all files lie below."""
        return Path(self.root) if self.root is not None else Path()

    def list_files(self) -> list[File]:
        """Return the files that folders or the list name.

        Raises:
            InputError: If a folder or file is missing, or masks do not match.
        """
        check_root(self.folder, self.name)
        return self._listed_files() if self.data_json else self._found_files()

    def _found_files(self) -> list[File]:
        """Return the files in the folders."""
        parts = (
            ("normal_dir", self.normal_dir, LabelName.NORMAL, Split.TRAIN),
            ("normal_test_dir", self.normal_test_dir, LabelName.NORMAL, Split.TEST),
            ("abnormal_dir", self.abnormal_dir, LabelName.ABNORMAL, Split.TEST),
        )
        files = []
        for argument, folders, label, split in parts:
            images = [(self.folder / folder, self._images(argument, folder)) for folder in as_list(folders)]
            masks: dict[Path, Path] = {}
            if self.mask_dir and label == LabelName.ABNORMAL:
                masks = self._masks([_by_place(found, folder) for folder, found in images])
            files += [File(path, label, split, masks.get(path)) for _, found in images for path in found]
        return files

    def _images(self, argument: str, folder: str | Path) -> list[Path]:
        """Return the images of a folder."""
        path, endings = self.folder / folder, self.extensions or EXTENSIONS
        return find_images(
            argument, self.folder, folder, lambda file: is_image(file, path, self.extensions), tuple(endings)
        )

    def _masks(self, images: Sequence[dict[str, Path]]) -> dict[Path, Path]:
        """Return the mask of each abnormal image, which are given by their places in each folder."""
        folders = as_list(self.mask_dir)
        masks = [_by_place(self._images("mask_dir", folder), self.folder / folder) for folder in folders]
        if len(masks) not in {1, len(images)}:
            raise InputError(
                f"there are {len(masks)} folders in mask_dir and {len(images)} in abnormal_dir: name one for each, or "
                "one for all"
            )
        pairs: dict[Path, Path] = {}
        without = []
        for index, found in enumerate(images):
            named = masks[index % len(masks)]
            for key, image in found.items():
                fitting = [named[key + ending] for ending in _MASK_ENDINGS if key + ending in named]
                if len(fitting) == 1:
                    pairs[image] = fitting[0]
                else:
                    without.append(f"{image} ({len(fitting)} masks)")
        if without:
            raise InputError(
                f"{len(without)} abnormal images have no mask, or more than one, of their name in mask_dir "
                f"'{self.mask_dir}', {name_some(without)}: give each of them exactly one"
            )
        _check_shared(pairs)
        return pairs

    def _listed_files(self) -> list[File]:
        """Return the files of a list as MedIAnomaly publishes it."""
        folder = self.folder / self.image_dir
        files = listed_files(self.folder / str(self.data_json), folder)
        if not self.mask_dir:
            return files
        masks = self._masks([_by_place([file.path for file in files if file.label == LabelName.ABNORMAL], folder)])
        return [File(file.path, file.label, file.split, masks.get(file.path)) for file in files]


def _by_place(files: Sequence[Path], folder: Path) -> dict[str, Path]:
    """Return files by their path in a folder, without extension, by which images and masks pair up.

    Raises:
        InputError: If two of them have one.
    """
    named: dict[str, Path] = {}
    twice = []
    for file in dict.fromkeys(files):
        key = (Path(os.path.relpath(file.parent, folder)) / stem_of(file)).as_posix()
        twice += [f"{named[key]} and {file.name}"] if key in named else []
        named[key] = file
    if twice:
        raise InputError(f"two files of a folder have one name, {name_some(twice)}: rename or remove one of them")
    return named


def _check_shared(pairs: Mapping[Path, Path]) -> None:
    """Raise :class:`InputError` where images share a mask, which can be that of one of them only."""
    images: dict[Path, list[str]] = {}
    for image, mask in pairs.items():
        images.setdefault(mask, []).append(str(image))
    shared = [f"{mask} ({' and '.join(names)})" for mask, names in images.items() if len(names) > 1]
    if shared:
        raise InputError(
            f"{len(shared)} masks would belong to several images each, {name_some(shared)}; name a mask folder for "
            "each abnormal_dir, or give each image a mask of its own name"
        )
