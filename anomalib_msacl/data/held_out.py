"""Normal training images that are held out: nothing else looks at them or at copies of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from anomalib.data.datasets.base.image import AnomalibDataset
from anomalib.data.utils import LabelName

from anomalib_msacl.data.samples import content_of, names_patients, patients_of
from anomalib_msacl.data.splits import split_by_patient

logger = logging.getLogger(__name__)


@dataclass
class HeldOut:
    """Normal images that nothing else looks at.

    Attributes:
        images: The dataset.
        units: For each image the number of its patient, or of its content where no patients are known: what counts
            once.
        number: How many units there are.
        named: Whether they are patients.
    """

    images: AnomalibDataset
    units: list[int]
    number: int
    named: bool

    @property
    def noun(self) -> str:
        """What counts once."""
        return "patients" if self.named else "images"


def hold_out(dataset: AnomalibDataset, ratio: float, seed: int) -> tuple[AnomalibDataset, HeldOut]:
    """Split training images into those that stay and those that are held out.

    No patient is on both sides, and copies of held-out images do not stay. Images labelled abnormal are not held out,
    nor do they stay where they are a held-out patient's.

    Args:
        dataset: Training images.
        ratio: Part of the patients, or of the images where none are known, that is held out, between 0 and 1.
        seed: Seed of the choice.

    Returns:
        The images that stay, and those that are held out.
    """
    train, held_out = split_by_patient(dataset, ratio, seed)
    ill = held_out.samples["label_index"].isin([int(LabelName.ABNORMAL)])
    named = names_patients(held_out.samples)
    if named:  # what looks normal in a patient with a lesion is no normal patient's
        ill = patients_of(held_out.samples).isin(set(patients_of(held_out.samples)[ill]))
    held_out = held_out.subsample(list(ill.index[~ill]))
    content = content_of(held_out.samples)
    seen = set(content)
    stays = [row for row, digest in enumerate(content_of(train.samples)) if digest not in seen]
    if len(stays) < len(train):
        logger.info("%d copies of held-out images are not trained with.", len(train) - len(stays))
    names = patients_of(held_out.samples).tolist() if named else content
    number = {name: index for index, name in enumerate(dict.fromkeys(names))}
    return train.subsample(stays), HeldOut(held_out, [number[name] for name in names], len(number), named)


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
    """Split training images into folds of about the same size, each patient, and all copies of an image, in one.

    Images labelled abnormal, and all others of such a patient, are in no fold and always among the others.

    Args:
        dataset: Training images.
        number: How many folds; fewer where there are fewer patients or images.
        seed: Seed of the split.

    Returns:
        The folds.
    """
    named, patients = names_patients(dataset.samples), patients_of(dataset.samples)
    ill = dataset.samples["label_index"].isin([int(LabelName.ABNORMAL)])
    if named:
        ill = patients.isin(set(patients[ill]))
    units = patients.tolist() if named else content_of(dataset.samples)
    names = sorted({unit for unit, abnormal in zip(units, ill, strict=True) if not abnormal})
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    folds = []
    for first in range(min(number, len(names))):
        chosen = {names[index]: row for row, index in enumerate(order[first::number])}
        inside = [not abnormal and unit in chosen for unit, abnormal in zip(units, ill, strict=True)]
        rows = [row for row, wanted in enumerate(inside) if wanted]
        rest = dataset.subsample([row for row, wanted in enumerate(inside) if not wanted])
        held_out = HeldOut(dataset.subsample(rows), [chosen[units[row]] for row in rows], len(chosen), named)
        folds.append(Fold(rest, held_out))
    return folds
