"""DICOM files: pixels through pydicom's own functions."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from anomalib_msacl.data.files import UnreadableError, oddity
from anomalib_msacl.data.inspection import brief
from anomalib_msacl.medical.image import Array, RawImage
from anomalib_msacl.medical.library import medical_library

_PLAIN_SYNTAXES = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}  # neither packed nor deflated
_DEFLATED_SYNTAX = "1.2.840.10008.1.2.1.99"
_FRAGMENT = 8  # bytes that a compressed frame takes at least
_DEFLATED = 1100  # a deflated file packs about 1030 bytes into one at best
_LARGEST = 2**30  # bytes of a decoded frame
_FAR = 1e12  # beyond any stored value: a window maps it to an end of its output range


def dicom_frames(path: Path) -> int:
    """Return the number of frames of a file.

    Raises:
        UnreadableError: If the file is too short for the images that its header names.
        InputError: If pydicom is not installed.
    """
    dataset = _header(path, pixels=False)
    frames = _frames(dataset)
    if frames > 1:
        _check_size(dataset, path)
    return frames


def dicom_tag(path: Path, tag: str) -> str:
    """Return the value of a tag by its keyword, empty where the file has none."""
    return str(_header(path, pixels=False).get(tag) or "").strip()


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
            return _colour(pixels.apply_color_lut(stored, attributes), bits)
        if stored.ndim == 3:
            return _colour(stored, int(attributes.BitsStored))
        return _grey(stored, attributes, pixels)
    except UnreadableError:
        raise
    except Exception as error:  # the decoders raise nearly any kind on corrupt data
        raise UnreadableError(f"has pixel data that cannot be decoded: {brief(error)}") from error


@lru_cache(maxsize=4)  # frames of a file are mostly read one after the other
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


def _colour(pixels: Array, bits: int) -> RawImage:
    """Return a colour image of values with a number of bits."""
    highest = float(2**bits - 1)
    return RawImage((pixels[..., :3] / np.float32(highest)).astype(np.float32), "dicom", (0.0, highest))


def _grey(stored: Array, dataset: Any, pixels: Any) -> RawImage:
    """Return a grey image with what the file wants to be shown."""
    values = pixels.apply_modality_lut(stored, dataset)
    limits = _stored_range(stored, dataset)
    span: list[float] | None = None
    if limits:
        span = sorted(float(value) for value in pixels.apply_modality_lut(np.array(limits), dataset))
    inverse = dataset.PhotometricInterpretation == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE"
    window = _window(dataset)
    shown = None
    if window or span:
        shown = pixels.apply_voi_lut(values, dataset).astype(np.float32)
        low, high = _shown_range(dataset, pixels, window, span)
        shown = ((shown - low) / (high - low or 1)).clip(0, 1)
        shown = 1 - shown if inverse else shown
    padding = _padding(stored, dataset)
    if shown is not None and padding is not None:
        shown[padding] = 0
    return RawImage(
        values=values.astype(np.float32),
        kind="dicom",
        range=(span[0], span[-1]) if span else None,
        shown=shown,
        window=window or ("all of 8 bits" if int(dataset.BitsStored) <= 8 else ""),
        inverse=inverse,
        padding=padding,
    )


def _stored_range(stored: Array, dataset: Any) -> list[int] | None:
    """Return the lowest and the highest value that can be stored, None for floating point numbers."""
    if not np.issubdtype(stored.dtype, np.integer):
        return None
    bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation)
    return [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1]


def _window(dataset: Any) -> str:
    """Return a name for the window or table of a file, the same for the same one; empty where it has none."""
    table = (dataset.get("VOILUTSequence") or [None])[0]
    if table is not None and table.get("LUTDescriptor") is not None and table.get("LUTData") is not None:
        return f"LUT {hashlib.sha256(repr(table.LUTData).encode()).hexdigest()[:12]}"
    parts = [dataset.get(name) for name in ("WindowCenter", "WindowWidth")]
    if None in parts:
        return ""
    return f"{parts[0]} / {parts[1]} {dataset.get('VOILUTFunction', 'LINEAR')}"


def _shown_range(dataset: Any, pixels: Any, window: str, span: list[float] | None) -> tuple[float, float]:
    """Return the range that pydicom maps the window or table to."""
    if window.startswith("LUT"):
        return 0.0, float(2 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1)
    if window:  # pydicom knows best, so ask it what becomes of extreme values
        low, high = pixels.apply_voi_lut(np.array([-_FAR, _FAR]), dataset)
        return float(low), float(high)
    assert span is not None  # noqa: S101  # the caller has made sure
    return span[0], span[-1]


def _padding(stored: Array, dataset: Any) -> Array | None:
    """Return where the stored values say that there is no image."""
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return None
    last = dataset.get("PixelPaddingRangeLimit", first)
    inside: Array = (stored >= min(first, last)) & (stored <= max(first, last))
    return inside
