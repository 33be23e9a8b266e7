"""Datamodules whose files are read by :class:`~anomalib_msacl.data.reader.ImageReader`, and that know patients."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from anomalib.data import AnomalibDataModule, ImageItem
from anomalib.data.datasets.base.image import AnomalibDataset
from anomalib.data.utils import LabelName, Split, TestSplitMode, ValSplitMode
from torchvision.transforms.v2 import CenterCrop, Compose, RandomCrop, RandomResizedCrop, Resize, Transform
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.tv_tensors import Mask

from anomalib_msacl.data.dicom import dicom_tag
from anomalib_msacl.data.picture import Slices, UnreadableError
from anomalib_msacl.data.reader import Contents, ImageReader, kind_of
from anomalib_msacl.data.scratch import ScratchFolder
from anomalib_msacl.data.splits import split_by_patient
from anomalib_msacl.data.validation import hold_out_with_lesions
from anomalib_msacl.errors import InputError, name_some

logger = logging.getLogger(__name__)

MEDMIX = "medmix"
Duplicates = Literal["fail", "list", "ignore"]
_VAL_SPLITS = (ValSplitMode.NONE, ValSplitMode.SAME_AS_TEST, ValSplitMode.FROM_TRAIN, ValSplitMode.FROM_TEST)
_MAX_THREADS = 4  # as many files as the caches of volumes hold
_LABELS = {LabelName.NORMAL: "normal", LabelName.ABNORMAL: "abnormal"}


@dataclass(frozen=True)
class File:
    """An image file of a data set.

    Attributes:
        path: The file.
        label: Normal or abnormal.
        split: Training or test.
        mask: Mask of the lesions; None without.
        patient: Whose image it is; empty if that is not known.
    """

    path: Path
    label: LabelName
    split: Split
    mask: Path | None = None
    patient: str = ""


class MedicalDataset(AnomalibDataset):
    """Images of a sample table, read by a reader.

    The table has anomalib's columns, and ``frame``, the index of the slice or frame, ``patient``, ``name``, the path
    below the root, ``plain``, whether Pillow reads the same, and what :func:`anomalib_msacl.data.check_datamodule` asks
    for, ``sha256`` of the file and of how it is read, and ``side``, the length of the shorter side in pixels.

    Args:
        samples: The table; its ``attrs["task"]`` says whether there are masks.
        reader: Reads images and masks.
        name: Name of the data set.
    """

    def __init__(self, samples: pd.DataFrame, reader: ImageReader, name: str) -> None:
        super().__init__()
        self.reader = reader
        self.previews = ScratchFolder("previews")
        self._name = name
        self.samples = samples

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self._name

    def __getitem__(self, index: int) -> ImageItem:
        """Return an image with its label, and its mask where the data set has masks.

        Returns:
            ``image`` of shape ``(3, H, W)`` with values in [0, 1]. ``image_path`` is the file where it is an 8-bit
            picture, and an 8-bit PNG copy of other test images, because anomalib's visualiser opens it as a picture.

        Raises:
            InputError: If the file cannot be read any more.
        """
        row = self.samples.iloc[index]
        masked = self.samples.attrs["task"] == "segmentation"
        try:
            image = self.reader.read(row.image_path, int(row.frame))
            mask = self.reader.read_mask(row.mask_path, int(row.frame)) if masked and row.mask_path else None
        except UnreadableError as error:
            raise InputError(f"{row.image_path}, or its mask, {error}") from error
        shown = row.image_path if row.split == Split.TRAIN.value else self._shown(row, image)
        if masked and mask is None:
            mask = Mask(torch.zeros(image.shape[-2:], dtype=torch.uint8))
        if self.augmentations:
            image, mask = self.augmentations(image, mask) if masked else (self.augmentations(image), None)
        label = torch.tensor(int(row.label_index))
        return ImageItem(image=image, gt_mask=mask, gt_label=label, image_path=shown, mask_path=row.mask_path)

    def _shown(self, row: Any, image: torch.Tensor) -> str:
        """Return the path of a picture that Pillow shows as the model sees it."""
        if row.plain:
            return str(row.image_path)
        path = self.previews.path / self.name / f"{row['name']}.png"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            to_pil_image(image).save(path)
        return str(path)


class MedicalDataModule(AnomalibDataModule):
    """What all datamodules of medical files have in common; subclasses say which files there are.

    Every file is decoded once when the data is set up, so that all that is wrong is told before anything is trained.

    Args:
        intensity: How grey values become [0, 1], the same for all images. ``auto``: 8-bit pictures as they are;
            integers of more bits by the smallest usual depth that holds the training images; DICOM files by their own
            window if all training images name the same one; everything else by the 0.1 and 99.9 percentiles of the
            training images. ``dicom``: the window or table of each file. ``window: [low, high]``: these values, after
            the modality LUT, become 0 and 1. ``percentile: [p, q]``: percentiles of the training images.
        slices: Which slices of NIfTI volumes, or frames of DICOM files, are images; all of axis 2 if None.
        grey: Turn colours into grey. Otherwise grey images among coloured ones are refused.
        patient_pattern: Regular expression searched for in the path below the root; its first group, or else the
            whole match, is the patient. Splits then keep patients together.
        patient_tag: DICOM keyword whose value is the patient, for example ``PatientID``.
        duplicates: What to do about test images that are, pixel for pixel, training images: ``fail``, ``list`` them
            in a warning, or ``ignore`` them.
        val_split_mode: As in anomalib, or ``medmix``: held-out normal training images, half of them with MedMix
            lesions; see :class:`anomalib_msacl.data.MedMixValidation`.
        val_split_ratio: Part of the images, or of the patients, that goes to the validation set, between 0 and 1.
        train_batch_size: Images in a training batch.
        eval_batch_size: Images in a validation or test batch.
        num_workers: Number of data loading processes, 0 for none.
        **kwargs: All other arguments of anomalib's datamodule.

    Raises:
        InputError: If a setting is wrong; from ``setup()`` if a file is.
    """

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
        self.medmix_validation = val_split_mode == MEDMIX
        if not self.medmix_validation and val_split_mode not in _VAL_SPLITS:
            modes = ", ".join(mode.value for mode in _VAL_SPLITS)
            raise InputError(f"val_split_mode is {val_split_mode}: set it to {MEDMIX}, {modes}")
        if kwargs.get("test_split_mode") == TestSplitMode.SYNTHETIC:
            raise InputError("test_split_mode synthetic reads 8-bit pictures only: set it to from_dir or none")
        if duplicates not in ("fail", "list", "ignore"):
            raise InputError(f"duplicates is {duplicates}: set it to fail, list or ignore")
        mode = ValSplitMode.NONE if self.medmix_validation else val_split_mode
        super().__init__(
            val_split_mode=mode,
            val_split_ratio=val_split_ratio,
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            **kwargs,
        )
        self.reader = ImageReader.of(intensity, slices, grey)
        self.patients = _Patients(patient_pattern, patient_tag)
        self.duplicates = duplicates

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

    def setup(self, stage: str | None = None) -> None:
        """Set up the data, and refuse sizes that cannot be put into one batch."""
        super().setup(stage)
        self._check_sizes()

    def _setup(self, _stage: str | None = None) -> None:
        """List the files, look into each of them, and build the sample tables."""
        files = self.list_files()
        if not any(file.split == Split.TRAIN for file in files):
            raise InputError(f"the data set '{self.name}' has no training images below '{self.folder}'")
        self._check_names(files)
        contents = _in_threads(self.reader.inspect, [str(file.path) for file in files])
        _check_contents(list(contents.values()))
        masks = self._inspect_masks(files, contents)
        _check_colours(list(contents.values()))
        training = {str(file.path) for file in files if file.split == Split.TRAIN}
        self.reader.fit(found for path, found in contents.items() if path in training)
        self._tell_intensity([contents[path] for path in training])
        samples = self._table(files, contents, masks)
        self._check_duplicates(samples)
        self._check_patients(samples)
        self._sizes = {path: found.size for path, found in contents.items()}
        for split, attribute in ((Split.TRAIN, "train_data"), (Split.TEST, "test_data")):
            rows = samples[samples["split"] == split.value].reset_index(drop=True)
            setattr(self, attribute, MedicalDataset(rows, self.reader, self.name))

    def _create_test_split(self) -> None:
        """Take normal test images from the training images, by patient, where there are none."""
        if self.test_data.has_normal or self.test_split_mode == TestSplitMode.NONE:
            return
        self.train_data, normal = split_by_patient(self.train_data, self.test_split_ratio, self.seed)
        normal.samples["split"] = Split.TEST.value
        logger.info("No normal test images: %d of the training images are held out for the test.", len(normal))
        tables = [data.samples for data in (self.test_data, normal) if len(data)]
        self.test_data.samples = pd.concat(tables, ignore_index=True)
        self.test_data.samples.attrs["task"] = self.train_data.samples.attrs["task"]

    def _create_val_split(self) -> None:
        """Split by patient; ``medmix`` brings its own lesions."""
        if self.medmix_validation:
            hold_out_with_lesions(self, self.val_split_ratio, seed=self.seed)
        elif self.val_split_mode == ValSplitMode.FROM_TRAIN:
            self.train_data, self.val_data = split_by_patient(self.train_data, self.val_split_ratio, self.seed)
        elif self.val_split_mode == ValSplitMode.FROM_TEST:
            self.test_data, self.val_data = split_by_patient(self.test_data, self.val_split_ratio, self.seed)
        elif self.val_split_mode == ValSplitMode.SAME_AS_TEST:
            self.val_data = self.test_data.subsample(range(len(self.test_data)))

    def _check_names(self, files: Sequence[File]) -> None:
        """Raise :class:`InputError` where a file is listed twice or lies outside the root."""
        root = Path(os.path.abspath(self.folder))  # noqa: PTH100  # resolve() would follow links set on purpose
        paths = [path for file in files for path in (file.path, file.mask) if path is not None]
        outside = [str(path) for path in paths if not Path(os.path.abspath(path)).is_relative_to(root)]  # noqa: PTH100
        if outside:
            raise InputError(f"{name_some(outside)} lies outside the root '{root}': name files below it")
        twice = [str(path) for path, number in Counter(file.path for file in files).items() if number > 1]
        if twice:
            raise InputError(f"{name_some(twice)} is listed more than once: list every file once, in one split")

    def _inspect_masks(self, files: Sequence[File], contents: Mapping[str, Contents]) -> dict[str, Contents]:
        """Look into every mask, and raise :class:`InputError` where they do not fit."""
        frames = {str(file.mask): contents[str(file.path)].frames for file in files if file.mask}
        masks = _in_threads(lambda path: self.reader.inspect_mask(path, frames[path]), list(frames))
        _check_masks(files, contents, masks)
        return masks

    def _table(self, files: Sequence[File], contents: Mapping[str, Contents], masks: Mapping[str, Contents]) -> Any:
        """Return the sample table, one row for each slice or frame."""
        has_masks = any(file.mask for file in files)
        names = {str(file.path): Path(os.path.relpath(file.path, self.folder)).as_posix() for file in files}
        patients = {
            str(file.path): file.patient or self.patients.of(file.path, names[str(file.path)]) for file in files
        }
        unknown = [names[path] for path, patient in patients.items() if not patient]
        if unknown:
            raise InputError(f"{self.patients.description} names no patient for {_listed(unknown)}: change it")
        reading = repr(self.reader)
        rows = []
        for file in files:
            found, mask = contents[str(file.path)], masks.get(str(file.mask))
            name = names[str(file.path)]
            for rank, frame in enumerate(found.frames):
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
                    "frame": frame,
                    "patient": patients[str(file.path)],
                    "name": f"{name}_{frame:04d}" if len(found.frames) > 1 else name,
                    "pixels": found.pixels[rank],
                    "sha256": hashlib.sha256(f"{found.sha256} {reading}".encode()).hexdigest(),
                    "side": min(found.size),
                    "plain": self.reader.reads_as_pillow(found),
                }
                rows.append(row)
        samples = pd.DataFrame(rows)
        samples.attrs["task"] = "segmentation" if has_masks else "classification"
        return samples

    def _tell_intensity(self, training: Sequence[Contents]) -> None:
        """Log what the intensity rule has come to, and warn where DICOM windows differ."""
        logger.info("Intensity of %s: %s", self.name, self.reader.intensity)
        windows = {sample.window for found in training for sample in found.samples if sample.kind == "dicom"}
        if self.reader.intensity.rule == "dicom" and len(windows) > 1:
            logger.warning(
                "The training images of %s have %d different DICOM windows, so that the same tissue can look "
                "different: set intensity to window: [low, high] or percentile: [p, q] to treat all alike.",
                *(self.name, len(windows)),
            )

    def _check_duplicates(self, samples: pd.DataFrame) -> None:
        """Fail on, or list, test images that are training images pixel for pixel."""
        if self.duplicates == "ignore":
            return
        train = samples[samples["split"] == Split.TRAIN.value].drop_duplicates("pixels").set_index("pixels")["name"]
        test = samples[(samples["split"] == Split.TEST.value) & samples["pixels"].isin(train.index)]
        copies = [f"{row['name']} (same as {train[row['pixels']]})" for _, row in test.iterrows()]
        if copies and self.duplicates == "fail":
            raise InputError(
                f"{len(copies)} test images are training images pixel for pixel, {name_some(copies)}: remove them from "
                "one side, or set duplicates to list or ignore"
            )
        if copies:
            logger.warning("%d test images are training images pixel for pixel: %s", len(copies), ", ".join(copies))

    def _check_patients(self, samples: pd.DataFrame) -> None:
        """Raise :class:`InputError` where a patient is in both the training and the test images."""
        sides = samples.groupby("patient")["split"].nunique()
        shared = sorted(sides.index[sides > 1])
        if shared:
            raise InputError(
                f"{len(shared)} patients are among both the training and the test images, {name_some(shared)}: move "
                "all images of a patient to one side"
            )

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


class _Patients:
    """Finds out whose image a file is.

    Args:
        pattern: Regular expression on the path below the root.
        tag: DICOM keyword.

    Raises:
        InputError: If both are given, or the pattern is no regular expression.
    """

    def __init__(self, pattern: str | None, tag: str | None) -> None:
        if pattern and tag:
            raise InputError("both patient_pattern and patient_tag are set: choose one")
        try:
            self.pattern = re.compile(pattern) if pattern else None
        except re.error as error:
            raise InputError(f"patient_pattern '{pattern}' is no regular expression: {error}") from error
        self.tag = tag

    @property
    def description(self) -> str:
        """How patients are found out, in words."""
        return f"patient_pattern '{self.pattern.pattern}'" if self.pattern else f"patient_tag {self.tag}"

    def of(self, path: Path, name: str) -> str:
        """Return the patient, the file's own name where patients are not asked for, and nothing where it does not tell.

        Args:
            path: The file.
            name: Its path below the root.
        """
        if self.pattern:
            match = self.pattern.search(name)
            return match.group(min(1, self.pattern.groups)) or "" if match else ""
        if self.tag:
            return dicom_tag(path, self.tag) if kind_of(path) == "dicom" else ""
        return name


def _in_threads(look: Callable[[str], Contents], paths: Sequence[str]) -> dict[str, Contents]:
    """Look into each file once; the decoders release the interpreter lock."""
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        return dict(zip(paths, pool.map(look, paths), strict=True))


def _listed(names: Sequence[str], separator: str = ", ") -> str:
    """Name some for a sentence; where they are too many, all of them stand in the log."""
    some = name_some(names, separator)
    if some != separator.join(names):
        logger.error("All %d of them:\n%s", len(names), "\n".join(names))
    return some


def _check_contents(contents: Sequence[Contents]) -> None:
    """Raise :class:`InputError` where files cannot be read, or are of one value throughout."""
    broken = [f"{found.path} {found.problem}" for found in contents if found.problem]
    if broken:
        raise InputError(f"{len(broken)} files cannot be used: {_listed(broken, '; ')}; replace or remove them")
    blank = [found.path for found in contents if len(found.constant) == len(found.frames)]
    if blank:
        raise InputError(
            f"{len(blank)} images are of one value throughout, as an all-black one is, {_listed(blank)}: remove them"
        )


def _check_colours(contents: Sequence[Contents]) -> None:
    """Raise :class:`InputError` where there are both grey and coloured images."""
    coloured = [found.path for found in contents if found.colour]
    rare = coloured if 2 * len(coloured) <= len(contents) else [f.path for f in contents if not f.colour]
    if rare and coloured:
        kind = "coloured among grey" if rare is coloured else "grey among coloured"
        raise InputError(
            f"{len(rare)} images are {kind} ones, {_listed(rare)}: set grey to true, or convert or remove them"
        )


def _check_masks(files: Sequence[File], contents: Mapping[str, Contents], masks: Mapping[str, Contents]) -> None:
    """Raise :class:`InputError` where masks are missing, broken, empty, or of another size than their image."""
    pairs = [(file, masks[str(file.mask)]) for file in files if file.mask]
    broken = [f"{mask.path} {mask.problem}" for _, mask in pairs if mask.problem]
    if broken:
        raise InputError(f"{len(broken)} masks cannot be used: {_listed(broken, '; ')}; replace or remove them")
    without = [str(file.path) for file in files if pairs and file.label == LabelName.ABNORMAL and not file.mask]
    if without:
        raise InputError(f"{len(without)} abnormal images have no mask, {_listed(without)}: give each of them one")
    empty = [str(file.mask) for file, mask in pairs if not mask.frames]
    if empty:
        raise InputError(
            f"{len(empty)} masks of abnormal images are empty, {_listed(empty)}: draw the lesion, or move the image "
            "to the normal ones"
        )
    other = [
        f"{file.mask} ({mask.size[1]} x {mask.size[0]}, image {_size(contents[str(file.path)])})"
        for file, mask in pairs
        if mask.size != contents[str(file.path)].size
    ]
    if other:
        raise InputError(f"{len(other)} masks are of another size than their image: resize {_listed(other)}")


def _size(found: Contents) -> str:
    """Return width and height in words."""
    return f"{found.size[1]} x {found.size[0]}"


def _makes_one_size(transform: Transform | None) -> bool:
    """Say whether a transform brings images of any size to one."""
    parts = transform.transforms if isinstance(transform, Compose) else [transform]
    resizes = [part for part in parts if isinstance(part, Resize) and len(part.size or ()) == 2]
    return bool(resizes) or any(isinstance(part, CenterCrop | RandomCrop | RandomResizedCrop) for part in parts)
