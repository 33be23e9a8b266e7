"""PGM and PPM files of more than 8 bits, whose values Pillow brings to another scale, or to 8 bits."""

from __future__ import annotations

import re

import numpy as np

from anomalib_msacl.data.files import UnreadableError

_BLANK = rb"(?:\s|#[^\r\n]*[\r\n])+"
_HEADER = re.compile(rb"P([2356])" + (_BLANK + rb"(\d{1,10})") * 3 + rb"\s")
_PLAIN = (2, 3)  # kinds whose values are written out
_COLOUR = (3, 6)


def is_deep_netpbm(content: bytes) -> bool:
    """Say whether a file is a PGM or PPM whose highest value takes more than 8 bits."""
    header = _HEADER.match(content)
    return header is not None and int(header[4]) > np.iinfo(np.uint8).max


def read_deep_netpbm(content: bytes) -> tuple[np.ndarray, int]:
    """Return the samples of a PGM or PPM of more than 8 bits as they are stored, and the highest that it may have.

    Returns:
        Samples of shape ``(H, W)`` or ``(H, W, 3)``, uint16, and the highest value.

    Raises:
        UnreadableError: If there are fewer values than the header asks for, or others than it allows.
    """
    header = _HEADER.match(content)
    if header is None:
        raise UnreadableError("has a broken header")
    kind, width, height, highest = (int(part) for part in header.groups())
    shape = (height, width, 3) if kind in _COLOUR else (height, width)
    number = int(np.prod(shape, dtype=object))
    if kind in _PLAIN:
        written = re.sub(rb"#[^\r\n]*", b"", content[header.end() :]).split()[:number]
        values = np.array([int(value) for value in written], dtype=np.int64)
    else:
        data = content[header.end() : header.end() + 2 * number]
        values = np.frombuffer(data[: len(data) // 2 * 2], dtype=">u2")
    if len(values) < number or number == 0:
        raise UnreadableError(f"is cut off: it has {len(values)} of the {number} values that its header asks for")
    if values.min() < 0 or values.max() > highest:
        raise UnreadableError(f"has values from {values.min()} to {values.max()}, and its header allows 0 to {highest}")
    return values.reshape(shape).astype(np.uint16), highest
