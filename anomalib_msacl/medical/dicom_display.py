"""What a DICOM file asks to be displayed: modality LUT or rescale, window or VOI LUT, padding, inverse values."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from anomalib_msacl.data.files import UnreadableError
from anomalib_msacl.data.inspection import brief
from anomalib_msacl.medical.image import Array, RawImage
from anomalib_msacl.medical.window import ALL_OF_8_BITS, Window

_FAR = 1e12  # beyond any stored value: a window maps it to an end of its output range
_NUMBERS = ("WindowCenter", "WindowWidth")


def colour_image(pixels: Array, bits: int) -> RawImage:
    """Return a colour image of values ``(H, W, 3)`` with a number of bits."""
    highest = float(2**bits - 1)
    return RawImage((pixels[..., :3] / np.float32(highest)).astype(np.float32), "dicom", (0.0, highest))


def grey_image(stored: Array, dataset: Any, pixels: Any) -> RawImage:
    """Return a grey image with what the file asks to be displayed.

    Args:
        stored: The stored values, shape ``(H, W)``.
        dataset: The attributes of the frame.
        pixels: The module ``pydicom.pixels``.
    """
    values = pixels.apply_modality_lut(stored, dataset)
    limits = _stored_range(stored, dataset)
    span: list[float] | None = None
    if limits:
        span = sorted(float(value) for value in pixels.apply_modality_lut(np.array(limits), dataset))
    inverse = dataset.PhotometricInterpretation == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE"
    unusable = _settle_window(dataset)
    window = _window(dataset)
    padding = _padding(stored, dataset)

    def show() -> Array:
        try:
            shown: Array = pixels.apply_voi_lut(values, dataset).astype(np.float32)
            low, high = _shown_range(dataset, pixels, window, span)
        except Exception as error:  # a table may be of nearly any kind
            raise UnreadableError(f"has a window or table that cannot be applied: {brief(error)}") from error
        shown = ((shown - low) / (high - low or 1)).clip(0, 1)
        shown = 1 - shown if inverse else shown
        if padding is not None:
            shown[padding] = 0
        return shown

    return RawImage(
        values=values.astype(np.float32),
        kind="dicom",
        range=(span[0], span[-1]) if span else None,
        show=show if window or span else None,
        window=window or (ALL_OF_8_BITS if int(dataset.BitsStored) <= 8 else ""),
        inverse=inverse,
        padding=padding,
        unusable=unusable,
    )


def _stored_range(stored: Array, dataset: Any) -> list[int] | None:
    """Return the lowest and the highest value that can be stored, None for floating point numbers."""
    if not np.issubdtype(stored.dtype, np.integer):
        return None
    bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation)
    return [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1]


def _settle_window(dataset: Any) -> str:
    """Take a window that means nothing out of the attributes, and give one without a function the usual one.

    Returns:
        The window that was taken out, in words; empty where there was none.
    """
    if None in [dataset.get(name) for name in _NUMBERS]:
        return ""
    window = _numbers(dataset)
    # elements are removed and made anew, for they are those of the whole file
    for name in ("VOILUTFunction", *(() if window.usable else _NUMBERS)):
        if name in dataset:
            del dataset[name]
    if window.usable:
        dataset.VOILUTFunction = window.function
        return ""
    return f"centre {window.centre:g}, width {window.width:g}, {window.function}"


def _window(dataset: Any) -> str:
    """Return a name for the window or table of a file, the same for the same one; empty where it has none."""
    table = (dataset.get("VOILUTSequence") or [None])[0]
    if table is not None and table.get("LUTDescriptor") is not None and table.get("LUTData") is not None:
        first = int(table.LUTDescriptor[1])  # the value of the first entry, mostly 0, as all names once took it to be
        content = f"{table.LUTData!r}{f' from {first}' if first else ''}"
        return f"LUT {hashlib.sha256(content.encode()).hexdigest()[:12]}"
    return "" if None in [dataset.get(name) for name in _NUMBERS] else str(_numbers(dataset))


def _numbers(dataset: Any) -> Window:
    """Return the window of a file; of several, the first is shown. What is no number is NaN."""
    centre, width = (_number(dataset.get(name)) for name in _NUMBERS)
    return Window(centre, width, str(dataset.get("VOILUTFunction") or "LINEAR").upper())


def _number(value: Any) -> float:
    """Return the first of some numbers, as pydicom gives them."""
    try:
        return float(np.atleast_1d(value)[0])
    except (TypeError, ValueError, IndexError):
        return float("nan")


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
