"""Columns that this package adds to anomalib's sample tables, and what is read from them.

anomalib's own columns are ``image_path``, ``label``, ``label_index``, ``mask_path`` and ``split``.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Final

import pandas as pd

from anomalib_msacl.data.files import middle_of, read_bytes, size_of
from anomalib_msacl.data.units import Unit


class Column:
    """Names of the columns; a table has all, some or none of them."""

    PIXELS: Final = "pixels"
    """Digest of the decoded pixels: the same for the same image in another file."""
    SHA256: Final = "sha256"
    """Digest of the file's bytes and of how they are read."""
    SIDE: Final = "side"
    """Length of the shorter side in pixels."""
    PATIENT: Final = "patient"
    """Whose image it is; there is no such column where nothing names patients."""
    FRAME: Final = "frame"
    """Index of the slice of a volume, or of the frame of a file, from 0."""
    NAME: Final = "name"
    """Path below the root of the data set, with the frame where a file has several."""
    PLAIN: Final = "plain"
    """Whether Pillow, and so anomalib, reads the same image from the file."""
    SOURCE_INDEX: Final = "source_index"
    """Row of the image in the dataset that it was made from."""


def content_of(samples: pd.DataFrame, digests: Mapping[str, str] | None = None) -> list[str]:
    """Return a digest of each row's content, to tell copies of an image.

    Args:
        samples: The table.
        digests: Digests of files by their path, as :func:`anomalib_msacl.data.checks.check_datamodule` returns them.
            They count where the table has no digests of pixels; files that they lack are read.

    Returns:
        One digest for each row, in the order of the rows.
    """
    if Column.PIXELS in samples:
        return [str(digest) for digest in samples[Column.PIXELS]]
    known = dict(digests or {})
    paths = [str(path) for path in samples["image_path"]]
    for path in paths:
        if path not in known:
            known[path] = hashlib.sha256(read_bytes(path)).hexdigest()
    return [known[path] for path in paths]


def names_of_content(*tables: pd.DataFrame) -> list[list[str]]:
    """Return a name of each row's content for each table: the same for copies, and for nothing else.

    Where the tables have no digests of pixels, a file is read whole only if another one has its size and its middle: a
    large set takes minutes to read.

    Args:
        tables: Whose rows are compared with each other.
    """
    unknown = [table["image_path"] for table in tables if Column.PIXELS not in table]
    sizes = {str(path): size_of(path) for paths in unknown for path in paths}
    middles = {path: (sizes[path], middle_of(path)) for path in _shared(sizes)}
    alone = {path: path for path in sizes.keys() - _shared(middles)}
    return [content_of(table, alone) for table in tables]


def _shared(values: Mapping[str, Hashable]) -> set[str]:
    """Return the keys whose value another one has."""
    number = Counter(values.values())
    return {key for key, value in values.items() if number[value] > 1}


def names_patients(samples: pd.DataFrame) -> bool:
    """Say whether a table names patients."""
    return Column.PATIENT in samples


def patients_of(samples: pd.DataFrame) -> pd.Series:
    """Return the patient of each row; where none are known, every file is one of its own."""
    return samples[Column.PATIENT if names_patients(samples) else "image_path"].astype(str)


def unit_of(samples: pd.DataFrame) -> Unit:
    """Return what counts once: a patient where they are named, else a file where one holds several images."""
    if names_patients(samples):
        return "patient"
    return "file" if samples["image_path"].duplicated().any() else "image"


def units_of(samples: pd.DataFrame, content: Sequence[str] | None = None) -> list[str]:
    """Return for each row its patient, or the content of its file where none are known: copies of a file count once.

    Args:
        samples: The table.
        content: What :func:`content_of` returns; found out if None.
    """
    if names_patients(samples):
        return patients_of(samples).tolist()
    files: dict[str, list[str]] = {}
    for path, digest in zip(samples["image_path"], content or content_of(samples), strict=True):
        files.setdefault(path, []).append(digest)
    contents = {path: " ".join(digests) for path, digests in files.items()}
    return [contents[path] for path in samples["image_path"]]


def inspected_files(samples: pd.DataFrame) -> dict[str, tuple[str, int]]:
    """Return what a table says of its files: path to digest and length of the shorter side in pixels.

    Files are left out that nobody has looked into yet, as are all those of anomalib's own datasets.
    """
    if not {Column.SHA256, Column.SIDE} <= set(samples):
        return {}
    rows = samples.dropna(subset=[Column.SHA256, Column.SIDE])
    columns = (rows["image_path"], rows[Column.SHA256], rows[Column.SIDE])
    return {str(path): (str(digest), int(side)) for path, digest, side in zip(*columns, strict=True)}
