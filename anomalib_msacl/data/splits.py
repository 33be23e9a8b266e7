"""Splits that keep all images of a patient, and all copies of an image, on one side."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from anomalib.data import AnomalibDataModule
from anomalib.data.datasets.base.image import AnomalibDataset
from anomalib.data.utils import LabelName, TestSplitMode, ValSplitMode
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from anomalib_msacl.data.samples import Column, patients_of

__all__ = ["draws_anew", "patients_of", "split_by_patient", "units_of_split"]


def draws_anew(datamodule: AnomalibDataModule) -> bool:
    """Say whether every setup of a datamodule has other test images, because its split has no seed.

    Args:
        datamodule: Set up or not.
    """
    if datamodule.seed is not None:
        return False
    folders = getattr(datamodule, "normal_test_dir", "") is None and not getattr(datamodule, "data_json", None)
    from_train = folders and datamodule.test_split_mode != TestSplitMode.NONE
    return from_train or datamodule.val_split_mode == ValSplitMode.FROM_TEST


def units_of_split(samples: pd.DataFrame) -> pd.Series:
    """Return the patient of each row, under one name where patients have an image in common: what is never divided.

    Args:
        samples: The table.
    """
    patients = patients_of(samples)
    if Column.PIXELS not in samples:
        return patients
    whose, names = pd.factorize(patients, sort=True)
    shown, images = pd.factorize(samples[Column.PIXELS])
    number = len(names) + len(images)  # patients, and then images, are the nodes of a graph; a row is an edge
    graph = coo_array((np.ones(len(samples)), (whose, shown + len(names))), shape=(number, number))
    _, group = connected_components(graph, directed=False)
    _, first = np.unique(group[: len(names)], return_index=True)
    return pd.Series(np.asarray(names)[first[group[whose]]], index=samples.index)


def split_by_patient(
    dataset: AnomalibDataset, ratio: float, seed: int | None = None
) -> tuple[AnomalibDataset, AnomalibDataset]:
    """Split a dataset in two so that no patient is on both sides, nor an image whose copy is on the other one.

    Copies are found where the table has digests of pixels; patients that share an image count as one here. Patients
    with an abnormal image and those without are split separately, each by the ratio, so that both sides have some of
    either wherever there are two.

    Args:
        dataset: Any image dataset of anomalib.
        ratio: Part of the patients that goes to the second side, between 0 and 1.
        seed: Seed of the choice; torch's global generator if None.

    Returns:
        The first and the second side.
    """
    patients = units_of_split(dataset.samples)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    abnormal = dataset.samples["label_index"].isin([int(LabelName.ABNORMAL)])
    ill = set(patients[abnormal])
    second: set[str] = set()
    for group in (sorted(set(patients) - ill), sorted(ill)):
        number = min(max(1, round(ratio * len(group))), max(0, len(group) - 1))
        second |= {group[index] for index in torch.randperm(len(group), generator=generator)[:number].tolist()}
    chosen = patients.isin(second)
    return dataset.subsample(list(chosen.index[~chosen])), dataset.subsample(list(chosen.index[chosen]))
