"""Normal training images that are held out: nothing else looks at them or at copies of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pandas as pd
import torch
from anomalib.data.datasets.base.image import AnomalibDataset
from anomalib.data.utils import LabelName

from anomalib_msacl.data.samples import names_of_content, patients_of, unit_of, units_of
from anomalib_msacl.data.splits import split_by_patient
from anomalib_msacl.data.units import Unit

logger = logging.getLogger(__name__)


@dataclass
class HeldOut:
    """Normal images that nothing else looks at.

    Attributes:
        images: The dataset.
        units: For each image the number of what counts once: of its patient, or of the content of its file where no
            patients are known.
        number: How many units there are.
        unit: What they are.
    """

    images: AnomalibDataset
    units: list[int]
    number: int
    unit: Unit

    @property
    def noun(self) -> str:
        """What counts once, in the plural."""
        return f"{self.unit}s"


def hold_out(dataset: AnomalibDataset, ratio: float, seed: int) -> tuple[AnomalibDataset, HeldOut]:
    """Split training images into those that stay and those that are held out.

    No patient is on both sides, nor is a file, and copies of held-out images do not stay. Images labelled abnormal are
    not held out, nor do they stay where they are a held-out patient's.

    Args:
        dataset: Training images.
        ratio: Part of the patients, or of the files where none are known, that is held out, between 0 and 1.
        seed: Seed of the choice.

    Returns:
        The images that stay, and those that are held out.
    """
    train, held_out = split_by_patient(dataset, ratio, seed)
    ill = _ill(held_out)
    held_out = held_out.subsample(list(ill.index[~ill]))
    content, others = names_of_content(held_out.samples, train.samples)
    seen = set(content)
    stays = [row for row, name in enumerate(others) if name not in seen]
    if len(stays) < len(train):
        logger.info("%d copies of held-out images are not trained with.", len(train) - len(stays))
    names = units_of(held_out.samples, content)
    number = {name: index for index, name in enumerate(dict.fromkeys(names))}
    unit = unit_of(dataset.samples)  # of all images: a few may happen to be of one file each
    return train.subsample(stays), HeldOut(held_out, [number[name] for name in names], len(number), unit)


@dataclass
class Fold:
    """A part of the training images, and all others.

    Attributes:
        train: The others.
        held_out: The part.
    """

    train: AnomalibDataset
    held_out: HeldOut


def split_into_folds(dataset: AnomalibDataset, number: int, seed: int) -> list[Fold]:
    """Split training images into folds of about the same size, each patient, file, and all copies of one, in one fold.

    Images labelled abnormal, and all others of such a patient or file, are in no fold and always among the others.

    Args:
        dataset: Training images.
        number: How many folds; fewer where there are fewer patients or images.
        seed: Seed of the split.

    Returns:
        The folds.
    """
    ill, units, unit = _ill(dataset), units_of(dataset.samples), unit_of(dataset.samples)
    names = sorted({name for name, abnormal in zip(units, ill, strict=True) if not abnormal})
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    folds = []
    for first in range(min(number, len(names))):
        chosen = {names[index]: row for row, index in enumerate(order[first::number])}
        inside = [not abnormal and name in chosen for name, abnormal in zip(units, ill, strict=True)]
        rows = [row for row, wanted in enumerate(inside) if wanted]
        rest = dataset.subsample([row for row, wanted in enumerate(inside) if not wanted])
        held_out = HeldOut(dataset.subsample(rows), [chosen[units[row]] for row in rows], len(chosen), unit)
        folds.append(Fold(rest, held_out))
    return folds


def _ill(dataset: AnomalibDataset) -> pd.Series:
    """Say of each image whether its patient, or its file, has a lesion: what looks normal there is no normal one's."""
    abnormal = dataset.samples["label_index"].isin([int(LabelName.ABNORMAL)])
    owners = patients_of(dataset.samples)
    return owners.isin(set(owners[abnormal]))
