"""Normal images, a part of which gets MedMix lesions that are drawn once and kept in files."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from anomalib.data import ImageItem
from anomalib.data.datasets.base.image import AnomalibDataset
from anomalib.data.utils import LabelName, Split
from filelock import FileLock
from torch import Tensor
from torchvision.transforms.v2.functional import resize
from torchvision.tv_tensors import Image, Mask

from anomalib_msacl.data.samples import Column
from anomalib_msacl.data.scratch import ScratchFolder
from anomalib_msacl.errors import InputError
from anomalib_msacl.lesions import MINIMUM_SIDE, MedMix
from anomalib_msacl.paths import at_home

_FORMAT = 1  # raise when files of an older format must not be reused
_LARGEST_SIDE = 1024  # of the shorter side: larger images would fill the disk and are reduced by the model anyway
_LEVELS = 65535  # 16 bits: an 8-bit value comes back exactly, so that the file format is no hint of a lesion


class MedMixDataset(AnomalibDataset):
    """Normal images, a share of them with MedMix lesions and exact masks.

    The images with lesions are drawn once and kept on disk as 16-bit PNG files. Those without are read by the dataset
    that they come from. The same images, settings and seed give the same lesions, bit for bit.

    Args:
        source: Normal images, at least 2, of any image dataset of anomalib, each side at least 32 pixels long.
        medmix: How lesions look; the numbers of its ``counts`` that are above 0 take turns. The default if None.
        share: Part of the images that gets lesions, between 0 and 1, both excluded; at least one image.
        seed: Decides which images get lesions, and what the lesions are.
        cache: Folder for the files, which stay there and are used again; a temporary one, removed with the dataset, if
            None.

    Raises:
        InputError: If images or settings cannot work, or the folder cannot be written to.
    """

    def __init__(
        self,
        source: AnomalibDataset,
        medmix: MedMix | None = None,
        share: float = 0.5,
        seed: int = 0,
        cache: str | Path | None = None,
    ) -> None:
        super().__init__(augmentations=source.augmentations)
        self.source = _without_augmentations(source)
        self.medmix = medmix or MedMix()
        counts = [count for count in self.medmix.counts if count > 0]
        number = len(self.source)
        if not 0 < share < 1 or number < 2 or not counts:
            raise InputError(
                f"a MedMix validation set needs at least 2 normal images (here {number}), a share with lesions between "
                f"0 and 1 (here {share}) and a number of lesions above 0 (here {self.medmix.counts})"
            )
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(number, generator=generator).tolist()
        chosen = order[: min(max(1, round(share * number)), number - 1)]
        self.folder, self.scratch = self._place(cache, [share, seed])
        if not (self.folder / "complete").is_file():
            self._write_alone(order, len(chosen), counts, generator)
        self.samples = self._table(chosen)

    @property
    def name(self) -> str:
        """Name of the dataset that the images come from."""
        return str(self.source.name)

    def __getitem__(self, index: int) -> ImageItem:
        """Return an image with its mask; both are augmented as those of any dataset of anomalib.

        Returns:
            ``image`` of shape ``(3, H, W)`` with values in [0, 1], ``gt_mask`` of shape ``(H, W)``, ``gt_label``.
        """
        row = self.samples.iloc[index]
        if row.label_index == LabelName.ABNORMAL:
            image: Tensor = Image(_read(row.image_path).permute(2, 0, 1).contiguous() / _LEVELS)
            mask = Mask(_read(row.mask_path) > 0)
        else:
            image = self._original(int(row[Column.SOURCE_INDEX]))
            mask = Mask(torch.zeros(image.shape[-2:]))
        mask = mask.to(torch.uint8)
        if self.augmentations:
            image, mask = self.augmentations(image, mask)
        label = torch.tensor(int(row.label_index))
        return ImageItem(image=image, gt_mask=mask, gt_label=label, image_path=row.image_path, mask_path=row.mask_path)

    def _original(self, index: int) -> Tensor:
        """Return an image of the source, shape ``(3, H, W)``."""
        return cast("Tensor", self.source[index].image)

    def _place(self, cache: str | Path | None, settings: list[Any]) -> tuple[Path, ScratchFolder | None]:
        """Return the folder of the files, and what keeps it alive where it is a temporary one."""
        if cache is None:
            scratch = ScratchFolder("medmix")
            return scratch.path, scratch
        stats = [(path, Path(path).stat()) for path in self.source.samples["image_path"]]
        files = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
        frames = self.source.samples.get(Column.FRAME, pd.Series(dtype=int)).tolist()
        reading = repr(getattr(self.source, "reader", None))
        content = [_FORMAT, settings, repr(self.medmix), files, frames, reading]
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
        return at_home(cache) / f"medmix-{key}", None

    def _write_alone(self, *arguments: Any) -> None:
        """Let one process write, and remove what one that was killed has left."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder.with_name(f".{self.folder.name}.lock")):
                for left in self.folder.parent.glob(f".{self.folder.name}-*"):
                    shutil.rmtree(left, ignore_errors=True)
                if not (self.folder / "complete").is_file():
                    self._write(*arguments)
        except OSError as error:
            raise InputError(
                f"cannot write MedMix images to '{self.folder}' ({error.strerror}): name another cache folder"
            ) from error

    def _write(self, order: list[int], number: int, counts: list[int], generator: torch.Generator) -> None:
        """Write images with lesions and their masks; the folder is complete or absent."""
        draft = self.folder.with_name(f".{self.folder.name}-{uuid.uuid4().hex[:8]}")
        try:
            for name in ("lesion", "mask"):
                (draft / name).mkdir(parents=True)
            previous = self._original(order[-1])
            for rank, index in enumerate(order[:number]):
                original = self._original(index)
                image = _limited(original)
                donor = resize(previous.as_subclass(Tensor), list(image.shape[-2:]))
                previous = original  # each is the donor of the next: decoded once
                batch = torch.stack([_large_enough(image, str(self.source.samples["image_path"][index])), donor])
                count = torch.tensor([counts[rank % len(counts)], 0])
                output = self.medmix.synthesize(batch, count, generator)
                pixels = (output.image[0].clamp(0, 1) * _LEVELS).round().permute(1, 2, 0).numpy().astype(np.uint16)
                _save(draft / "lesion" / f"{index:06d}.png", pixels)
                _save(draft / "mask" / f"{index:06d}.png", (output.mask[0, 0] > 0).numpy().astype(np.uint8) * 255)
            (draft / "complete").touch()
            if self.scratch:
                self.folder.rmdir()
            draft.rename(self.folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _table(self, chosen: list[int]) -> pd.DataFrame:
        """Return the sample table; the column ``SOURCE_INDEX`` is the row in the source."""
        samples = self.source.samples.copy()
        samples[Column.SOURCE_INDEX] = range(len(samples))
        names = [f"{index:06d}.png" for index in chosen]
        samples["mask_path"] = ""
        samples.loc[chosen, "label"] = "abnormal"
        samples.loc[chosen, "label_index"] = int(LabelName.ABNORMAL)
        samples.loc[chosen, "image_path"] = [str(self.folder / "lesion" / name) for name in names]
        samples.loc[chosen, "mask_path"] = [str(self.folder / "mask" / name) for name in names]
        samples.loc[chosen, Column.SHA256] = ""  # for check_datamodule: no need to look, and copies of nothing
        samples.loc[chosen, Column.SIDE] = MINIMUM_SIDE
        samples["split"] = Split.VAL.value
        samples.attrs["task"] = "segmentation"
        return samples


def _without_augmentations(dataset: AnomalibDataset) -> AnomalibDataset:
    """Return a copy of a dataset that reads images alone, as they are in the files."""
    plain = dataset.subsample(range(len(dataset)))
    plain.augmentations = None
    plain.samples.attrs["task"] = "classification"
    return plain


def _limited(image: Tensor) -> Tensor:
    """Return an image ``(3, H, W)`` as a plain tensor, reduced where its shorter side is very long."""
    plain = image.as_subclass(Tensor)
    return resize(plain, _LARGEST_SIDE) if min(plain.shape[-2:]) > _LARGEST_SIDE else plain


def _large_enough(image: Tensor, path: str) -> Tensor:
    """Return the image, or say that it is too small for a lesion."""
    if min(image.shape[-2:]) < MINIMUM_SIDE:
        raise InputError(
            f"'{path}' is smaller than {MINIMUM_SIDE} pixels, too small for a MedMix lesion: remove it, or use larger "
            "images"
        )
    return image


def _save(path: Path, pixels: np.ndarray) -> None:
    """Write a PNG file of 8 or 16 bits; Pillow cannot write 16-bit colour."""
    import imagecodecs  # noqa: PLC0415  # only when lesions are drawn

    path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))


def _read(path: str) -> Tensor:
    """Read a PNG file that :func:`_save` has written: ``(H, W, 3)`` or ``(H, W)``, the stored values as float32."""
    import imagecodecs  # noqa: PLC0415

    return torch.from_numpy(imagecodecs.png_decode(Path(path).read_bytes()).astype(np.float32))
