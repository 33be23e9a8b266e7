"""Images of a sample table, read by :class:`~anomalib_msacl.medical.reader.ImageReader`."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import torch
from anomalib.data.datasets.base.image import AnomalibDataset
from anomalib.data.utils import Split
from torch.utils.data import get_worker_info
from torchvision.tv_tensors import Mask

from anomalib_msacl.data.files import UnreadableError
from anomalib_msacl.data.samples import Column
from anomalib_msacl.data.scratch import ScratchFolder
from anomalib_msacl.errors import InputError
from anomalib_msacl.medical.batches import MedicalBatch, MedicalItem
from anomalib_msacl.medical.previews import Preview
from anomalib_msacl.medical.reader import ImageReader
from anomalib_msacl.medical.unpacked import UnpackedVolumes


class MedicalDataset(AnomalibDataset):
    """Images of a sample table, read by a reader.

    The table has anomalib's columns and those of :class:`anomalib_msacl.data.samples.Column` but ``SOURCE_INDEX``, and
    ``PATIENT`` only where patients are known.

    Args:
        samples: The table; its ``attrs["task"]`` says whether there are masks.
        reader: Reads images and masks.
        name: Name of the data set.
    """

    def __init__(self, samples: pd.DataFrame, reader: ImageReader, name: str) -> None:
        super().__init__()
        self.reader = reader
        self.previews = ScratchFolder("previews")
        self.volumes = UnpackedVolumes()
        self._name = name
        self.samples = samples

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self._name

    @property
    def collate_fn(self) -> Callable[..., MedicalBatch]:
        """What puts images into a batch, which names their files."""
        return MedicalBatch.of

    def __getitem__(self, index: int) -> MedicalItem:
        """Return an image with its label, and its mask where the data set has masks.

        Returns:
            ``image`` of shape ``(3, H, W)`` with values in [0, 1]. ``image_path`` is the file where Pillow reads
            the same from it, and an 8-bit PNG copy of other test images, because anomalib's visualiser opens it; the
            copy is drawn when it is asked for. ``file`` and ``frame`` say what was read.

        Raises:
            InputError: If the file cannot be read any more.
        """
        row = self.samples.iloc[index]
        masked, training = self.samples.attrs["task"] == "segmentation", row.split == Split.TRAIN.value
        # Others are read in their order, but each of several loading processes gets a part of every volume.
        jumps = training or get_worker_info() is not None
        file, mask_file = (self.volumes.path_of(path) if jumps else path for path in (row.image_path, row.mask_path))
        try:
            image = self.reader.read(file, int(row[Column.FRAME]))
            mask = self.reader.read_mask(mask_file, int(row[Column.FRAME])) if masked and mask_file else None
        except UnreadableError as error:
            raise InputError(f"{row.image_path}, or its mask, {error}") from error
        if masked and mask is None:
            mask = Mask(torch.zeros(image.shape[-2:], dtype=torch.uint8))
        if self.augmentations:
            image, mask = self.augmentations(image, mask) if masked else (self.augmentations(image), None)
        label = torch.tensor(int(row.label_index))
        file, frame = str(row.image_path), int(row[Column.FRAME])
        item = MedicalItem(image=image, gt_mask=mask, gt_label=label, image_path=file, mask_path=row.mask_path)
        name = f"{self.name}/{row[Column.NAME]}.png"
        as_it_is = training or row[Column.PLAIN]
        preview = None if as_it_is else Preview(self.reader, file, frame, self.previews, name)
        return item.read_from(file, frame, preview)
