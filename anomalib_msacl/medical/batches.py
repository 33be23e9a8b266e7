"""Batches that know the files of their images, and which picture shows each of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from anomalib.data import ImageBatch, ImageItem

from anomalib_msacl.medical.previews import Preview


@dataclass
class MedicalItem(ImageItem):
    """An image; its ``image_path`` is a picture that Pillow opens, which anomalib's visualiser does.

    Attributes:
        file: The file that the image was read from.
        frame: Index of its slice or frame, from 0.
        preview: Draws the picture when ``image_path`` is asked for; None where Pillow opens the file itself.
    """

    def read_from(self, file: str, frame: int, preview: Preview | None = None) -> MedicalItem:
        """Say where the image was read from and what shows it, and return the item."""
        self.file, self.frame, self.preview = file, frame, preview
        return self

    @property  # type: ignore[misc]  # in place of a field
    def image_path(self) -> str | None:
        """What Pillow opens."""
        preview: Preview | None = vars(self).get("preview")
        return vars(self).get("_path") if preview is None else preview.drawn()

    @image_path.setter
    def image_path(self, path: str | None) -> None:
        self.preview = None
        self._path = path


@dataclass
class MedicalBatch(ImageBatch):
    """N images; its ``image_path`` names the files that they were read from, as do predictions.

    Attributes:
        frames: Index of the slice or frame in each file, from 0.
        previews: Draws what Pillow opens in place of a file, when ``items`` are asked for; None where Pillow opens
            the file itself.
    """

    @classmethod
    def of(cls, items: Sequence[MedicalItem]) -> MedicalBatch:
        """Put images into a batch, as anomalib does."""
        plain = [copy.copy(item) for item in items]
        for item in plain:
            item.image_path = item.file  # or putting them together would draw them
        batch: Any = cls.collate(cast("Any", plain))
        batch.previews = [item.preview for item in items]
        batch.frames = [item.frame for item in items]
        return batch  # type: ignore[no-any-return]

    @property
    def items(self) -> list[ImageItem]:
        """The images one by one, as the visualiser wants them."""
        found: list[ImageItem] = super().items
        for item, preview in zip(found, cast("Any", self).previews, strict=True):
            item.image_path = item.image_path if preview is None else preview.drawn()
        return found
