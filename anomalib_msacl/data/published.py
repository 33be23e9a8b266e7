"""Published sets of medical images: what they are, where they come from, and how they are split in the literature.

None of them is downloaded: licences, passwords or sizes stand before it. Where files are missing the error says where
to get them and how the folder must look. ``docs/medical-data.md`` has origin, licence and page of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from anomalib.data.utils import LabelName, Split

from anomalib_msacl.data.medical import File, MedicalDataModule
from anomalib_msacl.data.reader import PICTURE_EXTENSIONS, list_images
from anomalib_msacl.errors import InputError, name_some

_COVIDX_FIELDS = 3  # patient, file, class; a fourth, the source, came later


class PublishedData(MedicalDataModule):
    """What the published sets have in common.

    Args:
        root: Folder of the data set.
        seed: Seed of the choice of images, and of the validation split.
        **kwargs: All other arguments of :class:`anomalib_msacl.data.medical.MedicalDataModule`.
    """

    title: ClassVar[str]
    origin: ClassVar[str]
    layout: ClassVar[str]

    def __init__(self, root: str | Path, seed: int | None = 0, **kwargs: Any) -> None:
        super().__init__(seed=seed, **kwargs)
        self.root = Path(root)

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
        """Return the pictures in folders below the root, sorted.

        Args:
            *places: Patterns of folders.

        Raises:
            InputError: If there are none.
        """
        folders = sorted(path for place in places for path in self.root.glob(place) if path.is_dir())
        found = [path for folder in folders for path in list_images(folder, PICTURE_EXTENSIONS)]
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


class HyperKvasir(PublishedData):
    """Hyper-Kvasir: colonoscopy, polyps with masks (CC BY 4.0; datasets.simula.no/hyper-kvasir, osf.io/mh9sj).

    Normal are images of the classes cecum, ileum and bbps-2-3; abnormal those of the segmented part. CCD and PMSACL
    report 1,600 normal training images, and 500 normal and 1,000 abnormal test images; which, is not published, so
    they are drawn by ``seed``. There are no patient ids, so images of a patient can be on both sides.

    Args:
        root: Folder with ``labeled-images`` and ``segmented-images``.
        normal_classes: Folders of normal classes.
        train_normal: Number of normal training images.
        test_normal: Number of normal test images.
        hide_inset: Black out the green or blue box that shows the position of the endoscope: it is a shortcut.
        **kwargs: As in :class:`PublishedData`.

    Raises:
        InputError: From ``setup()`` if files are missing.
    """

    title = "Hyper-Kvasir"
    origin = "https://datasets.simula.no/hyper-kvasir or https://osf.io/mh9sj"
    layout = "labeled-images/**/{cecum,ileum,bbps-2-3}/*.jpg and segmented-images/{images,masks}/*.jpg"

    def __init__(
        self,
        root: str | Path = "./datasets/hyper-kvasir",
        normal_classes: Sequence[str] = ("cecum", "ileum", "bbps-2-3"),
        train_normal: int = 1600,
        test_normal: int = 500,
        hide_inset: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        self.normal_classes = list(normal_classes)
        self.train_normal = train_normal
        self.test_normal = test_normal
        self.reader.hide_inset = hide_inset

    def list_files(self) -> list[File]:
        """Return normal images of the labelled part, and images and masks of the segmented part."""
        normal = [path for name in self.normal_classes for path in self.images(f"labeled-images/**/{name}")]
        polyps = self.images("segmented-images/images")
        masks = {path.stem: path for path in self.images("segmented-images/masks")}
        without = [str(path) for path in polyps if path.stem not in masks]
        if without:
            raise self.missing(f"no mask in segmented-images/masks for {name_some(without)}")
        files = self.normal_files(normal, self.train_normal, self.test_normal)
        return files + [File(path, LabelName.ABNORMAL, Split.TEST, masks[path.stem]) for path in polyps]


class LAG(PublishedData):
    """LAG: fundus photographs, suspicious of glaucoma or not (academic use, password by e-mail).

    MedIAnomaly takes 1,500 normal images for training, and 811 normal and 811 abnormal ones for the test. The attention
    maps say where ophthalmologists looked; they are no masks of lesions and are not used.

    Args:
        root: Folder with ``non_glaucoma`` and ``suspicious_glaucoma``.
        train_normal: Number of normal training images.
        test_normal: Number of normal test images.
        test_abnormal: Number of abnormal test images; None takes all.
        **kwargs: As in :class:`PublishedData`.

    Raises:
        InputError: From ``setup()`` if files are missing.
    """

    title = "LAG"
    origin = "its authors, who send a password by e-mail (https://github.com/smilell/AG-CNN)"
    layout = "non_glaucoma/image/* and suspicious_glaucoma/image/*"

    def __init__(
        self,
        root: str | Path = "./datasets/LAG",
        train_normal: int = 1500,
        test_normal: int = 811,
        test_abnormal: int | None = 811,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        self.train_normal = train_normal
        self.test_normal = test_normal
        self.test_abnormal = test_abnormal

    def list_files(self) -> list[File]:
        """Return the images that are chosen by the seed."""
        normal = self.images("non_glaucoma/image")
        abnormal = self.shuffled(self.images("suspicious_glaucoma/image"))[: self.test_abnormal]
        files = self.normal_files(normal, self.train_normal, self.test_normal)
        return files + [File(path, LabelName.ABNORMAL, Split.TEST) for path in abnormal]


class CovidX(PublishedData):
    """COVIDx: chest X-rays of several sources, listed in text files (github.com/lindawangg/COVID-Net).

    Each line of a list has patient, file, class and, in later versions, the source. Training takes the normal images of
    the training list, the test all images of the test list. CXR-3B has 13,992 normal training images and 200 + 200
    test images. The classes come from different sources, which a detector may tell apart instead of the disease.

    Args:
        root: Folder with the lists, and with the images in ``train`` and ``test``.
        train_list: List of the training images, below the root.
        test_list: List of the test images, below the root.
        normal_classes: Classes that count as normal; those of earlier versions are ``normal`` and ``pneumonia``.
        abnormal_classes: Classes that count as abnormal; lines of other classes are left out.
        grey: As in :class:`anomalib_msacl.data.medical.MedicalDataModule`; some of the files have colours.
        **kwargs: As in :class:`PublishedData`.

    Raises:
        InputError: From ``setup()`` if files are missing, or a line of a list is not of that kind.
    """

    title = "COVIDx"
    origin = "https://github.com/lindawangg/COVID-Net, docs/COVIDx.md"
    layout = "train.txt, test.txt (labels/*_COVIDx*.txt of the repository), train/* and test/*"

    def __init__(
        self,
        root: str | Path = "./datasets/COVIDx",
        train_list: str = "train.txt",
        test_list: str = "test.txt",
        normal_classes: Sequence[str] = ("negative", "normal"),
        abnormal_classes: Sequence[str] = ("positive", "COVID-19"),
        grey: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, grey=grey, **kwargs)
        self.lists = {Split.TRAIN: train_list, Split.TEST: test_list}
        self.labels = dict.fromkeys(normal_classes, LabelName.NORMAL)
        self.labels |= dict.fromkeys(abnormal_classes, LabelName.ABNORMAL)

    def list_files(self) -> list[File]:
        """Return the listed images; abnormal ones of the training list are left out."""
        files = [file for split in self.lists for file in self._lines(split)]
        files = [file for file in files if not (file.split == Split.TRAIN and file.label == LabelName.ABNORMAL)]
        missing = [str(file.path) for file in files if not file.path.is_file()]
        if missing:
            raise self.missing(f"{len(missing)} listed images are missing, {name_some(missing)},")
        return files

    def _lines(self, split: Split) -> Iterator[File]:
        """Yield the files of a list."""
        path = self.root / self.lists[split]
        if not path.is_file():
            raise self.missing(f"there is no list {self.lists[split]}")
        for number, line in enumerate(path.read_text().splitlines(), 1):
            fields = line.split()
            if len(fields) < _COVIDX_FIELDS:
                raise InputError(f"line {number} of {path} is '{line}': it must have patient, file and class")
            patient, name, kind, *source = fields
            if kind in self.labels:
                whose = f"{source[0] if source else ''}:{patient}"  # sources number their patients on their own
                yield File(self.root / split.value / name, self.labels[kind], split, patient=whose)


class LiuColonoscopy(PublishedData):
    """The colonoscopy set of Liu et al. 2020 (no public download known), for those who have it.

    The literature reports 13,250 normal training images, and 290 normal and 677 abnormal test images.

    Args:
        root: Folder with ``train/normal``, ``test/normal`` and ``test/abnormal``.
        **kwargs: As in :class:`PublishedData`.

    Raises:
        InputError: From ``setup()`` if files are missing.
    """

    title = "Liu et al. 2020"
    origin = "its authors"
    layout = "train/normal/*, test/normal/* and test/abnormal/*"

    def __init__(self, root: str | Path = "./datasets/liu", **kwargs: Any) -> None:
        super().__init__(root=root, **kwargs)

    def list_files(self) -> list[File]:
        """Return all images."""
        parts = (
            ("train/normal", LabelName.NORMAL, Split.TRAIN),
            ("test/normal", LabelName.NORMAL, Split.TEST),
            ("test/abnormal", LabelName.ABNORMAL, Split.TEST),
        )
        return [File(path, label, split) for place, label, split in parts for path in self.images(place)]
