"""Datamodules whose files are read by :class:`~anomalib_msacl.medical.reader.ImageReader`, and that know patients."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from anomalib.data.utils import Split, TestSplitMode, ValSplitMode
from torchvision.transforms.v2 import CenterCrop, Compose, RandomCrop, RandomResizedCrop, Resize, Transform

from anomalib_msacl.data.inspection import inspect_each
from anomalib_msacl.data.medmix_split import MEDMIX, MedMixSplit
from anomalib_msacl.data.splits import split_by_patient
from anomalib_msacl.errors import InputError, name_some
from anomalib_msacl.medical.checks import (
    Duplicates,
    check_colours,
    check_contents,
    check_duplicates,
    check_fit,
    check_intensity,
    check_names,
    check_patients,
)
from anomalib_msacl.medical.dataset import MedicalDataset
from anomalib_msacl.medical.patients import Patients
from anomalib_msacl.medical.reader import ImageReader
from anomalib_msacl.medical.reading import READING, Reading
from anomalib_msacl.medical.slices import Slices
from anomalib_msacl.medical.table import File, Findings, sample_table

logger = logging.getLogger(__name__)

_MAX_THREADS = 4  # as many files as the caches of volumes hold


class MedicalDataModule(MedMixSplit):
    """What all datamodules of medical files have in common; subclasses say which files there are.

    Every file is decoded once when the data is set up, so that all that is wrong is told before anything is trained.

    Args:
        intensity: How grey values become [0, 1], the same for all images. ``auto``: 8-bit images as they are;
            integers of more bits by the smallest usual depth that holds the training images; all DICOM files by the
            window of the training images if these name the same one; everything else by the 0.1 and 99.9 percentiles
            of the training images. ``dicom``: the window or table of each file. ``window: [low, high]``: these values,
            after the modality LUT, become 0 and 1. ``percentile: [p, q]``: percentiles of the training images.
        slices: Which slices of NIfTI volumes, or frames of DICOM files, are images; all of axis 2 if None.
        grey: Turn colours into grey. Otherwise grey images among coloured ones are refused.
        patient_pattern: Regular expression searched for in the path below the root; its first group, or else the
            whole match, is the patient. Splits then keep patients together.
        patient_tag: DICOM keyword whose value is the patient, for example ``PatientID``.
        duplicates: What to do about test images that are, pixel for pixel, training images: ``fail``, ``list`` them
            in a warning, or ``ignore`` them.
        val_split_mode: As in anomalib, or ``medmix``: held-out normal training images, half of them with MedMix
            lesions; see :class:`anomalib_msacl.data.MedMixSplit`.
        val_split_ratio: Part of the images, or of the patients, that goes to the validation set, between 0 and 1.
        train_batch_size: Images in a training batch.
        eval_batch_size: Images in a validation or test batch.
        num_workers: Number of data loading processes, 0 for none.
        **kwargs: All other arguments of anomalib's datamodule.

    Raises:
        InputError: If a setting is wrong; from ``setup()`` if a file is.
    """

    val_split_modes = (ValSplitMode.NONE, ValSplitMode.SAME_AS_TEST, ValSplitMode.FROM_TRAIN, ValSplitMode.FROM_TEST)

    def __init__(
        self,
        intensity: str | dict[str, list[float]] = "auto",
        slices: Slices | None = None,
        grey: bool = False,
        patient_pattern: str | None = None,
        patient_tag: str | None = None,
        duplicates: Duplicates = "fail",
        val_split_mode: ValSplitMode | str = MEDMIX,
        val_split_ratio: float = 0.2,
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 0,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("test_split_mode") == TestSplitMode.SYNTHETIC:
            raise InputError("test_split_mode synthetic reads 8-bit images only: set it to from_dir or none")
        if duplicates not in ("fail", "list", "ignore"):
            raise InputError(f"duplicates is {duplicates}: set it to fail, list or ignore")
        super().__init__(
            val_split_mode=val_split_mode,
            val_split_ratio=val_split_ratio,
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            **kwargs,
        )
        self.reader = ImageReader.of(intensity, slices, grey)
        self.patients = Patients(patient_pattern, patient_tag)
        self.duplicates = duplicates
        self.shared_findings: list[Findings] | None = None
        """What datamodules of the same files and settings share of them, so that one alone looks into them; an empty
        list before the first. Nothing is shared by default."""

    @property
    @abstractmethod
    def folder(self) -> Path:
        """The folder that all files lie below."""

    @abstractmethod
    def list_files(self) -> list[File]:
        """Return the files of the data set.

        Raises:
            InputError: If files or folders are missing.
        """

    @property
    def reading(self) -> Reading:
        """How files are read; final once the data are set up."""
        pattern = self.patients.pattern
        return Reading(self.reader, pattern.pattern if pattern else None, self.patients.tag)

    def state_dict(self) -> dict[str, Any]:
        """Return how files are read: Lightning keeps it in every checkpoint, and so exports know it."""
        return {READING: self.reading.as_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warn where a checkpoint comes from images that were read in another way than these."""
        known = state_dict.get(READING)
        trained = Reading.from_dict(known).reader if known else self.reader
        if trained != self.reader:
            logger.warning(
                "The checkpoint was trained on images read as %s, but those of %s are read as %s: set intensity, "
                "slices and grey as they were, or scores and threshold mean something else.",
                *(_in_words(trained), self.name, _in_words(self.reader)),
            )

    def setup(self, stage: str | None = None) -> None:
        """Set up the data, and refuse sizes that cannot be put into one batch."""
        super().setup(stage)
        self._check_sizes()

    def read_data(self) -> None:
        """List the files, look into each of them, and build the sample tables."""
        files = self.list_files()
        training = {str(file.path) for file in files if file.split == Split.TRAIN}
        if not training:
            raise InputError(f"the data set '{self.name}' has no training images below '{self.folder}'")
        check_names(files, self.folder)
        findings = self.shared_findings[0] if self.shared_findings else self._inspect(files)
        if self.shared_findings == []:
            self.shared_findings.append(findings)
        self.reader.fit(found for path, found in findings.contents.items() if path in training)
        logger.info("Intensity of %s: %s", self.name, self.reader.intensity)
        check_intensity(self.reader.intensity, list(findings.contents.values()), training, self.name)
        samples = sample_table(files, findings, self.folder, self.patients, self.reader)
        check_duplicates(samples, self.duplicates)
        check_patients(samples)
        self._sizes = {path: found.size for path, found in findings.contents.items()}
        for split, attribute in ((Split.TRAIN, "train_data"), (Split.TEST, "test_data")):
            rows = samples[samples["split"] == split.value].reset_index(drop=True)
            setattr(self, attribute, MedicalDataset(rows, self.reader, self.name))

    def _inspect(self, files: Sequence[File]) -> Findings:
        """Look into every file and mask, and raise :class:`InputError` where they cannot be used together."""
        contents = inspect_each(self.reader.inspect, [str(file.path) for file in files], _MAX_THREADS)
        check_contents(list(contents.values()))
        images = {str(file.mask): contents[str(file.path)] for file in files if file.mask}
        masks = inspect_each(lambda path: self.reader.inspect_mask(path, images[path]), images, _MAX_THREADS)
        check_fit(files, contents, masks)
        check_colours(list(contents.values()))
        return Findings(contents, masks)

    def split_test(self) -> None:
        """Take normal test images from the training images, by patient, where there are none."""
        if self.test_data.has_normal or self.test_split_mode == TestSplitMode.NONE:
            return
        self.train_data, normal = split_by_patient(self.train_data, self.test_split_ratio, self.seed)
        normal.samples["split"] = Split.TEST.value
        logger.info("No normal test images: %d of the training images are held out for the test.", len(normal))
        tables = [data.samples for data in (self.test_data, normal) if len(data)]
        self.test_data.samples = pd.concat(tables, ignore_index=True)
        self.test_data.samples.attrs["task"] = self.train_data.samples.attrs["task"]

    def split_validation(self) -> None:
        """Split by patient; ``medmix`` is the base class's."""
        if self.medmix_validation:
            super().split_validation()
        elif self.val_split_mode == ValSplitMode.FROM_TRAIN:
            self.train_data, self.val_data = split_by_patient(self.train_data, self.val_split_ratio, self.seed)
        elif self.val_split_mode == ValSplitMode.FROM_TEST:
            self.test_data, self.val_data = split_by_patient(self.test_data, self.val_split_ratio, self.seed)
        elif self.val_split_mode == ValSplitMode.SAME_AS_TEST:
            self.val_data = self.test_data.subsample(range(len(self.test_data)))

    def _check_sizes(self) -> None:
        """Raise :class:`InputError` where images of different sizes would have to go into one batch."""
        subsets = [(self.train_data, self.train_batch_size), (self.test_data, self.eval_batch_size)]
        for data, batch_size in subsets:
            sizes = Counter(self._sizes[path] for path in data.samples["image_path"])
            if len(sizes) > 1 and batch_size > 1 and self.trainer and not _makes_one_size(data.augmentations):
                (common, _), *others = sizes.most_common()
                odd = [path for path in data.samples["image_path"] if self._sizes[path] != common]
                raise InputError(
                    f"images have {len(others) + 1} different sizes, most of them {common[1]} x {common[0]} but not "
                    f"{name_some(odd)}: give the model's pre_processor a Resize, or set the batch sizes to 1"
                )


def _in_words(reader: ImageReader) -> str:
    """Describe how files are read."""
    extra = [name for name, on in (("grey", reader.grey), ("inset hidden", reader.hide_inset)) if on]
    cut = [] if reader.slices == Slices() else [str(reader.slices)]
    return ", ".join([f"'{reader.intensity}'", *extra, *cut])


def _makes_one_size(transform: Transform | None) -> bool:
    """Say whether a transform brings images of any size to one."""
    parts = transform.transforms if isinstance(transform, Compose) else [transform]
    resizes = [part for part in parts if isinstance(part, Resize) and len(part.size or ()) == 2]
    return bool(resizes) or any(isinstance(part, CenterCrop | RandomCrop | RandomResizedCrop) for part in parts)
