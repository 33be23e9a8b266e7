"""DICOM files: headers, checks, and pixels through pydicom's own functions."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from anomalib_msacl.data.files import UnreadableError, oddity
from anomalib_msacl.data.inspection import brief
from anomalib_msacl.medical.dicom_display import colour_image, grey_image
from anomalib_msacl.medical.image import RawImage
from anomalib_msacl.medical.library import medical_library
from anomalib_msacl.medical.remembering import cached_by_thread

_PLAIN_SYNTAXES = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}  # neither packed nor deflated
_DEFLATED_SYNTAX = "1.2.840.10008.1.2.1.99"
_FRAGMENT = 8  # bytes that a compressed frame takes at least
_DEFLATED = 1100  # a deflated file packs about 1030 bytes into one at best
_LARGEST = 2**30  # bytes of a decoded frame


def dicom_frames(path: Path) -> int:
    """Return the number of frames of a file.

    Raises:
        UnreadableError: If the file is too short for the images that its header names.
        InputError: If pydicom is not installed.
    """
    dataset = _known_header(path, path.stat().st_mtime_ns)
    frames = _frames(dataset)
    if frames > 1:
        _check_size(dataset, path)
    return frames


def dicom_tag(path: Path, tag: str) -> str:
    """Return the value of a tag by its keyword, empty where the file has none."""
    return str(_known_header(path, path.stat().st_mtime_ns).get(tag) or "").strip()


def dicom_size(path: Path) -> tuple[int, int]:
    """Return height and width of the images of a file in pixels, as its header names them."""
    dataset = _known_header(path, path.stat().st_mtime_ns)
    return int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)


def read_dicom(path: Path, frame: int) -> RawImage:
    """Read one frame: palette and YBR to RGB; modality LUT or rescale; VOI LUT or window; MONOCHROME1.

    Args:
        path: The file.
        frame: Index of the frame, from 0.

    Returns:
        The image; grey values are those after the modality LUT.

    Raises:
        UnreadableError: If it holds no image that can be decoded.
        InputError: If pydicom is not installed.
    """
    pixels = medical_library("pydicom.pixels", path)
    dataset = _whole(path, path.stat().st_mtime_ns)
    _check_pixel_data(dataset, pixels)
    _check_size(dataset, path)
    frames = _frames(dataset)
    try:
        stored = pixels.pixel_array(dataset, index=frame if frames > 1 else None)
        attributes = _attributes(dataset, frame, medical_library("pydicom", path).Dataset())
        if attributes.PhotometricInterpretation == "PALETTE COLOR":
            bits = int(attributes.RedPaletteColorLookupTableDescriptor[2])
            return colour_image(pixels.apply_color_lut(stored, attributes), bits)
        if stored.ndim == 3:
            return colour_image(stored, int(attributes.BitsStored))
        return grey_image(stored, attributes, pixels)
    except UnreadableError:
        raise
    except Exception as error:  # the decoders raise nearly any kind on corrupt data
        raise UnreadableError(f"has pixel data that cannot be decoded: {brief(error)}") from error


@lru_cache(maxsize=16)  # several questions are asked of one
def _known_header(path: Path, modified: int) -> Any:
    """Read a header; ``modified`` keeps a changed file from being taken for the old one."""
    del modified
    return _header(path, pixels=False)


@cached_by_thread(maxsize=2)  # frames of a file, and of its mask, are mostly read one after the other
def _whole(path: Path, modified: int) -> Any:
    """Read a file; ``modified`` keeps a changed file from being taken for the old one."""
    del modified
    return _header(path, pixels=True)


def _header(path: Path, *, pixels: bool) -> Any:
    """Read the data set of a file."""
    pydicom = medical_library("pydicom", path)
    if odd := oddity(path):
        raise UnreadableError(f"is {odd}")
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=not pixels)
    except pydicom.errors.InvalidDicomError as error:
        raise UnreadableError("is no DICOM file") from error
    except Exception as error:  # corrupt elements make it raise nearly any kind
        raise UnreadableError(f"is broken: {brief(error)}") from error
    if not dataset:
        raise UnreadableError("is broken: it ends after its header")
    return dataset


def _frames(dataset: Any) -> int:
    """Return the number of frames that a header names."""
    return int(dataset.get("NumberOfFrames") or 1)


def _check_size(dataset: Any, path: Path) -> None:
    """Raise :class:`UnreadableError` where the header names images that the file cannot hold, or memory should not."""
    frames, length = _frames(dataset), path.stat().st_size
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    bits = int(dataset.get("BitsAllocated") or 8) * int(dataset.get("SamplesPerPixel") or 1)
    syntax = str(dataset.file_meta.get("TransferSyntaxUID"))
    # the colours of pixels that share them are stored once, which halves the bytes at best
    expected = frames * (rows * columns * bits // 8 // 2 if syntax in _PLAIN_SYNTAXES else _FRAGMENT)
    if frames < 1 or expected > length * (_DEFLATED if syntax == _DEFLATED_SYNTAX else 1):
        raise UnreadableError(f"has {length} bytes, too few for the {frames} frames of its header")
    if rows * columns * bits // 8 > _LARGEST:
        raise UnreadableError(f"has {columns} x {rows} pixels, more than are read: crop or resample it")


def _check_pixel_data(dataset: Any, pixels: Any) -> None:
    """Raise :class:`UnreadableError` where there are no pixel data, or none that can be decoded."""
    names = [name for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if name in dataset]
    if not names or not dataset[names[0]].value:
        raise UnreadableError("has no pixel data")
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise UnreadableError("names no transfer syntax")
    try:
        decoder = pixels.get_decoder(syntax)
    except NotImplementedError as error:
        raise UnreadableError(f"has the unknown transfer syntax {syntax}") from error
    if not decoder.is_available:
        raise UnreadableError(
            f'is compressed as {syntax.name}, which no installed library decodes: run pip install "anomalib-msacl['
            'medical]"'
        )
    if not syntax.is_encapsulated:
        content, expected = dataset[names[0]].value, pixels.utils.get_expected_length(dataset)
        if len(content) < expected or any(content[expected + expected % 2 :]):  # zeros are harmless padding
            raise UnreadableError(f"has {len(content)} bytes of pixel data where its header asks for {expected}")


def _attributes(dataset: Any, frame: int, attributes: Any) -> Any:
    """Put the attributes of a frame into an empty data set, those of an enhanced file where others have them."""
    attributes.update(dataset)
    attributes.file_meta = dataset.file_meta  # the byte order of tables follows from it
    attributes.set_original_encoding(*dataset.original_encoding)
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    each = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for group in [*shared[:1], *each[frame : frame + 1]]:
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in group.get(name) or []:
                attributes.update(item)
    return attributes
