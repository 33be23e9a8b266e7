"""A validation set made of normal training images: some are held out, and MedMix puts lesions into a part of them.

It takes the place of anomalib's ``synthetic`` split, which draws Perlin noise. Like any validation set of anomalib it
decides the threshold and the normalisation of scores, and the checkpoint where one is chosen by a validation metric.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import ValSplitMode

from anomalib_msacl.compat import DataHooks
from anomalib_msacl.data.depth import deep_files, warn_of_lost_bits
from anomalib_msacl.data.medmix_dataset import MedMixDataset
from anomalib_msacl.data.samples import inspected_files
from anomalib_msacl.data.splits import split_by_patient, units_of_split
from anomalib_msacl.errors import InputError
from anomalib_msacl.lesions import MedMix

MEDMIX = "medmix"


class MedMixSplit(DataHooks):
    """Adds ``medmix`` to the values of ``val_split_mode``; a base class to name before a datamodule of anomalib.

    Normal training images are held out, and half of them get MedMix lesions. anomalib's own enumeration
    ``ValSplitMode`` never sees the name: to anomalib such a datamodule has the mode ``none``.

    Args:
        val_split_mode: As in anomalib, or ``medmix``.
        **kwargs: All other arguments of the datamodule, among them ``val_split_ratio``, the part of the training
            images, or of their patients, that is held out.

    Raises:
        InputError: If there is no such mode, or no such part.
    """

    val_split_modes: ClassVar[tuple[ValSplitMode, ...]] = tuple(ValSplitMode)
    """Those of anomalib's modes that are accepted."""

    def __init__(self, *, val_split_mode: ValSplitMode | str = ValSplitMode.FROM_TEST, **kwargs: Any) -> None:
        self.medmix_validation = val_split_mode == MEDMIX
        if not self.medmix_validation and val_split_mode not in self.val_split_modes:
            modes = ", ".join(mode.value for mode in self.val_split_modes)
            raise InputError(f"val_split_mode is {val_split_mode}: set it to {MEDMIX}, {modes}")
        ratio = kwargs.get("val_split_ratio", 0.5)
        if not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
            raise InputError(f"val_split_ratio is {ratio!r}: set it from 0 to 1")
        mode = ValSplitMode.NONE if self.medmix_validation else val_split_mode
        super().__init__(val_split_mode=mode, **kwargs)

    def split_validation(self) -> None:
        """Hold images out for ``medmix``; all other modes are anomalib's."""
        if self.medmix_validation:
            hold_out_with_lesions(self, self.val_split_ratio, seed=self.seed)
        else:
            super().split_validation()


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
    if not isinstance(ratio, int | float) or not 0 < ratio < 1:
        raise InputError(
            f"the part of the training images held out for validation is {ratio!r}: set it between 0 and 1"
        )
    seed = int(torch.randint(1 << 31, ())) if seed is None else seed
    least = 2 / max(2, units_of_split(datamodule.train_data.samples).nunique())  # one image with lesions, one without
    train, held_out = split_by_patient(datamodule.train_data, max(ratio, least), seed)
    if not inspected_files(held_out.samples):  # anomalib itself reads them
        warn_of_lost_bits(deep_files(held_out.samples["image_path"]))
    datamodule.val_data = MedMixDataset(held_out, medmix, share, seed, cache)
    datamodule.train_data = train
