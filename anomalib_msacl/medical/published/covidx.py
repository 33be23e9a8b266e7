"""COVIDx: chest X-rays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from anomalib.data.utils import LabelName, Split

from anomalib_msacl.errors import InputError, name_some
from anomalib_msacl.medical.published.base import PublishedData
from anomalib_msacl.medical.table import File

_FIELDS = 3  # patient, file, class; a fourth, the source, came later


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
        grey: As in :class:`anomalib_msacl.medical.MedicalDataModule`; some of the files have colours.
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
            if len(fields) < _FIELDS:
                raise InputError(f"line {number} of {path} is '{line}': it must have patient, file and class")
            patient, name, kind, *source = fields
            if kind in self.labels:
                whose = f"{source[0] if source else ''}:{patient}"  # sources number their patients on their own
                yield File(self.root / split.value / name, self.labels[kind], split, patient=whose)
