"""Small DICOM and NIfTI files for tests."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

LOSSLESS = (RLELossless, JPEG2000Lossless, JPEGLSLossless)


def tissue(seed: int, size: tuple[int, int] = (64, 64), low: int = 900, high: int = 1500) -> np.ndarray:
    """A smooth 16-bit picture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : size[0], 0 : size[1]] / 10.0
    waves = sum(np.sin(y * a + p) * np.cos(x * b + q) for a, b, p, q in rng.uniform(0.3, 2, (4, 4)))
    waves = (waves - waves.min()) / np.ptp(waves)
    return (low + (high - low) * waves).astype(np.uint16)


def write_dicom(
    path: Path,
    pixels: np.ndarray,
    syntax: str = ExplicitVRLittleEndian,
    photometric: str = "MONOCHROME2",
    bits: int = 12,
    **tags: Any,
) -> Path:
    """Write pixels ``(H, W)``, ``(N, H, W)`` or colours ``(H, W, 3)`` as a DICOM file."""
    colour = photometric in {"RGB", "YBR_FULL", "YBR_FULL_422"}
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.PatientID = "P1"
    height, width = pixels.shape[:2] if colour else pixels.shape[-2:]
    dataset.Rows, dataset.Columns = height, width
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = photometric
    dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    dataset.BitsAllocated = pixels.dtype.itemsize * 8
    dataset.BitsStored = min(bits, dataset.BitsAllocated)
    dataset.HighBit = dataset.BitsStored - 1
    if colour:
        dataset.PlanarConfiguration = 0
    if pixels.ndim == 3 and not colour:
        dataset.NumberOfFrames = len(pixels)
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    if syntax == JPEGBaseline8Bit:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=95)
        dataset.PixelData = encapsulate([file.getvalue()])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax
    elif syntax != ExplicitVRLittleEndian:
        dataset.compress(syntax, generate_instance_uid=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def change_dicom(path: Path, **tags: Any) -> Path:
    """Set tags of a file; None removes one."""
    dataset = pydicom.dcmread(path)
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.save_as(path)
    return path


def write_nifti(path: Path, volume: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write a volume in RAS orientation unless another affine is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4) if affine is None else affine), path)
    return path
