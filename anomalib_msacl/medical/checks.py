"""Checks of the files and the sample table of medical images."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
from anomalib.data.utils import LabelName, Split

from anomalib_msacl.data.inspection import check_usable, listed
from anomalib_msacl.data.masks import check_masks
from anomalib_msacl.data.samples import Column, names_patients
from anomalib_msacl.errors import InputError, name_some
from anomalib_msacl.medical.intensity import Intensity
from anomalib_msacl.medical.reader import Contents, MaskContents
from anomalib_msacl.medical.table import File

logger = logging.getLogger(__name__)

Duplicates = Literal["fail", "list", "ignore"]


def check_names(files: Sequence[File], folder: Path) -> None:
    """Raise :class:`InputError` where a file is listed twice or lies outside the root folder."""
    root = Path(os.path.abspath(folder))  # noqa: PTH100  # resolve() would follow links set on purpose
    paths = [path for file in files for path in (file.path, file.mask) if path is not None]
    outside = [str(path) for path in paths if not Path(os.path.abspath(path)).is_relative_to(root)]  # noqa: PTH100
    if outside:
        raise InputError(f"{name_some(outside)} lies outside the root '{root}': name files below it")
    twice = [str(path) for path, number in Counter(file.path for file in files).items() if number > 1]
    if twice:
        raise InputError(f"{name_some(twice)} is listed more than once: list every file once, in one split")


def check_contents(contents: Sequence[Contents]) -> None:
    """Raise :class:`InputError` where files cannot be read, or are of one value throughout."""
    check_usable({found.path: found.problem for found in contents}, "files")
    blank = [found.path for found in contents if len(found.constant) == len(found.frames)]
    if blank:
        raise InputError(
            f"{len(blank)} images are of one value throughout, as black ones are, {listed(blank)}: remove them"
        )


def check_colours(contents: Sequence[Contents]) -> None:
    """Raise :class:`InputError` where there are both grey and coloured images."""
    coloured = [found.path for found in contents if found.colour]
    rare = coloured if 2 * len(coloured) <= len(contents) else [f.path for f in contents if not f.colour]
    if rare and coloured:
        kind = "coloured among grey" if rare is coloured else "grey among coloured"
        raise InputError(
            f"{len(rare)} images are {kind} ones, {listed(rare)}: set grey to true, or convert or remove them"
        )


def check_fit(files: Sequence[File], contents: Mapping[str, Contents], masks: Mapping[str, MaskContents]) -> None:
    """Raise :class:`InputError` where masks are missing, or do not fit their images."""
    pairs = [file for file in files if file.mask]
    check_usable({path: mask.problem for path, mask in masks.items()}, "masks")
    without = [str(file.path) for file in files if pairs and file.label == LabelName.ABNORMAL and not file.mask]
    if without:
        raise InputError(f"{len(without)} abnormal images have no mask, {listed(without)}: give each of them one")
    check_masks([(str(file.mask), masks[str(file.mask)], contents[str(file.path)].size) for file in pairs])


def check_intensity(intensity: Intensity, contents: Sequence[Contents], training: set[str], name: str) -> None:
    """Look for images that the intensity rule does not fit, or makes of one value, and for DICOM windows that differ.

    Args:
        intensity: The rule, fixed by the training images.
        contents: What was found in the files.
        training: Paths of the training images.
        name: Name of the data set, for the messages.

    Raises:
        InputError: If the rule does not say how a file is read, or shows nothing of any training image.
    """
    check_usable({found.path: _first(map(intensity.unknown, found.samples)) for found in contents}, "files")
    others = [found.path for found in contents if any(map(intensity.replaces_window, found.samples))]
    if others:
        logger.warning(
            "%d DICOM files of %s have another window than the training images, or none, and are shown by that of "
            "the training images (%s): %s",
            *(len(others), name, intensity.common_window, name_some(others)),
        )
    blank = [found.path for found in contents if all(intensity.shows_nothing(sample) for sample in found.samples)]
    if training <= set(blank):
        raise InputError(
            f"intensity {intensity} leaves all training images of '{name}' of one value throughout, {listed(blank)}: "
            "give a window that holds their values, or set intensity to auto"
        )
    if blank:
        logger.warning(
            "%d images of %s have no values inside the window and are of one value throughout: %s",
            *(len(blank), name, name_some(blank)),
        )
    windows = {
        sample.window
        for found in contents
        if found.path in training
        for sample in found.samples
        if sample.kind == "dicom"
    }
    if intensity.rule == "dicom" and len(windows) > 1:
        logger.warning(
            "The training images of %s have %d different DICOM windows, so that the same tissue can look "
            "different: set intensity to window: [low, high] or percentile: [p, q] to treat all alike.",
            *(name, len(windows)),
        )


def check_duplicates(samples: pd.DataFrame, duplicates: Duplicates) -> None:
    """Fail on, or list, test images that are training images pixel for pixel.

    Raises:
        InputError: If there are some, and ``duplicates`` is ``fail``.
    """
    if duplicates == "ignore":
        return
    train = samples[samples["split"] == Split.TRAIN.value].drop_duplicates(Column.PIXELS)
    names = train.set_index(Column.PIXELS)[Column.NAME]
    test = samples[(samples["split"] == Split.TEST.value) & samples[Column.PIXELS].isin(names.index)]
    copies = [f"{row[Column.NAME]} (same as {names[row[Column.PIXELS]]})" for _, row in test.iterrows()]
    if copies and duplicates == "fail":
        raise InputError(
            f"{len(copies)} test images are training images pixel for pixel, {name_some(copies)}: remove them from "
            "one side, or set duplicates to list or ignore"
        )
    if copies:
        logger.warning("%d test images are training images pixel for pixel: %s", len(copies), ", ".join(copies))


def check_patients(samples: pd.DataFrame) -> None:
    """Raise :class:`InputError` where a known patient is in both the training and the test images."""
    if not names_patients(samples):
        return
    sides = samples.groupby(Column.PATIENT)["split"].nunique()
    shared = sorted(sides.index[sides > 1])
    if shared:
        raise InputError(
            f"{len(shared)} patients are among both the training and the test images, {name_some(shared)}: move "
            "all images of a patient to one side"
        )


def _first(reasons: Iterable[str]) -> str:
    """Return the first of some texts that is not empty."""
    return next(filter(None, reasons), "")
