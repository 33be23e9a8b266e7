"""Whose image a file is."""

from __future__ import annotations

import re
from pathlib import Path

from anomalib_msacl.errors import InputError
from anomalib_msacl.medical.dicom import dicom_tag
from anomalib_msacl.medical.kinds import kind_of


class Patients:
    """Finds out whose image a file is.

    Args:
        pattern: Regular expression on the path below the root.
        tag: DICOM keyword.

    Raises:
        InputError: If both are given, or the pattern is no regular expression.
    """

    def __init__(self, pattern: str | None, tag: str | None) -> None:
        if pattern and tag:
            raise InputError("both patient_pattern and patient_tag are set: choose one")
        try:
            self.pattern = re.compile(pattern) if pattern else None
        except re.error as error:
            raise InputError(f"patient_pattern '{pattern}' is no regular expression: {error}") from error
        self.tag = tag

    @property
    def asked(self) -> bool:
        """Whether there is a rule for patients."""
        return bool(self.pattern or self.tag)

    @property
    def description(self) -> str:
        """How patients are found out, in words."""
        if self.pattern:
            return f"patient_pattern '{self.pattern.pattern}'"
        return f"patient_tag {self.tag}" if self.tag else "the list of files"

    def of(self, path: Path, name: str) -> str:
        """Return the patient, and nothing where the rule does not tell, or there is none.

        Args:
            path: The file.
            name: Its path below the root.
        """
        if self.pattern:
            match = self.pattern.search(name)
            return match.group(min(1, self.pattern.groups)) or "" if match else ""
        if self.tag:
            return dicom_tag(path, self.tag) if kind_of(path) == "dicom" else ""
        return ""
