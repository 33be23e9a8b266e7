"""Heat maps as DICOM objects that refer to the image they were made of.

A map becomes a secondary capture: an RGB picture that every PACS and viewer shows, with "NOT FOR DIAGNOSIS" in its
pixels, where no viewer can leave it out. A parametric map would keep the numbers, but few viewers show one.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomalib_msacl.data.files import UnreadableError
from anomalib_msacl.errors import InputError, first_line
from anomalib_msacl.medical.dicom import read_dicom
from anomalib_msacl.medical.image import Array
from anomalib_msacl.medical.library import medical_library
from anomalib_msacl.screening.capture import (
    NOT_FOR_DIAGNOSIS,
    displayed,
    overlay,
    placed,
    whole_pixels,
    with_legend,
)
from anomalib_msacl.screening.region import WHOLE, Region

MAKER = "anomalib-msacl"
SERIES_DESCRIPTION = f"Anomaly heat map, {NOT_FOR_DIAGNOSIS}"
_SERIES = 9000  # added to the number of the source's series, to stand behind those of the scanner
_NEEDED = ("StudyInstanceUID", "SOPClassUID", "SOPInstanceUID")
# What is as true of the picture as of its source, of which it shows every pixel.
_KEPT = ("BurnedInAnnotation", "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


def write_heat_map(
    source: Path,
    frame: int | None,
    heat_map: Array,
    target: Path,
    *,
    score: float,
    threshold: float,
    abnormal: bool,
    version: str,
    region: Region = WHOLE,
) -> None:
    """Write a heat map over its image as a DICOM secondary capture in the study of the image.

    The pixels of the image keep their place; text and a colour scale stand below them, and which part was examined
    where that is not all of the image. The maps of one series go into one new series. The same map written twice has
    the same SOP Instance UID.

    Args:
        source: The DICOM file that the map was made of.
        frame: Index of the frame, from 0, in a file of several; None in a file of one.
        heat_map: Shape ``(h, w)``, in [0, 1], stretched to its part of the image.
        target: The file to write; one that is there is replaced.
        score: Score of the image.
        threshold: The score above which an image is called abnormal.
        abnormal: What the image was called.
        version: Version of the software, for the object and for the text.
        region: The part of the image that the map covers, of
            :func:`anomalib_msacl.screening.region.seen_region`; nothing is marked outside of it.

    Raises:
        InputError: If the source is no DICOM image, lacks what a reference needs or has no such frame; if the map is
            not in [0, 1]; if the file cannot be written; if a library is missing.
    """
    _check_map(heat_map, source)
    header = _header(source, frame)
    verdict = f"anomaly score {score:.4g}, threshold {threshold:.4g}: {'abnormal' if abnormal else 'normal'}"
    try:
        image = displayed(read_dicom(source, frame or 0))
    except UnreadableError as error:
        raise InputError(f"{source} {error}; no heat map can be laid over it") from error
    size = (image.shape[0], image.shape[1])
    picture = overlay(image, placed(heat_map, size, region))
    examined = _examined(size, region)
    lines = [NOT_FOR_DIAGNOSIS, verdict, examined, f"{MAKER} {version}"]
    picture = with_legend(picture, [line for line in lines if line])
    verdict = f"{verdict}; {examined}" if examined else verdict
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of highdicom, about names of patients, which it prints
            capture = _capture(header, frame, picture, verdict, version)
    except (AttributeError, TypeError, ValueError) as error:  # highdicom checks what it copies
        raise InputError(
            f"{source} has an attribute of patient or study that DICOM forbids ({first_line(error)}): correct it"
        ) from error
    _save(capture, target)


def _examined(size: tuple[int, int], region: Region) -> str:
    """Say which part of an image the network saw, empty where that is all of it: no mark elsewhere means nothing."""
    rows = whole_pixels(size[0], region.top, region.bottom)
    columns = whole_pixels(size[1], region.left, region.right)
    if (len(rows), len(columns)) == size:
        return ""
    return f"examined only: rows {rows.start + 1}-{rows.stop}, columns {columns.start + 1}-{columns.stop}"


def _check_map(heat_map: Array, source: Path) -> None:
    """Raise :class:`InputError` where a map is no picture in [0, 1]."""
    if heat_map.ndim != 2 or not heat_map.size:
        raise InputError(f"the heat map of {source} has the shape {heat_map.shape}; give height and width")
    low, high = float(heat_map.min()), float(heat_map.max())
    if not (low >= 0 and high <= 1):  # false for nan
        raise InputError(f"the heat map of {source} has values from {low} to {high}; give values in [0, 1]")


def _header(source: Path, frame: int | None) -> Any:
    """Return all attributes of a file but its pixels, checked.

    Raises:
        InputError: If it is no DICOM file, cannot be referred to, or has no such frame.
    """
    pydicom = medical_library("pydicom", source)
    try:
        header = pydicom.dcmread(source, stop_before_pixels=True)
    except pydicom.errors.InvalidDicomError as error:
        raise InputError(f"{source} is no DICOM file; a heat map in DICOM needs one to refer to") from error
    except Exception as error:  # corrupt elements make it raise nearly any kind
        raise InputError(f"{source} cannot be read as DICOM ({first_line(error)})") from error
    missing = [name for name in _NEEDED if not header.get(name)]
    if missing:
        raise InputError(
            f"{source} has no {' and no '.join(missing)}, so that no heat map can refer to it: complete the file, or "
            "leave heat maps in DICOM out"
        )
    frames = int(header.get("NumberOfFrames") or 1)
    if frame is None and frames > 1:
        raise InputError(f"{source} has {frames} frames; say which of them the heat map belongs to")
    if not 0 <= (frame or 0) < frames:
        raise InputError(f"{source} has no frame {frame}; its frames are 0 to {frames - 1}")
    return header


def _capture(header: Any, frame: int | None, picture: Array, verdict: str, version: str) -> Any:
    """Return the secondary capture of a picture, shape ``(H, W, 3)``, uint8."""
    highdicom = medical_library("highdicom", Path(header.filename))
    series = [header.StudyInstanceUID, header.get("SeriesInstanceUID") or "", MAKER, version]
    instance = [header.SOPInstanceUID, str(frame), verdict, hashlib.sha256(picture.tobytes()).hexdigest(), *series]
    multiple = int(header.get("NumberOfFrames") or 1) > 1
    capture = highdicom.sc.SCImage.from_ref_dataset(
        header,
        pixel_array=picture,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),  # highdicom wants one; replaced below
        pixel_spacing=_spacing(header),
        series_instance_uid=_uid(series),
        series_number=_SERIES + abs(int(header.get("SeriesNumber") or 0)),
        series_description=SERIES_DESCRIPTION,
        sop_instance_uid=_uid(instance),
        instance_number=(frame or 0) + 1 if multiple else max(int(header.get("InstanceNumber") or 1), 1),
        manufacturer=MAKER,
        manufacturer_model_name=f"{MAKER} heat map",
        software_versions=version,
        content_qualification="RESEARCH",
        transfer_syntax_uid="1.2.840.10008.1.2.1",  # explicit little endian: no viewer needs a decoder
    )
    capture.PatientOrientation = header.get("PatientOrientation") or ""
    capture.Laterality = header.get("Laterality") or ""
    capture.DerivationDescription = f"{NOT_FOR_DIAGNOSIS}. Heat map over the source image; {verdict}"
    capture.ImageComments = f"{NOT_FOR_DIAGNOSIS}. {verdict}"
    capture.SourceImageSequence = [_reference(header, frame if multiple else None)]
    for name in _KEPT:
        if name in header:
            capture[name] = header[name]
    return capture


def _spacing(header: Any) -> list[float] | None:
    """Return the distances of pixels in mm, of rows and of columns; None where the file names none that can be."""
    spacing = [float(value) for value in header.get("PixelSpacing") or []]
    return spacing if spacing and min(spacing) > 0 else None


def _reference(header: Any, frame: int | None) -> Any:
    """Return the item that refers to the source, and to its frame where it has several."""
    path = Path(header.filename)
    coding = medical_library("highdicom.sr", path)
    item = medical_library("pydicom", path).Dataset()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    if frame is not None:
        item.ReferencedFrameNumber = frame + 1
    purpose = coding.CodedConcept("121322", "DCM", "Source image for image processing operation")
    item.PurposeOfReferenceCodeSequence = [purpose]
    return item


def _uid(parts: Sequence[str]) -> str:
    """Return the same UID for the same parts, and another for others."""
    return str(medical_library("pydicom.uid", Path()).generate_uid(entropy_srcs=[str(part) for part in parts]))


def _save(capture: Any, target: Path) -> None:
    """Write a data set; a file that cannot be written to its end is not left behind.

    Raises:
        InputError: If it cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        capture.save_as(part, enforce_file_format=True)
        part.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise InputError(f"cannot write {target} ({error.strerror}); free space, or name another folder") from error
