"""The colonoscopy set of Liu et al. 2020."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anomalib.data.utils import LabelName, Split

from anomalib_msacl.medical.published.base import PublishedData
from anomalib_msacl.medical.table import File


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
