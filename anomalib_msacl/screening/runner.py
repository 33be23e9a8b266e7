"""Reads, scores and draws files in threads, and returns their rows in the order of the files."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

from anomalib_msacl.data.files import UnreadableError
from anomalib_msacl.data.inspection import brief
from anomalib_msacl.errors import InputError
from anomalib_msacl.medical.image import Array
from anomalib_msacl.medical.kinds import kind_of
from anomalib_msacl.screening.dicom_output import write_heat_map
from anomalib_msacl.screening.files import FileReader
from anomalib_msacl.screening.heat_map import draw_heat_map
from anomalib_msacl.screening.output import Output
from anomalib_msacl.screening.region import Region, seen_region
from anomalib_msacl.screening.scorer import Scored, Scorer
from anomalib_msacl.screening.sources import Source
from anomalib_msacl.screening.table import OutputError, Row, number

Maps = Literal["all", "abnormal", "none"]
Given = TypeVar("Given")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Screening:
    """One screening: turns files into rows of the table, and saves their maps.

    Attributes:
        scorer: The model.
        reader: Reads files as the training did.
        output: The folder that maps go to.
        maps: Which images get a heat map.
        dicom: Whether those of DICOM files are DICOM objects that refer to them, and not pictures.
    """

    scorer: Scorer
    reader: FileReader
    output: Output
    maps: Maps
    dicom: bool = False

    def rows(self, source: Source, done: Set[str] = frozenset()) -> list[Row]:
        """Return the rows of all frames of a file; what is wrong with one is told in its row.

        Args:
            source: The file.
            done: Frames that have their row already.

        Raises:
            OutputError: If a map cannot be written.
        """
        try:
            frames, patient = self.reader.frames(source.path), self.reader.patient(source)
        except Exception as error:  # broken files make the libraries raise nearly any kind
            return [] if "" in done else [self._failed(source, "", "", error)]
        left = [frame for frame in frames if _name(frame) not in done]
        return [self._row(source, frame, patient) for frame in left]

    def _row(self, source: Source, frame: int | None, patient: str) -> Row:
        """Return the row of an image."""
        try:
            image = self.reader.pixels(source.path, frame)
            scored = _checked(self.scorer.score(image))
        except Exception as error:  # as above, and networks refuse images that are too small
            return self._failed(source, _name(frame), patient, error)
        map_name, trouble = "", ""
        try:
            map_name = self._save_map(source, frame, image, scored)
        except OutputError:
            raise
        except (InputError, UnreadableError) as error:  # DICOM files that nothing can refer to, or show
            trouble = str(error)
        return Row(
            file=str(source.path),
            frame=_name(frame),
            patient=patient,
            raw_score=number(scored.raw),
            score=number(scored.score),
            label="abnormal" if scored.abnormal else "normal",
            threshold=number(self.scorer.bundle.image.decision),
            map=map_name,
            version=self.scorer.bundle.version,
            error=trouble,
        )

    def _failed(self, source: Source, frame: str, patient: str, error: Exception) -> Row:
        """Return the row of an image without a score."""
        told = str(error) if isinstance(error, UnreadableError | InputError) else f"fails: {brief(error)}"
        return Row(str(source.path), frame, patient, version=self.scorer.bundle.version, error=told)

    def _save_map(self, source: Source, frame: int | None, image: Array, scored: Scored) -> str:
        """Save the heat map of an image where it is to have one, and return its path below the output folder."""
        wanted = self.maps == "all" or (self.maps == "abnormal" and scored.abnormal)
        plane = scored.map
        if not wanted or plane is None:
            return ""
        region = seen_region(self.scorer.bundle.transform, image.shape[-2], image.shape[-1])
        if self.dicom and kind_of(source.path) == "dicom":
            return self._save_dicom(source, frame, plane, region, scored)
        path = self.output.map_path(source, frame, ".png")
        label = "abnormal" if scored.abnormal else "normal"
        where = source.path.name if frame is None else f"{source.path.name}, frame {frame}"
        lines = [f"{label}, score {scored.score:.3f} (limit {1 - self.scorer.bundle.image.sensitivity:.3g})", where]
        return self.output.save(path, lambda part: draw_heat_map(image, plane, lines, region).save(part))

    def _save_dicom(self, source: Source, frame: int | None, plane: Array, region: Region, scored: Scored) -> str:
        """Save a heat map as a DICOM object."""
        path, bundle = self.output.map_path(source, frame, ".dcm"), self.scorer.bundle
        try:
            write_heat_map(
                source.path,
                frame,
                plane.clip(0, 1),
                path,
                score=scored.score,
                threshold=1 - bundle.image.sensitivity,
                abnormal=scored.abnormal,
                version=bundle.version.removeprefix("anomalib-msacl "),
                region=region,
            )
        except InputError as error:
            if isinstance(error.__cause__, OSError):
                raise OutputError(f"{error}, and go on by --resume") from error
            raise
        return path.relative_to(self.output.folder).as_posix()


def in_order(work: Callable[[Given], Found], given: Iterable[Given], workers: int) -> Iterator[Found]:
    """Do work in threads, and yield what it gives in the order of what was given.

    At most twice as many as there are threads are on their way, whatever is given.

    Args:
        work: What to do.
        given: What to do it with; taken one after the other.
        workers: Number of threads.

    Raises:
        Exception: The first one that the work raises; what has not begun by then is left undone.
    """
    waiting: deque[Future[Found]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for each in given:
            waiting.append(pool.submit(work, each))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _checked(scored: Scored) -> Scored:
    """Raise :class:`UnreadableError` where a score is no number, which no threshold calls abnormal."""
    if math.isnan(scored.score):
        raise UnreadableError("has a score that is no number (NaN)")
    return scored


def _name(frame: int | None) -> str:
    """Return a frame as the table names it."""
    return "" if frame is None else str(frame)
