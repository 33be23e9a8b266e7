"""The last lines of a screening: how many images, and whether their scores are those that were to be expected."""

from __future__ import annotations

import math
from array import array
from collections import Counter

from anomalib_msacl.screening.bundle import Calibration
from anomalib_msacl.screening.table import Row


class Summary:
    """Counts rows, and keeps the raw score of each image or file, 8 bytes each, or that of each patient by his name.

    Args:
        calibration: Scores that the threshold comes from; None where it comes from others.
        patient_pattern: How the training found out patients; None where it did by other means, or not.
    """

    def __init__(self, calibration: Calibration | None = None, patient_pattern: str | None = None) -> None:
        self.labels: Counter[str] = Counter()
        self.errors = 0
        self._calibration = None if calibration is None or calibration.level <= 0 else calibration
        self._unit = "image" if self._calibration is None else self._calibration.unit
        self._pattern = patient_pattern
        self._files = 0
        self._last = ""
        self._last_scored = ""
        self._scores = array("d")
        self._patients: dict[str, float] = {}
        self._nameless = 0
        self._first_nameless = ""
        self._last_nameless = ""

    def add(self, row: Row) -> None:
        """Count a row, in the order of the table."""
        if row.file != self._last:
            self._files += 1
            self._last = row.file
        if row.error:
            self.errors += 1
        if row.label:
            self.labels[row.label] += 1
            self._look_for_patient(row)
        if row.raw_score:
            self._keep(row, float(row.raw_score))

    def _look_for_patient(self, row: Row) -> None:
        """Count the files whose patient is not known."""
        if not row.patient and row.file != self._last_nameless:
            self._nameless += 1
            self._last_nameless = row.file
            self._first_nameless = self._first_nameless or row.file

    def _keep(self, row: Row, raw: float) -> None:
        """Keep a score, or the largest of what counts once."""
        if self._unit == "patient":
            self._patients[row.patient] = max(raw, self._patients.get(row.patient, -math.inf))
        elif self._unit == "file" and row.file == self._last_scored:
            self._scores[-1] = max(raw, self._scores[-1])
        else:
            self._scores.append(raw)
        self._last_scored = row.file

    def line(self) -> str:
        """Return one line of summary."""
        images = sum(self.labels.values())
        return (
            f"{images} images of {self._files} files: {self.labels['abnormal']} abnormal, "
            f"{self.labels['normal']} normal, {self.errors} errors"
        )

    def warnings(self) -> list[str]:
        """Return what is wrong with the patients, and whether the scores are not like those of the calibration."""
        return [line for line in (self._unknown_patients(), self._shift()) if line]

    def _unknown_patients(self) -> str:
        """Return a warning where patients are asked for, but not known of all files, empty otherwise."""
        files = f"{self._nameless} of {self._files} files, {self._first_nameless} for example"
        incomparable = "scores are not compared with those that the threshold comes from"
        if self._nameless and self._pattern:
            what = f", and {incomparable}" if self._unit == "patient" else ""
            return (
                f"warning: patient_pattern '{self._pattern}' finds no patient in the paths of {files}, so that their "
                f"patient stays empty{what}: name the folder that they lie below as they did below the root of the "
                "training"
            )
        if self._nameless and self._unit == "patient":
            return (
                f"warning: nothing names the patient of {files}, so that {incomparable}, which are those of patients: "
                "screen files that name theirs, as DICOM files do"
            )
        return ""

    def _shift(self) -> str:
        """Return a warning where the scores are not like those that the threshold comes from, empty otherwise."""
        calibration = self._calibration
        incoming = list(self._patients.values()) if self._unit == "patient" else list(self._scores)
        unknown = self._unit == "patient" and self._nameless
        if calibration is None or unknown or not incoming or any(math.isnan(value) for value in incoming):
            return ""
        from anomalib_msacl.thresholds.conformal import shift  # noqa: PLC0415  # scipy takes its time

        found = shift(calibration.scores, incoming)
        if found.p_value >= calibration.level:
            return ""
        return (
            f"warning: the scores of these {found.incoming} {self._unit}s are not like "
            f"those of the {found.calibration} normal ones that the threshold comes from, but mostly "
            f"{'higher' if found.higher else 'lower'} (Kolmogorov-Smirnov distance {found.statistic:.2f}, p = "
            f"{found.p_value:.1g}): expect {'more' if found.higher else 'fewer'} false positives than promised"
            f"{'' if found.higher else ', and fewer finds'}, unless lesions among them are the reason"
        )
