"""LAG: fundus photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anomalib.data.utils import LabelName, Split

from anomalib_msacl.medical.published.base import PublishedData
from anomalib_msacl.medical.table import File


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
