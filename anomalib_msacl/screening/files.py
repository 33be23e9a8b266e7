"""Files of any kind, read by the rule of the training: frames, pixels, and whose image it is."""

from __future__ import annotations

import math
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image

from anomalib_msacl.data.files import UnreadableError, oddity
from anomalib_msacl.data.inspection import check_finite, plain_words
from anomalib_msacl.medical.dicom import dicom_frames, dicom_size, dicom_tag
from anomalib_msacl.medical.image import Array, RawImage
from anomalib_msacl.medical.intensity import Sample
from anomalib_msacl.medical.kinds import kind_of
from anomalib_msacl.medical.nifti import nifti_shape
from anomalib_msacl.medical.patients import Patients
from anomalib_msacl.medical.reader import frames_of
from anomalib_msacl.medical.reading import Reading
from anomalib_msacl.screening.bundle import Bundle
from anomalib_msacl.screening.sources import Source

MOST_PIXELS = 2**26  # of an image: 8192 x 8192, about 1 GB of memory while it is read
MOST_VOXELS = 2**28  # of a volume: 512 x 512 x 1024, 1 GiB


class FileReader:
    """Reads files as the training did.

    Args:
        reading: How the training read its files; None if anomalib's own reader did, which knows 8 bits only.

    Attributes:
        known: Whether it is known how the training read its files.
        reading: As above; the default where it is not known.
        other_windows: How many images so far had another DICOM window than the training, or none.
    """

    def __init__(self, reading: Reading | None) -> None:
        self.known = reading is not None
        self.reading = reading or Reading()
        self._patients = Patients(self.reading.patient_pattern, self.reading.patient_tag or None)
        self.other_windows = 0
        self._lock = Lock()  # files are read in threads

    @classmethod
    def of(cls, bundle: Bundle) -> FileReader:
        """Return the reader that a model was trained with."""
        return cls(None if bundle.reading is None else Reading.from_dict(bundle.reading))

    def frames(self, path: Path) -> list[int | None]:
        """Return the indices of the slices or frames of a file; None alone for a file of one image.

        Raises:
            UnreadableError: If it cannot be read, or is larger than what is read.
            InputError: If a library is missing.
        """
        with plain_words():
            if not path.exists():
                raise UnreadableError("is missing" if not path.is_symlink() else "is a link to nothing, or to itself")
            if odd := oddity(path):
                raise UnreadableError(f"is {odd}")
            kind = kind_of(path)
            _check_size(path, kind)
            if kind == "raster":
                return [None]
            if kind == "dicom" and dicom_frames(path) == 1:
                return [None]
            found = frames_of(path, self.reading.reader.slices)
        if not found:
            raise UnreadableError("has no slice with an image among those that the training chose")
        return list(found)

    def pixels(self, path: Path, frame: int | None) -> Array:
        """Return an image in [0, 1], shape ``(3, H, W)``, float32: the very pixels that the training would see.

        Raises:
            UnreadableError: If it cannot be read, is or becomes of one value throughout, or the training says nothing
                about images of its kind.
            InputError: If a library is missing.
        """
        reader = self.reading.reader
        with plain_words():
            image = reader.decoded(path, frame or 0)
            check_finite(image.values)
            sample = Sample.of(image, reader.intensity.own_window)
            if sample.lowest == sample.highest:
                raise UnreadableError("is of one value throughout, as black images are")
            if reason := self._unknown(image, sample):
                raise UnreadableError(reason)
            pixels = reader.rendered(image)
        if np.ptp(pixels) == 0:
            whose = "its own window" if reader.intensity.rule == "dicom" else "the window of the training"
            raise UnreadableError(f"has no values inside {whose}, by which it is of one value throughout")
        if self.known and reader.intensity.replaces_window(sample):
            with self._lock:
                self.other_windows += 1
        return pixels

    def note(self) -> str:
        """Say how many images so far had another DICOM window than the training; empty where none had."""
        if not self.other_windows:
            return ""
        return (
            f"note: {self.other_windows} DICOM images have another window than the training images, or none, and were "
            f"read by that of the training images ({self.reading.reader.intensity.common_window})"
        )

    def patient(self, source: Source) -> str:
        """Return whose image a file is, by the rule of the training or its DICOM tag; empty where nothing tells."""
        path = source.path
        if self.reading.patient_pattern:
            return self._patients.of(path, Path(source.name).as_posix())
        if kind_of(path) == "dicom":
            return dicom_tag(path, self.reading.patient_tag or "PatientID")
        return ""

    def _unknown(self, image: RawImage, sample: Sample) -> str:
        """Say why the training does not tell how an image is read."""
        if self.known:
            return self.reading.reader.intensity.unknown(sample)
        if image.kind == "raster" and image.range == (0, 255):
            return ""
        return (
            "is no image of 8 bits, which are all that the training read: train with the datamodule "
            "anomalib_msacl.data.MedicalFolder"
        )


def _check_size(path: Path, kind: str) -> None:
    """Raise :class:`UnreadableError` where a header names more pixels than are read."""
    if kind == "nifti":
        shape, most = nifti_shape(path), MOST_VOXELS
    else:
        shape, most = dicom_size(path) if kind == "dicom" else _raster_size(path), MOST_PIXELS
    if math.prod(shape) > most:
        sides = " x ".join(str(side) for side in (shape if kind == "nifti" else shape[::-1]))
        what = "voxels" if kind == "nifti" else "pixels"
        raise UnreadableError(f"has {sides} {what}, more than the {most} that are screened: crop or resample it")


def _raster_size(path: Path) -> tuple[int, int]:
    """Return height and width of a picture, which is not decoded; zeros where it is none, which is told later."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Image.DecompressionBombError as error:
        raise UnreadableError(
            f"has more pixels than the {MOST_PIXELS} that are screened: crop or resample it"
        ) from error
    except Exception:  # whatever is wrong with it is told when it is decoded
        return 0, 0
