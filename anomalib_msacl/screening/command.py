"""``anomalib-msacl screen``: from files to a table of scores and heat maps."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from anomalib_msacl.errors import InputError
from anomalib_msacl.screening.files import FileReader
from anomalib_msacl.screening.output import Output, written_paths
from anomalib_msacl.screening.region import check_followed
from anomalib_msacl.screening.runner import Maps, Screening, in_order
from anomalib_msacl.screening.scorer import load_scorer
from anomalib_msacl.screening.sources import Source, find_sources
from anomalib_msacl.screening.summary import Summary


@dataclass(frozen=True)
class Result:
    """What a screening has come to.

    Attributes:
        table: The table of scores.
        errors: Number of images and files without a score.
        lines: Summary, a note where DICOM windows were not those of the training, and warnings where patients or
            scores are not as they were to be expected.
    """

    table: Path
    errors: int
    lines: tuple[str, ...]


def run_screening(
    model: str | Path,
    images: Sequence[str | Path],
    out: str | Path,
    maps: Maps = "abnormal",
    resume: bool = False,
    workers: int | None = None,
    model_class: str | None = None,
    dicom: bool = False,
    progress: bool = True,
) -> Result:
    """Screen files: score them, draw heat maps, and write ``scores.csv``.

    Args:
        model: A checkpoint (``.ckpt``), an exported ``model.xml`` or ``model.onnx``, or the folder of an export.
        images: Files, and folders of files.
        out: Folder for table and maps.
        maps: Which images get a heat map: ``all``, ``abnormal`` or ``none``.
        resume: Go on with a screening that was stopped.
        workers: Number of files at a time; as many as there are cores if None.
        model_class: Class of a checkpoint's model, where its settings do not tell.
        dicom: Save the heat maps of DICOM files as DICOM objects that refer to them.
        progress: Show a bar on a terminal.

    Returns:
        Where the table is, how many errors there were, and the summary.

    Raises:
        InputError: If a setting is wrong, the model cannot be used, the output cannot be written, or another
            screening is writing to the same folder. Files that cannot be read are told in the table instead.
    """
    if maps not in ("all", "abnormal", "none"):
        raise InputError(f"maps is {maps}: set it to all, abnormal or none")
    cores = usable_cores()
    workers = cores if workers is None else workers
    if workers < 1:
        raise InputError(f"workers is {workers}: set it to 1 or more")
    sources, others = find_sources(images, written_paths(Path(out)))
    output = Output(Path(out))
    with output.locked():
        scorer = load_scorer(model, workers, cores, model_class, maps != "none")
        if maps != "none":
            check_followed(scorer.bundle.transform)
        reader = FileReader.of(scorer.bundle)
        screening = Screening(scorer, reader, output, maps, dicom)
        summary = Summary(scorer.bundle.calibration, reader.reading.patient_pattern)
        done = output.begin(scorer.bundle.version, resume, summary.add)
        left = [source for source in sources if str(source.path) not in done.finished]
        table = output.open_table()
        silent = None if progress and sys.stderr else True  # None: where it is no terminal; services have no stderr
        bar = tqdm(total=len(sources), initial=len(sources) - len(left), unit="file", disable=silent)

        def work(source: Source) -> tuple[Source, list]:  # type: ignore[type-arg]
            skipped = done.frames if str(source.path) == done.last else set()
            return source, screening.rows(source, skipped)

        try:
            for _, rows in in_order(work, left, workers):
                for row in rows:
                    table.add(row)
                    summary.add(row)
                bar.update()
        except KeyboardInterrupt as error:
            raise InputError(f"stopped; what is done is in {output.table}, and --resume goes on") from error
        finally:
            bar.close()
            table.close()
    ignored = f", {others} other files in the folders were left out" if others else ""
    lines = (f"{summary.line()}{ignored}; {output.table}", screening.reader.note(), *summary.warnings())
    return Result(output.table, summary.errors, tuple(line for line in lines if line))


def print_result(result: Result) -> None:
    """Print the summary, and end with status 1 where something could not be read."""
    print(*result.lines, sep="\n")
    if result.errors:
        sys.exit(1)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
