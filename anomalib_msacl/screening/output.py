"""The folder that a screening writes to: for one process at a time, and without a half-written file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from anomalib_msacl.errors import InputError
from anomalib_msacl.screening.sources import Source
from anomalib_msacl.screening.table import Progress, Row, ScoreTable, mend, read_rows, unwritable, writing

TABLE, MAPS = "scores.csv", "maps"
_LOCK = ".screening.lock"
_NAME = 50  # characters of a file name that are kept


def written_paths(folder: Path) -> tuple[Path, ...]:
    """Return what a screening writes to an output folder, with the folder itself."""
    return folder, folder / MAPS, folder / TABLE, folder / _LOCK


class Output:
    """An output folder.

    Args:
        folder: Created where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def table(self) -> Path:
        """The table of scores."""
        return self.folder / TABLE

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the folder for this process. The lock is the system's: it goes with the process, even a killed one.

        Raises:
            InputError: If another process has it.
        """
        lock = FileLock(self.folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:  # which is an OSError, too
            raise InputError(
                f"another screening is writing to {self.folder}: wait for its end, or name another folder by --out"
            ) from error
        except OSError as error:
            raise unwritable(self.folder, error) from error
        try:
            yield
        finally:
            lock.release()

    def begin(self, version: str, resume: bool, earlier: Callable[[Row], None]) -> Progress:
        """Look at what an earlier run has left, and mend it.

        Args:
            version: Program and model of this run.
            resume: Whether to go on with an earlier run.
            earlier: Is told each of its rows.

        Returns:
            How far it came.

        Raises:
            InputError: If there is a table although ``resume`` is false, or one of another program or model.
        """
        progress = Progress()
        if not self.table.exists() or self.table.stat().st_size == 0:
            return progress
        if not resume:
            raise InputError(
                f"{self.table} is there already: go on with that screening by --resume, or name another folder by --out"
            )
        mend(self.table)
        for row in read_rows(self.table):
            if row.version != version:
                raise InputError(
                    f"{self.table} was made by {row.version}, but this is {version}: go on with the same model and "
                    "program, or name another folder by --out"
                )
            progress.see(row)
            earlier(row)
        return progress

    def open_table(self) -> ScoreTable:
        """Open the table for more rows."""
        return ScoreTable(self.table)

    def map_path(self, source: Source, frame: int | None, ending: str) -> Path:
        """Return where the map of an image goes: as the file below its folder, with a digest that keeps it apart."""
        relative = Path(source.name)
        digest = hashlib.sha256(str(source.path).encode(errors="surrogateescape")).hexdigest()[:8]
        number = "" if frame is None else f"_{frame:04d}"
        return self.folder / MAPS / relative.parent / f"{relative.name[:_NAME]}_{digest}{number}{ending}"

    def save(self, path: Path, write: Callable[[Path], None]) -> str:
        """Write a file at once or not at all.

        Args:
            path: The file, below the folder.
            write: Writes it to another name, with the same ending.

        Returns:
            Its path below the folder.

        Raises:
            OutputError: If it cannot be written.
        """
        part = path.with_name(f".part_{path.name}")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(part)
            part.replace(path)
        return path.relative_to(self.folder).as_posix()
