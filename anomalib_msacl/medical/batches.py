"""Batches that know the files of their images, and which picture shows each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from anomalib.data import ImageBatch, ImageItem


@dataclass
class MedicalItem(ImageItem):
    """An image; its ``image_path`` is a picture that Pillow opens, which anomalib's visualiser does.

    Attributes:
        file: The file that the image was read from.
        frame: Index of its slice or frame, from 0.
    """

    def read_from(self, file: str, frame: int) -> MedicalItem:
        """Say where the image was read from, and return the item."""
        self.file, self.frame = file, frame
        return self


@dataclass
class MedicalBatch(ImageBatch):
    """N images; its ``image_path`` names the files that they were read from, as do predictions.

    Attributes:
        frames: Index of the slice or frame in each file, from 0.
        pictures: What Pillow opens in place of each file; ``image_path`` of the batch's items.
    """

    @classmethod
    def of(cls, items: Sequence[MedicalItem]) -> MedicalBatch:
        """Put images into a batch, as anomalib does."""
        batch: Any = cls.collate(list(items))
        batch.pictures = batch.image_path
        batch.image_path = [item.file for item in items]
        batch.frames = [item.frame for item in items]
        return batch  # type: ignore[no-any-return]

    @property
    def items(self) -> list[ImageItem]:
        """The images one by one, as the visualiser wants them."""
        found: list[ImageItem] = super().items
        for item, picture in zip(found, cast("Any", self).pictures, strict=True):
            item.image_path = picture
        return found
