"""A validation set made of normal training images: some are held out, and MedMix puts lesions into a part of them.

It takes the place of anomalib's ``synthetic`` split, which draws Perlin noise. Like any validation set of anomalib it
decides the threshold and the normalisation of scores, and the checkpoint where one is chosen by a validation metric.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import uuid
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pandas as pd
import torch
from anomalib.data import AnomalibDataModule, ImageItem
from anomalib.data.datasets.base.image import AnomalibDataset
from anomalib.data.utils import LabelName, Split, ValSplitMode
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchvision.transforms.v2.functional import resize
from torchvision.tv_tensors import Image, Mask

from anomalib_msacl.data.raster import deep_files, warn_of_lost_bits
from anomalib_msacl.data.reader import ImageReader
from anomalib_msacl.data.scratch import ScratchFolder
from anomalib_msacl.data.splits import patients_of, split_by_patient
from anomalib_msacl.errors import InputError, show_input_errors_as_one_line
from anomalib_msacl.lesions import MINIMUM_SIDE, MedMix

logger = logging.getLogger(__name__)

_FORMAT = 1  # raise when files of an older format must not be reused
_LARGEST_SIDE = 1024  # of the shorter side: larger pictures would fill the disk and are reduced by the model anyway
_LEVELS = 65535  # 16 bits: an 8-bit value comes back exactly, so that the file format is no hint of a lesion
_OPEN_SPLITS = (ValSplitMode.NONE, ValSplitMode.SAME_AS_TEST, ValSplitMode.FROM_DIR)


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
            self._write(order, len(chosen), counts, generator)
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
            image: Tensor = _read(row.image_path)
            mask = Mask(cast("Any", cv2.imread(row.mask_path, cv2.IMREAD_UNCHANGED)) > 0)
        else:
            image = self._original(int(row.source_index))
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
        frames = self.source.samples.get("frame", pd.Series(dtype=int)).tolist()
        reading = repr(getattr(self.source, "reader", None))
        content = [_FORMAT, settings, repr(self.medmix), files, frames, reading]
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
        return Path(cache) / f"medmix-{key}", None

    def _write(self, order: list[int], number: int, counts: list[int], generator: torch.Generator) -> None:
        """Write images with lesions and their masks; the folder is complete or absent."""
        draft = self.folder.with_name(f".{self.folder.name}-{uuid.uuid4().hex[:8]}")
        try:
            for name in ("lesion", "mask"):
                (draft / name).mkdir(parents=True)
            for rank, index in enumerate(order[:number]):
                image = _limited(self._original(index))
                donor = resize(self._original(order[rank - 1]).as_subclass(Tensor), list(image.shape[-2:]))
                batch = torch.stack([_large_enough(image, str(self.source.samples["image_path"][index])), donor])
                count = torch.tensor([counts[rank % len(counts)], 0])
                output = self.medmix.synthesize(batch, count, generator)
                pixels = (output.image[0].clamp(0, 1) * _LEVELS).round().permute(1, 2, 0).numpy().astype(np.uint16)
                _save(draft / "lesion" / f"{index:06d}.png", pixels[..., ::-1])  # OpenCV wants BGR
                _save(draft / "mask" / f"{index:06d}.png", (output.mask[0, 0] > 0).numpy().astype(np.uint8) * 255)
            (draft / "complete").touch()
            if self.scratch:
                self.folder.rmdir()
            draft.rename(self.folder)
        except OSError as error:
            if (self.folder / "complete").is_file():  # another process was faster
                return
            raise InputError(
                f"cannot write MedMix images to '{self.folder}' ({error.strerror}): name another cache folder"
            ) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _table(self, chosen: list[int]) -> pd.DataFrame:
        """Return the sample table; ``source_index`` is the row of the image in the source."""
        samples = self.source.samples.copy()
        samples["source_index"] = range(len(samples))
        names = [f"{index:06d}.png" for index in chosen]
        samples["mask_path"] = ""
        samples.loc[chosen, "label"] = "abnormal"
        samples.loc[chosen, "label_index"] = int(LabelName.ABNORMAL)
        samples.loc[chosen, "image_path"] = [str(self.folder / "lesion" / name) for name in names]
        samples.loc[chosen, "mask_path"] = [str(self.folder / "mask" / name) for name in names]
        samples.loc[chosen, "sha256"] = ""  # for check_datamodule: these are in order, and copies of nothing
        samples.loc[chosen, "side"] = MINIMUM_SIDE
        samples["split"] = Split.VAL.value
        samples.attrs["task"] = "segmentation"
        return samples


def hold_out_with_lesions(
    datamodule: AnomalibDataModule,
    ratio: float = 0.2,
    share: float = 0.5,
    seed: int | None = 0,
    medmix: MedMix | None = None,
    cache: str | Path | None = None,
) -> None:
    """Turn a part of a datamodule's training images into its validation set, a share of it with MedMix lesions.

    Where the sample table names patients, no patient is on both sides.

    Args:
        datamodule: Set up, with training images; its validation set is replaced.
        ratio: Part of the training images, or of their patients, that is held out, between 0 and 1.
        share: Part of the held-out images that gets lesions, between 0 and 1.
        seed: Seed of both choices and of the lesions; None draws one.
        medmix: How lesions look; the default if None.
        cache: Folder for the files; a temporary one if None.

    Raises:
        InputError: If there are too few images, or a setting is out of range.
    """
    if not 0 < ratio < 1:
        raise InputError(f"the part of the training images held out for validation is {ratio}: set it between 0 and 1")
    seed = int(torch.randint(1 << 31, ())) if seed is None else seed
    least = 2 / max(2, patients_of(datamodule.train_data.samples).nunique())  # one image with lesions, one without
    train, held_out = split_by_patient(datamodule.train_data, max(ratio, least), seed)
    if not isinstance(getattr(held_out, "reader", None), ImageReader):
        warn_of_lost_bits(deep_files(held_out.samples["image_path"]))
    datamodule.val_data = MedMixDataset(held_out, medmix, share, seed, cache)
    datamodule.train_data = train


class MedMixValidation(Callback):
    """Validate on held-out normal training images with MedMix lesions: no abnormal image is needed.

    For any datamodule of anomalib that reads image files. Set its ``val_split_mode`` to ``none``.

    Args:
        ratio: Part of the training images, or of their patients where they are known, that is held out, between 0
            and 1.
        share: Part of the held-out images that gets lesions, between 0 and 1.
        seed: Decides which images are held out, which get lesions, and what the lesions are.
        medmix: How lesions look; the numbers of its ``counts`` that are above 0 take turns.
        cache: Folder in which the images with lesions stay and are used again; a temporary one, removed at the end, if
            None.

    Raises:
        InputError: If the datamodule has already given images away for validation, or has too few.
    """

    def __init__(
        self,
        ratio: float = 0.2,
        share: float = 0.5,
        seed: int = 0,
        medmix: MedMix | None = None,
        cache: str | Path | None = None,
    ) -> None:
        show_input_errors_as_one_line()
        self.ratio = ratio
        self.share = share
        self.seed = seed
        self.medmix = medmix
        self.cache = cache

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replace the validation set, once, before the model looks at the data."""
        del pl_module
        datamodule = getattr(trainer, "datamodule", None)
        if stage not in {"fit", "validate"} or isinstance(getattr(datamodule, "val_data", None), MedMixDataset):
            return
        if not isinstance(datamodule, AnomalibDataModule) or not isinstance(datamodule.train_data, AnomalibDataset):
            raise InputError(
                f"MedMixValidation needs an image datamodule of anomalib, but got {type(datamodule).__name__}: pass "
                "datamodule=... to the engine"
            )
        if datamodule.val_split_mode not in _OPEN_SPLITS:
            raise InputError(
                f"MedMixValidation makes the validation set, but the datamodule has val_split_mode "
                f"{datamodule.val_split_mode.value} and has given images away for one: set val_split_mode to none"
            )
        hold_out_with_lesions(datamodule, self.ratio, self.share, self.seed, self.medmix, self.cache)
        datamodule.setup(trainer.state.fn)  # set up already: this only hands the augmentations to the new set
        lesions = int((datamodule.val_data.samples.label_index == LabelName.ABNORMAL).sum())
        logger.info(
            "MedMixValidation: %d of %d held-out normal images have MedMix lesions; %d are left for training.",
            *(lesions, len(datamodule.val_data), len(datamodule.train_data)),
        )


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


def _save(path: Path, pixels: Any) -> None:
    """Write a PNG file, or raise ``OSError``."""
    encoded = cv2.imencode(".png", pixels)[1]
    path.write_bytes(encoded.tobytes())


def _read(path: str) -> Image:
    """Read a 16-bit PNG file to ``(3, H, W)`` in [0, 1]."""
    pixels = cast("Any", cv2.imread(path, cv2.IMREAD_UNCHANGED))[..., ::-1].astype(np.float32) / _LEVELS
    return Image(torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).contiguous())
