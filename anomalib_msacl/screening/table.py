"""``scores.csv``: one row for each image, written so that a killed run can go on."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import IO

from anomalib_msacl.errors import InputError

_SYNC = 1.0  # seconds after which rows are on the disk, should the power fail


@dataclass(frozen=True)
class Row:
    """What is known of an image, or of a file that cannot be read; a number that is not known is empty.

    Attributes:
        file: Path of the file.
        frame: Index of the slice or frame, from 0; empty for a file of one image.
        patient: Whose image it is, where that is known.
        raw_score: The score as the model gives it.
        score: The normalised score, in [0, 1], 0.5 at the threshold.
        label: ``normal`` or ``abnormal``.
        threshold: Raw score above which an image is called abnormal.
        map: Path of the heat map below the output folder.
        version: Program and model.
        error: Why there is no score.
    """

    file: str
    frame: str = ""
    patient: str = ""
    raw_score: str = ""
    score: str = ""
    label: str = ""
    threshold: str = ""
    map: str = ""
    version: str = ""
    error: str = ""


COLUMNS = tuple(part.name for part in fields(Row))


def number(value: float | None) -> str:
    """Return a number with the digits of 32 bits, empty where there is none.

    >>> number(0.1), number(None), number(1.0)
    ('0.1', '', '1')
    """
    return "" if value is None else f"{value:.7g}"


@dataclass
class Progress:
    """How far an earlier run came.

    Attributes:
        finished: Files whose rows are all there.
        last: The file of the last row, some of whose frames may be missing.
        frames: Its frames that are there.
    """

    finished: set[str] = field(default_factory=set)
    last: str = ""
    frames: set[str] = field(default_factory=set)

    def see(self, row: Row) -> None:
        """Take note of a row, in the order of the table: the rows of a file follow each other."""
        if row.file != self.last:
            if self.last:
                self.finished.add(self.last)
            self.last, self.frames = row.file, set()
        self.frames.add(row.frame)


class ScoreTable:
    """The table, open for more rows.

    Args:
        path: The file; begun where it is missing. Its directory is locked by the caller.

    Raises:
        InputError: If it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path):
            begun = path.exists() and path.stat().st_size > 0
            self._file: IO[str] = path.open("a", newline="", encoding="utf-8", errors="surrogateescape")
            self._writer = csv.writer(self._file, lineterminator="\n")
            if not begun:
                self._writer.writerow(COLUMNS)
            self._sync()

    def add(self, row: Row) -> None:
        """Append a row. It survives the end of this process at once, and that of the machine a second later."""
        with writing(self.path):
            self._writer.writerow(astuple(row))
            self._file.flush()
            if time.monotonic() - self._synced > _SYNC:
                self._sync()

    def close(self) -> None:
        """See that all rows are on the disk."""
        with writing(self.path):
            try:
                self._sync()
            finally:
                self._file.close()

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the whole rows of a table; a last one that was cut off by a kill is left out.

    Raises:
        InputError: If it is no table of this version, or cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.reader(_whole_lines(file))
            header = next(reader, None)
            if header is not None and tuple(header) != COLUMNS:
                raise InputError(f"{path} has other columns than {', '.join(COLUMNS)}: name a new folder by --out")
            for values in reader:
                if len(values) == len(COLUMNS):
                    yield Row(*values)
    except (OSError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}): name a new folder by --out") from error


def mend(path: Path) -> None:
    """Take a cut off last row out of a table, at once or not at all.

    Raises:
        InputError: As :func:`read_rows`, and if it cannot be written.
    """
    whole = path.with_name(path.name + ".part")
    with writing(path):
        with whole.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(astuple(row) for row in read_rows(path))
            file.flush()
            os.fsync(file.fileno())
        whole.replace(path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while the output is written into one sentence that ends the run."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> OutputError:
    """Return the error that says what cannot be written, and why."""
    return OutputError(
        f"{path} cannot be written ({error.strerror or error}): make room or name another folder by --out, then go on "
        "by --resume"
    )


class OutputError(InputError):
    """The output cannot be written; unlike a file that cannot be read, it ends the run."""


def _whole_lines(file: IO[str]) -> Iterator[str]:
    """Yield the lines that end."""
    for line in file:
        if line.endswith("\n"):
            yield line
