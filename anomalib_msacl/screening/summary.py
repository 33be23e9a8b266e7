"""The last lines of a screening: how many images, and whether their scores are those that were to be expected."""

from __future__ import annotations

import math
from array import array
from collections import Counter

from anomalib_msacl.screening.bundle import Calibration
from anomalib_msacl.screening.table import Row


class Summary:
    """Counts rows, and keeps their raw scores, 8 bytes each."""

    def __init__(self) -> None:
        self.labels: Counter[str] = Counter()
        self.errors = 0
        self._files = 0
        self._last = ""
        self._scores = array("d")
        self._patients: dict[str, float] = {}

    def add(self, row: Row) -> None:
        """Count a row, in the order of the table."""
        if row.file != self._last:
            self._files += 1
            self._last = row.file
        if row.error:
            self.errors += 1
        if row.label:
            self.labels[row.label] += 1
        if row.raw_score:
            raw = float(row.raw_score)
            self._scores.append(raw)
            if row.patient:
                self._patients[row.patient] = max(raw, self._patients.get(row.patient, -math.inf))

    def line(self) -> str:
        """Return one line of summary."""
        images = sum(self.labels.values())
        return (
            f"{images} images of {self._files} files: {self.labels['abnormal']} abnormal, "
            f"{self.labels['normal']} normal, {self.errors} errors"
        )

    def shift(self, calibration: Calibration | None) -> str:
        """Return a warning where the scores are not like those that the threshold comes from, empty otherwise.

        Args:
            calibration: Those scores; None where the threshold has none.
        """
        if calibration is None or calibration.level <= 0:
            return ""
        by_patient = calibration.patients and bool(self._patients)
        incoming = list(self._patients.values()) if by_patient else list(self._scores)
        if not incoming or any(math.isnan(value) for value in incoming):
            return ""
        from anomalib_msacl.thresholds.conformal import shift  # noqa: PLC0415  # scipy takes its time

        found = shift(calibration.scores, incoming)
        if found.p_value >= calibration.level:
            return ""
        return (
            f"warning: the scores of these {found.incoming} {'patients' if by_patient else 'images'} are not like "
            f"those of the {found.calibration} normal ones that the threshold comes from, but mostly "
            f"{'higher' if found.higher else 'lower'} (Kolmogorov-Smirnov distance {found.statistic:.2f}, p = "
            f"{found.p_value:.1g}): expect {'more' if found.higher else 'fewer'} false positives than promised"
            f"{'' if found.higher else ', and fewer finds'}, unless lesions among them are the reason"
        )
