"""The sample table of medical images: one row for each slice or frame."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from anomalib.data.utils import LabelName, Split

from anomalib_msacl.data.inspection import listed
from anomalib_msacl.data.samples import Column
from anomalib_msacl.errors import InputError
from anomalib_msacl.medical.patients import Patients
from anomalib_msacl.medical.reader import Contents, ImageReader, MaskContents

_LABELS = {LabelName.NORMAL: "normal", LabelName.ABNORMAL: "abnormal"}


@dataclass(frozen=True)
class File:
    """An image file of a data set.

    Attributes:
        path: The file.
        label: Normal or abnormal.
        split: Training or test.
        mask: Mask of the lesions; None if there is none.
        patient: Whose image it is; empty where the file itself does not say it. Of a data set without a rule for
            patients, either all files say it or none.
    """

    path: Path
    label: LabelName
    split: Split
    mask: Path | None = None
    patient: str = ""


@dataclass(frozen=True)
class Findings:
    """All that is known of the files of a data set.

    Attributes:
        contents: What was found in each image file, by its path.
        masks: What was found in each mask, by its path.
    """

    contents: Mapping[str, Contents]
    masks: Mapping[str, MaskContents]


def sample_table(
    files: Sequence[File], findings: Findings, folder: Path, patients: Patients, reader: ImageReader
) -> pd.DataFrame:
    """Return the table; slices of one value throughout are left out.

    Args:
        files: The files of the data set.
        findings: What was found in them.
        folder: The root folder, which names are relative to.
        patients: Finds out whose image a file is, where the file itself does not say it.
        reader: How files are read.

    Returns:
        A table with anomalib's columns and those of :class:`Column` but ``SOURCE_INDEX``, and ``PATIENT`` only where
        patients are known; its ``attrs["task"]`` says whether there are masks.

    Raises:
        InputError: If a rule does not tell the patient of a file, or the files name the patients of some of them only.
    """
    names = {file.path: Path(os.path.relpath(file.path, folder)).as_posix() for file in files}
    owners = {file.path: file.patient or patients.of(file.path, names[file.path]) for file in files}
    unknown = [names[path] for path, patient in owners.items() if not patient]
    named = patients.asked or len(unknown) < len(owners)
    if named and unknown:
        raise InputError(f"{patients.description} names no patient for {listed(unknown)}: change it")
    reading = repr(reader)
    rows = []
    for file in files:
        found = findings.contents[str(file.path)]
        constants = {
            **({Column.PATIENT: owners[file.path]} if named else {}),
            Column.SHA256: hashlib.sha256(f"{found.sha256} {reading}".encode()).hexdigest(),
            Column.SIDE: min(found.size),
            Column.PLAIN: reader.reads_as_pillow(found),
        }
        rows += [row | constants for row in _rows(file, names[file.path], found, findings.masks.get(str(file.mask)))]
    samples = pd.DataFrame(rows)
    samples.attrs["task"] = "segmentation" if any(file.mask for file in files) else "classification"
    return samples


def _rows(file: File, name: str, found: Contents, mask: MaskContents | None) -> list[dict[str, Any]]:
    """Return what differs between the slices or frames of a file."""
    rows: list[dict[str, Any]] = []
    for frame, pixels in zip(found.frames, found.pixels, strict=True):
        if frame in found.constant:
            continue
        # a slice of an abnormal volume that has no lesion is normal; without a mask nobody knows
        label = LabelName.NORMAL if mask and frame not in mask.frames else file.label
        row = {
            "image_path": str(file.path),
            "label": _LABELS[label],
            "label_index": int(label),
            "mask_path": str(file.mask) if mask and label == LabelName.ABNORMAL else "",
            "split": file.split.value,
            Column.FRAME: frame,
            Column.NAME: f"{name}_{frame:04d}" if len(found.frames) > 1 else name,
            Column.PIXELS: pixels,
        }
        rows.append(row)
    return rows
